"""The request half of a simulated storage node: proposals and barriers as the storage service makes them.

Every answer is one of: ok with a result and a revision, refused (certainly without effect, with a hint), unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flotta_consensus.api import Committed, Outcome, ReadOutcome, ReadReady, Rejected
from flotta_consensus.sim.history import Verdict
from flotta_consensus.sim.observed import ObservedMachine
from flotta_consensus.sim.process import SimProcess
from flotta_embedded.codec import encode_command, encode_value
from flotta_embedded.keys import table_prefix
from flotta_embedded.machine import Machine
from flotta_storage.core.commands import expire_payload
from flotta_storage.core.reads import Miss, read_many, shard_state
from flotta_storage.core.rows import header_of, value_of
from flotta_storage.core.writes import Write, WriteResult
from shard_checks import MOVED
from shard_commands import APPEND, CHAINS, decode_chain, write_payload
from shard_model import Answer


@dataclass(frozen=True, slots=True)
class Reply:
    verdict: Verdict
    result: Any = None
    revision: int = 0
    index: int = 0
    leader: int = 0
    epoch: int = 0
    reason: str = ""


Replied = Callable[[Reply], None]


def refused(outcome: Rejected) -> Reply:
    return Reply(Verdict.REJECTED, leader=outcome.leader, reason=outcome.reason.value)


class ShardService:
    """Serves one process. Every method runs inside it."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process

    def _machine(self, group: int) -> Machine | None:
        if group not in self._process.driver.groups():
            return None
        observed = self._process.driver.machine(group)
        if not isinstance(observed, ObservedMachine) or not isinstance(observed.inner, Machine):
            raise TypeError("every machine of the simulation is an observed one")
        return observed.inner

    def write(self, group: int, write: Write, check_epoch: bool, timeout_ms: int, replied: Replied) -> None:
        """`check_epoch`: refuse early what a stale router sent; without it apply alone has to."""
        machine = self._machine(group)
        if machine is None:
            replied(Reply(Verdict.REJECTED, reason="unknown_group"))
            return
        if check_epoch:
            state = shard_state(machine.view())
            if state is None or not state.admits(write.epoch, write.key):
                replied(Reply(Verdict.REJECTED, reason="moved", epoch=state.epoch if state else 0))
                return
        payload = write_payload(self._process.wall_ms(), write)
        self._propose(group, machine, payload, timeout_ms, replied)

    def append(self, group: int, key: bytes, token: bytes, timeout_ms: int, replied: Replied) -> None:
        machine = self._machine(group)
        if machine is None:
            replied(Reply(Verdict.REJECTED, reason="unknown_group"))
            return
        payload = encode_command(APPEND, 1, self._process.wall_ms(), encode_value([key, token]))
        self._propose(group, machine, payload, timeout_ms, replied)

    def _propose(self, group: int, machine: Machine, payload: bytes, timeout_ms: int, replied: Replied) -> None:
        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Rejected):
                replied(refused(outcome))
            elif isinstance(outcome, Committed):
                replied(_committed(machine, outcome))
            else:
                replied(Reply(Verdict.UNKNOWN, reason=outcome.reason))

        self._process.driver.propose(group, payload, done, self._process.now_ms + timeout_ms)

    def read(self, group: int, key: bytes, epoch: int, timeout_ms: int, replied: Replied) -> None:
        """A row. One whose expiry the local clock has passed is only answered once group time has."""

        def look(machine: Machine, may_wait: bool) -> None:
            wall_ms = self._process.wall_ms()
            state, (found,) = read_many(
                machine.view(), [(key, epoch)], machine.group_time_ms(), wall_ms if may_wait else None
            )
            if found is Miss.OVERDUE:
                payload = expire_payload(wall_ms)
                self._propose(group, machine, payload, timeout_ms, lambda reply: after_time(machine, reply))
                return
            index = machine.applied_index()
            if found is Miss.MOVED:
                result: Any = MOVED
            elif isinstance(found, Miss):
                result = None
            else:
                result = (value_of(found), header_of(found).version)
            replied(Reply(Verdict.OK, result, machine.revision(index), index, epoch=state.epoch if state else 0))

        def after_time(machine: Machine, reply: Reply) -> None:
            if reply.verdict is Verdict.OK:
                look(machine, False)
            else:
                replied(Reply(Verdict.REJECTED, leader=reply.leader, reason=f"overdue: {reply.reason}"))

        self._barrier(group, timeout_ms, lambda machine: look(machine, True), replied)

    def read_chain(self, group: int, key: bytes, timeout_ms: int, replied: Replied) -> None:
        def look(machine: Machine) -> None:
            index = machine.applied_index()
            chain = decode_chain(machine.view().get(table_prefix(CHAINS) + key))
            replied(Reply(Verdict.OK, chain, machine.revision(index), index))

        self._barrier(group, timeout_ms, look, replied)

    def _barrier(self, group: int, timeout_ms: int, look: Callable[[Machine], None], replied: Replied) -> None:
        machine = self._machine(group)
        if machine is None:
            replied(Reply(Verdict.REJECTED, reason="unknown_group"))
            return

        def done(outcome: ReadOutcome) -> None:
            if isinstance(outcome, ReadReady):
                look(machine)
            elif isinstance(outcome, Rejected):
                replied(refused(outcome))
            else:
                replied(Reply(Verdict.UNKNOWN, reason=outcome.reason))

        self._process.driver.read_barrier(group, done, self._process.now_ms + timeout_ms)

    def is_member(self, group: int, replica: int, replied: Replied) -> None:
        """What a node asks before it deletes a replica: the leader's committed configuration, after a barrier.

        `No` is only said once an entry behind that configuration is committed. Until then it may be known to be
        committed here alone, and nowhere durably: after a power cut the old voters would be needed again.
        """

        def look(machine: Machine) -> None:
            role = self._process.driver.role(group)
            if role is None or not role.is_leader:
                replied(Reply(Verdict.REJECTED, reason="not_leader"))
            elif replica in machine.members():
                replied(Reply(Verdict.OK, True))
            else:
                self._propose(group, machine, expire_payload(0, 0), 1_000, fenced)

        def fenced(reply: Reply) -> None:
            replied(Reply(Verdict.OK, False) if reply.verdict is Verdict.OK else reply)

        self._barrier(group, 1_000, look, replied)


def _committed(machine: Machine, outcome: Committed) -> Reply:
    result = outcome.result
    if isinstance(result, WriteResult):
        # The answer names the revision that decided; a duplicate would name an older one.
        answer: Any = Answer(result.kind.name, result.revision, result.version, result.duplicate)
        return Reply(Verdict.OK, answer, result.revision, outcome.index)
    if isinstance(result, list):
        return Reply(Verdict.OK, (result[0], result[1]), result[2], outcome.index)
    return Reply(Verdict.OK, result, machine.revision(outcome.index), outcome.index)
