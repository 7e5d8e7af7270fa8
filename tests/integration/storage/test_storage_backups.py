"""Rows out of a shard and into another one, on nodes in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.flotta.storage_pb2_grpc import BackupsStub
from flotta_runtime.errors import AlreadyExists, FlottaError, InvalidArgument, NotFound, NotLeader, PreconditionFailed
from flotta_runtime.saved_rows import SavedRow, encode_row, read_rows
from flotta_runtime.status import from_rpc_error
from storage_cluster import METADATA, OK, Cluster, delete, get, put

NODES = ["node-1", "node-2", "node-3"]


@pytest.fixture(params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def opened(cluster: Cluster) -> AsyncIterator[Cluster]:
    await cluster.open(3)
    await cluster.create_shards(1, NODES)
    yield cluster


async def dump(cluster: Cluster, node_id: str, shard_id: str = "shard-0") -> tuple[pb.DumpHead, list[SavedRow]]:
    stub = BackupsStub(cluster.channel(node_id))
    parts = [part async for part in stub.Dump(pb.DumpRequest(shard_id=shard_id), metadata=METADATA, timeout=30)]
    assert [parts[0].WhichOneof("part"), parts[-1].WhichOneof("part")] == ["head", "end"]
    assert max((len(part.rows) for part in parts), default=0) <= 256 << 10
    rows = read_rows(b"".join(part.rows for part in parts[1:-1]))
    assert (parts[-1].end.rows, parts[-1].end.row_bytes) == (len(rows), sum(row.size for row in rows))
    return parts[0].head, rows


async def load(
    cluster: Cluster, node_id: str, rows: list[SavedRow], group_time_ms: int, shard_id: str = "shard-0"
) -> int:
    stub = BackupsStub(cluster.channel(node_id))
    encoded = b"".join(map(encode_row, rows))
    request = pb.LoadRequest(shard_id=shard_id, rows=encoded, group_time_ms=group_time_ms)
    try:
        return (await stub.Load(request, metadata=METADATA, timeout=30)).rows
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


async def test_every_replica_dumps_what_was_acknowledged_before(opened: Cluster) -> None:
    values = {b"key-%d" % n: b"v" * (n * 997 % 40_000) for n in range(60)}
    replies = await opened.settle(*(put(key, value) for key, value in values.items()), put(b"gone", b"x"))
    assert all(reply.code == OK for reply in replies)
    await opened.settle(delete(b"gone"), put(b"short", b"x", ttl_ms=1))
    written = dict(zip(values, replies, strict=False))
    for node_id in NODES:
        head, rows = await dump(opened, node_id)
        assert (head.shard_id, head.table, head.shard_index, head.shard_count, head.epoch) == (
            *("shard-0", "default", 0, 1),
            1,
        )
        found = {row.key: row for row in rows if row.key != b"short"}  # expired or not, as group time has it
        assert {key: row.value for key, row in found.items()} == values
        assert {key: row.version for key, row in found.items()} == {key: r.version for key, r in written.items()}
        assert max(row.version for row in rows) <= head.revision == head.applied_index
        assert max(row.update_ms for row in rows) <= head.group_time_ms


async def test_a_value_larger_than_a_piece_comes_out_whole(opened: Cluster) -> None:
    large = bytes(range(256)) * 20_000
    await opened.settle(put(b"large", large), put(b"small", b"x"))
    _, rows = await dump(opened, "node-2")
    assert {row.key: row.value for row in rows} == {b"large": large, b"small": b"x"}


async def test_rows_are_loaded_by_the_leader_alone_and_may_be_sent_again(opened: Cluster) -> None:
    await opened.settle(*(put(b"filler", b"%d" % n) for n in range(9)), delete(b"filler"))  # revisions above the rows'
    rows = [SavedRow(b"a", b"1", 1, 10, 20, 0), SavedRow(b"b", b"2", 2, 10, 20, 0)]
    leader = opened.leader("shard-0")
    follower = next(name for name in NODES if name != leader)
    with pytest.raises(NotLeader) as refused:
        await load(opened, follower, rows, 20)
    assert refused.value.leader_hint == opened.nodes[leader].address
    assert await load(opened, leader, rows, 20) == 2
    assert await load(opened, leader, rows, 20) == 0
    (reply,) = await opened.settle(get(b"a"))
    assert (reply.value, reply.version, reply.create_time_ms, reply.update_time_ms) == (b"1", 1, 10, 20)
    for node_id in NODES:
        assert (await dump(opened, node_id))[1] == rows


@pytest.mark.parametrize(
    ("rows", "group_time_ms", "shard_id", "kind", "complaint"),
    [
        ([SavedRow(b"taken", b"other", 1, 1, 1, 0)], 1, "shard-0", AlreadyExists, "b?'taken' has another row"),
        ([SavedRow(b"new", b"v", 1 << 40, 1, 1, 0)], 1, "shard-0", PreconditionFailed, "still to give"),
        ([], 1, "shard-0", InvalidArgument, "rows: there are none"),
        ([SavedRow(b"k", b"v", 1, 1, 9, 0)], 8, "shard-0", InvalidArgument, "group_time_ms: it is 8"),
        ([SavedRow(b"k", b"v", 0, 1, 1, 0)], 8, "shard-0", InvalidArgument, "rows: a row has version 0"),
        ([SavedRow(b"k", b"v", 1, 1, 1, 0)], 8, "shard-9", NotFound, "no replica of shard-9"),
    ],
)
async def test_what_cannot_be_loaded_changes_nothing(
    opened: Cluster, rows: list[SavedRow], group_time_ms: int, shard_id: str, kind: type[FlottaError], complaint: str
) -> None:
    await opened.settle(put(b"taken", b"mine"))
    leader = opened.leader("shard-0")
    before = (await dump(opened, leader))[1]
    with pytest.raises(kind, match=complaint):
        await load(opened, leader, rows, group_time_ms, shard_id)
    assert (await dump(opened, leader))[1] == before


async def test_a_dump_of_an_unknown_shard_is_not_found(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.open(1)
    stub = BackupsStub(cluster.channel("node-1"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in stub.Dump(pb.DumpRequest(shard_id="shard-7"), metadata=METADATA, timeout=30):
            pass
    assert isinstance(from_rpc_error(refused.value), NotFound)
