"""A session's revision is of one shard among a number of them: kept while the number is the same, STRONG otherwise."""

from __future__ import annotations

import pytest
from flotta_gateway.call import Call
from flotta_proto.flotta.storage_pb2 import GET, PUT, Operation
from flotta_proto.kvdb import gateway_pb2 as gw
from flotta_proto.kvdb.gateway_pb2 import Status
from gateway_support import SHARDS, Cluster


def read(cluster: Cluster, count: int, times: int = 6, **options: int) -> list[Operation]:
    """What the nodes are asked; each time through both of them, if any may answer."""
    marked = gw.ReadOptions(read_mode=gw.READ_YOUR_WRITES, session_revision=7, session_shard_count=count, **options)  # type: ignore[arg-type]
    request = gw.GetRequest(key=b"k", options=marked)
    cluster.dispatcher.submit([Call(GET, request, 6_000, lambda _: None) for _ in range(times)])
    return cluster.sent()


@pytest.mark.parametrize("count", [0, SHARDS])
async def test_the_number_is_the_same_or_was_not_said(count: int) -> None:
    cluster = Cluster()
    sent = read(cluster, count, consistency=gw.EVENTUAL)
    assert {(one.consistency, one.session_revision) for one in sent} == {(gw.EVENTUAL, 7)}
    assert all(node.batches for node in cluster.nodes.values()), "any replica may answer"
    cluster.dispatcher.close()


@pytest.mark.parametrize("consistency", [gw.EVENTUAL, gw.CONSISTENCY_UNSPECIFIED])
async def test_another_number_makes_it_strong(consistency: int) -> None:
    cluster = Cluster()
    sent = read(cluster, SHARDS * 2, consistency=consistency)
    assert {(one.consistency, one.read_mode, one.session_revision) for one in sent} == {(gw.STRONG, 0, 0)}
    assert sum(bool(node.batches) for node in cluster.nodes.values()) == 1, "the leader alone answers"
    cluster.dispatcher.close()


async def test_answers_say_how_many_shards_there_are() -> None:
    cluster = Cluster()
    found: list[bytes] = []
    cluster.dispatcher.submit([Call(GET, gw.GetRequest(key=b"k"), 6_000, found.append)])
    cluster.answer(value=b"v", revision=3)
    cluster.dispatcher.submit([Call(PUT, gw.PutRequest(key=b"k", value=b"v"), 6_000, found.append)])
    cluster.answer(version=4, revision=4)
    got, put = gw.GetResponse.FromString(found[0]), gw.PutResponse.FromString(found[1])
    assert (got.status.code, got.kv.value, got.revision, got.shard_count) == (Status.OK, b"v", 3, SHARDS)
    assert (put.status.code, put.revision, put.shard_count) == (Status.OK, 4, SHARDS)
    cluster.dispatcher.close()
