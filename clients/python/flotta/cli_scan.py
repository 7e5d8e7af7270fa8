"""`flotta scan`: rows in the order of their keys, printed as they come."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from typing import Annotated, NoReturn

import typer

from flotta.cli_keys import Gateway, Json, Timeout, client_of
from flotta.cli_support import Exit, as_json, explained, fail, find, shown, where_to_look
from flotta.errors import FlottaError
from flotta.models import Consistency, Entry

Prefix = Annotated[str, typer.Option("--prefix", "-p", metavar="KEY", help="Only keys that begin so.")]
Start = Annotated[str, typer.Option("--start", metavar="KEY", help="Only keys from here on, this one included.")]
End = Annotated[str, typer.Option("--end", metavar="KEY", help="Only keys before this one.")]
Limit = Annotated[int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="So many rows at most.")]
Token = Annotated[
    str, typer.Option("--token", metavar="TOKEN", help="Go on where a scan of the same range ended; it said so.")
]


def scan(
    prefix: Prefix = "",
    start: Start = "",
    end: End = "",
    limit: Limit = None,
    keys_only: Annotated[bool, typer.Option("--keys-only", "-k", help="Print keys without values.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print how many keys there are, and none of them.")] = False,
    reverse: Annotated[bool, typer.Option("--reverse", help="The greatest key first.")] = False,
    eventual: Annotated[bool, typer.Option("--eventual", help="Any replica may answer; it may lag behind.")] = False,
    token: Token = "",
    gateway: Gateway = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """Print the rows of a range in the order of their keys: a line for each, key, tab, value. Without flags: all rows.

    --timeout is for each page of them. With --json a line is a JSON object.
    """
    if count and (keys_only or reverse or limit is not None or token):
        fail("--count prints a number", Exit.USAGE, "leave out --keys-only, --reverse, --limit and --token")
    where = find(gateway=gateway)
    consistency = Consistency.EVENTUAL if eventual else Consistency.STRONG
    low, high, begins = os.fsencode(start), os.fsencode(end), os.fsencode(prefix)
    reached = _bytes_of(token)
    with client_of(where, timeout) as client, explained(where_to_look(where), "the rows were not read; try again"):
        if count:
            number = client.count(begins, start=low, end=high, consistency=consistency)
            print(json.dumps({"count": number}) if json_ else number)
            return
        rows = client.scan(
            begins,
            start=low,
            end=high,
            reverse=reverse,
            limit=limit or 0,
            keys_only=keys_only,
            consistency=consistency,
            token=reached,
        )
        try:
            for page in rows.pages():
                for entry in page.entries:
                    print(_line(entry, keys_only, json_))
                sys.stdout.flush()
                reached = page.token
        except FlottaError as error:
            if reached:
                print(f"flotta: what is printed is right; go on with {_flag(reached)}", file=sys.stderr)
            raise error
        except KeyboardInterrupt:
            _interrupted(reached)
    if reached:
        print(f"flotta: there may be more; go on with {_flag(reached)}", file=sys.stderr)


def _interrupted(reached: bytes) -> NoReturn:
    fail("interrupted", Exit.UNKNOWN, f"go on with {_flag(reached)}" if reached else "nothing was printed")


def _line(entry: Entry, keys_only: bool, json_: bool) -> str:
    if not json_:
        key = _on_a_line(shown(entry.key))
        return key if keys_only else f"{key}\t{_on_a_line(shown(entry.value))}"
    facts = {"version": entry.version, "update_time_ms": entry.update_time_ms, "expire_time_ms": entry.expire_time_ms}
    value = {} if keys_only else as_json("value", entry.value)
    return json.dumps(as_json("key", entry.key) | value | facts)


def _on_a_line(text: str) -> str:
    return text.replace("\n", "\\n").replace("\t", "\\t")


def _flag(token: bytes) -> str:
    return f"--token {base64.urlsafe_b64encode(token).decode('ascii')}"


def _bytes_of(token: str) -> bytes:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        fail("--token is no token", Exit.USAGE, "give what the scan before this one said, or leave it out")
