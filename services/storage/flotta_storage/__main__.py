"""`flotta-storage`, `python -m flotta_storage`."""

from __future__ import annotations

import sys

from flotta_runtime import run

from flotta_storage.app import start
from flotta_storage.settings import StorageSettings


def main() -> None:
    """Run a storage node until it is told to stop."""
    sys.exit(run.main(StorageSettings, start))


if __name__ == "__main__":
    main()
