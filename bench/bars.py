"""The bars that Flotta set itself, beside what was measured.

Ratios are ours ÷ theirs within a round, and their median over the rounds is what is judged. The gateway's hop is in our
figures; etcd's load goes straight to its leader. With 50 and 200 clients both one and eight connections must pass. The
same bars stand beside h2load's figures, which takes less of the cores than ghz, and beside ghz's with one shard, since
etcd has one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from figures import Spread
from records import Table


@dataclass(frozen=True)
class Bar:
    """At least this, better that; `up`: whether more is better."""

    what: str
    fact: str
    least: float
    aim: float
    up: bool
    unit: str = ""

    def verdict(self, value: float) -> str:
        def reaches(bar: float) -> bool:
            return value >= bar if self.up else value <= bar

        return "aim met" if reaches(self.aim) else "met" if reaches(self.least) else "NOT MET"


CONNECTIONS = (8, 1)
NOT_MEASURED = "not measured"
LIMITS = (
    ("put", "Put", (1.0, 1.5), (1.0, 0.5)),
    ("get", "STRONG Get", (1.3, 2.0), (0.8, 0.4)),
)
ONE_GROUP = "1 shard"


def _pair(told: str, cell: str, ours: str, rate: tuple[float, float], cpu: tuple[float, float]) -> list[Bar]:
    """The rate and what it costs, of ours beside etcd."""
    return [
        Bar(f"{told}: rate ÷ etcd's", f"{cell}: rate {ours} ÷ etcd", *rate, True),
        Bar(f"{told}: CPU per op of all servers ÷ etcd's", f"{cell}: CPU {ours} ÷ etcd", *cpu, False),
    ]


def _core() -> list[Bar]:
    """With ghz; then where ghz is not what the cores are busy with; then one group beside etcd's one."""
    bars = []
    for operation, what, rate, cpu in LIMITS:
        for clients in (50, 200):
            for connections in CONNECTIONS:
                cell = f"{operation} c={clients} conn={connections}"
                bars += _pair(f"{what}, c={clients}, {connections} conn.", cell, "flotta", rate, cpu)
            cell = f"{operation} c={clients} conn=8"
            bars += _pair(f"{what}, c={clients}, h2load", f"{cell} h2load", "flotta", rate, cpu)
            bars += _pair(f"{what}, c={clients}, one shard", cell, ONE_GROUP, rate, cpu)
    put_1 = "put c=1 conn=1: p50 flotta ÷ etcd"
    return [*bars, Bar("Put, c=1: p50 ÷ etcd's", put_1, 1.5, 1.0, False)]


BARS = [
    *_core(),
    Bar("batches of 100 puts: keys/s ÷ etcd's put rate at c=200", "batch keys ÷ etcd put c=200", 8, 20, True),
    Bar("Put, c=50: native ÷ grpc.aio transport", "put c=50 conn=8: rate native ÷ grpcio", 4, 8, True),
    Bar("STRONG Get, c=50: native ÷ grpc.aio transport", "get c=50 conn=8: rate native ÷ grpcio", 4, 8, True),
    Bar("idle, 64 shards × 3: CPU of one storage process", "idle storage CPU percent", 2, 1, False, "% of a core"),
    Bar("writes resume after kill -9 of a shard leader, p99", "fail-over p99 s", 1.5, 0.8, False, "s"),
    Bar("memory of an idle storage process", "idle storage MB", 120, 70, False, "MB"),
]


def bar_table(facts: Mapping[str, tuple[Spread, str]]) -> Table:
    """All bars; one whose part was never run says so."""
    rows = []
    for bar in BARS:
        found = facts.get(bar.fact)
        unit = f" {bar.unit}" if bar.unit else ""
        sign = "≥" if bar.up else "≤"
        limits = [f"{sign} {bar.least:g}{unit}", f"{sign} {bar.aim:g}{unit}"]
        if found is None:
            rows.append([bar.what, *limits, NOT_MEASURED, "", ""])
            continue
        fact, when = found
        measured = f"{fact.middle:.2f}" if fact.low == fact.high else fact.text()
        rows.append([bar.what, *limits, measured + unit, bar.verdict(fact.middle), when[:10]])
    return Table("Bars", ["", "at least", "aim", "measured (min–max)", "", "on"], rows)
