"""`flotta dev`, as the command line sees it. Imports no service until it is used: a bare install only has this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from flotta.cli_support import Exit, fail
from flotta.endpoints import DATA_DIR_DEFAULT


def dev(
    data: Annotated[
        Path,
        typer.Option(
            "--data", metavar="DIR", envvar="FLOTTA_DATA", help="Where everything is kept between runs; made if absent."
        ),
    ] = Path(DATA_DIR_DEFAULT),
    gateway_port: Annotated[
        int, typer.Option("--gateway-port", min=0, max=65535, help="Port of the gateway; 0 picks a free one.")
    ] = 7000,
    admin_port: Annotated[
        int, typer.Option("--admin-port", min=0, max=65535, help="Port of the HTTP admin API; 0 picks a free one.")
    ] = 8089,
    shards: Annotated[int, typer.Option("--shards", min=1, max=1024, help="Shards of a new data directory.")] = 8,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the services do.")] = False,
) -> None:
    """Run the whole system in this process, on loopback, until Ctrl-C."""
    try:
        from flotta_runtime import run

        from flotta_dev.app import start
        from flotta_dev.settings import DevSettings
    except ImportError as error:
        fail(f"`flotta dev` needs the server parts: {error}", Exit.USAGE, "pip install 'flotta[server]'")
    flags = {
        "--data-dir": str(data),
        "--gateway-port": str(gateway_port),
        "--admin-port": str(admin_port),
        "--shards": str(shards),
        "--log-level": "info" if verbose else "warning",
    }
    sys.exit(run.main(DevSettings, start, [part for pair in flags.items() for part in pair]))
