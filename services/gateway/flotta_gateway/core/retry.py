"""What to do when an attempt failed: answer, or send again, to whom and when. A pure decision.

Invariants:
- A write whose outcome is in doubt (it was sent, and no reply or a TIMEOUT came back) is sent again only if it
  carries a request id, by which the shard recognises it. Otherwise the answer is TIMEOUT: it may have happened.
- Once an attempt of a write is in doubt, no later failure turns the answer into "it did not happen".
- Reads may always be repeated.
- No attempt starts after the caller's deadline, and there is a bound on their number.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flotta_runtime.errors import KvCode

BACKOFF_MS = 25
BACKOFF_MS_MAX = 1000
ATTEMPTS_MAX = 64
PAUSE_MS_MIN = 2  # with less than twice this left, another attempt is not worth its start

_CERTAINLY_NOT = frozenset({KvCode.UNAVAILABLE, KvCode.NOT_LEADER, KvCode.SHARD_MOVED})


class Fate(enum.Enum):
    """What became of an attempt, as far as the gateway can know."""

    REPLIED = "replied"
    NOT_SENT = "not sent"  # certain: no byte of it left
    LOST = "lost"  # sent, then the stream died or the attempt's time ran out


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt. For NOT_SENT and LOST the code is UNAVAILABLE and TIMEOUT."""

    fate: Fate
    code: KvCode
    message: str
    address: str = ""
    shard_id: str = ""
    leader_hint: str = ""
    new_node_hint: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """What a request has been through."""

    attempts: int = 0
    pauses: int = 0
    in_doubt: bool = False
    tried: tuple[str, ...] = ()  # addresses asked since the last pause


NEW = History()


@dataclass(frozen=True, slots=True)
class Resend:
    """Send again after `delay_ms`, or as soon as the map changes for this shard.

    `to` names the node to ask; empty: whoever the map then names. `hint` is who to ask when the map has not changed
    by then; its replica may live under another epoch than the map's.
    """

    history: History
    delay_ms: int = 0
    to: str = ""
    hint: str = ""
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the client."""

    failure: Failure


def decide(
    history: History,
    failure: Failure,
    *,
    write: bool,
    deduplicated: bool,
    alternatives: Sequence[str],
    remaining_ms: float,
    jitter: float,
) -> Resend | Answer:
    """The next step after `failure`.

    `alternatives` are the other replicas that could serve or redirect; `jitter` is a random number in [0, 1).
    """
    doubtful = write and failure.code in (KvCode.TIMEOUT, KvCode.INTERNAL)
    history = replace(
        history,
        attempts=history.attempts + 1,
        in_doubt=history.in_doubt or doubtful,
        tried=(*history.tried, failure.address),
    )
    lost = failure.code == KvCode.TIMEOUT
    if not lost and failure.code not in _CERTAINLY_NOT:
        return _answer(history, failure)
    if lost and write and not deduplicated:
        return _answer(history, failure)
    if history.attempts >= ATTEMPTS_MAX or remaining_ms < 2 * PAUSE_MS_MIN:
        return _answer(history, failure)

    if failure.code == KvCode.NOT_LEADER and failure.leader_hint and failure.leader_hint not in history.tried:
        return Resend(history, to=failure.leader_hint)
    if failure.fate is Fate.NOT_SENT or (failure.code == KvCode.UNAVAILABLE and not write):
        for address in alternatives:
            if address not in history.tried:
                return Resend(history, to=address, refresh=failure.fate is Fate.NOT_SENT)
    delay_ms = min(pause_ms(history.pauses, jitter), int(remaining_ms / 2))
    return Resend(
        replace(history, pauses=history.pauses + 1, tried=()),
        delay_ms=delay_ms,
        hint=failure.new_node_hint or failure.leader_hint,
        refresh=True,
    )


def pause_ms(pauses: int, jitter: float) -> int:
    """25 ms, doubling up to 1 s, plus up to a quarter."""
    base = min(BACKOFF_MS << min(pauses, 10), BACKOFF_MS_MAX)
    return int(base * (1 + 0.25 * jitter))


def out_of_time(history: History, last: Failure | None, *, write: bool, sent: bool) -> Failure:
    """What to tell a client whose deadline has come while its request was `sent`, or while it waited for a retry."""
    shard_id = last.shard_id if last else ""
    leader_hint = last.leader_hint if last else ""
    if sent or (write and history.in_doubt):
        may = "; the write may have happened" if write else ""
        message = f"the deadline passed before an answer came{may}"
        return Failure(Fate.LOST, KvCode.TIMEOUT, message, shard_id=shard_id, leader_hint=leader_hint)
    if last is not None:
        return last
    return Failure(Fate.NOT_SENT, KvCode.UNAVAILABLE, "the deadline passed before the request could be sent")


def _answer(history: History, failure: Failure) -> Answer:
    """Nothing said later makes an attempt in doubt certain again, except the shard's own word under its request id."""
    says_it_did_not = failure.code in _CERTAINLY_NOT or failure.code == KvCode.RATE_LIMITED
    if history.in_doubt and says_it_did_not:
        message = f"an earlier attempt may have happened; the last one failed: {failure.message}"
        return Answer(replace(failure, code=KvCode.TIMEOUT, message=message))
    return Answer(failure)
