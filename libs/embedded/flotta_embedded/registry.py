"""The commands that replicas know, by name and version.

A shipped `name@version` is immutable: change what a command does by registering the next version beside it.
Invariant: what a handler writes and returns depends on the state, its arguments and the entry's facts alone (no
clock, randomness, environment, set order or `hash()`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from flotta_consensus.api import Members

from .api import BulkHandler, Command, Overlay, VectorHandler
from .codec import encode_command, encode_value, wire_name
from .txn import check_args, transactional

MembersHook = Callable[[Overlay, int, Members, Members], None]
"""(overlay, index, before, after), called while a membership change is applied."""

RAISE_REVISIONS = "flotta.revisions"
"""Lets revisions go on so much higher. The machine itself does it; in every registry."""
RAISE_WIRE = wire_name(RAISE_REVISIONS, 1)

_GAP = struct.Struct(">Q")

F = TypeVar("F", bound=Callable[..., Any])

TIME_COMMAND = "flotta.time"
"""Does nothing but move group time to its stamp. In every registry."""


def raise_revisions(gap: int) -> bytes:
    """The payload that lets every later revision be higher by `gap` than it would be."""
    return encode_command(RAISE_REVISIONS, 1, 0, _GAP.pack(gap))


def _gaps(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    return [_GAP.unpack(command.args)[0] for command in commands]


def _advance_time(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    return [command.now_ms for command in commands]


class Registry:
    """Not thread-safe: fill it before the first machine opens."""

    def __init__(self) -> None:
        self._handlers: dict[bytes, VectorHandler] = {}
        self._checks: dict[bytes, Callable[[Sequence[Any]], str | None]] = {}
        self._members_hooks: list[MembersHook] = []
        self._kept_rows: list[bytes] = []
        self._bulk_handlers: list[BulkHandler] = []
        self._add(TIME_COMMAND, 1, _advance_time)
        self._add(RAISE_REVISIONS, 1, _gaps)

    def command(self, name: str, *, version: int = 1) -> Callable[[F], F]:
        """`handler(txn, *args) -> result`: one transaction per entry, arguments and result in the canonical encoding.
        `CommandError` rolls back and is the result; any other exception ends the process."""

        def register(handler: F) -> F:
            wire = self._add(name, version, transactional(f"{name}@{version}", handler))
            self._checks[wire] = check_args(f"{name}@{version}", handler)
            return handler

        return register

    def vector(self, name: str, *, version: int = 1) -> Callable[[VectorHandler], VectorHandler]:
        """`handler(overlay, commands) -> results`: a whole run of entries at once, raw argument bytes. The state after
        it must not depend on how the entries were cut into runs."""

        def register(handler: VectorHandler) -> VectorHandler:
            self._add(name, version, handler)
            return handler

        return register

    def bulk(self, handler: BulkHandler) -> BulkHandler:
        """Have a handler asked first, for each apply batch as a whole; see `api.BulkHandler`."""
        self._bulk_handlers.append(handler)
        return handler

    def on_members(self, hook: MembersHook) -> MembersHook:
        """Have a hook called, in order of registration, inside the batch that applies a membership change."""
        self._members_hooks.append(hook)
        return hook

    def keep_row(self, key: bytes) -> None:
        """Let every machine hold this row in memory: one that is small and looked at by nearly every command."""
        self._kept_rows.append(key)

    def call(self, name: str, *args: Any, version: int = 1, stamp_ms: int) -> bytes:
        """The payload that calls an ordinary command. ValueError for a wrong number of arguments, KeyError for an
        unknown command, TypeError for an argument without an encoding: nothing bad is ever proposed."""
        wire = wire_name(name, version)
        wrong = self._checks[wire](args)
        if wrong is not None:
            raise ValueError(wrong)
        return encode_command(name, version, stamp_ms, encode_value(args))

    def names(self) -> list[str]:
        """Every `name@version`, sorted: what a node advertises."""
        return sorted(wire.decode() for wire in self._handlers)

    def handlers(self) -> dict[bytes, VectorHandler]:
        return self._handlers

    def bulk_handlers(self) -> Sequence[BulkHandler]:
        return self._bulk_handlers

    def members_hooks(self) -> Sequence[MembersHook]:
        return self._members_hooks

    def kept_rows(self) -> Sequence[bytes]:
        return self._kept_rows

    def _add(self, name: str, version: int, handler: VectorHandler) -> bytes:
        wire = wire_name(name, version)
        if wire in self._handlers:
            raise ValueError(f"command {wire.decode()} is registered twice")
        self._handlers[wire] = handler
        return wire
