"""The gateway's stages: request bytes to operation frame, and reply frame to response bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from flotta_gateway.call import Call, Links
from flotta_gateway.core.shard_map import ShardMap
from flotta_gateway.core.validation import Limits
from flotta_gateway.dispatcher import Dispatcher, DispatcherOptions
from flotta_gateway.storage_link import Attempt
from flotta_gateway.telemetry import Telemetry
from flotta_proto.flotta.storage_pb2 import GET, LINEARIZABLE, PUT, Reply, ReplyFrame
from flotta_proto.kvdb import coordinator_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import GetRequest, GetResponse, PutRequest, PutResponse, Status
from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.metrics import Metrics
from path_inputs import SHARDS, VALUE, random_keys, runs, shard_id_of

ADDRESS = "127.0.0.1:1"


class Maps:
    """One node that leads every shard."""

    answered = True

    def __init__(self) -> None:
        state = pb.ClusterState(map_version=1, cluster_id="bench")
        state.partitioning.num_shards = SHARDS
        state.nodes["node-1"].CopyFrom(pb.NodeRecord(node_id="node-1", address=ADDRESS))
        for number in range(SHARDS):
            record = pb.ShardRecord(shard_id=f"shard-{number}", leader="node-1", replicas=["node-1"], epoch=1)
            state.shards[record.shard_id].CopyFrom(record)
        self.current = ShardMap().with_state(state)

    def refresh_soon(self) -> None:
        raise RuntimeError("the map of the benchmark names everybody")


class Link:
    """Does what a link does to operations, but for the sending."""

    address = ADDRESS

    def __init__(self) -> None:
        self.waiting: dict[int, Attempt[Call]] = {}
        self.frame = b""

    def submit(self, attempts: Sequence[Attempt[Call]]) -> None:
        parts: list[bytes] = []
        for attempt in attempts:
            parts += (b"\x0a", _varint(attempt.size), attempt.payload)
            self.waiting[attempt.number] = attempt
        self.frame = b"".join(parts)

    def forget(self, attempt: Attempt[Call]) -> bool:
        return self.waiting.pop(attempt.number, None) is not None

    def link_to(self, address: str) -> Link:
        return self


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))


class GatewayPuts:
    """Put requests in, and their responses out."""

    kind = PUT

    def __init__(self) -> None:
        self._link = Link()
        telemetry = Telemetry(Metrics("bench"))
        self._dispatcher = Dispatcher(
            Maps(), cast("Links", self._link), telemetry, SYSTEM_CLOCK, lambda: 0.5, Limits(), DispatcherOptions()
        )
        self._number = 0
        self._work: list[tuple[list[bytes], bytes]] = []
        self._responses: list[bytes] = []
        self._expected = 0

    @classmethod
    async def start(cls, folder: Path) -> GatewayPuts:
        return cls()

    def request(self, key: bytes) -> bytes:
        return PutRequest(key=key, value=VALUE).SerializeToString()

    def reply(self, number: int, key: bytes) -> Reply:
        return Reply(call=number, code=Status.OK, version=number, revision=number, shard_id=shard_id_of(key))

    def parse(self, data: bytes) -> Any:
        return PutRequest.FromString(data)

    def status_of(self, response: bytes) -> Status:
        return PutResponse.FromString(response).status

    async def load(self, operations: int, batch: int) -> None:
        self._work = []
        self._expected = operations
        self._responses = []
        for keys in runs(random_keys(operations), batch):
            frame = ReplyFrame()
            for key in keys:
                self._number += 1
                frame.replies.append(self.reply(self._number, key))
            self._work.append(([self.request(key) for key in keys], frame.SerializeToString()))

    async def run(self) -> None:
        link, dispatcher, responses = self._link, self._dispatcher, self._responses
        for requests, replies in self._work:
            deadline_ms = SYSTEM_CLOCK.monotonic_ms() + 5_000
            done = responses.append
            dispatcher.submit([Call(self.kind, self.parse(data), deadline_ms, done) for data in requests])
            answered = [(link.waiting.pop(reply.call), reply) for reply in ReplyFrame.FromString(replies).replies]
            dispatcher.replied(ADDRESS, answered)

    def check(self) -> None:
        if len(self._responses) != self._expected:
            raise SystemExit(f"error: {self._expected} requests, {len(self._responses)} responses")
        if any(self.status_of(response).code != Status.OK for response in self._responses):
            raise SystemExit("error: a request failed")

    async def close(self) -> None:
        self._dispatcher.close()


class GatewayGets(GatewayPuts):
    """STRONG Get requests in, and their responses out."""

    kind = GET

    def request(self, key: bytes) -> bytes:
        return GetRequest(key=key).SerializeToString()

    def reply(self, number: int, key: bytes) -> Reply:
        return Reply(
            call=number,
            code=Status.OK,
            value=VALUE,
            version=number,
            create_time_ms=1_700_000_000_000,
            update_time_ms=1_700_000_000_000,
            revision=number,
            shard_id=shard_id_of(key),
            guarantee=LINEARIZABLE,
        )

    def parse(self, data: bytes) -> Any:
        return GetRequest.FromString(data)

    def status_of(self, response: bytes) -> Status:
        return GetResponse.FromString(response).status
