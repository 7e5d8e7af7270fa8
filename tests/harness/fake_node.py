"""A storage node that speaks the real protocols, over gRPC or over links, and fails on command."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flotta_native
import grpc
import grpc.aio
from flotta_proto.flotta import storage_pb2 as sp
from flotta_proto.flotta import storage_pb2_grpc as sp_grpc
from flotta_proto.kvdb.gateway_pb2 import EVENTUAL, Status
from flotta_runtime.auth import REFUSAL
from flotta_runtime.links import Links, metadata_of
from flotta_runtime.turns import Turns

TOKEN = "a-test-token"

Fault = Callable[[sp.Operation], "sp.Reply | str | None"]
"""Says what a node does with an operation: a reply, "die" (the stream ends, unanswered), "apply-and-die", "drop",
or None for what it would do anyway."""


@dataclass
class FakeShards:
    """The data of all shards, as if replicated at once; and who really leads them."""

    rows: dict[tuple[str, bytes], tuple[bytes, int]] = field(default_factory=dict)
    leaders: dict[str, str] = field(default_factory=dict)  # shard id -> address
    epochs: dict[str, int] = field(default_factory=dict)
    outcomes: dict[tuple[bytes, str], sp.Reply] = field(default_factory=dict)
    revision: int = 100
    applied: list[sp.Operation] = field(default_factory=list)

    def execute(self, op: sp.Operation) -> sp.Reply:
        if op.request_id and (op.key, op.request_id) in self.outcomes:
            earlier = self.outcomes[op.key, op.request_id]
            again = sp.Reply()
            again.CopyFrom(earlier)
            again.call, again.duplicate = op.call, True
            return again
        reply = self._apply(op)
        if op.request_id:
            self.outcomes[op.key, op.request_id] = reply
        return reply

    def _apply(self, op: sp.Operation) -> sp.Reply:
        at = (op.shard_id, op.key)
        reply = sp.Reply(call=op.call, code=Status.OK, shard_id=op.shard_id, revision=self.revision)
        row = self.rows.get(at)
        if op.kind == sp.GET:
            if row is None:
                reply.code, reply.message = Status.NOT_FOUND, "no such key"
            else:
                reply.value, reply.version = (b"" if op.head_only else row[0]), row[1]
                reply.guarantee = sp.ANY if op.consistency == EVENTUAL else sp.LINEARIZABLE
            return reply
        self.applied.append(op)
        if op.if_version_equals and (row is None or row[1] != op.if_version_equals):
            reply.code, reply.message = Status.VERSION_MISMATCH, "another version"
        elif op.if_not_exists and row is not None:
            reply.code, reply.message = Status.ALREADY_EXISTS, "the key exists"
        elif op.kind == sp.DELETE and row is None:
            reply.code, reply.message = Status.NOT_FOUND, "no such key"
        else:
            self.revision += 1
            reply.version = reply.revision = self.revision
            if op.kind == sp.PUT:
                self.rows[at] = (op.value, self.revision)
            else:
                del self.rows[at]
        return reply


class FakeNode(sp_grpc.ShardsServicer):
    """A storage node over gRPC or, with `native`, over links alone. `fault` is asked before anything else happens to an
    operation."""

    def __init__(self, shards: FakeShards, *, native: bool = False) -> None:
        self.shards = shards
        self.native = native
        self.fault: Fault | None = None
        self.delay_s = 0.0
        self.token = TOKEN
        self.seen: list[sp.Operation] = []
        self.frames: list[int] = []  # operations per frame
        self.tokens: list[str | None] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._links: NodeLinks | None = None
        self._writers: set[Writer] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> FakeNode:
        if self.native:
            self._links = await NodeLinks(self).start(port)
            self.address = f"127.0.0.1:{self._links.port}"
            return self
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", 17 << 20),
                ("grpc.max_send_message_length", 17 << 20),
                ("grpc.http2.min_ping_interval_without_data_ms", 100),
                ("grpc.http2.max_ping_strikes", 0),
            ]
        )
        sp_grpc.add_ShardsServicer_to_server(self, self._server)
        bound = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{bound}"
        await self._server.start()
        return self

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def connected(self) -> int:
        """Gateways, as far as they were accepted."""
        return len(self._writers)

    def leave(self) -> None:
        """Tell everybody that the node is stopping."""
        for write in self._writers:
            self._later(write, sp.ReplyFrame(leaving=True))

    async def kill(self) -> None:
        """Cut every stream and close the port."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        if self._links is not None:
            await self._links.stop()
            self._links = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def Execute(  # type: ignore[override]  # writes to the context instead of yielding
        self, request_iterator: AsyncIterator[sp.OperationFrame], context: Any
    ) -> None:
        if not self.admits(dict(context.invocation_metadata())):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, REFUSAL)
        await context.send_initial_metadata((("x-flotta-accepted", "1"),))
        one_at_a_time = asyncio.Lock()

        async def write(reply: sp.ReplyFrame) -> None:
            async with one_at_a_time:
                await context.write(reply)

        self._writers.add(write)
        try:
            async for frame in request_iterator:
                if not self.take(frame, write):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the node died")
        finally:
            self._writers.discard(write)

    def admits(self, metadata: Mapping[str, str]) -> bool:
        self.tokens.append(metadata.get("x-kvdb-internal-token"))
        return self.tokens[-1] == self.token

    def take(self, frame: sp.OperationFrame, write: Writer) -> bool:
        """False if the connection is to be cut over it."""
        self.frames.append(len(frame.operations))
        replies, die = self._answer(frame.operations)
        if replies and not die:
            self._later(write, sp.ReplyFrame(replies=replies))
        return not die

    def _later(self, write: Writer, frame: sp.ReplyFrame) -> None:
        async def work() -> None:
            await asyncio.sleep(self.delay_s)
            await write(frame)

        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _answer(self, operations: Iterable[sp.Operation]) -> tuple[list[sp.Reply], bool]:
        replies = []
        die = False
        for op in operations:
            self.seen.append(op)
            said = self.fault(op) if self.fault is not None else None
            if isinstance(said, sp.Reply):
                said.call = op.call
                replies.append(said)
            elif said == "apply-and-die":
                self.shards.execute(op)
                die = True
            elif said == "die":
                die = True
            elif said is None:
                replies.append(self._serve(op))
        return replies, die

    def _serve(self, op: sp.Operation) -> sp.Reply:
        leader = self.shards.leaders.get(op.shard_id, "")
        epoch = self.shards.epochs.get(op.shard_id, op.epoch)
        if op.epoch and op.epoch != epoch:
            return sp.Reply(call=op.call, code=Status.SHARD_MOVED, shard_id=op.shard_id, new_node_hint=leader)
        if leader != self.address and op.consistency != 2:
            return sp.Reply(call=op.call, code=Status.NOT_LEADER, shard_id=op.shard_id, leader_hint=leader)
        return self.shards.execute(op)


Writer = Callable[[sp.ReplyFrame], Awaitable[None]]


class NodeLinks:
    """Where gateways' links come to a fake node."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.links = Links(flotta_native.LinkHub(keepalive_ms=1_000, keepalive_timeout_ms=1_000), Turns())
        self.links.serve("requests", self._hello)
        self._running = asyncio.create_task(self.links.run())
        self.port = 0

    async def start(self, port: int) -> NodeLinks:
        async with asyncio.timeout(60):
            while not self.port:
                try:
                    self.port = self.links.hub.listen(f"127.0.0.1:{port}")
                except OSError as error:  # the listener before this one is about to go
                    if error.errno != errno.EADDRINUSE:
                        raise
                    await asyncio.sleep(0.01)
        return self

    def _hello(self, link: int, hello: bytes, peer: object) -> None:
        if self._node.admits(metadata_of(hello)):
            NodeLink(self._node, self.links, link)
        else:
            self.links.refuse(link, REFUSAL)

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self.links.hub.shut_down()


class NodeLink:
    """One gateway's link to a fake node."""

    def __init__(self, node: FakeNode, links: Links, link: int) -> None:
        self._node = node
        self._links = links
        self._link = link
        self._outgoing: list[bytes] = []
        node._writers.add(self._write)
        links.accept(link, b"", self)

    async def _write(self, frame: sp.ReplyFrame) -> None:
        self._outgoing.append(frame.SerializeToString())
        self._links.wake(self._link)

    def up(self, greeting: bytes) -> None: ...

    def frame(self, data: bytes) -> None:
        if not self._node.take(sp.OperationFrame.FromString(data), self._write):
            self._links.close(self._link, "the node died")

    def down(self, reason: str) -> None:
        self._node._writers.discard(self._write)

    def next_frame(self) -> bytes:
        return self._outgoing.pop(0) if self._outgoing else b""

    def not_taken(self) -> None: ...
