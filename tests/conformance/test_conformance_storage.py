"""Bad input at a storage node: KvDB's KVService, our batch service, and the Raft transport between nodes."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from conformance_support import (
    GARBAGE,
    KV,
    MIB,
    NOT_UTF8,
    RAFT,
    SHARDS,
    Door,
    Doors,
    changes_nothing,
    length_delimited,
    names,
    refused,
)
from flotta_proto.flotta import raft_pb2 as raft
from flotta_proto.flotta import storage_pb2 as storage
from flotta_proto.kvdb import gateway_pb2
from flotta_proto.kvdb import kvstore_pb2 as kv
from flotta_runtime.hashing import shard_index

Code = gateway_pb2.Status
VALUE_MAX = 16 * MIB
KEY = b"a"  # of shard-0


def leader_of(doors: Doors, shard_id: str) -> Door:
    return doors.node_of(doors.state().shards[shard_id].leader)


def execute(door: Door, *operations: storage.Operation) -> dict[int, storage.Reply]:
    frame = storage.OperationFrame(operations=operations).SerializeToString()
    answer, frames = door.stream(SHARDS + "Execute", [frame], replies=1_000)
    assert answer.code.name == "OK", answer
    replies = [reply for one in frames for reply in storage.ReplyFrame.FromString(one).replies]
    assert len(replies) == len(operations)
    return {reply.call: reply for reply in replies}


def test_kvservice_refuses_bad_keys_and_values(doors: Doors) -> None:
    def all_of_them() -> None:
        for door in doors.nodes:
            for method, request in (("Get", kv.KeyRequest), ("Set", kv.KeyValueRequest), ("Delete", kv.DeleteRequest)):
                refused(door.raw(KV + method, b""), "INVALID_ARGUMENT", "key must not be empty")
                too_long = request(key=b"k" * 1025).SerializeToString()
                refused(door.raw(KV + method, too_long), "INVALID_ARGUMENT", "key", "1025", "1024")
                refused(door.raw(KV + method, GARBAGE), "INVALID_ARGUMENT", request.DESCRIPTOR.full_name)
                refused(door.raw(KV + method, b"\x0a\x05ab"), "INVALID_ARGUMENT", "key", "cut short")
            large = kv.KeyValueRequest(key=KEY, value=bytes(VALUE_MAX + 1)).SerializeToString()
            answer = door.raw(KV + "Set", large)
            refused(answer, "INVALID_ARGUMENT", "value", str(VALUE_MAX + 1), str(VALUE_MAX))
            assert answer.trailers["x-flotta-error"] == "PAYLOAD_TOO_LARGE"
            larger = kv.KeyValueRequest(key=KEY, value=bytes(17 * MIB)).SerializeToString()
            refused(door.raw(KV + "Set", larger), "RESOURCE_EXHAUSTED", "larger than max")
            for method in ("ReplicateSet", "ReplicateDelete"):
                refused(door.raw(KV + method, b""), "FAILED_PRECONDITION", "Raft")
            refused(door.raw("/kvdb.replication.ReplicationService/Replicate", b""), "UNIMPLEMENTED", "Raft")

    changes_nothing(doors, all_of_them)


def test_kvservice_sends_writes_elsewhere_with_a_hint(doors: Doors) -> None:
    def all_of_them() -> None:
        shard = doors.state().shards[f"shard-{shard_index(KEY, 2)}"]
        body = kv.KeyValueRequest(key=KEY, value=b"v").SerializeToString()
        for number, door in enumerate(doors.nodes, start=1):
            node_id = f"node-{number}"
            if node_id == shard.leader:
                continue
            answer = door.raw(KV + "Set", body)
            if node_id in shard.replicas:
                refused(answer, "FAILED_PRECONDITION", "Leader hint: ")
                assert answer.trailers["x-leader-hint"] == doors.node_of(shard.leader).address
            else:
                refused(answer, "FAILED_PRECONDITION", "Shard has moved to: ")
                assert answer.trailers["x-shard-id"] == shard.shard_id
                assert answer.trailers["x-new-node-hint"] == doors.node_of(shard.leader).address

    changes_nothing(doors, all_of_them)


def test_kvservice_serves_the_limits_themselves(doors: Doors) -> None:
    for key, value in ((b"k" * 1024, b"v"), (b"large", b"v" * VALUE_MAX), (b"\x00", b"")):
        door = leader_of(doors, f"shard-{shard_index(key, 2)}")
        assert door.ask(KV + "Set", kv.KeyValueRequest(key=key, value=value), kv.SetResponse).success
        assert door.ask(KV + "Get", kv.KeyRequest(key=key), kv.ValueResponse).value == value
        assert door.ask(KV + "Delete", kv.DeleteRequest(key=key), kv.DeleteResponse).success
        assert not door.ask(KV + "Delete", kv.DeleteRequest(key=key), kv.DeleteResponse).success


# (fields of the operation, code, words)
GET, PUT, DELETE = storage.GET, storage.PUT, storage.DELETE
BAD_OPERATIONS: list[tuple[dict[str, Any], int, tuple[str, ...]]] = [
    *(({"kind": kind, "key": b""}, Code.INVALID_ARGUMENT, ("key", "empty")) for kind in (GET, PUT, DELETE)),
    *(
        ({"kind": kind, "key": b"k" * 1025}, Code.INVALID_ARGUMENT, ("key", "1025", "1024"))
        for kind in (GET, PUT, DELETE)
    ),
    *(
        ({"kind": kind}, Code.INVALID_ARGUMENT, ("kind", str(kind), "GET, PUT, DELETE or SCAN"))
        for kind in (0, 5, 99, -1)
    ),
    *(({"kind": kind, "shard_id": ""}, Code.INVALID_ARGUMENT, ("shard_id", "empty")) for kind in (GET, PUT, DELETE)),
    # What the map does not have may have been taken over: the hint leads to where the key is.
    *(({"kind": kind, "shard_id": "shard-9"}, Code.SHARD_MOVED, ("Shard has moved to: ",)) for kind in (GET, PUT)),
    ({"kind": GET, "shard_id": "x" * 5000}, Code.SHARD_MOVED, ("Shard has moved to: ",)),
    *(({"kind": kind, "epoch": 2**64 - 1}, Code.SHARD_MOVED, ("Shard has moved to: ",)) for kind in (GET, PUT, DELETE)),
    ({"kind": GET, "consistency": 77}, Code.INVALID_ARGUMENT, ("consistency", "77")),
    ({"kind": GET, "read_mode": -5}, Code.INVALID_ARGUMENT, ("read_mode", "-5")),
    ({"kind": PUT, "value": bytes(VALUE_MAX + 1)}, Code.PAYLOAD_TOO_LARGE, ("value", str(VALUE_MAX))),
    ({"kind": PUT, "ttl_ms": (1 << 42) + 1}, Code.INVALID_ARGUMENT, ("ttl_ms", str(1 << 42))),
    ({"kind": PUT, "ttl_ms": 2**64 - 1}, Code.INVALID_ARGUMENT, ("ttl_ms", str(2**64 - 1))),
    (
        {"kind": PUT, "if_not_exists": True, "if_version_equals": 1},
        *(Code.INVALID_ARGUMENT, ("if_not_exists", "if_version_equals")),
    ),
    ({"kind": PUT, "request_id": "é" * 128 + "x"}, Code.INVALID_ARGUMENT, ("request_id", "257", "256")),
    ({"kind": DELETE, "request_id": "x" * 257}, Code.INVALID_ARGUMENT, ("request_id", "257", "256")),
    ({"kind": DELETE, "ttl_ms": 1}, Code.INVALID_ARGUMENT, ("ttl_ms",)),
    ({"kind": DELETE, "if_not_exists": True}, Code.INVALID_ARGUMENT, ("if_not_exists",)),
    ({"kind": DELETE, "value": b"v"}, Code.INVALID_ARGUMENT, ("value",)),
]


def test_operations_are_refused_one_by_one_and_the_stream_goes_on(doors: Doors) -> None:
    """All in one frame, between good reads: every one is answered for itself."""
    other = next(key for key in (b"b", b"c", b"d", b"e") if shard_index(key, 2) == 1)
    cases = [
        *BAD_OPERATIONS,
        *(
            ({"kind": kind, "key": other, "epoch": 1}, Code.INVALID_ARGUMENT, ("shard_id", "key"))
            for kind in (GET, PUT, DELETE)
        ),
        *(({"kind": kind, "key": other}, Code.SHARD_MOVED, ("Shard has moved to: ",)) for kind in (GET, PUT, DELETE)),
    ]

    def all_of_them() -> None:
        operations, expected = [], {}
        for call, (fields, code, words) in enumerate(cases, start=1):
            operations.append(storage.Operation(**{"call": call, "key": KEY, "shard_id": "shard-0", **fields}))
            expected[call] = (fields, code, words)
        good = storage.Operation(call=0, kind=GET, key=KEY, shard_id="shard-0")
        replies = execute(leader_of(doors, "shard-0"), *operations, good)
        assert replies.pop(0).code in (Code.OK, Code.NOT_FOUND)
        for call, reply in replies.items():
            fields, code, words = expected[call]
            assert reply.code == code, (str(fields)[:200], reply)
            names(reply.message, *words)

    changes_nothing(doors, all_of_them)


def test_frames_that_are_too_large_or_odd(doors: Doors) -> None:
    def all_of_them() -> None:
        door = leader_of(doors, "shard-0")
        large = storage.Operation(kind=PUT, key=KEY, shard_id="shard-0", value=bytes(17 * MIB))
        frame = storage.OperationFrame(operations=[large]).SerializeToString()
        refused(door.stream(SHARDS + "Execute", [frame])[0], "RESOURCE_EXHAUSTED", "larger than max")
        answer, frames = door.stream(SHARDS + "Execute", [b"", b""])
        assert (answer.code.name, frames) == ("OK", [])
        twins = [storage.Operation(call=7, kind=GET, key=KEY, shard_id="shard-0") for _ in range(3)]
        frame = storage.OperationFrame(operations=twins).SerializeToString()
        _, frames = door.stream(SHARDS + "Execute", [frame], replies=1_000)
        replies = [reply for one in frames for reply in storage.ReplyFrame.FromString(one).replies]
        assert [reply.call for reply in replies] == [7, 7, 7]

    changes_nothing(doors, all_of_them)


def test_frames_that_are_no_messages_end_the_stream(doors: Doors) -> None:
    operation = length_delimited(1, length_delimited(3, NOT_UTF8))

    def all_of_them() -> None:
        for door in doors.nodes:
            for body, words in (
                (GARBAGE, ("OperationFrame",)),
                (operation, ("operations.shard_id", "not UTF-8")),
                (length_delimited(1, length_delimited(23, NOT_UTF8)[:-1]), ("operations",)),
            ):
                answer, _ = door.stream(SHARDS + "Execute", [b"", body])
                refused(answer, "INVALID_ARGUMENT", *words)
            for method in ("MembershipOf", "Digest", "Compact"):
                refused(door.raw(SHARDS + method, GARBAGE), "INVALID_ARGUMENT", "flotta.storage.v1")
            digest = storage.DigestRequest(shard_id="shard-9").SerializeToString()
            refused(door.raw(SHARDS + "Digest", digest), "NOT_FOUND", "shard_id", "shard-9")
            nobody = storage.MembershipRequest(group_id=2**64 - 1, replica_id=1)
            assert not door.ask(SHARDS + "MembershipOf", nobody, storage.MembershipResponse).known

    changes_nothing(doors, all_of_them)


# --- between the nodes -------------------------------------------------------------------------------------------


@pytest.fixture(params=["nodes", "coordinators"])
def peers(request: pytest.FixtureRequest, doors: Doors) -> tuple[Doors, str, str]:
    """The cluster, and two members that have met: one speaks, one listens."""
    if request.param == "coordinators":
        return doors, "coordinator-2", "coordinator-1"
    shard = doors.state().shards["shard-0"]
    return doors, next(node_id for node_id in shard.replicas if node_id != shard.leader), shard.leader


def identity(doors: Doors, name: str) -> dict[str, Any]:
    return dict(json.loads((doors.cluster.folder / "data" / name / "identity.json").read_text()))


def introduced(doors: Doors, sender: str, receiver: str, **changed: str) -> tuple[tuple[str, str], ...]:
    said = {name: str(value) for name, value in identity(doors, sender).items()} | changed
    return (
        ("x-flotta-cluster-id", said["cluster_id"]),
        ("x-flotta-node-id", said["node_id"]),
        ("x-flotta-node-num", said["node_num"]),
        ("x-flotta-store-id", said["store_id"]),
        ("x-flotta-to-node-num", said.get("to", str(identity(doors, receiver)["node_num"]))),
    )


def door_of(doors: Doors, name: str) -> Door:
    return doors.node_of(name) if name.startswith("node") else doors.coordinators[int(name[-1]) - 1]


def test_strangers_may_not_send_raft_messages(peers: tuple[Doors, str, str]) -> None:
    doors, sender, receiver = peers
    door = door_of(doors, receiver)
    record = doors.cluster.folder / "data" / receiver / "peers.json"

    def all_of_them() -> None:
        known = record.read_bytes()
        for method, body in (("Frames", b""), ("SendSnapshot", b"")):
            for changed, words in (
                ({"store_id": "another"}, (sender, "another", "replaced")),
                ({"cluster_id": "foreign"}, ("foreign", "cluster")),
                ({"to": "77"}, (receiver, "77")),
                ({"node_num": "x"}, ("'x'", "node number")),
                ({"node_num": "0", "node_id": "new", "store_id": "new"}, ("number 0",)),
                ({"node_num": str(2**32), "node_id": "new", "store_id": "new"}, (str(2**32),)),
                ({"node_num": "77", "node_id": "", "store_id": ""}, ("''",)),
            ):
                answer, _ = door.stream(RAFT + method, [body], metadata=introduced(doors, sender, receiver, **changed))
                refused(answer, "FAILED_PRECONDITION", *words)
            answer, _ = door.stream(RAFT + method, [body])
            refused(answer, "FAILED_PRECONDITION", receiver)
        refused(door.raw(RAFT + "Identify", GARBAGE), "INVALID_ARGUMENT", "IdentifyRequest")
        assert record.read_bytes() == known

    changes_nothing(doors, all_of_them)


def test_garbage_from_a_peer_does_no_harm(peers: tuple[Doors, str, str]) -> None:
    """A known peer sends bytes that are no frames and snapshots that are none: nothing happens, and it goes on."""
    doors, sender, receiver = peers
    door = door_of(doors, receiver)
    pid = doors.cluster.pid(receiver)

    def all_of_them() -> None:
        metadata = introduced(doors, sender, receiver)
        bodies = [b"", b"x", bytes(64), b"\xff" * 64, os.urandom(1_000), struct.pack("<I", 2**31) + b"z" * 10]
        for body in bodies:
            frame = raft.Frame(messages=body, more=[body]).SerializeToString()
            answer, _ = door.stream(RAFT + "Frames", [frame], metadata=metadata)
            assert answer.code.name == "OK", (body[:8], answer)
        answer, _ = door.stream(RAFT + "Frames", [GARBAGE], metadata=metadata)
        refused(answer, "INVALID_ARGUMENT", "flotta.raft.v1.Frame")
        header = raft.SnapshotChunk.Header(group_id=99, to_replica=1, from_replica=2, index=5, term=1, total_bytes=9)
        for chunk, words in (
            (raft.SnapshotChunk(data=b"x"), ("header",)),
            (raft.SnapshotChunk(header=header), ("replica 1",)),
        ):
            answer, found = door.stream(RAFT + "SendSnapshot", [chunk.SerializeToString()], metadata=metadata)
            assert answer.code.name == "OK", answer
            receipt = raft.SnapshotReceipt.FromString(found[-1])
            assert not receipt.accepted and not receipt.send_data
            names(receipt.reason, *words)
        refused(
            door.stream(RAFT + "SendSnapshot", [GARBAGE], metadata=metadata)[0], "INVALID_ARGUMENT", "SnapshotChunk"
        )

    changes_nothing(doors, all_of_them)
    os.kill(pid, 0)
    assert doors.cluster.pid(receiver) == pid
