"""`flotta check`: is everything as it should be? Of a running cluster, or of the directory of a backup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flotta.cli_keys import Json, Timeout
from flotta.cli_orders import Admin, KeyFile, Service
from flotta.cli_support import Exit, fail
from flotta.cli_tables import coloured, console, table

_GOOD = {"AGREE": "green", "BUSY": "yellow"}


def check(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="A backup on this machine; left out: the cluster.")
    ] = None,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10m",
    json_: Json = False,
) -> None:
    """Check that nodes are ALIVE, the map makes sense and all replicas of a shard hold the same; or, with a directory,
    that a backup is as it was written. Ends with 1 if anything is wrong."""
    if directory is not None:
        _end(*_backup(directory, json_))
    service = Service(admin, key_file, timeout)
    found = service.ask("get", "check")
    if json_:
        print(json.dumps(found, indent=2))
    else:
        shown = table("shard", "state", "replicas", "keys", "applied", "what")
        for shard in found["shards"]:
            state, replicas = shard["state"], shard["replicas"]
            told = [one for one in replicas if not one["wrong"]]
            where = ", ".join(one["node_id"] for one in replicas)
            keys = ", ".join(dict.fromkeys(str(one["keys"]) for one in told))
            applied = ", ".join(dict.fromkeys(str(one["applied_index"]) for one in told))
            name = f"[{_GOOD[state]}]{state}[/{_GOOD[state]}]" if state in _GOOD else coloured(state)
            shown.add_row(shard["shard_id"], name, where, keys, applied, shard["text"])
        console().print(shown)
    _end(found["problems"], f"map version {found['map_version']}: nothing is wrong", json_)


def _backup(directory: Path, json_: bool) -> tuple[list[str], str, bool]:
    try:
        from flotta_admin.copying import verify
        from flotta_runtime.errors import FlottaError
    except ImportError as reason:
        fail(f"a backup cannot be read here: {reason}", Exit.USAGE, "pip install 'flotta[server]'")
    try:
        manifest = verify.manifest(directory)
    except FlottaError as error:
        fail(
            error.message.removeprefix("directory: "),
            Exit.NOT_FOUND,
            "a backup that is whole has a manifest; take another one",
        )
    problems: list[str] = []
    files: list[dict[str, Any]] = []
    shown = table("file", "rows", "bytes", "is")
    for found in verify.look_through(directory, manifest.shards):
        name = found.shard.file
        files.append({"file": name, "rows": found.rows, "wrong": found.wrong or None})
        is_so = f"[red]{found.wrong}[/red]" if found.wrong else "[green]whole[/green]"
        shown.add_row(name, f"{found.rows}/{found.shard.rows}", str(found.shard.file_bytes), is_so)
        if found.wrong:
            problems.append(f"{name}: {found.wrong}")
    problems += [f"{name} does not belong to the backup" for name in verify.strangers(directory, manifest.shards)]
    good = (
        f"{manifest.rows} keys of {manifest.num_shards} shards of cluster {manifest.cluster_id}, "
        f"as of map version {manifest.map_version}: nothing is wrong"
    )
    if json_:
        print(json.dumps({"files": files, "problems": problems}, indent=2))
    else:
        console().print(shown)
    return problems, good, json_


def _end(problems: list[str], good: str, json_: bool) -> None:
    if not json_:
        for problem in problems:
            console().print(f"[red]wrong[/red]: {problem}", soft_wrap=True)
        if not problems:
            print(good)
    raise typer.Exit(Exit.NOT_FOUND if problems else Exit.OK)
