"""A gateway that answers what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from flotta_proto.flotta import kv_pb2, kv_pb2_grpc
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb import gateway_pb2_grpc

Said = gw.Status | grpc.StatusCode | str | None
"""A status to answer, a gRPC code to abort with, "hang", or None for what a real gateway would do."""

_RESPONSES: dict[type[Any], type[Any]] = {
    gw.GetRequest: gw.GetResponse,
    gw.PutRequest: gw.PutResponse,
    gw.DeleteRequest: gw.DeleteResponse,
    kv_pb2.ScanRequest: kv_pb2.ScanResponse,
}


class FakeGateway(gateway_pb2_grpc.KvGatewayServicer, kv_pb2_grpc.KvServicer):
    """Keeps rows in memory, with deduplication; `script` is consumed one entry per request before it does.

    Of a batch it is one entry per item; a code aborts the whole batch, after the items up to there were carried out."""

    def __init__(self) -> None:
        self.rows: dict[bytes, gw.KeyValue] = {}
        self.outcomes: dict[str, Any] = {}
        self.version = 0
        self.script: list[Said] = []
        self.seen: list[Any] = []
        self.batches: list[int] = []  # items of each
        self.page_rows = 1_000
        self.peers: set[str] = set()  # connections
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> FakeGateway:
        self._server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 17 << 20)]
        )
        gateway_pb2_grpc.add_KvGatewayServicer_to_server(self, self._server)
        kv_pb2_grpc.add_KvServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()
        return self

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def Get(self, request: gw.GetRequest, context: Any) -> Any:
        return await self._handle(request, context, self._get)

    async def Put(self, request: gw.PutRequest, context: Any) -> Any:
        return await self._handle(request, context, self._put)

    async def Delete(self, request: gw.DeleteRequest, context: Any) -> Any:
        return await self._handle(request, context, self._delete)

    async def Batch(self, request: kv_pb2.BatchRequest, context: Any) -> Any:
        self.batches.append(len(request.items))
        carry_out: dict[str, Callable[[Any], Any]] = {"get": self._get, "put": self._put, "delete": self._delete}
        response = kv_pb2.BatchResponse()
        for item in request.items:
            name = item.WhichOneof("operation") or ""
            answer = await self._handle(getattr(item, name), context, carry_out[name])
            getattr(response.results.add(), name).CopyFrom(answer)
        return response

    async def Scan(self, request: kv_pb2.ScanRequest, context: Any) -> Any:
        return await self._handle(request, context, self._scan)

    async def _handle(self, request: Any, context: Any, carry_out: Callable[[Any], Any]) -> Any:
        self.seen.append(request)
        self.peers.add(context.peer())
        said = self.script.pop(0) if self.script else None
        if isinstance(said, gw.Status):
            return _RESPONSES[type(request)](status=said)
        if said == "hang":
            await asyncio.sleep(3600)
        request_id = request.ctx.request_id
        reads = isinstance(request, gw.GetRequest | kv_pb2.ScanRequest)
        dedup = not reads and request.options.require_idempotency
        if dedup and request_id in self.outcomes:
            response = self.outcomes[request_id]
        else:
            response = carry_out(request)
            if dedup:
                self.outcomes[request_id] = response
        if isinstance(said, grpc.StatusCode):
            await context.abort(said, "as the test wants it")
        return response

    def _get(self, request: gw.GetRequest) -> gw.GetResponse:
        row = self.rows.get(request.key)
        if row is None:
            return gw.GetResponse(status=gw.Status(code=gw.Status.NOT_FOUND, message="no such key"))
        weak = request.options.consistency == gw.EVENTUAL
        answer = gw.GetResponse(
            status=gw.Status(code=gw.Status.OK, shard_id="shard-0"),
            kv=row,
            revision=self.version,
            shard_count=1,
            guarantee=gw.BOUNDED if weak else gw.LINEARIZABLE,
        )
        if request.head_only:
            answer.kv.value = b""
        return answer

    def _scan(self, request: kv_pb2.ScanRequest) -> kv_pb2.ScanResponse:
        """Pages of `page_rows` at most; a token is the last key of the page."""
        last = request.page_token
        keys = [key for key in self.rows if key.startswith(request.prefix) and key >= request.start]
        keys = sorted((key for key in keys if not request.end or key < request.end), reverse=request.reverse)
        if last:
            keys = [key for key in keys if (key < last if request.reverse else key > last)]
        shown = keys[: min(request.limit or self.page_rows, self.page_rows)]
        answer = kv_pb2.ScanResponse(status=gw.Status(code=gw.Status.OK), count=len(shown))
        weak = request.options.consistency == gw.EVENTUAL
        answer.shards.add(shard_id="shard-0", revision=self.version, guarantee=gw.ANY if weak else gw.LINEARIZABLE)
        if len(shown) < len(keys):
            answer.next_page_token = shown[-1]
        for key in () if request.count_only else shown:
            answer.entries.add().CopyFrom(self.rows[key])
            if request.keys_only:
                answer.entries[-1].value = b""
        return answer

    def _put(self, request: gw.PutRequest) -> gw.PutResponse:
        row = self.rows.get(request.key)
        if request.options.if_not_exists and row is not None:
            return gw.PutResponse(status=gw.Status(code=gw.Status.ALREADY_EXISTS, message="the key exists"))
        wanted = request.options.if_version_equals
        if wanted and (row is None or row.version != wanted):
            return gw.PutResponse(status=gw.Status(code=gw.Status.VERSION_MISMATCH, message="another version"))
        self.version += 1
        self.rows[request.key] = gw.KeyValue(
            key=request.key,
            value=request.value,
            version=self.version,
            create_time_ms=1000,
            update_time_ms=1000 + self.version,
            expire_time_ms=5000 if request.options.ttl_ms else 0,
        )
        status = gw.Status(code=gw.Status.OK, shard_id="shard-0")
        return gw.PutResponse(status=status, version=self.version, revision=self.version, shard_count=1)

    def _delete(self, request: gw.DeleteRequest) -> gw.DeleteResponse:
        if self.rows.pop(request.key, None) is None:
            return gw.DeleteResponse(status=gw.Status(code=gw.Status.NOT_FOUND, message="no such key"))
        self.version += 1
        status = gw.Status(code=gw.Status.OK, shard_id="shard-0")
        return gw.DeleteResponse(status=status, version=self.version, revision=self.version, shard_count=1)
