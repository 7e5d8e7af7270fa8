"""flotta.kv.v1.Kv/Batch: many operations in one request.

Every item becomes a call of its own, and nothing below knows that they came together: those for one node travel in one
frame, and the writes of one shard are proposed as one run. What is put together here are the answers.

Items of one key go one after the other: an item waits for the answer to the one before it, and is not begun at all
when trying that one again might still change something. Who sends again what was not done therefore ends with what
the batch says.

Invariants: a request is refused as a whole before any of its items is begun, or not at all; a response has one result
for each item, in their order, and is never larger than a message may be: values that do not fit are refused, item by
item. A write is never told anything but what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from flotta_proto.flotta.kv_pb2 import BatchRequest
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.errors import InvalidArgument, PayloadTooLarge, RateLimited, Unavailable
from flotta_runtime.server import MESSAGE_BYTES_MAX

from flotta_gateway.call import Call
from flotta_gateway.core.replies import MESSAGE, failure_response, refusal
from flotta_gateway.core.retry import Failure
from flotta_gateway.core.wire import nested_head
from flotta_gateway.dispatcher import Dispatcher

# The fields of BatchItem and of BatchResult have the numbers of the kinds.
_KINDS: Final = {"get": GET, "put": PUT, "delete": DELETE}
_RESULT_BYTES: Final = 1024  # kept for each item: enough for all that is not a value
# After these another attempt at the item would end as this one did.
_FINAL: Final = frozenset(
    {
        *(Status.OK, Status.NOT_FOUND, Status.INVALID_ARGUMENT, Status.PAYLOAD_TOO_LARGE),
        *(Status.ALREADY_EXISTS, Status.VERSION_MISMATCH, Status.PRECONDITION_FAILED),
    }
)


@dataclass(frozen=True, slots=True)
class MultiLimits:
    items_max: int = 1_000
    bytes_max: int = 33 << 19
    response_bytes_max: int = MESSAGE_BYTES_MAX


class Multi:
    """One request: its calls, and the results that are there so far.

    `calls` are all of them, to be abandoned when the client goes; `first` those to submit. `done` gets the serialised
    response once the last is answered. Without items there are no calls, and the response is empty.
    """

    def __init__(
        self,
        request: BatchRequest,
        size: int,
        deadline_ms: float,
        limits: MultiLimits,
        dispatcher: Dispatcher,
        done: Callable[[bytes], None],
    ) -> None:
        """`size`: of the request, in bytes. Raises InvalidArgument or PayloadTooLarge: nothing is to be submitted."""
        items = request.items
        _check(len(items), size, limits)
        self._dispatcher = dispatcher
        self._done = done
        self._parts = [b""] * (2 * len(items))  # of each result what comes before the response, and the response
        self._left = len(items)
        self._room = max(0, limits.response_bytes_max - len(items) * _RESULT_BYTES)  # for what is larger than that
        self.calls: list[Call] = []
        for position, item in enumerate(items):
            name = item.WhichOneof("operation")
            if name is None:
                field = f"items[{position}]"
                raise InvalidArgument(f"{field} names no operation; set get, put or delete", field=field)
            kind = _KINDS[name]
            self.calls.append(Call(kind, getattr(item, name), deadline_ms, partial(self._put, position, kind)))
        self._next: dict[int, int] = {}  # an item -> the one that waits for it
        self._ready: list[tuple[Call, Failure | None]] = []  # what waited, to go on in this turn; None: submit it
        self.first: Sequence[Call] = self.calls
        if len({call.key for call in self.calls}) < len(self.calls):
            self.first = self._queue()

    def _queue(self) -> list[Call]:
        """Let each item wait for the one before it with its key; returns those that wait for none."""
        newest: dict[bytes, int] = {}
        first: list[Call] = []
        for position, call in enumerate(self.calls):
            before = newest.get(call.key)
            if before is None:
                first.append(call)
            else:
                self._next[before] = position
            newest[call.key] = position
        return first

    def _put(self, position: int, kind: int, response: bytes) -> None:
        if position in self._next:
            self._go_on(position, MESSAGE[kind].FromString(response).status)
        more = len(response) - _RESULT_BYTES
        if more > 0:
            if kind == GET and more > self._room:
                response = _NO_ROOM
            else:
                self._room -= more
        self._parts[2 * position] = nested_head(1, kind, len(response))
        self._parts[2 * position + 1] = response
        self._left -= 1
        if not self._left:
            self._done(b"".join(self._parts))

    def _go_on(self, position: int, status: Status) -> None:
        """The item at `position` has its answer: begin the one that waits for it, or refuse it."""
        call = self.calls[self._next.pop(position)]
        failure = None if status.code in _FINAL else _not_begun(position, status)
        if not self._ready:  # the dispatcher is in the middle of its work
            asyncio.get_running_loop().call_soon(self._launch)
        self._ready.append((call, failure))

    def _launch(self) -> None:
        ready, self._ready = self._ready, []
        begun = [call for call, failure in ready if failure is None and call.done is not None]
        if begun:
            self._dispatcher.submit(begun)
        for call, failure in ready:
            if failure is not None:
                self._dispatcher.refuse(call, failure)


def _check(count: int, size: int, limits: MultiLimits) -> None:
    if count > limits.items_max:
        raise InvalidArgument(
            f"items has {count} entries; the limit is {limits.items_max}", field="items", limit=limits.items_max
        )
    if size > limits.bytes_max:
        raise PayloadTooLarge(
            f"items has {size} bytes; the limit is {limits.bytes_max}", field="items", limit=limits.bytes_max
        )


def _not_begun(position: int, status: Status) -> Failure:
    message = f"not begun: items[{position}], of the same key, was not done or not certainly: {status.message}"
    if len(message) > _RESULT_BYTES // 2:
        message = f"not begun: items[{position}], of the same key, was not done or not certainly"
    if status.code == Status.RATE_LIMITED:
        return refusal(RateLimited(message, retry_after_ms=status.retry_after_ms))
    return refusal(Unavailable(message, shard_id=status.shard_id))


_NO_ROOM: Final = failure_response(
    GET,
    refusal(PayloadTooLarge("the values of this batch are too much for one response; read this key in another one")),
)
