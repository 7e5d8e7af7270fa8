"""What the commands share: exit codes, addresses, bytes from the command line, bytes to the terminal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import enum
import os
import re
import sys
from collections.abc import Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer

from flotta import endpoints
from flotta.admin_api import NotAllowedError, NotFoundError
from flotta.cli_config import EndpointError
from flotta.errors import (
    AlreadyExistsError,
    FlottaError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PreconditionFailedError,
    RateLimitedError,
    UnavailableError,
    VersionMismatchError,
)
from flotta.overview import gather

T = TypeVar("T")
ROOT_FLAGS: ContextVar[endpoints.Flags] = ContextVar("flotta_root_flags", default=endpoints.NO_FLAGS)
"""What was said before the command."""
WRITE_HINT = "a write may have happened: read the key before you repeat it"
KEY_HINT = "nothing was done; `flotta get KEY --head` shows the version that is there"
USAGE_HINT = "nothing was done; change what the message names: `flotta VERB --help` says what each flag takes"
BUSY_HINT = "nothing was done; try again in a while, or let it wait longer with --timeout"
BROKEN_HINT = "see `flotta status`, and the logs of the process that the message names"
FILE_HINT = "the configuration file is ~/.config/flotta/config.toml, or what --config names"


class Exit(enum.IntEnum):
    """What the exit code of a command says."""

    OK = 0
    NOT_FOUND = 1  # no such key, node, shard or operation; `status`, `check`: something is wrong
    USAGE = 2  # the request can never succeed as it is
    CONDITION = 3  # if-version or if-absent did not hold
    UNAVAILABLE = 4  # nothing was done; try again later
    UNKNOWN = 5  # no answer came: the write may have happened
    FAILED = 6  # something broke; for `--wait`: the operation failed


def fail(message: str, code: Exit, hint: str = "") -> NoReturn:
    """Say what went wrong and what to do about it, and end."""
    print(f"flotta: {message}", file=sys.stderr)
    if hint:
        print(f"        {hint}", file=sys.stderr)
    raise typer.Exit(code)


def run(work: Coroutine[Any, Any, T], where: endpoints.Endpoints, unreachable_hint: str = "") -> T:
    """Run a command's work; every expected error ends it with its exit code and a hint."""
    with explained(unreachable_hint or where_to_look(where)):
        return asyncio.run(work)


@contextlib.contextmanager
def explained(unreachable_hint: str, unknown_hint: str = WRITE_HINT, condition_hint: str = KEY_HINT) -> Iterator[None]:
    """Every expected error ends the command with its exit code and a hint."""
    try:
        yield
    except NotFoundError as error:
        fail(str(error), Exit.NOT_FOUND, "`flotta nodes`, `flotta shards` and `flotta ops` list what there is")
    except NotAllowedError as error:
        hint = "give its key in FLOTTA_ADMIN_API_KEY, --admin-key-file FILE, or the configuration file"
        fail(str(error), Exit.USAGE, hint)
    except InvalidArgumentError as error:
        fail(str(error), Exit.USAGE, USAGE_HINT)
    except (AlreadyExistsError, VersionMismatchError, PreconditionFailedError) as error:
        fail(str(error), Exit.CONDITION, condition_hint)
    except RateLimitedError as error:
        fail(str(error), Exit.UNAVAILABLE, BUSY_HINT)
    except UnavailableError as error:
        fail(str(error), Exit.UNAVAILABLE, unreachable_hint)
    except OutcomeUnknownError as error:
        fail(str(error), Exit.UNKNOWN, unknown_hint)
    except FlottaError as error:
        fail(str(error), Exit.FAILED, BROKEN_HINT)


def where_to_look(where: endpoints.Endpoints) -> str:
    """What to do when no gateway answers."""
    said = f"(gateway address from {where.gateway_from})"
    return f"see `flotta status`; start a cluster with `flotta dev`, or name one with --gateway {said}"


def find(**flags: Any) -> endpoints.Endpoints:
    """The addresses, by the flags of the command and those before it; or an end with a clear message."""
    try:
        return endpoints.find(replace(ROOT_FLAGS.get(), **flags))
    except EndpointError as error:
        fail(str(error), Exit.USAGE, f"`flotta --help` says where addresses come from; {FILE_HINT}")


def key_bytes(key: str) -> bytes:
    """A key as it was typed, byte for byte, whatever the terminal's encoding made of it."""
    if not key:
        fail("KEY is empty; a key has 1 to 1024 bytes", Exit.USAGE, "give a key, in quotes if it has spaces")
    return os.fsencode(key)


def value_bytes(value: str | None, file: Path | None) -> bytes:
    """The value: the argument, a file, or standard input where it is not a terminal."""
    if value is not None and file is not None:
        fail("give VALUE or --file, not both", Exit.USAGE, "leave one of them out")
    if value is not None:
        return os.fsencode(value)
    if file is not None and str(file) != "-":
        try:
            return file.read_bytes()
        except OSError as error:
            fail(f"--file {file}: {error.strerror}", Exit.USAGE, "name a file that can be read, or - for a pipe")
    if file is None and sys.stdin.isatty():
        fail("no value given", Exit.USAGE, "give VALUE, --file PATH, or pipe it in")
    return sys.stdin.buffer.read()


def shown(data: bytes) -> str:
    """Bytes as a person can read them: text as it is, anything else escaped."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return repr(data)[2:-1]
    return text if all(c.isprintable() or c in "\n\t" for c in text) else repr(data)[2:-1]


def as_json(name: str, data: bytes) -> dict[str, str]:
    """Bytes as JSON members: base64 always, and plain where they are UTF-8."""
    members = {f"{name}_base64": base64.b64encode(data).decode("ascii")}
    with contextlib.suppress(UnicodeDecodeError):
        members[name] = data.decode("utf-8")
    return members


COMPLETION_TIMEOUT_MS = 500
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)?")
_UNIT_MS = {"ms": 1, "s": 1_000, None: 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str, flag: str) -> int:
    """`90`, `90s`, `15m`, `2h`, `7d` or `250ms` in milliseconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        fail(f"{flag} {text!r} is no duration", Exit.USAGE, "write for example 90s, 15m, 2h, 7d or 250ms")
    return int(match[1]) * _UNIT_MS[match[2]]


def complete_from_map(kind: str, incomplete: str) -> list[str]:
    """Ids of "nodes", "shards" or "both" that begin so, for the shell; none when no coordinator answers at once."""
    try:
        where = endpoints.find(ROOT_FLAGS.get())
    except EndpointError:  # the shell is in the middle of a line: whoever presses return is told
        return []
    found = asyncio.run(gather((), where.coordinators, COMPLETION_TIMEOUT_MS, where.tls))
    names = [node.node_id for node in found.nodes] if kind in ("nodes", "both") else []
    names += [shard.shard_id for shard in found.shards] if kind in ("shards", "both") else []
    return [name for name in names if name.startswith(incomplete)]
