"""`flotta-admin`, also `python -m flotta_admin`."""

from __future__ import annotations

import sys

from flotta_runtime import run

from flotta_admin.service import start
from flotta_admin.settings import AdminSettings


def main() -> None:
    """Run the admin service until it is told to stop."""
    sys.exit(run.main(AdminSettings, start))


if __name__ == "__main__":
    main()
