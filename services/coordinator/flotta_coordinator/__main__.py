"""`python -m flotta_coordinator`, the flotta-coordinator command."""

from __future__ import annotations

import sys

from flotta_runtime import run

from flotta_coordinator.app import start
from flotta_coordinator.settings import CoordinatorSettings


def main() -> None:
    sys.exit(run.main(CoordinatorSettings, start))


if __name__ == "__main__":
    main()
