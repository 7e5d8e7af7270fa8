"""The retry decision: never blind, never late, never without end."""

from __future__ import annotations

import pytest
from flotta_gateway.core import retry
from flotta_gateway.core.retry import NEW, Answer, Failure, Fate, History, Resend, decide, out_of_time
from flotta_runtime.errors import KvCode
from hypothesis import given, settings
from hypothesis import strategies as st

NODES = ("a:1", "b:1", "c:1")
CERTAIN = (KvCode.UNAVAILABLE, KvCode.NOT_LEADER, KvCode.SHARD_MOVED)
FINAL = (
    KvCode.INVALID_ARGUMENT,
    KvCode.NOT_FOUND,
    KvCode.ALREADY_EXISTS,
    KvCode.VERSION_MISMATCH,
    KvCode.PRECONDITION_FAILED,
    KvCode.RATE_LIMITED,
    KvCode.PAYLOAD_TOO_LARGE,
    KvCode.INTERNAL,
)


@st.composite
def failures(draw: st.DrawFn) -> Failure:
    address = draw(st.sampled_from(NODES))
    fate = draw(st.sampled_from(Fate))
    if fate is Fate.NOT_SENT:
        return Failure(fate, KvCode.UNAVAILABLE, "refused", address)
    if fate is Fate.LOST:
        return Failure(fate, KvCode.TIMEOUT, "lost", address)
    code = draw(st.sampled_from([code for code in KvCode if code not in (KvCode.OK, KvCode.CODE_UNSPECIFIED)]))
    hint = draw(st.sampled_from(("", *NODES)))
    return Failure(fate, code, "said", address, "shard-1", hint, hint)


def may_have_happened(failure: Failure) -> bool:
    return failure.code in (KvCode.TIMEOUT, KvCode.INTERNAL)


def step(history: History, failure: Failure, write: bool, dedup: bool, remaining_ms: float) -> Resend | Answer:
    return decide(
        history,
        failure,
        write=write,
        deduplicated=dedup,
        alternatives=NODES,
        remaining_ms=remaining_ms,
        jitter=0.5,
    )


@settings(max_examples=400)
@given(st.lists(failures(), min_size=1, max_size=30), st.floats(0, 6000))
def test_a_plain_write_is_never_sent_again_after_doubt(story: list[Failure], remaining_ms: float) -> None:
    history = NEW
    for failure in story:
        decision = step(history, failure, True, False, remaining_ms)
        if may_have_happened(failure):
            assert isinstance(decision, Answer)
            assert may_have_happened(decision.failure)
        if isinstance(decision, Answer):
            return
        history = decision.history
        assert not history.in_doubt


@settings(max_examples=400)
@given(st.lists(failures(), min_size=1, max_size=30), st.floats(0, 6000))
def test_doubt_about_a_deduplicated_write_ends_only_by_the_shards_word(
    story: list[Failure], remaining_ms: float
) -> None:
    history = NEW
    doubt = False
    for failure in story:
        doubt = doubt or may_have_happened(failure)
        decision = step(history, failure, True, True, remaining_ms)
        if isinstance(decision, Answer):
            if doubt:
                assert decision.failure.code not in CERTAIN
                assert decision.failure.code is not KvCode.RATE_LIMITED
            return
        history = decision.history
        assert history.in_doubt is doubt


@given(failures(), st.booleans(), st.booleans(), st.floats(0, 6000), st.integers(0, retry.ATTEMPTS_MAX))
def test_pauses_end_before_the_deadline_and_grow(
    failure: Failure, write: bool, dedup: bool, remaining_ms: float, attempts: int
) -> None:
    decision = step(History(attempts, pauses=attempts), failure, write, dedup, remaining_ms)
    if isinstance(decision, Resend):
        assert decision.history.attempts == attempts + 1
        assert decision.delay_ms < remaining_ms
        assert decision.delay_ms <= 1250


@given(st.lists(failures(), min_size=retry.ATTEMPTS_MAX, max_size=retry.ATTEMPTS_MAX))
def test_attempts_are_bounded(story: list[Failure]) -> None:
    history = NEW
    for failure in story:
        decision = step(history, failure, False, False, 1e9)
        if isinstance(decision, Answer):
            return
        history = decision.history
    raise AssertionError("sixty-four failures, and it would try once more")


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("write", [True, False])
def test_what_a_shard_says_for_good_is_answered(code: KvCode, write: bool) -> None:
    failure = Failure(Fate.REPLIED, code, "no", "a:1")
    assert step(NEW, failure, write, False, 5000) == Answer(failure)


def test_immediate_resends_happen_at_most_once_per_node_between_pauses() -> None:
    history = NEW
    asked = ["a:1"]
    while True:
        decision = step(history, Failure(Fate.NOT_SENT, KvCode.UNAVAILABLE, "", asked[-1]), True, False, 5000)
        assert isinstance(decision, Resend)
        if decision.delay_ms:
            break
        asked.append(decision.to)
        history = decision.history
    assert asked == ["a:1", "b:1", "c:1"]
    assert decision.refresh
    assert decision.history.tried == ()


def test_a_hint_is_followed_at_once_but_not_in_a_circle() -> None:
    first = step(NEW, Failure(Fate.REPLIED, KvCode.NOT_LEADER, "", "a:1", "", "b:1"), True, False, 5000)
    assert isinstance(first, Resend)
    assert (first.to, first.delay_ms) == ("b:1", 0)
    back = step(first.history, Failure(Fate.REPLIED, KvCode.NOT_LEADER, "", "b:1", "", "a:1"), True, False, 5000)
    assert isinstance(back, Resend)
    assert back.delay_ms > 0


def test_an_unavailable_leader_is_not_overrun_by_writes() -> None:
    decision = step(NEW, Failure(Fate.REPLIED, KvCode.UNAVAILABLE, "", "a:1"), True, False, 5000)
    assert isinstance(decision, Resend)
    assert decision.delay_ms >= retry.BACKOFF_MS


def test_pauses_double_to_a_second() -> None:
    assert [retry.pause_ms(n, 0) for n in range(8)] == [25, 50, 100, 200, 400, 800, 1000, 1000]
    assert retry.pause_ms(100, 0.99) == 1247


def test_out_of_time_says_what_is_known() -> None:
    refused = Failure(Fate.REPLIED, KvCode.NOT_LEADER, "", "a:1", "shard-1", "b:1")
    assert out_of_time(NEW, refused, write=True, sent=False) is refused
    assert out_of_time(NEW, None, write=True, sent=False).code is KvCode.UNAVAILABLE
    sent = out_of_time(NEW, None, write=True, sent=True)
    assert sent.code is KvCode.TIMEOUT
    assert "may have happened" in sent.message
    assert out_of_time(History(in_doubt=True), refused, write=True, sent=False).code is KvCode.TIMEOUT
    read = out_of_time(History(in_doubt=False), refused, write=False, sent=True)
    assert (read.code, "may have" in read.message) == (KvCode.TIMEOUT, False)
