"""Random lives of a driver: every callback is called exactly once, and what it says agrees with the machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from consensus_fakes import CODES, Bench, FakeMembership, FakeStatus
from flotta_consensus.api import Committed, ReadReady, Rejected, Unknown
from flotta_consensus.core.compaction import LogPolicy
from flotta_consensus.core.driver import DriverLimits
from flotta_consensus.core.effects import BuildSnapshot, Flush, InstallSnapshot
from flotta_consensus.core.manifest import Manifest, built_name

LIMITS = DriverLimits(waiters_max=60, reads_max=20, apply_entries_max=7, log=LogPolicy(200, 20, 3, 1_000))
DROPS = [code for name, code in vars(CODES).items() if name.startswith("DROP_")]


class Life:
    """A driver, a host that behaves at random, and the answers."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(LIMITS)
        self.now_ms = 0
        self.index = 1  # of the host's log
        self.asked = 0
        self.answers: dict[int, list[Any]] = {}
        self.committed_payloads: dict[int, bytes] = {}
        self.waiting: list[tuple[int, bytes]] = []  # (request id, payload) the host holds
        self.seen_calls = 0

    def callback(self, count: int = 1) -> Callable[[Any], None]:
        number = self.asked
        self.asked += 1
        self.answers[number] = []

        def done(answer: Any) -> None:
            self.answers[number].append(answer)
            assert not isinstance(answer, list) or len(answer) == count

        return done

    def ask(self) -> None:
        driver, group = self.bench.driver, self.bench.group
        deadline = self.now_ms + self.random.choice([0, 50, 500, 100_000])
        kind = self.random.random()
        if kind < 0.5:
            driver.propose(group, self.payload(), self.callback(), deadline)
        elif kind < 0.7:
            payloads = [self.payload() for _ in range(self.random.randrange(6))]
            driver.propose_many(group, payloads, self.callback(len(payloads)), deadline)
        elif kind < 0.8:
            driver.change_membership(group, [("learner", 5)], self.callback(), deadline)
        else:
            driver.read_barrier(group, self.callback(), deadline)

    def payload(self) -> bytes:
        return b"%d" % self.random.randrange(1 << 60)

    def host_takes(self) -> None:
        calls, self.seen_calls = self.bench.host.calls[self.seen_calls :], len(self.bench.host.calls)
        batch = self.bench.host.batch
        for name, *arguments in calls:
            if name == "propose_many":
                self.waiting.extend((number, payload) for _, number, payload in arguments[0])
            elif name == "change_membership":
                self.waiting.append((arguments[1], b""))
            elif name == "read_index_many":
                for group, number in arguments[0]:
                    fate = self.random.random()
                    if fate < 0.5:
                        batch.reads.append((group, number, self.index + self.random.randrange(3)))
                    elif fate < 0.8:
                        batch.dropped.append((group, number, self.random.choice(DROPS), 0))

    def host_gives(self) -> None:
        group, batch = self.bench.group, self.bench.host.batch
        for _ in range(self.random.randrange(8)):
            fate = self.random.random()
            if self.waiting and fate < 0.6:
                number, payload = self.waiting.pop(self.random.randrange(len(self.waiting)))
                self.index += 1
                if payload:
                    self.committed_payloads[self.index] = payload
                    batch.applies.append((group, self.index, 1, number, CODES.APPLY_NORMAL, payload))
                else:
                    batch.applies.append((group, self.index, 1, number, CODES.APPLY_CONF, FakeMembership([1], [5])))
            elif self.waiting and fate < 0.8:
                number, _ = self.waiting.pop()
                batch.dropped.append((group, number, self.random.choice(DROPS), 0))
            elif 0.8 <= fate < 0.805:
                self.index += self.random.randrange(1, 9)
                manifest = Manifest(group, self.index, 0, bytes(32), built_name(group, self.index))
                content = (FakeMembership([1]), manifest.encode())
                batch.applies.append((group, self.index, 1, 0, CODES.APPLY_SNAPSHOT, content))
                for number, _ in self.waiting:
                    batch.events.append((group, "outcome_unknown", number, "jumped over"))
                self.waiting.clear()
            elif fate < 0.9:
                batch.snapshots_wanted.append((group, 1, 22))
            elif fate < 0.95:
                batch.compactions_wanted.append((group, self.index))
            else:
                self.index += 1
                batch.applies.append((group, self.index, 2, 0, CODES.APPLY_EMPTY, b""))

    def turn(self, work: list[Callable[[], None]]) -> None:
        driver = self.bench.driver
        effects = driver.turn(self.now_ms)
        work.extend(partial(self.flush, each) for each in effects.flushes)
        work.extend(partial(self.install, each) for each in effects.installs)
        work.extend(partial(self.build, each) for each in effects.builds)
        work.extend(partial(self.check, number) for number in effects.checks)

    def flush(self, flush: Flush) -> None:
        self.bench.driver.flushed(flush.group, flush.run())

    def install(self, install: InstallSnapshot) -> None:
        self.bench.driver.install(install.group, install.machine.restore())

    def build(self, build: BuildSnapshot) -> None:
        name = built_name(build.group, build.index)
        self.bench.driver.snapshot_built(build.group, Manifest(build.group, build.index, 0, bytes(32), name))

    def check(self, group: int) -> None:
        first = max([index + 1 for _, index in self.bench.host.called("compact")], default=2)
        self.bench.driver.checked(
            [group], [FakeStatus(group, first_index=first, last_index=self.index, log_bytes=20 * (self.index - first))]
        )

    def live(self, steps: int) -> None:
        work: list[Callable[[], None]] = []
        for _ in range(steps):
            self.now_ms += self.random.choice([1, 5, 40, 700])
            for _ in range(self.random.randrange(6)):
                self.ask()
            self.host_takes()
            self.host_gives()
            self.turn(work)
            while work and self.random.random() < 0.4:
                work.pop(self.random.randrange(len(work)))()
        if self.random.random() < 0.5:
            self.bench.driver.close()
        else:
            self.bench.driver.remove_group(self.bench.group, lambda: None)
            self.bench.host.batch.events.append((self.bench.group, "removed", 1, ""))
            self.turn(work)
            for each in work:
                each()
            self.turn(work)
            assert self.bench.machine.destroyed


@pytest.mark.parametrize("seed", range(30))
def test_every_callback_is_called_exactly_once(seed: int) -> None:
    life = Life(seed)
    life.live(150)
    assert life.asked > 200
    assert {len(answers) for answers in life.answers.values()} == {1}
    assert life.bench.driver.waiting() == 0
    kinds = set()
    for (answer,) in life.answers.values():
        for outcome in answer if isinstance(answer, list) else [answer]:
            kinds.add(type(outcome))
            if isinstance(outcome, Committed) and isinstance(outcome.result, tuple):
                assert outcome.result == (outcome.index, life.committed_payloads[outcome.index])
    assert kinds == {Committed, Rejected, Unknown, ReadReady}
    compacted = [index for _, index in life.bench.host.called("compact")]
    assert all(index <= life.bench.machine.durable for index in compacted)
    assert compacted and life.bench.machine.flushes
