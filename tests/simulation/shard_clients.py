"""The load: clients that write, read, compare-and-set, delete and append, follow hints, and never retry blindly.

Each attempt is an operation of its own in the history. Another attempt follows only on a refusal, which is certain,
or under a request id, which makes it harmless. A client holds on to an old epoch now and then, as a stale router would.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from flotta_consensus.api import node_of
from flotta_consensus.sim.clock import US_PER_MS, Event
from flotta_consensus.sim.history import History, Operation, Verdict
from flotta_consensus.sim.world import World
from flotta_runtime.hashing import shard_index
from flotta_storage.core.writes import Write
from shard_checks import padded, shortened, tag_of
from shard_model import Answer
from shard_service import Replied, Reply, ShardService

CLIENT_BASE = 1_000
ATTEMPTS_MAX = 6


@dataclass(frozen=True, slots=True)
class KeySpace:
    """The keys of every group: few, so that operations meet."""

    rows: dict[int, list[bytes]]
    timed: dict[int, list[bytes]]
    chains: dict[int, list[bytes]]

    def all_timed(self) -> frozenset[bytes]:
        return frozenset(key for keys in self.timed.values() for key in keys)


def draw_keys(groups: int, rows: int, timed: int, chains: int) -> KeySpace:
    """Keys that hash to their group's shard."""

    def take(prefix: str, count: int) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = {group: [] for group in range(1, groups + 1)}
        number = 0
        while any(len(keys) < count for keys in found.values()):
            key = f"{prefix}{number}".encode()
            number += 1
            keys = found[shard_index(key, groups) + 1]
            if len(keys) < count:
                keys.append(key)
        return found

    return KeySpace(take("row-", rows), take("timed-", timed), take("chain-", chains))


@dataclass(frozen=True, slots=True)
class Shape:
    """One request. With a request id it may be tried again after an unknown outcome too."""

    kind: str
    key: bytes
    condition: int = 0
    ttl_ms: int = 0
    request_id: bytes = b""
    padding_bytes: int = 0


class Client:
    """One closed loop: an operation, its attempts, a pause, the next one."""

    def __init__(
        self,
        number: int,
        world: World,
        services: dict[int, ShardService],
        history: History,
        keys: KeySpace,
        rng: random.Random,
        think_mean_ms: int,
    ) -> None:
        self.number = number
        self.endpoint = CLIENT_BASE + number
        self._world = world
        self._services = services
        self._history = history
        self._keys = keys
        self._rng = rng
        self._think_mean_ms = think_mean_ms
        self._groups = sorted(keys.rows)
        self._leaders: dict[int, int] = {}
        self._epochs: dict[int, int] = {}
        self._versions: dict[bytes, int] = {}
        self._timeout: Event | None = None
        self._requests = 0
        self._stopped = False
        self.idle = True
        world.scheduler.after(rng.randrange(1, 300 * US_PER_MS), self._next)

    def stop(self) -> None:
        """No new operation; the one that runs goes on to its end."""
        self._stopped = True

    def _next(self) -> None:
        if self._stopped:
            self.idle = True
            return
        self.idle = False
        rng = self._rng
        group = rng.choice(self._groups)
        self._attempt(group, self._draw(group), 1)

    def _draw(self, group: int) -> Shape:
        """What to do next: the shape that all attempts share."""
        rng = self._rng
        dice = rng.random()
        if dice < 0.12:
            kind = "append" if dice < 0.08 else "chain"
            return Shape(kind, rng.choice(self._keys.chains[group]))
        timed = rng.random() < 0.15
        key = rng.choice(self._keys.timed[group] if timed else self._keys.rows[group])
        if rng.random() < 0.02 and len(self._groups) > 1:
            timed = False
            key = rng.choice(self._keys.rows[rng.choice([other for other in self._groups if other != group])])
        if dice < 0.47:
            return Shape("get", key)
        kind = "delete" if dice < 0.57 else "create" if dice < 0.67 else "put"
        condition = self._versions.get(key, 0) if kind != "create" and rng.random() < 0.4 else 0
        ttl_ms = rng.choice((5, 200, 3_000)) if timed and kind != "delete" and rng.random() < 0.7 else 0
        request_id = b""
        if rng.random() < 0.2:
            self._requests += 1
            prefix = b"flotta:%d:" % self._world.wall_ms if rng.random() < 0.8 else b"foreign-"
            request_id = prefix + b"%d-%d" % (self.number, self._requests)
        padding_bytes = rng.randrange(1_500) if kind != "delete" and rng.random() < 0.5 else 0
        return Shape(kind, key, condition, ttl_ms, request_id, padding_bytes)

    def _attempt(self, group: int, shape: Shape, attempt: int) -> None:
        rng, world = self._rng, self._world
        reads = shape.kind in ("get", "chain")
        node = self._leaders.get(group, 0)
        if not node or rng.random() < (0.3 if reads else 0.05):
            node = rng.choice(sorted(self._services))
        epoch = self._epochs.get(group, 0) if rng.random() < 0.8 else 0
        operation = self._history.call(self.number, group, shape.kind, shape.key, epoch, world.scheduler.now_us)
        if shape.request_id:
            operation.notes["request_id"] = shape.request_id
        if not reads:
            operation.args = (padded(tag_of(operation), shape.padding_bytes), shape.condition)
        timeout_ms = rng.choice((300, 800, 2_000))
        check_epoch = rng.random() < 0.5

        def handle() -> None:
            self._call(operation, shape, self._services[node], epoch, check_epoch, timeout_ms, answered)

        def answered(reply: Reply) -> None:
            world.network.send(
                node, self.endpoint, lambda: self._answered(operation, shape, attempt, reply), faithful=True
            )

        process = world.nodes[node]
        world.network.send(self.endpoint, node, lambda: process.run(handle), faithful=True)
        self._timeout = world.scheduler.after(
            int(timeout_ms * 1.2) * US_PER_MS,
            lambda: self._answered(operation, shape, attempt, Reply(Verdict.UNKNOWN, reason="no answer")),
        )

    def _call(
        self,
        operation: Operation,
        shape: Shape,
        service: ShardService,
        epoch: int,
        check_epoch: bool,
        timeout_ms: int,
        answered: Replied,
    ) -> None:
        group, key = operation.group, operation.key
        if operation.kind == "get":
            service.read(group, key, epoch, timeout_ms, answered)
        elif operation.kind == "chain":
            service.read_chain(group, key, timeout_ms, answered)
        elif operation.kind == "append":
            service.append(group, key, tag_of(operation), timeout_ms, answered)
        else:
            write = Write(
                key,
                operation.args[0],
                delete=operation.kind == "delete",
                epoch=epoch,
                ttl_ms=shape.ttl_ms,
                if_version_equals=shape.condition,
                if_not_exists=operation.kind == "create",
                request_id=shape.request_id,
            )
            service.write(group, write, check_epoch, timeout_ms, answered)

    def _answered(self, operation: Operation, shape: Shape, attempt: int, reply: Reply) -> None:
        if operation.verdict is not Verdict.PENDING:
            return  # it came after the client had given up
        if self._timeout is not None:
            self._timeout.cancel()
        world, group = self._world, operation.group
        operation.returned_us = world.scheduler.now_us
        operation.verdict, operation.result, operation.revision = reply.verdict, reply.result, reply.revision
        operation.reason = reply.reason
        operation.notes["index"] = reply.index
        world.transcript.count(f"operations_{reply.verdict.value}")
        world.transcript.note(
            f"client {self.number}",
            f"{operation.number} {operation.kind} {operation.key.decode()} g{group} -> {reply.verdict.value} "
            f"{reply.reason or shortened(reply.result)} @{reply.revision}",
        )
        self._learn(operation, reply)
        again = reply.verdict is Verdict.REJECTED or (reply.verdict is Verdict.UNKNOWN and shape.request_id)
        if again and attempt < ATTEMPTS_MAX and not self._stopped:
            delay_us = self._rng.randrange(1, 40 * US_PER_MS)
            world.scheduler.after(delay_us, lambda: self._attempt(group, shape, attempt + 1))
            return
        world.scheduler.after(int(self._rng.expovariate(1 / self._think_mean_ms) * US_PER_MS) + 1, self._next)

    def _learn(self, operation: Operation, reply: Reply) -> None:
        group, result = operation.group, reply.result
        if reply.leader:
            self._leaders[group] = node_of(reply.leader)
        elif reply.verdict is not Verdict.OK:
            self._leaders.pop(group, None)
        if reply.epoch and self._rng.random() < 0.7:
            self._epochs[group] = reply.epoch
        if isinstance(result, Answer):
            if result.kind == "SHARD_MOVED":
                self._epochs.pop(group, None)
            elif result.version:
                self._versions[operation.key] = result.version
        elif operation.kind == "get" and isinstance(result, tuple):
            self._versions[operation.key] = result[1]
