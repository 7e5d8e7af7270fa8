"""What an ordinary command gets: its own view of the state, its writes, and the entry's facts.

Invariants: a transaction reads its own writes; they reach the batch only if the command returns; the object is dead
once the command has returned, so nothing of it can leak into another command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import keys
from .api import Command, Overlay, VectorHandler
from .codec import decode_value, encode_value
from .errors import CommandError, InvariantError, Rejection
from .overlay import Layer, Row

INVALID_ARGUMENT = "INVALID_ARGUMENT"


class Table:
    """Rows under one prefix, as if they were all there is."""

    __slots__ = ("_prefix", "_prefix_end", "_txn")

    def __init__(self, txn: Txn, prefix: bytes) -> None:
        self._txn = txn
        self._prefix = prefix
        self._prefix_end = keys.prefix_end(prefix)

    def get(self, key: bytes) -> bytes | None:
        return self._txn._live().get(self._prefix + key)

    def multi_get(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        return self._txn._live().multi_get([self._prefix + key for key in wanted])

    def put(self, key: bytes, value: bytes) -> None:
        if not isinstance(value, bytes):
            raise TypeError(f"value must be bytes, not {type(value).__name__}")
        self._txn._live().put(self._prefix + key, value)

    def delete(self, key: bytes) -> bool:
        """True if there was such a row."""
        layer = self._txn._live()
        found = layer.get(self._prefix + key) is not None
        if found:
            layer.delete(self._prefix + key)
        return found

    def scan(
        self,
        low: bytes = b"",
        high: bytes | None = None,
        *,
        prefix: bytes = b"",
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """Rows with low <= key < high that begin with `prefix`, as they are when the scan begins."""
        first = self._prefix + max(low, prefix)
        ends = [self._prefix_end, keys.prefix_end(self._prefix + prefix)]
        if high is not None:
            ends.append(self._prefix + high)
        last = min((end for end in ends if end is not None), default=None)
        rows = self._txn._live().scan(first, last, reverse=reverse, limit=limit)
        return _stripped(rows, len(self._prefix))


def _stripped(rows: Iterator[Row], length: int) -> Iterator[Row]:
    return ((key[length:], value) for key, value in rows)


class Txn(Table):
    """The default table, and the way to the named ones."""

    __slots__ = ("_layer", "index", "now_ms", "revision")

    def __init__(self, overlay: Overlay, command: Command) -> None:
        super().__init__(self, keys.DATA)
        self._layer: Layer | None = Layer(overlay)
        self.index = command.index
        self.revision = command.revision
        self.now_ms = command.now_ms

    def table(self, name: str) -> Table:
        self._live()
        return Table(self, keys.table_prefix(name))

    def overlay(self) -> Overlay:
        """All rows of the replica by their full keys (`keys.py`), for helpers such as dedup. Never write under META."""
        return self._live()

    def _live(self) -> Layer:
        if self._layer is None:
            raise InvariantError("a transaction was used after its command returned")
        return self._layer

    def _close(self, into: Overlay | None) -> None:
        layer = self._live()
        self._layer = None
        if into is not None:
            if not isinstance(into, Layer):
                raise InvariantError(f"a transaction cannot be merged into {type(into).__name__}")
            layer.merge_into(into)


def check_args(name: str, handler: Callable[..., Any]) -> Callable[[Sequence[Any]], str | None]:
    """A function that tells what is wrong with a number of arguments, or None. The same on every replica."""
    parameters = list(inspect.signature(handler).parameters.values())
    if not parameters:
        raise TypeError(f"command {name} must take a transaction as its first parameter")
    least = 0
    most: int | None = 0
    for parameter in parameters[1:]:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            most = None
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            most = None if most is None else most + 1
            least += parameter.default is inspect.Parameter.empty
        else:
            raise TypeError(f"command {name} cannot take {parameter}: arguments are positional")

    def check(args: Sequence[Any]) -> str | None:
        if len(args) >= least and (most is None or len(args) <= most):
            return None
        wanted = str(least) if most == least else f"{least} to {'any number' if most is None else most}"
        return f"{name} takes {wanted} arguments, not {len(args)}"

    return check


def transactional(name: str, handler: Callable[..., Any]) -> VectorHandler:
    """Run an ordinary command (`handler(txn, *args)`) for each entry of a run, each in its own transaction."""
    check = check_args(name, handler)

    def run_one(overlay: Overlay, command: Command) -> Any:
        try:
            args = decode_value(command.args)
        except ValueError as error:
            return Rejection(INVALID_ARGUMENT, f"arguments of {name} cannot be decoded: {error}")
        if not isinstance(args, list):
            return Rejection(INVALID_ARGUMENT, f"arguments of {name} are not a list")
        wrong = check(args)
        if wrong is not None:
            return Rejection(INVALID_ARGUMENT, wrong)
        txn = Txn(overlay, command)
        try:
            result = handler(txn, *args)
        except CommandError as error:
            txn._close(into=None)
            return Rejection(error.code, error.message, canonical(error.detail))
        txn._close(into=overlay)
        return canonical(result)

    def canonical(value: Any) -> Any:
        """As every replica, and every later decoder, will see it."""
        try:
            return decode_value(encode_value(value))
        except (TypeError, ValueError) as error:
            raise InvariantError(f"command {name} gave back what cannot be encoded: {error}") from error

    def run(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
        return [run_one(overlay, command) for command in commands]

    return run
