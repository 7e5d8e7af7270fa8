"""Bad input at a gateway: what is wrong is said in `Status` with the field's name, and no shard hears of it."""

from __future__ import annotations

from typing import Any

import pytest
from conformance_support import (
    GARBAGE,
    GATEWAY,
    MIB,
    NOT_UTF8,
    Answer,
    Doors,
    changes_nothing,
    length_delimited,
    names,
    refused,
)
from flotta_proto.kvdb import gateway_pb2 as pb

VALUE_MAX = 16 * MIB
KEY_MAX = 1024
REPLIES: dict[str, Any] = {"Get": pb.GetResponse, "Put": pb.PutResponse, "Delete": pb.DeleteResponse}
REQUESTS: dict[str, Any] = {"Get": pb.GetRequest, "Put": pb.PutRequest, "Delete": pb.DeleteRequest}
INVALID = pb.Status.INVALID_ARGUMENT
CONTEXT_257 = pb.RequestContext(request_id="é" * 128 + "x")  # 129 characters, 257 bytes


def call(doors: Doors, method: str, **fields: Any) -> Any:
    answer = doors.gateway.raw(GATEWAY + method, REQUESTS[method](**fields).SerializeToString())
    assert answer.code.name == "OK", answer
    return REPLIES[method].FromString(answer.body)


# (method, fields of the request, words that the message must have)
BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    *((method, {"key": b""}, ("Key cannot be empty",)) for method in REPLIES),
    *((method, {}, ("Key cannot be empty",)) for method in REPLIES),
    *((method, {"key": b"k" * (KEY_MAX + 1)}, ("key", "1025", "1024")) for method in REPLIES),
    *((method, {"key": b"k", "ctx": CONTEXT_257}, ("ctx.request_id", "257", "256")) for method in REPLIES),
    *(
        (method, {"key": b"k", "ctx": pb.RequestContext(**{name: "x" * 257})}, (f"ctx.{name}", "257", "256"))
        for method in REPLIES
        for name in ("tenant_id", "principal")
    ),
    ("Get", {"key": b"k", "options": pb.ReadOptions(consistency=77)}, ("options.consistency", "77")),  # type: ignore[arg-type]
    ("Get", {"key": b"k", "options": pb.ReadOptions(read_mode=-1)}, ("options.read_mode", "-1")),  # type: ignore[arg-type]
    *(
        ("Get", {"key": b"k", "options": pb.ReadOptions(session_revision=5, read_mode=mode)}, ("session_revision",))
        for mode in (pb.READ_MODE_UNSPECIFIED, pb.LOW_LATENCY)
    ),
    *(
        (method, {"key": b"k", "options": pb.WriteOptions(durability=9)}, ("options.durability", "9"))  # type: ignore[arg-type]
        for method in ("Put", "Delete")
    ),
    *(
        (method, {"key": b"k", "options": pb.WriteOptions(require_idempotency=True)}, ("ctx.request_id",))
        for method in ("Put", "Delete")
    ),
    *(
        ("Put", {"key": b"k", "options": pb.WriteOptions(ttl_ms=ttl_ms)}, ("options.ttl_ms", str(ttl_ms), str(1 << 42)))
        for ttl_ms in ((1 << 42) + 1, 1 << 63, (1 << 64) - 1)
    ),
    (
        "Put",
        {"key": b"k", "options": pb.WriteOptions(if_not_exists=True, if_version_equals=3)},
        ("options.if_not_exists", "options.if_version_equals"),
    ),
    ("Delete", {"key": b"k", "options": pb.WriteOptions(if_not_exists=True)}, ("options.if_not_exists",)),
    ("Delete", {"key": b"k", "options": pb.WriteOptions(ttl_ms=1)}, ("options.ttl_ms",)),
]


def test_each_is_refused_with_the_field_and_changes_nothing(doors: Doors) -> None:
    def all_of_them() -> None:
        for method, fields, words in BAD:
            status = call(doors, method, **fields).status
            assert status.code == INVALID, (method, fields, status)
            names(status.message, *words)

    changes_nothing(doors, all_of_them)


def test_a_value_over_the_limit_is_refused_and_changes_nothing(doors: Doors) -> None:
    def too_large() -> None:
        status = call(doors, "Put", key=b"large", value=bytes(VALUE_MAX + 1)).status
        assert status.code == pb.Status.PAYLOAD_TOO_LARGE, status
        names(status.message, "value", str(VALUE_MAX + 1), str(VALUE_MAX))
        whole_message = doors.gateway.raw(
            GATEWAY + "Put", pb.PutRequest(key=b"large", value=bytes(17 * MIB)).SerializeToString()
        )
        refused(whole_message, "RESOURCE_EXHAUSTED", "larger than max", str(17 * MIB))

    changes_nothing(doors, too_large)


def test_the_limits_themselves_are_served(doors: Doors) -> None:
    value = b"v" * VALUE_MAX
    longest_id = pb.RequestContext(request_id="r" * 256)
    once = pb.WriteOptions(require_idempotency=True)
    for key, fields in (
        (b"k" * KEY_MAX, {"value": b"long key"}),
        (b"largest value", {"value": value}),
        (b"longest request id", {"value": b"x", "ctx": longest_id, "options": once}),
        (b"longest ttl", {"value": b"x", "options": pb.WriteOptions(ttl_ms=1 << 42)}),
        (b"\x00", {"value": b""}),
    ):
        put = call(doors, "Put", key=key, **fields)
        assert put.status.code == pb.Status.OK, (key, put)
        got = call(doors, "Get", key=key)
        assert (got.status.code, got.kv.value) == (pb.Status.OK, fields["value"]), key
        assert call(doors, "Delete", key=key).status.code == pb.Status.OK, key


def test_absurd_numbers_of_reads_are_answered(doors: Doors) -> None:
    def all_of_them() -> None:
        far = pb.ReadOptions(read_mode=pb.READ_YOUR_WRITES, consistency=pb.EVENTUAL, session_revision=2**64 - 1)
        status = call(doors, "Get", key=b"absent", options=far).status
        assert status.code == pb.Status.PRECONDITION_FAILED, "the shard never reached that revision"
        names(status.message, "session_revision", str(2**64 - 1))
        stale = pb.ReadOptions(consistency=pb.EVENTUAL, max_staleness_ms=2**32 - 1)
        fresh = pb.ReadOptions(consistency=pb.EVENTUAL, max_staleness_ms=1)
        for options in (stale, fresh):
            assert call(doors, "Get", key=b"absent", options=options).status.code == pb.Status.NOT_FOUND, options

    changes_nothing(doors, all_of_them)


def garbage(message: str) -> list[tuple[bytes, tuple[str, ...]]]:
    """Bytes that are no request, and what must be said of them."""
    return [
        (GARBAGE, ("more than 10 bytes", message)),
        (b"\x12", ("key", "cut short", message)),
        (length_delimited(2, b"k" * 5)[:-2], ("key", "cut short", message)),
        (b"\x0b", ("ctx", "wire type 3", message)),
        (b"\x00\x01", ("field number 0", message)),
        (length_delimited(1, length_delimited(1, NOT_UTF8)), ("ctx.request_id", "not UTF-8", message)),
        (length_delimited(1, b"\x0a\x05ab"), ("ctx.request_id", "cut short", message)),
    ]


@pytest.mark.parametrize("method", sorted(REPLIES))
def test_bytes_that_are_no_message_are_refused(doors: Doors, method: str) -> None:
    def all_of_them() -> None:
        for body, words in garbage(f"kvdb.gateway.{method}Request"):
            refused(doors.gateway.raw(GATEWAY + method, body), "INVALID_ARGUMENT", *words)

    changes_nothing(doors, all_of_them)


def test_what_does_not_exist_is_unimplemented(doors: Doors) -> None:
    ports = [doors.gateway, doors.nodes[0], doors.leader(), doors.follower()]

    def all_of_them() -> None:
        for door in ports:
            for method in (GATEWAY + "Scan", "/kvdb.nothing.Service/Method", "/x"):
                answer: Answer = door.raw(method, b"")
                assert answer.code.name == "UNIMPLEMENTED", (door.address, method, answer)
                names(answer.details)

    changes_nothing(doors, all_of_them)
