"""Rows in and out of nodes that lead, follow, break off or refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from flotta_admin.copying import nodes as nodes_module
from flotta_admin.copying.nodes import NodeLinks
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import BackupsServicer, add_BackupsServicer_to_server
from flotta_proto.kvdb import coordinator_pb2
from flotta_runtime.errors import AlreadyExists, NotLeader, Unavailable
from flotta_runtime.server import build_server, dialer

HEAD = pb.DumpPart(head=pb.DumpHead(shard_id="shard-0", revision=9))
ROWS = (b"some ", b"rows")
END = pb.DumpPart(end=pb.DumpEnd(rows=2, row_bytes=9))
WHOLE = [HEAD, *(pb.DumpPart(rows=piece) for piece in ROWS), END]


class Node(BackupsServicer):
    """Does what its script says, call by call: a list of parts or a number of rows, or an error."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.loads: list[pb.LoadRequest] = []
        self.calls = 0
        self.address = ""

    def _next(self) -> Any:
        self.calls += 1
        found = self.script.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def Dump(self, request: pb.DumpRequest, context: Any) -> AsyncIterator[pb.DumpPart]:
        for part in self._next():
            if isinstance(part, Exception):
                raise part
            yield part

    async def Load(self, request: pb.LoadRequest, context: Any) -> pb.LoadResponse:
        self.loads.append(request)
        return pb.LoadResponse(rows=self._next())


class Setup:
    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.maps = 0
        coordinators: Any = self
        self.links = NodeLinks(coordinators, dialer("token", None))
        self.saved = bytearray()

    async def state(self) -> coordinator_pb2.ClusterState:
        self.maps += 1
        names = [f"node-{n}" for n in range(len(self.nodes))]
        shard = coordinator_pb2.ShardRecord(shard_id="shard-0", leader=names[0], replicas=names)
        records = {
            name: coordinator_pb2.NodeRecord(node_id=name, address=node.address)
            for name, node in zip(names, self.nodes, strict=True)
        }
        return coordinator_pb2.ClusterState(shards={"shard-0": shard}, nodes=records)

    async def dump(self) -> tuple[pb.DumpHead, pb.DumpEnd]:
        async def begin() -> None:
            self.saved.clear()

        async def piece(rows: bytes) -> None:
            self.saved += rows

        return await self.links.dump("shard-0", begin, piece)


@asynccontextmanager
async def serving(count: int) -> AsyncIterator[Setup]:
    nodes = [Node() for _ in range(count)]
    servers = []
    for node in nodes:
        server = build_server(
            [(add_BackupsServicer_to_server, node, "flotta.storage.v1.Backups")], listen="127.0.0.1:0", token="token"
        )
        node.address = f"127.0.0.1:{await server.start()}"
        servers.append(server)
    setup = Setup(nodes)
    try:
        yield setup
    finally:
        await setup.links.close()
        for server in servers:
            await server.stop(0)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "PAUSE_S", 0.001)


@pytest.mark.parametrize(
    "first",
    [
        Unavailable("stopping"),
        [HEAD, pb.DumpPart(rows=b"half"), Unavailable("gone")],
        [HEAD, pb.DumpPart(rows=b"half")],  # ends without its end
        [HEAD, pb.DumpPart(rows=b"half"), END],  # says more than came
    ],
)
async def test_a_dump_that_breaks_off_begins_anew_at_the_next_replica(first: Any) -> None:
    async with serving(2) as setup:
        leader, other = setup.nodes
        leader.script = [first]
        other.script = [WHOLE]
        head, end = await setup.dump()
        assert (bytes(setup.saved), head.revision, end.rows) == (b"".join(ROWS), 9, 2)
        assert (leader.calls, other.calls) == (1, 1)


async def test_a_load_goes_where_the_hint_says_and_is_repeated() -> None:
    async with serving(2) as setup:
        first, second = setup.nodes
        first.script = [NotLeader(second.address)]
        second.script = [5]
        assert await setup.links.load("shard-0", b"rows", 77) == 5
        assert [(load.rows, load.group_time_ms) for load in second.loads] == [(b"rows", 77)]
        first.script = [Unavailable("an election"), 4]
        assert await setup.links.load("shard-0", b"rows", 77) == 4


async def test_what_will_never_work_is_not_repeated() -> None:
    async with serving(1) as setup:
        setup.nodes[0].script = [AlreadyExists("rows: the key 'k' has another row already")]
        with pytest.raises(AlreadyExists, match="another row"):
            await setup.links.load("shard-0", b"rows", 1)
        assert setup.nodes[0].calls == 1


@pytest.mark.parametrize("what", ["dump", "load"])
async def test_patience_ends_with_the_last_reason(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes_module, "PATIENCE_S", 0.0)
    async with serving(1) as setup:
        setup.nodes[0].script = [Unavailable("no quorum")]
        work: Callable[[], Any] = setup.dump if what == "dump" else lambda: setup.links.load("shard-0", b"r", 1)
        with pytest.raises(Unavailable, match="shard-0: nothing has come for 0 s: no quorum"):
            await work()
