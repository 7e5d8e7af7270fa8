"""The asynchronous client: typed get, put and delete against one gateway or several.

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
import secrets
import time
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
import grpc.aio
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2_grpc import KvGatewayStub
from flotta_runtime.tls import Tls, TlsError, TlsFiles, client_tls, hint, open_channel
from google.protobuf.message import Message

from flotta.errors import (
    AlreadyExistsError,
    FlottaError,
    InternalError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    PreconditionFailedError,
    RateLimitedError,
    UnavailableError,
    VersionMismatchError,
)
from flotta.models import Consistency, Entry

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
_ERRORS: dict[int, type[FlottaError]] = {
    pb.Status.INVALID_ARGUMENT: InvalidArgumentError,
    pb.Status.ALREADY_EXISTS: AlreadyExistsError,
    pb.Status.VERSION_MISMATCH: VersionMismatchError,
    pb.Status.PRECONDITION_FAILED: PreconditionFailedError,
    pb.Status.PAYLOAD_TOO_LARGE: PayloadTooLargeError,
    pb.Status.UNAVAILABLE: UnavailableError,
    pb.Status.NOT_LEADER: UnavailableError,
    pb.Status.SHARD_MOVED: UnavailableError,
    pb.Status.TIMEOUT: OutcomeUnknownError,
}


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
        request = pb.GetRequest(
            key=_bytes(key),
            head_only=head_only,
            options=pb.ReadOptions(
                consistency=pb.EVENTUAL if consistency is Consistency.EVENTUAL else pb.STRONG,
                max_staleness_ms=max_staleness_ms,
            ),
        )
        response: pb.GetResponse = await self._call("Get", request, True, timeout_ms)
        if response.status.code == pb.Status.NOT_FOUND:
            return None
        _raise_unless_ok(response.status)
        kv = response.kv
        return Entry(kv.key, kv.value, kv.version, kv.create_time_ms, kv.update_time_ms, kv.expire_time_ms)

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
        context, options = self._write(request_id, if_version)
        options.ttl_ms = ttl_ms
        options.if_not_exists = if_absent
        request = pb.PutRequest(ctx=context, key=_bytes(key), value=_bytes(value), options=options)
        response: pb.PutResponse = await self._call("Put", request, options.require_idempotency, timeout_ms)
        _raise_unless_ok(response.status)
        return response.version

    async def delete(
        self, key: str | bytes, *, if_version: int = 0, request_id: str = "", timeout_ms: int | None = None
    ) -> int | None:
        """Delete `key`; returns the version of the deletion, or None if there was no such key."""
        context, options = self._write(request_id, if_version)
        request = pb.DeleteRequest(ctx=context, key=_bytes(key), options=options)
        response: pb.DeleteResponse = await self._call("Delete", request, options.require_idempotency, timeout_ms)
        if response.status.code == pb.Status.NOT_FOUND:
            return None
        _raise_unless_ok(response.status)
        return response.version

    def _write(self, request_id: str, if_version: int) -> tuple[pb.RequestContext, pb.WriteOptions]:
        if not request_id and self._idempotent_writes:
            request_id = f"flotta:{time.time_ns() // 1_000_000}:{secrets.token_hex(12)}"
        return (
            pb.RequestContext(request_id=request_id),
            pb.WriteOptions(require_idempotency=bool(request_id), if_version_equals=if_version),
        )

    async def _call(self, method: str, request: Message, repeatable: bool, timeout_ms: int | None) -> Any:
        """The response of `method`; sent until there is one, as long as that is safe and the time lasts."""
        deadline_s = time.monotonic() + (self._timeout_ms if timeout_ms is None else timeout_ms) / 1000
        pause_ms = RETRY_MS
        in_doubt = False
        while True:
            try:
                send = getattr(self._stub(), method)
                response = await send(request, timeout=max(0.001, deadline_s - time.monotonic()))
            except grpc.aio.AioRpcError as error:
                # Unless it never connected, the transport may have delivered what it says failed.
                unsent = _never_connected(error)
                lost = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                if not (lost and (repeatable or unsent) and _time_for(pause_ms, deadline_s)):
                    _raise_transport(error, self._addresses[self._current], unsent and not in_doubt, self._tls)
                self._current = (self._current + 1) % len(self._addresses)
                in_doubt = in_doubt or not unsent
            else:
                status = response.status
                if status.code != pb.Status.RATE_LIMITED:
                    if in_doubt and _ERRORS.get(status.code) is UnavailableError:
                        raise OutcomeUnknownError(f"an earlier attempt may have been carried out; {status.message}")
                    return response
                pause_ms = max(pause_ms, status.retry_after_ms)
                if not _time_for(pause_ms, deadline_s):
                    return response
            await asyncio.sleep(pause_ms * random.uniform(0.75, 1.25) / 1000)
            pause_ms = min(pause_ms * 2, RETRY_MS_MAX)

    def _stub(self) -> KvGatewayStub:
        address = self._addresses[self._current]
        if self._tls is not None:
            self._follow_files(self._tls)
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(self._tls, address, _CHANNEL_OPTIONS)
        return KvGatewayStub(channel)

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


def _time_for(pause_ms: float, deadline_s: float) -> bool:
    return time.monotonic() + pause_ms * 1.25 / 1000 < deadline_s


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text


def _raise_unless_ok(status: pb.Status) -> None:
    code = status.code
    if code == pb.Status.OK:
        return
    if code == pb.Status.RATE_LIMITED:
        raise RateLimitedError(status.message, shard_id=status.shard_id, retry_after_ms=status.retry_after_ms)
    message = status.message or pb.Status.Code.Name(code)
    raise _ERRORS.get(code, InternalError)(message, shard_id=status.shard_id)


def _never_connected(error: grpc.aio.AioRpcError) -> bool:
    return (error.details() or "").startswith("failed to connect to all addresses")


def _raise_transport(error: grpc.aio.AioRpcError, address: str, unsent: bool, tls: Tls | None) -> NoReturn:
    code, details = error.code(), error.details() or error.code().name
    if unsent:
        raise UnavailableError(f"no gateway can be reached at {address}: {details}{hint(tls, details)}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        raise PayloadTooLargeError(f"the request is too large for the gateway: {details}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise RateLimitedError(details) from error
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        raise OutcomeUnknownError(f"no answer from the gateway at {address}: {details}") from error
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise InvalidArgumentError(f"what listens at {address} is not a Flotta gateway: {details}") from error
    raise InternalError(f"the gateway at {address} answered {code.name}: {details}") from error
