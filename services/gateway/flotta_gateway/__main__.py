"""`flotta-gateway`, `python -m flotta_gateway`."""

from __future__ import annotations

import sys

from flotta_runtime import run

from flotta_gateway.app import start
from flotta_gateway.settings import GatewaySettings


def main() -> None:
    """Run a gateway until it is told to stop."""
    sys.exit(run.main(GatewaySettings, start))


if __name__ == "__main__":
    main()
