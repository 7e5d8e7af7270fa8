"""The shard's checkers against small histories: each bad one differs from the good one in a single fact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flotta_consensus.api import Members
from flotta_consensus.sim.checkers import CommittedLog, SafetyViolation
from flotta_consensus.sim.history import History, Operation, Verdict
from flotta_consensus.sim.observed import members_bytes
from flotta_embedded.codec import encode_command, encode_value
from flotta_storage.core.writes import Write
from shard_checks import check_against_log, check_linearizable_keys, entries_by_tag, tag_of
from shard_commands import APPEND, EMPTY_CHAIN, extend, write_payload
from shard_model import Answer, ShardModel

NORMAL, CONF = 0, 2
THREE = Members((1, 2, 3))


class Story:
    """A committed log and a history that fits it, to be bent by a test."""

    def __init__(self) -> None:
        self.log = CommittedLog(1)
        self.history = History()
        self.index = 1

    def entry(self, kind: int, payload: bytes, at_us: int) -> int:
        self.index += 1
        self.log.saw_applied(1, at_us, self.index - 1, [(self.index, 2, kind, payload)])
        return self.index

    def write(self, called: int, returned: int, key: bytes = b"k", stamp_ms: int = 1, **fields: Any) -> Operation:
        kind = "delete" if fields.get("delete") else "create" if fields.get("if_not_exists") else "put"
        operation = self.history.call(1, 1, kind, key, None, called)
        if "request_id" in fields:
            operation.notes["request_id"] = fields["request_id"]
        operation.args = (tag_of(operation), fields.get("if_version_equals", 0))
        write = Write(key, tag_of(operation), **fields)
        index = self.entry(NORMAL, write_payload(stamp_ms, write), returned - 1)
        self.answer(operation, returned, Answer("OK", index, index), index)
        return operation

    def append(self, called: int, returned: int, before: tuple[int, bytes]) -> Operation:
        operation = self.history.call(1, 1, "append", b"c", None, called)
        payload = encode_command(APPEND, 1, 1, encode_value([b"c", tag_of(operation)]))
        index = self.entry(NORMAL, payload, returned - 1)
        self.answer(operation, returned, extend(before, tag_of(operation)), index)
        return operation

    def read(self, called: int, returned: int, index: int, result: Any, kind: str = "get", epoch: int = 0) -> Operation:
        operation = self.history.call(2, 1, kind, b"k" if kind == "get" else b"c", epoch, called)
        self.answer(operation, returned, result, index)
        return operation

    def answer(self, operation: Operation, returned: int, result: Any, index: int) -> None:
        operation.verdict, operation.result = Verdict.OK, result
        operation.returned_us, operation.revision, operation.notes["index"] = returned, index, index

    @staticmethod
    def row(write: Operation) -> tuple[bytes, int]:
        """What a reader sees of a write."""
        return tag_of(write), write.notes["index"]

    def check(self) -> None:
        operations = list(self.history)
        model = ShardModel(THREE, lambda key: key != b"foreign")
        placed = check_against_log(self.log, model, operations)
        check_linearizable_keys(operations, placed)


def good() -> tuple[Story, dict[str, Operation]]:
    story = Story()
    named = {"nothing": story.read(0, 1, 1, None), "first": story.write(2, 5)}
    named["read"] = story.read(6, 8, 2, story.row(named["first"]))
    named["second"] = story.write(9, 12, if_version_equals=2)
    named["append"] = story.append(13, 15, EMPTY_CHAIN)
    named["chain"] = story.read(16, 17, 4, named["append"].result, kind="chain")
    named["last"] = story.read(18, 20, 4, story.row(named["second"]))
    return story, named


def test_a_good_history_passes() -> None:
    good()[0].check()


def lost(story: Story, named: dict[str, Operation]) -> None:
    named["second"].number = 99


def wrong_index(story: Story, named: dict[str, Operation]) -> None:
    named["second"].notes["index"] = 4


def wrong_version(story: Story, named: dict[str, Operation]) -> None:
    named["second"].result = Answer("OK", 3, 2)


def wrong_verdict(story: Story, named: dict[str, Operation]) -> None:
    named["second"].result = Answer("VERSION_MISMATCH", 3, 2)


def refused_yet_there(story: Story, named: dict[str, Operation]) -> None:
    named["second"].verdict = Verdict.REJECTED


def stale_read(story: Story, named: dict[str, Operation]) -> None:
    named["last"].result, named["last"].revision = named["read"].result, 2


def wrong_value(story: Story, named: dict[str, Operation]) -> None:
    named["last"].result = (named["read"].result[0], 3)


def read_of_the_future(story: Story, named: dict[str, Operation]) -> None:
    named["last"].revision = 5


def appended_twice(story: Story, named: dict[str, Operation]) -> None:
    token = tag_of(named["append"])
    named["chain"].result = extend(named["append"].result, token)


def tagged_twice(story: Story, named: dict[str, Operation]) -> None:
    entry = story.log.entries[3]
    story.entry(NORMAL, entry.payload, 30)


@pytest.mark.parametrize(
    ("bend", "message"),
    [
        (lost, "acknowledged write is lost"),
        (wrong_index, r"stands at \[3\]"),
        (wrong_version, "the log says"),
        (wrong_verdict, "the log says"),
        (refused_yet_there, "refused write was committed"),
        (stale_read, "real-time order"),
        (wrong_value, "the log says"),
        (read_of_the_future, "nobody applied"),
        (appended_twice, "the log says"),
        (tagged_twice, "more often than proposed"),
    ],
)
def test_a_bent_history_does_not(bend: Callable[[Story, dict[str, Operation]], None], message: str) -> None:
    story, named = good()
    bend(story, named)
    with pytest.raises(SafetyViolation, match=message):
        story.check()


def test_a_later_write_stands_after_an_earlier_one() -> None:
    story = Story()
    late = story.write(10, 12)
    early = story.write(1, 5, key=b"j")
    with pytest.raises(SafetyViolation, match="real-time order"):
        story.check()
    late.called_us, early.returned_us = 1, 12
    story.check()


def test_an_unanswered_write_counts_if_it_is_in_the_log() -> None:
    story = Story()
    write = story.write(1, 50)
    write.verdict, write.returned_us = Verdict.UNKNOWN, None
    story.read(2, 3, 1, None)
    story.read(60, 61, 2, story.row(write))
    story.check()
    # It was over by the time that a replica applied it.
    story.read(62, 63, 1, None)
    with pytest.raises(SafetyViolation):
        story.check()


def test_the_register_check_needs_no_indices() -> None:
    story, named = good()
    operations = list(story.history)
    placed = check_against_log(story.log, ShardModel(THREE, lambda key: True), operations)
    named["last"].result = named["read"].result
    with pytest.raises(SafetyViolation, match="row b'k' is not linearizable"):
        check_linearizable_keys(operations, placed)
    keys, undecided = check_linearizable_keys(operations, placed, frozenset([b"k"]))
    assert (keys, undecided) == (1, 0)


def test_stale_epochs_and_foreign_keys_are_refused_by_the_model() -> None:
    story = Story()
    story.entry(CONF, members_bytes(Members((1, 2, 3), (4,))), 1)  # a learner: same epoch
    fine = story.write(2, 3, epoch=1)
    story.entry(CONF, members_bytes(Members((1, 2, 4), (), (1, 2, 3))), 4)  # joint: not yet
    also_fine = story.write(5, 6, epoch=1)
    story.entry(CONF, members_bytes(Members((1, 2, 4))), 7)
    stale = story.write(8, 9, epoch=1)
    foreign = story.write(10, 11, key=b"foreign")
    assert (fine.result.kind, also_fine.result.kind) == ("OK", "OK")
    with pytest.raises(SafetyViolation, match="SHARD_MOVED"):
        story.check()
    for refused in (stale, foreign):
        refused.result = Answer("SHARD_MOVED", refused.notes["index"])
    story.read(12, 13, story.index, "MOVED", epoch=1)
    story.read(12, 13, story.index, story.row(also_fine), epoch=2)
    story.check()


def test_expiry_is_in_group_time() -> None:
    story = Story()
    timed = story.write(1, 2, ttl_ms=10, stamp_ms=100)
    story.read(3, 4, 2, story.row(timed))
    story.write(5, 6, key=b"j", stamp_ms=109)
    story.read(7, 8, 3, story.row(timed))
    story.write(9, 10, key=b"j", stamp_ms=110)
    story.read(11, 12, 4, None)
    model = ShardModel(THREE, lambda key: True)
    check_against_log(story.log, model, list(story.history))
    assert list(model.living()) == [b"j"]


def twice(story: Story, request_id: bytes, stamp_ms: int = 1, second_stamp_ms: int = 1) -> tuple[Operation, Operation]:
    """Two attempts of one request; the first one's answer was lost."""
    first = story.write(1, 5, request_id=request_id, stamp_ms=stamp_ms)
    first.verdict = Verdict.UNKNOWN
    second = story.write(6, 9, request_id=request_id, stamp_ms=second_stamp_ms)
    return first, second


def test_a_repeated_request_takes_effect_once() -> None:
    story = Story()
    first, second = twice(story, b"flotta:1:x")
    with pytest.raises(SafetyViolation, match="duplicate=True"):
        story.check()
    second.result = Answer("OK", 2, 2, duplicate=True)
    story.read(10, 11, 3, story.row(first))
    story.check()


def test_after_the_window_a_foreign_id_is_new_and_a_timed_one_refused() -> None:
    for request_id, kind in ((b"foreign", "OK"), (b"flotta:1:x", "DEDUP_UNTIMELY")):
        story = Story()
        first, second = twice(story, request_id, second_stamp_ms=600_001)
        second.result = Answer(kind, 3, 3 if kind == "OK" else 0)
        story.read(10, 11, 3, story.row(second if kind == "OK" else first))
        operations = list(story.history)
        model = ShardModel(THREE, lambda key: True)
        placed = check_against_log(story.log, model, operations)
        assert len(model.requests) == 1
        check_linearizable_keys(operations, placed)


def test_a_timed_request_never_takes_effect_twice() -> None:
    story = Story()
    first, second = twice(story, b"flotta:1:x")
    placed = entries_by_tag(story.log.in_order(2))
    for operation, index in ((first, 2), (second, 3)):
        operation.notes["answers"] = {index: Answer("OK", index, index)}
    with pytest.raises(SafetyViolation, match="more than once, at \\[2, 3\\]"):
        check_linearizable_keys([first, second], placed)
