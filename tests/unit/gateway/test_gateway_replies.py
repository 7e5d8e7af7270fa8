"""What a failure looks like to a client: every code by its own name, with the hints that help to do better."""

from __future__ import annotations

import pytest
from flotta_gateway.core.replies import MESSAGE, failure_of, failure_response
from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Reply
from flotta_proto.kvdb.gateway_pb2 import Status

CODES = [code for name, code in Status.Code.items() if name not in ("CODE_UNSPECIFIED", "OK")]
PASSING = (Status.UNAVAILABLE, Status.NOT_LEADER, Status.SHARD_MOVED)


def told(kind: int, reply: Reply) -> Status:
    return MESSAGE[kind].FromString(failure_response(kind, failure_of(reply, "h:1"))).status


@pytest.mark.parametrize("kind", [GET, PUT, DELETE])
@pytest.mark.parametrize("code", CODES)
def test_a_node_s_word_reaches_the_client(kind: int, code: Status.Code.ValueType) -> None:
    status = told(kind, Reply(code=code, message="why", shard_id="shard-2", leader_hint="h:2"))
    assert (status.code, status.message, status.shard_id, status.leader_hint) == (code, "why", "shard-2", "h:2")
    assert (status.retry_after_ms > 0) == (code in PASSING), "as long as it takes what is under way"


def test_where_a_shard_went_is_a_hint_too() -> None:
    status = told(PUT, Reply(code=Status.SHARD_MOVED, shard_id="shard-2", new_node_hint="h:3"))
    assert status.leader_hint == "h:3"


def test_a_wait_that_the_node_names_is_told_as_it_is() -> None:
    assert told(GET, Reply(code=Status.RATE_LIMITED, retry_after_ms=7)).retry_after_ms == 7
    assert told(GET, Reply(code=Status.UNAVAILABLE, retry_after_ms=7)).retry_after_ms == 7


def test_a_code_that_means_nothing_is_internal() -> None:
    assert told(GET, Reply(code=0)).code == Status.INTERNAL
    assert told(GET, Reply(code=77)).code == Status.INTERNAL  # type: ignore[arg-type]
