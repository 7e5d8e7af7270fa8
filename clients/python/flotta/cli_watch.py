"""`flotta watch-map`: the changes of the shard map as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import asdict
from typing import Annotated

import typer
from flotta_runtime.tls import TlsError, client_tls

from flotta._async.channels import AsyncChannels
from flotta._async.map_watch import AsyncMapWatch
from flotta.cli_keys import Json
from flotta.cli_status import NO_MAP_HINT, Coordinators
from flotta.cli_support import find, run
from flotta.cli_tables import console
from flotta.endpoints import Endpoints
from flotta.errors import InvalidArgumentError, UnavailableError
from flotta.map_changes import changes
from flotta.shard_map import ShardMap

Count = Annotated[int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after N new versions.")]


def watch_map(count: Count = None, coordinators: Coordinators = None, json_: Json = False) -> None:
    """Show each change of the shard map as it happens, until Ctrl-C.

    With --json there is a line for each version: its number and what changed.
    """
    where = find(coordinators=coordinators)
    with contextlib.suppress(KeyboardInterrupt):
        run(_follow(where, count, json_), where, NO_MAP_HINT)


async def _follow(where: Endpoints, count: int | None, json_: bool) -> None:
    try:
        tls = client_tls(where.tls)
    except TlsError as error:
        raise InvalidArgumentError(str(error)) from error
    news: asyncio.Queue[tuple[ShardMap, ShardMap]] = asyncio.Queue()
    channels = AsyncChannels(tls)
    watch = AsyncMapWatch(where.coordinators, channels.to, lambda before, after: news.put_nowait((before, after)))
    try:
        if not await watch.fetch():
            said = f"(addresses from {where.coordinators_from})"
            raise UnavailableError(f"no coordinator answers {said}: {watch.trouble}")
        if watch.current.version:
            news.get_nowait()
        _show_map(watch.current, json_)
        await watch.start()
        while count is None or count > 0:
            _show_changes(*await news.get(), json_)
            count = None if count is None else count - 1
    finally:
        await watch.stop()
        await channels.close()


def _show_map(found: ShardMap, json_: bool) -> None:
    if json_:
        print(json.dumps({"map_version": found.version, "changes": []}), flush=True)
    else:
        console().print(f"map {found.version}: {len(found.nodes)} nodes, {len(found.shards)} shards; now waiting")


def _show_changes(before: ShardMap, after: ShardMap, json_: bool) -> None:
    found = changes(before, after)
    if json_:
        print(json.dumps({"map_version": after.version, "changes": [asdict(one) for one in found]}), flush=True)
        return
    out = console()
    for one in found or ():
        out.print(f"map {after.version}: {f'{one.kind} {one.subject}'.strip()}: {one.text}", soft_wrap=True)
    if not found:
        out.print(f"map {after.version}: nothing that is shown")
