"""`flotta put`, `flotta get`, `flotta del`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flotta._async.client import AsyncClient
from flotta._sync.client import Client
from flotta.cli_support import Exit, as_json, duration_ms, fail, find, key_bytes, run, shown, value_bytes
from flotta.endpoints import Endpoints
from flotta.models import Consistency, Entry

NO_KEY_HINT = "`flotta scan --keys-only --prefix …` lists the keys that begin so"
Gateway = Annotated[
    str | None,
    typer.Option("--gateway", "-g", metavar="HOST:PORT,…", help="Gateways to talk to. Environment: FLOTTA_GATEWAY."),
]
Timeout = Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long to wait, e.g. 500ms, 5s.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The key: 1 to 1024 bytes.")]
IfVersion = Annotated[
    int | None, typer.Option("--if-version", min=1, metavar="N", help="Only if this is the key's version.")
]


def put(
    key: Key,
    value: Annotated[
        str | None, typer.Argument(metavar="[VALUE]", help="The value; left out, it is read from --file or a pipe.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="PATH", help="Read the value from here; - is a pipe.")
    ] = None,
    ttl: Annotated[str | None, typer.Option("--ttl", metavar="TIME", help="Expire after e.g. 90s, 15m, 7d.")] = None,
    if_version: IfVersion = None,
    if_absent: Annotated[bool, typer.Option("--if-absent", help="Only if there is no such key.")] = False,
    gateway: Gateway = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """Store a value under a key, and print its version."""
    if if_version is not None and if_absent:
        fail("--if-version and --if-absent contradict each other", Exit.USAGE, "give one of them")
    where = find(gateway=gateway)
    name, data = key_bytes(key), value_bytes(value, file)
    ttl_ms = duration_ms(ttl, "--ttl") if ttl else 0

    async def work() -> int:
        async with _client(where, timeout) as client:
            return await client.put(name, data, ttl_ms=ttl_ms, if_version=if_version or 0, if_absent=if_absent)

    version = run(work(), where)
    print(json.dumps(as_json("key", name) | {"version": version}) if json_ else f"version {version}")


def get(
    key: Key,
    raw: Annotated[bool, typer.Option("--raw", help="Write the bytes of the value and nothing else.")] = False,
    eventual: Annotated[bool, typer.Option("--eventual", help="Any replica may answer; it may lag behind.")] = False,
    head: Annotated[bool, typer.Option("--head", help="Print version and times, not the value.")] = False,
    gateway: Gateway = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """Print the value of a key."""
    if raw and (json_ or head):
        fail("--raw prints the value alone", Exit.USAGE, "leave out --json and --head")
    where = find(gateway=gateway)
    name = key_bytes(key)
    consistency = Consistency.EVENTUAL if eventual else Consistency.STRONG

    async def work() -> Entry | None:
        async with _client(where, timeout) as client:
            return await client.get(name, consistency=consistency, head_only=head)

    entry = run(work(), where)
    if entry is None:
        fail(f"there is no key {shown(name)!r}", Exit.NOT_FOUND, NO_KEY_HINT)
    if raw:
        sys.stdout.buffer.write(entry.value)
        sys.stdout.buffer.flush()
    elif json_ or head:
        _print_entry(entry, json_, head)
    else:
        print(shown(entry.value))


def delete(
    key: Key,
    if_version: IfVersion = None,
    gateway: Gateway = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """Delete a key."""
    where = find(gateway=gateway)
    name = key_bytes(key)

    async def work() -> int | None:
        async with _client(where, timeout) as client:
            return await client.delete(name, if_version=if_version or 0)

    version = run(work(), where)
    if version is None:
        fail(f"there is no key {shown(name)!r}", Exit.NOT_FOUND, NO_KEY_HINT)
    print(json.dumps(as_json("key", name) | {"deleted": True, "version": version}) if json_ else "deleted")


def client_of(where: Endpoints, timeout: str) -> Client:
    """A blocking client of the gateways."""
    first, *more = where.gateway
    return Client(first, *more, timeout_ms=duration_ms(timeout, "--timeout"), tls=where.tls)


def _client(where: Endpoints, timeout: str) -> AsyncClient:
    first, *more = where.gateway
    return AsyncClient(first, *more, timeout_ms=duration_ms(timeout, "--timeout"), tls=where.tls)


def _print_entry(entry: Entry, json_: bool, head: bool) -> None:
    facts = {
        "version": entry.version,
        "create_time_ms": entry.create_time_ms,
        "update_time_ms": entry.update_time_ms,
        "expire_time_ms": entry.expire_time_ms,
    }
    if json_:
        value = {} if head else as_json("value", entry.value)
        print(json.dumps(as_json("key", entry.key) | value | facts))
    else:
        for name, number in facts.items():
            print(f"{name:<15} {number}")
