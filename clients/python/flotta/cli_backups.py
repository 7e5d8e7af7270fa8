"""`backup` and `restore`: all rows of a cluster to a directory of its admin service, and back into a new cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from flotta.cli_keys import Json, Timeout
from flotta.cli_orders import Admin, KeyFile, Service, Wait, ordered

Directory = Annotated[
    str, typer.Argument(metavar="DIRECTORY", help="Below the backup_dir of the admin service, on its machine.")
]


def backup(
    directory: Directory,
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Save all rows of the cluster while it serves, each shard as of one moment. The directory must not exist yet."""
    service = Service(admin, key_file, timeout)
    ordered(service, service.ask("post", "backups", body={"directory": directory}), wait, json_)


def restore(
    directory: Directory,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, metavar="N", help="So many; left out: as there were.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, metavar="N", help="Of each; left out: as there were.")
    ] = None,
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Restore a backup into a cluster that has nodes and no shards yet. Nothing is changed if the backup is damaged."""
    service = Service(admin, key_file, timeout)
    body = {"directory": directory, "num_shards": shards, "replication_factor": replicas}
    ordered(service, service.ask("post", "restores", body=body), wait, json_)
