"""The asynchronous client: typed get, put, delete and batches of them, against one gateway or several.

Writes are exactly-once by default: each carries a request id, under which the shard remembers its outcome for ten
minutes, so that a write without an answer can be sent again. The id holds the time of the first attempt; the shard
refuses one that is older than its memory, so a late repeat is an error and never a second execution. It therefore
needs a clock that is right within a minute. With `idempotent_writes=False` a write is sent once.

Invariants:
- A write without a request id is never sent again once it may have reached the cluster.
- No call lasts longer than its timeout.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio
from flotta_proto.flotta import kv_pb2
from flotta_proto.flotta.kv_pb2_grpc import KvStub
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.tls import Tls, TlsError, TlsFiles, client_tls, hint, open_channel
from google.protobuf.message import Message

from flotta.errors import (
    FlottaError,
    InternalError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    RateLimitedError,
    UnavailableError,
)
from flotta.messages import (
    entry_of,
    item_of,
    raise_in_doubt,
    repeatable,
    request_of,
    response_of,
    result_of,
    version_of,
)
from flotta.models import Consistency, Delete, Entry, Get, Operation, Put

MESSAGE_BYTES_MAX = 17 * 1024 * 1024
RETRY_MS = 25
RETRY_MS_MAX = 1_000
TLS_LOOK_S = 1.0

_LOG = logging.getLogger("flotta")

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_retries", 0),  # a retry is decided here, never by the transport
]


class AsyncClient:
    """A connection to a cluster through its gateways. Use it as `async with AsyncClient("host:7000") as client`.

    Given several gateways it talks to one, and turns to the next when that one cannot be reached. With `tls` it speaks
    TLS: `TlsFiles(ca_file=…)`, and `cert_file` and `key_file` where the gateways ask for a certificate. Files that are
    replaced are used for new connections; InvalidArgumentError if they cannot be used at first.
    """

    def __init__(
        self,
        address: str = "localhost:7000",
        *more: str,
        timeout_ms: int = 5_000,
        idempotent_writes: bool = True,
        tls: TlsFiles | None = None,
    ) -> None:
        self._addresses = (address, *more)
        self._timeout_ms = timeout_ms
        self._idempotent_writes = idempotent_writes
        self._current = 0
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._looked_s = time.monotonic()
        try:
            self._tls = client_tls(tls)
        except TlsError as error:
            raise InvalidArgumentError(str(error)) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that are waiting are cancelled."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def get(
        self,
        key: str | bytes,
        *,
        consistency: Consistency = Consistency.STRONG,
        max_staleness_ms: int = 0,
        head_only: bool = False,
        timeout_ms: int | None = None,
    ) -> Entry | None:
        """The entry under `key`, or None. `max_staleness_ms` bounds how far an EVENTUAL read may lag; 0: any lag."""
        response = await self._call("Get", Get(key, consistency, max_staleness_ms, head_only), timeout_ms)
        return entry_of(response)

    async def put(
        self,
        key: str | bytes,
        value: str | bytes,
        *,
        ttl_ms: int = 0,
        if_version: int = 0,
        if_absent: bool = False,
        request_id: str = "",
        timeout_ms: int | None = None,
    ) -> int:
        """Store `value` under `key`; returns the new version.

        `if_version`: only if that is the key's version (VersionMismatchError). `if_absent`: only if there is no such
        key (AlreadyExistsError). `ttl_ms`: expires after so long; 0: never. `request_id`: an id of the caller's own,
        to make this write exactly-once across processes.
        """
        operation = Put(key, value, ttl_ms, if_version, if_absent, request_id)
        return version_of(await self._call("Put", operation, timeout_ms)) or 0

    async def delete(
        self, key: str | bytes, *, if_version: int = 0, request_id: str = "", timeout_ms: int | None = None
    ) -> int | None:
        """Delete `key`; returns the version of the deletion, or None if there was no such key."""
        return version_of(await self._call("Delete", Delete(key, if_version, request_id), timeout_ms))

    async def batch(
        self, operations: Iterable[Operation], *, timeout_ms: int | None = None
    ) -> list[Entry | int | FlottaError | None]:
        """Carry out many operations in one request; returns a result for each, in their order.

        A result is what `get`, `put` or `delete` would return, or the error it would raise: each operation succeeds or
        fails alone. Those of one key are done in their order, and after one that was not done, or not certainly, none
        that comes later; of different keys nothing is promised. Others may see some of them done and others not yet.
        A gateway takes 1000 of them and 16.5 MiB, unless it is set otherwise; more is an InvalidArgumentError or a
        PayloadTooLargeError, and nothing is done. What fails as a whole is raised.
        """
        requests = [request_of(operation, self._idempotent_writes) for operation in operations]
        waiting = list(range(len(requests)))
        results: list[Entry | int | FlottaError | None] = [None] * len(requests)
        patience = Patience(self._timeout_ms if timeout_ms is None else timeout_ms)
        while waiting:
            asked = kv_pb2.BatchRequest(items=[item_of(requests[position]) for position in waiting])
            safe = all(repeatable(requests[position]) for position in waiting)
            try:
                answer: kv_pb2.BatchResponse = await self._exchange(KvStub, "Batch", asked, safe, patience)
            except FlottaError as error:
                if len(waiting) == len(requests):
                    raise
                for position in waiting:
                    results[position] = error
                break
            if len(answer.results) != len(waiting):
                raise InternalError(f"the gateway gave {len(answer.results)} results for {len(waiting)} operations")
            limited: list[int] = []
            for position, result in zip(waiting, answer.results, strict=True):
                response = response_of(result)
                results[position] = result_of(response, patience.in_doubt)
                if response.status.code == pb.Status.RATE_LIMITED:
                    patience.longer(response.status.retry_after_ms)
                    limited.append(position)
            if not limited or not patience.lasts():
                break
            waiting = limited
            await patience.pause()
        return results

    async def _call(self, method: str, operation: Operation, timeout_ms: int | None) -> Any:
        """The response of `method`; sent until there is one, as long as that is safe and the time lasts."""
        request = request_of(operation, self._idempotent_writes)
        patience = Patience(self._timeout_ms if timeout_ms is None else timeout_ms)
        while True:
            response = await self._exchange(KvGatewayStub, method, request, repeatable(request), patience)
            status = response.status
            if status.code == pb.Status.RATE_LIMITED:
                patience.longer(status.retry_after_ms)
                if patience.lasts():
                    await patience.pause()
                    continue
            if patience.in_doubt:
                raise_in_doubt(status)
            return response

    async def _exchange(
        self, stub: Callable[[grpc.aio.Channel], Any], method: str, request: Message, safe: bool, patience: Patience
    ) -> Any:
        """What a gateway answered. `safe`: it may be sent again when nobody knows what became of it."""
        while True:
            try:
                send = getattr(stub(self._channel()), method)
                return await send(request, timeout=patience.left_s())
            except grpc.aio.AioRpcError as error:
                # Unless it never connected, the transport may have delivered what it says failed.
                unsent = _never_connected(error)
                lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                if not (lost and (safe or unsent) and patience.lasts()):
                    sure = unsent and not patience.in_doubt
                    _raise_transport(error, self._addresses[self._current], sure, self._tls)
                self._current = (self._current + 1) % len(self._addresses)
                patience.in_doubt = patience.in_doubt or not unsent
            await patience.pause()

    def _channel(self) -> grpc.aio.Channel:
        address = self._addresses[self._current]
        if self._tls is not None:
            self._follow_files(self._tls)
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(self._tls, address, _CHANNEL_OPTIONS)
        return channel

    def _follow_files(self, tls: Tls) -> None:
        """Once a second at most, while there are calls. Calls that run keep the connection they have."""
        now_s = time.monotonic()
        if now_s - self._looked_s < TLS_LOOK_S:
            return
        self._looked_s = now_s
        try:
            if tls.refresh():
                self._channels.clear()
        except TlsError as error:
            _LOG.error("the replaced TLS files cannot be used; the old ones stay in force: %s", error)


class Patience:
    """What one call has left: its time, how long the next pause is, and whether an attempt is in doubt."""

    def __init__(self, timeout_ms: int) -> None:
        self._deadline_s = time.monotonic() + timeout_ms / 1000
        self._pause_ms: float = RETRY_MS
        self.in_doubt = False

    def left_s(self) -> float:
        return max(0.001, self._deadline_s - time.monotonic())

    def longer(self, pause_ms: int) -> None:
        """Let the next pause last at least so long."""
        self._pause_ms = max(self._pause_ms, pause_ms)

    def lasts(self) -> bool:
        """Is there time for the next pause?"""
        return time.monotonic() + self._pause_ms * 1.25 / 1000 < self._deadline_s

    async def pause(self) -> None:
        await asyncio.sleep(self._pause_ms * random.uniform(0.75, 1.25) / 1000)
        self._pause_ms = min(self._pause_ms * 2, RETRY_MS_MAX)


def _never_connected(error: grpc.aio.AioRpcError) -> bool:
    return (error.details() or "").startswith("failed to connect to all addresses")


def _raise_transport(error: grpc.aio.AioRpcError, address: str, unsent: bool, tls: Tls | None) -> NoReturn:
    code, details = error.code(), error.details() or error.code().name
    if unsent:
        raise UnavailableError(f"no gateway can be reached at {address}: {details}{hint(tls, details)}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in details:
        raise PayloadTooLargeError(f"the request is too large for the gateway: {details}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise RateLimitedError(details) from error
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        raise OutcomeUnknownError(f"no answer from the gateway at {address}: {details}") from error
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        names = [value for name, value in error.trailing_metadata() or () if name == "x-flotta-error"]
        raise (PayloadTooLargeError if names == ["PAYLOAD_TOO_LARGE"] else InvalidArgumentError)(details) from error
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise InvalidArgumentError(f"what listens at {address} is not a Flotta gateway: {details}") from error
    raise InternalError(f"the gateway at {address} answered {code.name}: {details}") from error
