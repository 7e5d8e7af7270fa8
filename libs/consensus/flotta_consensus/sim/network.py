"""The virtual network: delay, loss, reordering, duplicates, replays of old packets, clogged links, partitions.

A packet is a callback that runs at its arrival; the network neither knows nor copies what is in it. Only links
between members are ever partitioned or clogged: outsiders (clients) reach everybody, subject to delay and loss,
which is what shows a deposed leader that still answers.

Invariants: a packet that was cut off is dropped at its sending or at its arrival, whichever meets the partition;
without `reorder` each link delivers in order.
"""

from __future__ import annotations

import enum
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flotta_consensus.sim.clock import Scheduler
from flotta_consensus.sim.transcript import Transcript


class PartitionMode(enum.Enum):
    """How a partition divides the members."""

    NONE = "none"
    UNIFORM_SIZE = "uniform_size"  # the size of one side is drawn first, then its members
    UNIFORM_PARTITION = "uniform_partition"  # each member falls to a side by itself
    ISOLATE_ONE = "isolate_one"


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """The weather of one run. Probabilities of a tick hold per `tick_us`."""

    delay_min_us: int = 200
    delay_mean_us: int = 1_000
    loss: float = 0.0
    duplicate: float = 0.0
    replay: float = 0.0
    replay_delay_us: int = 2_000_000
    reorder: bool = False
    partition_mode: PartitionMode = PartitionMode.NONE
    partition_symmetric: bool = True
    partition: float = 0.0
    heal: float = 0.0
    partition_stability_us: int = 0  # a partition lasts at least this long
    heal_stability_us: int = 0  # and so does the whole network after it
    clog: float = 0.0
    clog_mean_us: int = 0
    path_capacity: int = 256  # packets under way on one link; more are dropped
    tick_us: int = 10_000


class Network:
    """Carries packets between endpoints named by number."""

    def __init__(
        self,
        scheduler: Scheduler,
        transcript: Transcript,
        rng: random.Random,
        members: Sequence[int],
        profile: NetworkProfile,
    ) -> None:
        self._scheduler = scheduler
        self._transcript = transcript
        self._rng = rng
        self._members = sorted(members)
        self.profile = profile
        self._cut: set[tuple[int, int]] = set()
        self._clogged_until_us: dict[tuple[int, int], int] = {}
        self._under_way: Counter[tuple[int, int]] = Counter()
        self._arrival_last_us: dict[tuple[int, int], int] = {}
        self._sent: deque[tuple[int, int, Callable[[], None]]] = deque(maxlen=64)
        self._stable_until_us = 0
        self.stopped = False
        scheduler.every(profile.tick_us, self._tick)

    # Sending

    def send(
        self,
        source: int,
        target: int,
        deliver: Callable[[], None],
        *,
        faithful: bool = False,
        lost: Callable[[], None] | None = None,
    ) -> bool:
        """Put a packet on its way. `faithful` ones are never duplicated or replayed (a reply to a client).

        False when it is known never to arrive, which only a simulation can know; `lost` is called when that turns out
        later, so that whoever models a reliable connection sends it again.
        """
        profile, rng, link = self.profile, self._rng, (source, target)
        if link in self._cut:
            self._transcript.count("packets_cut")
            return False
        if rng.random() < profile.loss:
            self._transcript.count("packets_lost")
            return False
        if self._under_way[link] >= profile.path_capacity:
            self._transcript.count("packets_over_capacity")
            return False
        self._carry(link, self._delay_us(), deliver, lost=lost)
        if faithful:
            return True
        if rng.random() < profile.duplicate:
            self._transcript.count("packets_duplicated")
            self._carry(link, self._delay_us(), deliver)
        if profile.replay:
            self._sent.append((source, target, deliver))
            if rng.random() < profile.replay:
                old_source, old_target, old = self._sent[rng.randrange(len(self._sent))]
                self._transcript.count("packets_replayed")
                self._carry((old_source, old_target), rng.randrange(1, profile.replay_delay_us), old, ordered=False)
        return True

    def _delay_us(self) -> int:
        spread_us = self.profile.delay_mean_us - self.profile.delay_min_us
        extra_us = self._rng.expovariate(1 / spread_us) if spread_us > 0 else 0.0
        return self.profile.delay_min_us + int(extra_us)

    def _carry(
        self,
        link: tuple[int, int],
        delay_us: int,
        deliver: Callable[[], None],
        *,
        ordered: bool = True,
        lost: Callable[[], None] | None = None,
    ) -> None:
        at_us = max(self._scheduler.now_us, self._clogged_until_us.get(link, 0)) + delay_us
        if ordered and not self.profile.reorder:
            at_us = max(at_us, self._arrival_last_us.get(link, 0))
            self._arrival_last_us[link] = at_us
        self._under_way[link] += 1

        def arrive() -> None:
            self._under_way[link] -= 1
            if link in self._cut:
                self._transcript.count("packets_cut")
                if lost is not None:
                    lost()
                return
            deliver()

        self._scheduler.at(at_us, arrive)

    # Weather

    def is_cut(self, source: int, target: int) -> bool:
        return (source, target) in self._cut

    @property
    def partitioned(self) -> bool:
        return bool(self._cut)

    def heal(self) -> None:
        """Every link carries again."""
        if self._cut:
            self._cut.clear()
            self._transcript.note("network", "healed")

    def split(self, side: Sequence[int], *, symmetric: bool = True) -> None:
        """Cut `side` off from the other members; asymmetric: only what it sends is lost."""
        inside = set(side)
        self._cut.clear()
        for source in self._members:
            for target in self._members:
                crosses_out = source in inside and target not in inside
                crosses_in = source not in inside and target in inside
                if crosses_out or (symmetric and crosses_in):
                    self._cut.add((source, target))
        if self._cut:
            self._transcript.count("partitions")
            self._transcript.count("partitions_symmetric" if symmetric else "partitions_asymmetric")
            way = "=" if symmetric else "->"
            outside = [member for member in self._members if member not in inside]
            self._transcript.note("network", f"partition {sorted(inside)} {way} {outside}")

    def calm(self) -> None:
        """End all weather for good: whole links, no loss, no duplicates. Delays stay."""
        self.stopped = True
        self.heal()
        self._clogged_until_us.clear()
        self.profile = NetworkProfile(
            delay_min_us=min(self.profile.delay_min_us, 500),
            delay_mean_us=min(self.profile.delay_mean_us, 1_000),
            tick_us=self.profile.tick_us,
        )

    def _tick(self) -> None:
        if self.stopped:
            return
        profile, rng, now_us = self.profile, self._rng, self._scheduler.now_us
        if profile.partition_mode is not PartitionMode.NONE and now_us >= self._stable_until_us:
            if self._cut:
                if rng.random() < profile.heal:
                    self.heal()
                    self._stable_until_us = now_us + profile.heal_stability_us
            elif rng.random() < profile.partition:
                self.split(self._draw_side(), symmetric=profile.partition_symmetric)
                self._stable_until_us = now_us + profile.partition_stability_us
        if profile.clog and rng.random() < profile.clog and len(self._members) > 1:
            source, target = rng.sample(self._members, 2)
            until_us = now_us + int(rng.expovariate(1 / profile.clog_mean_us))
            self._clogged_until_us[source, target] = until_us
            self._transcript.count("clogs")
            self._transcript.note("network", f"clogged {source}->{target} for {(until_us - now_us) // 1000} ms")

    def _draw_side(self) -> list[int]:
        rng, members = self._rng, self._members
        if self.profile.partition_mode is PartitionMode.ISOLATE_ONE:
            return [rng.choice(members)]
        if self.profile.partition_mode is PartitionMode.UNIFORM_SIZE:
            return rng.sample(members, rng.randrange(1, len(members)))
        side = [member for member in members if rng.random() < 0.5]
        return side or [rng.choice(members)]
