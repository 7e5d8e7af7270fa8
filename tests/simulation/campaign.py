"""Many seeds in a row, and the demand that everything which can happen did.

A campaign that found nothing because nothing happened is a failure too: the counts of all seeds are added up, and
each of what its simulator demands must be there. There are two simulators: bare shards, and whole clusters.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cluster_profile import draw_cluster
from cluster_world import run_cluster
from flotta_consensus.sim.profile import draw_profile
from shard_world import RunResult, run_seed

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Simulator:
    """What a campaign runs. `demanded` and `also_told` are counts of its transcripts."""

    target: str  # of make
    corpus: Path
    run: Callable[[int, Callable[[str], None] | None], RunResult]
    demanded: Mapping[str, str]
    also_told: Sequence[str]

    def reproduce(self, seed: int) -> str:
        return f"make {self.target} SEED={seed}"


_COMMON = {
    "elections": "elections",
    "crashes": "crashes",
    "power_cuts": "power cuts",
    "writes_torn": "torn tails",
    "snapshots_installed": "snapshots installed",
    "membership_changes": "membership changes",
    "partitions": "partitions",
    "delays_ended": "delays that ran out",
    "unknown_outcomes": "unknown outcomes",
}
_COMMONLY_TOLD = (
    "operations_ok", "operations_rejected", "operations_unknown", "states_compared", "keys_checked", "keys_undecided",
    "failpoint_deaths", "disk_deaths", "pauses", "crashes_of_all", "states_reverted", "snapshots_built", "clock_jumps",
    "packets_lost", "packets_duplicated", "packets_replayed", "clogs", "slow_disks", "full_disks",
)  # fmt: skip

SHARDS = Simulator(
    "sim",
    HERE / "corpus.txt",
    lambda seed, echo: run_seed(draw_profile(seed, plain=seed in plain_seeds(SHARDS.corpus)), echo),
    _COMMON,
    (
        *_COMMONLY_TOLD, "unknown_that_happened", "log_entries_compared", "promises_compared", "replicas_removed",
        "joint_changes", "transfers_asked",
    ),
)  # fmt: skip
CLUSTER = Simulator(
    "sim-cluster",
    HERE / "cluster_corpus.txt",
    lambda seed, echo: run_cluster(draw_cluster(seed, plain=seed in plain_seeds(CLUSTER.corpus)), echo),
    {
        **_COMMON,
        "moves_planned": "moves of the planner",
        "move_ordered": "moves by operators",
        "drain_ordered": "drains",
        "factor_ordered": "factors changed",
        "nodes_added": "nodes added",
        "nodes_destroyed": "machines destroyed",
        "connections_cut": "connections cut",
        "children_checked": "shards born of others",
        "shards_merged": "shards taken over by others",
        "event_removed": "replicas removed",
        "scan_pages": "pages of scans",
    },
    (
        *_COMMONLY_TOLD, "views_looked_at", "decisions", "cancel_ordered", "rebalance_ordered", "lead_ordered",
        "decommission_ordered", "nodes_dismissed", "reshard_ordered", "reshard_refused",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kept:
    """A seed of a corpus. A plain one is run without what was not drawn yet when it was found."""

    seed: int
    plain: bool
    note: str


def _read(path: Path) -> list[Kept]:
    found: list[Kept] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text, _, note = line.partition("#")
        if not text.strip():
            continue
        seed, *marks = text.split()
        if not seed.isdigit() or marks not in ([], ["plain"]) or not note.strip():
            raise ValueError(f"{path.name} line {number}: a seed, 'plain' if it is, then '# what it found'")
        found.append(Kept(int(seed), bool(marks), note.strip()))
    return found


def read_corpus(path: Path) -> list[tuple[int, str]]:
    """Every seed that ever failed, with the note of what it was."""
    return [(kept.seed, kept.note) for kept in _read(path)]


@cache
def plain_seeds(path: Path) -> frozenset[int]:
    return frozenset(kept.seed for kept in _read(path) if kept.plain)


@dataclass(slots=True)
class Campaign:
    """What a number of seeds came to."""

    simulator: Simulator
    counts: Counter[str] = field(default_factory=Counter)
    results: list[RunResult] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, result: RunResult) -> None:
        self.counts.update(result.counts)
        self.results.append(result)

    def failures(self) -> list[RunResult]:
        return [result for result in self.results if result.violation]

    def missing(self) -> list[str]:
        """What should have happened somewhere and did nowhere."""
        return [told for name, told in self.simulator.demanded.items() if not self.counts[name]]

    def summary(self) -> str:
        """The counts, and what is wrong; a clean campaign ends in `clean`."""
        seeds = len(self.results)
        rate = f"{self.seconds / seeds:.2f} s a seed" if seeds else "no seeds"
        lines = [f"{seeds} seeds, {rate}, {sum(result.steps for result in self.results)} events"]
        lines += [f"  {told:<22} {self.counts[name]:>9}" for name, told in self.simulator.demanded.items()]
        lines += [f"  {name.replace('_', ' '):<22} {self.counts[name]:>9}" for name in self.simulator.also_told]
        died = sorted(name.removeprefix("died_at ") for name in self.counts if name.startswith("died_at "))
        lines.append(f"  died at {len(died)} different failpoints: {', '.join(died) or 'none'}")
        lines += [f"VACUOUS: no {told} in the whole campaign" for told in self.missing()]
        lines += [
            f"FAILED seed {failure.seed}: {failure.violation}\n  reproduce: {self.simulator.reproduce(failure.seed)}"
            for failure in self.failures()
        ]
        if not self.failures() and not self.missing():
            lines.append("clean")
        return "\n".join(lines)


def run_campaign(
    simulator: Simulator, seeds: Iterable[int], told: Callable[[str], None] = lambda line: None, failures_max: int = 5
) -> Campaign:
    """Run seeds one after the other; give up after some failures."""
    campaign = Campaign(simulator)
    for seed in seeds:
        began = time.monotonic()
        result = simulator.run(seed, None)
        took = time.monotonic() - began
        campaign.seconds += took
        campaign.add(result)
        told(f"seed {seed}: {result.violation or 'ok'} ({took:.1f} s, {result.digest[:12]})")
        if result.violation:
            told("\n".join(["  " + line for line in result.tail[-12:]]))
            told(f"  reproduce: {simulator.reproduce(seed)}")
            if len(campaign.failures()) >= failures_max:
                break
    return campaign


def fresh_seeds(count: int, base: int) -> Sequence[int]:
    """Seeds that no earlier campaign used, if the base is fresh."""
    return range(base, base + count)
