"""Three to four storage nodes in one process, over real sockets, real RocksDB and the real Raft host."""

from __future__ import annotations

import asyncio

import pytest
from flotta_proto.flotta import storage_pb2 as pb
from flotta_proto.kvdb import gateway_pb2
from flotta_storage.app import DATA_SERVICES, RAFT_SERVICE
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from storage_cluster import METADATA, Cluster, Code, delete, get, put

THREE = ["node-1", "node-2", "node-3"]
STRANGE = [
    (b"newline\n", b"a\nSET other x\n"),
    (b"empty", b""),
    (b"\x00", b"\x00\x00"),
    (b"\xff\xfe", b"\xff\x00\xfe\n"),
    (b"\xfe\xff", b"not the same key"),
    (b"key with spaces", b" "),
    (b"k" * 1024, b"long key"),
    ("ключ".encode(), "значение".encode()),
]


async def equal_digests(cluster: Cluster, shard_id: str, node_ids: list[str]) -> list[pb.ReplicaDigest]:
    """Wait until all replicas are at the same log position, then they must have the same content."""

    async def level() -> bool:
        found = await cluster.digests(shard_id, node_ids)
        return len(found) == len(node_ids) and len({one.applied_index for one in found}) == 1

    await cluster.until_async(level)
    digests = await cluster.digests(shard_id, node_ids)
    assert len(digests) == len(node_ids)
    assert len({(one.sha256, one.keys, one.epoch) for one in digests}) == 1
    return digests


async def test_three_nodes_write_read_delete(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(2, THREE)
    (written,) = await cluster.settle(put(b"hello", b"world"))
    assert written.code == Code.OK and written.version == written.revision > 0
    (read,) = await cluster.settle(get(b"hello"))
    assert (read.code, read.value, read.version) == (Code.OK, b"world", written.version)
    assert read.guarantee == pb.LINEARIZABLE
    assert 0 < read.create_time_ms == read.update_time_ms
    (head,) = await cluster.settle(get(b"hello", head_only=True))
    assert (head.value, head.version) == (b"", written.version)
    (gone,) = await cluster.settle(delete(b"hello"))
    assert gone.code == Code.OK and gone.version > written.version
    assert [one.code for one in await cluster.settle(delete(b"hello"), get(b"hello"))] == [Code.NOT_FOUND] * 2


async def test_grpc_health_follows_readiness(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await cluster.settle(put(b"k", b"v"))
    health = HealthStub(cluster.channel("node-1"))
    watched = {name: aiter(health.Watch(HealthCheckRequest(service=name), timeout=60)) for name in ("", *DATA_SERVICES)}

    async def becomes(name: str, status: int) -> None:
        while (await anext(watched[name])).status != status:
            pass

    for name in watched:
        await becomes(name, HealthCheckResponse.SERVING)
    await asyncio.gather(cluster.stop("node-2"), cluster.stop("node-3"))
    for name in DATA_SERVICES:
        await becomes(name, HealthCheckResponse.NOT_SERVING)
    assert (await health.Check(HealthCheckRequest(service=""))).status == HealthCheckResponse.SERVING
    assert (await health.Check(HealthCheckRequest(service=RAFT_SERVICE))).status == HealthCheckResponse.SERVING


LONG_MS = 600_000  # longer than any test may take


async def test_a_stop_hands_over_and_waits_for_no_stream_of_a_peer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flotta_storage.app._STREAM_GRACE_MS", LONG_MS)
    await cluster.start_coordinator()
    for node_id in THREE:
        await cluster.start(node_id, stop_timeout_ms=LONG_MS)
    await cluster.create_shards(3, THREE)
    await cluster.settle(put(b"k", b"v"))
    async with asyncio.timeout(60):
        await cluster.stop("node-1")
    assert (await cluster.settle(get(b"k")))[0].value == b"v"
    async with asyncio.timeout(60):  # now without the third, and then alone: there may be nobody to hand over to
        await cluster.stop("node-2")
        await cluster.stop("node-3")


async def test_the_only_voter_waits_for_nobody_when_it_stops(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flotta_storage.app._STREAM_GRACE_MS", LONG_MS)
    await cluster.start_coordinator()
    await cluster.start("node-1", stop_timeout_ms=LONG_MS)
    await cluster.create_shards(3, ["node-1"])
    await cluster.settle(put(b"k", b"v"))
    async with asyncio.timeout(60):
        await cluster.stop("node-1")


async def test_a_stream_is_greeted_before_anything_is_sent(cluster: Cluster) -> None:
    await cluster.open(1)
    stream = cluster.shards("node-1").Execute(metadata=METADATA)
    async with asyncio.timeout(60):
        await stream.initial_metadata()
    stream.cancel()


async def test_strange_bytes_survive_the_restart_of_every_node(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(3, THREE)
    written = await cluster.settle(*(put(key, value) for key, value in STRANGE))
    assert {one.code for one in written} == {Code.OK}
    await asyncio.gather(*(cluster.stop(node) for node in THREE))
    await asyncio.gather(*(cluster.start(node) for node in THREE))
    found = await cluster.settle(*(get(key) for key, _ in STRANGE))
    assert [(one.code, one.value) for one in found] == [(Code.OK, value) for _, value in STRANGE]
    assert [one.version for one in found] == [one.version for one in written]
    for shard in ("shard-0", "shard-1", "shard-2"):
        await equal_digests(cluster, shard, THREE)


async def test_sixteen_writers_of_one_key_leave_equal_replicas(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)

    async def write(writer: int) -> list[int]:
        answers = []
        for round_ in range(20):
            (answer,) = await cluster.settle(put(b"one key", b"%d/%d" % (writer, round_)))
            assert answer.code == Code.OK
            answers.append(answer.version)
        return answers

    versions = [version for some in await asyncio.gather(*map(write, range(16))) for version in some]
    assert len(set(versions)) == 16 * 20, "every write has a revision of its own"
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert digest.keys == 1
    (read,) = await cluster.settle(get(b"one key"))
    assert read.version == max(versions)


async def test_a_stopped_leader_is_followed_by_another_and_catches_up_again(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await cluster.settle(put(b"before", b"1"))
    first = cluster.leader("shard-0")
    node = cluster.nodes[first]
    await cluster.stop(first)
    assert node.backend is not None and node.backend.duties.transfers == 1, "leadership was handed over"
    await cluster.until(lambda: cluster.leader("shard-0") != first)
    for number in range(50):
        (answer,) = await cluster.settle(put(b"k%d" % number, b"v"))
        assert answer.code == Code.OK
    assert [one.value for one in await cluster.settle(get(b"before"))] == [b"1"]
    await cluster.start(first)
    (digest, *_) = await equal_digests(cluster, "shard-0", THREE)
    assert digest.keys == 51


async def test_nodes_restart_and_serve_while_no_coordinator_answers(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await cluster.settle(put(b"k", b"v"))
    await asyncio.gather(*(cluster.stop(node) for node in THREE))
    await cluster.stop_coordinator()
    await asyncio.gather(*(cluster.start(node) for node in THREE))

    async def served() -> bool:
        (reply,) = await cluster.execute("node-1", get(b"k", shard_id="shard-0"))
        return reply.code == Code.OK and reply.value == b"v"

    await cluster.until_async(served)


async def test_replies_redirect_with_hints(cluster: Cluster) -> None:
    await cluster.open(4)
    await cluster.create_shards(1, THREE)
    leader = cluster.leader("shard-0")
    follower = next(node for node in THREE if node != leader)
    where = cluster.nodes[leader].address
    await cluster.until(lambda: cluster.nodes["node-4"].model.num_shards)
    await cluster.until(lambda: (shard := cluster.nodes["node-4"].model.shard("shard-0")) and shard.leader == leader)
    (refused,) = await cluster.execute(follower, put(b"k", b"v", shard_id="shard-0"))
    assert (refused.code, refused.leader_hint) == (Code.NOT_LEADER, where)
    (elsewhere,) = await cluster.execute("node-4", put(b"k", b"v", shard_id="shard-0"))
    assert (elsewhere.code, elsewhere.new_node_hint, elsewhere.shard_id) == (Code.SHARD_MOVED, where, "shard-0")
    (stale,) = await cluster.execute(leader, put(b"k", b"v", shard_id="shard-0", epoch=7))
    assert stale.code == Code.SHARD_MOVED
    (unknown,) = await cluster.execute(leader, get(b"k", shard_id="shard-99"))
    assert unknown.code == Code.SHARD_MOVED
    assert [one.code for one in await cluster.settle(get(b"k"))] == [Code.NOT_FOUND], "none of these happened"


async def test_reads_keep_what_they_promise_on_followers(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    follower = next(node for node in THREE if node != cluster.leader("shard-0"))
    for number in range(30):
        (written,) = await cluster.settle(put(b"k", b"%d" % number))
        session = get(
            b"k",
            shard_id="shard-0",
            consistency=gateway_pb2.EVENTUAL,
            read_mode=gateway_pb2.READ_YOUR_WRITES,
            session_revision=written.revision,
        )
        bounded = get(b"k", shard_id="shard-0", consistency=gateway_pb2.EVENTUAL, max_staleness_ms=1)
        strong = get(b"k", shard_id="shard-0", read_mode=gateway_pb2.READ_YOUR_WRITES)
        found = await cluster.execute(follower, session, strong, bounded)
        assert [one.code for one in found] == [Code.OK] * 3
        assert [one.value for one in found[:2]] == [b"%d" % number] * 2
        assert [one.guarantee for one in found] == [pb.SESSION, pb.LINEARIZABLE, pb.BOUNDED]
        assert all(one.revision >= written.revision for one in found[:2])
    any_state = get(b"k", shard_id="shard-0", consistency=gateway_pb2.EVENTUAL, read_mode=gateway_pb2.LOW_LATENCY)
    (eventual,) = await cluster.execute(follower, any_state)
    assert (eventual.code, eventual.guarantee) == (Code.OK, pb.ANY)


async def test_an_expired_row_is_gone_for_strong_readers_at_once_and_swept_everywhere(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    (written,) = await cluster.settle(put(b"short", b"v", ttl_ms=150))
    await cluster.settle(put(b"long", b"v", ttl_ms=3_600_000))
    (read,) = await cluster.settle(get(b"short"))
    if read.code == Code.OK:
        assert read.expire_time_ms == read.update_time_ms + 150
    await cluster.until_async(lambda: is_absent(cluster, b"short"))
    (again,) = await cluster.settle(put(b"short", b"w", if_not_exists=True))
    assert again.code == Code.OK and again.version > written.version

    async def swept() -> bool:
        digests = await cluster.digests("shard-0", THREE)
        return all(one.keys == 2 for one in digests)

    await cluster.until_async(swept)
    await equal_digests(cluster, "shard-0", THREE)


async def is_absent(cluster: Cluster, key: bytes) -> bool:
    (reply,) = await cluster.settle(get(key))
    return reply.code == Code.NOT_FOUND


async def test_conditions_and_exactly_once(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(2, THREE)
    first, refused = await cluster.settle(put(b"k", b"a", if_not_exists=True), put(b"k", b"b", if_not_exists=True))
    assert (first.code, refused.code, refused.version) == (Code.OK, Code.ALREADY_EXISTS, first.version)
    second, mismatch = await cluster.settle(
        put(b"k", b"c", if_version_equals=first.version), put(b"k", b"d", if_version_equals=first.version)
    )
    assert (second.code, mismatch.code, mismatch.version) == (Code.OK, Code.VERSION_MISMATCH, second.version)
    once, twice, conflict = await cluster.settle(
        put(b"k", b"e", request_id="r1"), put(b"k", b"e", request_id="r1"), put(b"k", b"f", request_id="r1")
    )
    assert (twice.code, twice.version, twice.duplicate) == (Code.OK, once.version, True)
    assert conflict.code == Code.INVALID_ARGUMENT
    assert [one.value for one in await cluster.settle(get(b"k"))] == [b"e"]


async def test_bad_operations_are_refused_by_name_and_reach_no_log(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    leader = cluster.leader("shard-0")
    (before,) = await cluster.digests("shard-0", [leader])
    limit = cluster.nodes[leader].metrics.registry.get_sample_value("flotta_storage_operations_in_work")
    assert limit == 0
    where = {"shard_id": "shard-0"}
    bad = {
        "key must not be empty": put(b"", b"v", **where),
        "key has 1025 bytes, the limit is 1024": get(b"k" * 1025, **where),
        "exclude each other": put(b"k", b"v", if_not_exists=True, if_version_equals=1, **where),
        "request_id has 257 bytes, the limit is 256": put(b"k", b"v", request_id="r" * 257, **where),
        "ttl_ms is": put(b"k", b"v", ttl_ms=1 << 60, **where),
        "ttl_ms has no meaning for a delete": delete(b"k", ttl_ms=1, **where),
        "a delete takes no value": pb.Operation(kind=pb.DELETE, key=b"k", value=b"v", **where),
        "kind is 0": pb.Operation(key=b"k", **where),
    }
    answers = await cluster.execute(leader, *bad.values())
    assert [one.code for one in answers] == [Code.INVALID_ARGUMENT] * len(bad)
    for text, answer in zip(bad, answers, strict=True):
        assert text in answer.message
    (after,) = await cluster.digests("shard-0", [leader])
    assert after.applied_index == before.applied_index


async def test_a_key_of_another_shard_is_never_taken(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(8, THREE)
    # `a` belongs to shard-0, `hello` to shard-1.
    leader = cluster.leader("shard-1")
    without_epoch, with_epoch = await cluster.execute(
        leader, put(b"a", b"v", shard_id="shard-1"), put(b"a", b"v", shard_id="shard-1", epoch=1)
    )
    assert without_epoch.code == Code.SHARD_MOVED
    assert (with_epoch.code, with_epoch.message) == (
        Code.INVALID_ARGUMENT,
        "shard_id does not match key's resolved shard",
    )


async def test_the_largest_value_fits_and_one_byte_more_does_not(cluster: Cluster) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    largest = bytes(range(256)) * (1 << 16)
    fits, too_large = await cluster.settle(put(b"k", largest), put(b"k", largest + b"x"))
    assert fits.code == Code.OK
    assert (too_large.code, too_large.message) == (
        Code.PAYLOAD_TOO_LARGE,
        "value has 16777217 bytes, the limit is 16777216",
    )
    (read,) = await cluster.settle(get(b"k"))
    assert read.value == largest
    await equal_digests(cluster, "shard-0", THREE)


async def test_overload_is_answered_early_and_changes_nothing(cluster: Cluster) -> None:
    await cluster.start_coordinator()
    await cluster.start("node-1", operations_max=10)
    await cluster.create_shards(1, ["node-1"])
    answers = await cluster.execute("node-1", *(put(b"k%d" % n, b"v", shard_id="shard-0") for n in range(50)))
    codes = [one.code for one in answers]
    assert codes.count(Code.OK) == 10
    assert codes.count(Code.RATE_LIMITED) == 40
    assert all(one.retry_after_ms for one in answers if one.code == Code.RATE_LIMITED)
    (digest,) = await cluster.digests("shard-0", ["node-1"])
    assert digest.keys == 10
    again = await cluster.execute("node-1", *(get(b"k%d" % n, shard_id="shard-0") for n in range(10)))
    assert [one.code for one in again] == [Code.OK] * 10, "what was taken was given back"


@pytest.mark.parametrize("durable_only", [False, True])
async def test_without_a_quorum_writes_are_unknown_and_strong_reads_refused(
    cluster: Cluster, durable_only: bool
) -> None:
    await cluster.open(3)
    await cluster.create_shards(1, THREE)
    await cluster.settle(put(b"k", b"v"))
    last = cluster.leader("shard-0")
    others = [node for node in THREE if node != last]
    await asyncio.gather(*(cluster.stop(node) for node in others))
    if durable_only:
        await cluster.stop(last)
        await cluster.start(last)
    write, read = await cluster.execute(
        last,
        put(b"k", b"w", shard_id="shard-0", deadline_ms=300),
        get(b"k", shard_id="shard-0", deadline_ms=300),
    )
    assert write.code in (Code.TIMEOUT, Code.NOT_LEADER)
    assert read.code in (Code.TIMEOUT, Code.NOT_LEADER)
    local = get(b"k", shard_id="shard-0", consistency=gateway_pb2.EVENTUAL, read_mode=gateway_pb2.LOW_LATENCY)
    (stale,) = await cluster.execute(last, local)
    assert (stale.code, stale.value) == (Code.OK, b"v"), "what did not commit is not visible"
