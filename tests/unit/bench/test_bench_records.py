"""What the benchmark keeps, shows, and judges."""

from dataclasses import replace
from pathlib import Path

import pytest
from bars import BARS, Bar, bar_table
from benchmark import arguments
from figures import Measure, Spread
from records import QUICK, Result, Table, load, load_all, merged_facts, once, save
from report import failures, quietness, rate_table, ratio_facts, ratio_table
from shard_writers import first_after_s, longest_silence_s

TABLE = Table("Speed", ["system", "ops/s"], [["flotta", "1000"], ["etcd", "9"]], note="measured")


def measure(system: str, number: int, rate: float, errors: int = 0) -> Measure:
    return Measure(
        system=system,
        cell="put c=50 conn=8",
        round=number,
        calls=1000,
        errors=errors,
        rate=rate,
        p50_ms=1.0,
        p99_ms=2.0,
        p999_ms=3.0,
        cpu_us={"gateway": 10.0, "node-1": 30.0},
        load_cpu_us=10.0,
        foreign_cores=0.5,
        stolen_cores=0.0,
    )


MEASURES = [measure(system, n, rate * (n + 1)) for n in range(3) for system, rate in (("flotta", 30.0), ("etcd", 20.0))]


def test_numbers_stand_under_each_other_on_the_screen_and_bars_between_them_in_docs():
    assert TABLE.text() == "Speed\n  system  ops/s\n  flotta   1000\n  etcd        9\n  measured"
    assert TABLE.markdown() == (
        "**Speed**\n\n| system | ops/s |\n|---|---|\n| flotta | 1000 |\n| etcd | 9 |\n\nmeasured"
    )


def test_a_result_survives_its_file(tmp_path: Path):
    result = Result("core", [TABLE], {"a": once(1.5)}, MEASURES, ["one failed"])
    saved = save(result, tmp_path)
    assert replace(saved, when="", machine={}) == result
    assert saved.when and saved.machine["cores"] > 0
    assert load(tmp_path / "core.json") == saved
    save(replace(result, part=QUICK), tmp_path)
    assert load_all(tmp_path) == {"core": saved}


def test_of_one_fact_measured_twice_the_newer_counts():
    old = Result("core", [], {"a": once(1.0), "b": once(2.0)}, when="2026-01-01T00:00:00")
    new = Result("idle", [], {"a": once(3.0)}, when="2026-02-01T00:00:00")
    facts = merged_facts([new, old])
    assert (facts["a"], facts["b"]) == ((once(3.0), new.when), (once(2.0), old.when))


def test_ratios_have_a_row_a_cell_and_become_facts():
    assert ratio_table("r", MEASURES, "flotta", "etcd").rows == [
        ["put c=50 conn=8", "1.50 (1.50–1.50)", *["1.00 (1.00–1.00)"] * 3]
    ]
    assert ratio_facts(MEASURES, "flotta", "etcd")["put c=50 conn=8: rate flotta ÷ etcd"] == Spread(1.5, 1.5, 1.5)
    assert ratio_facts(MEASURES, "flotta", "redis") == {}


def test_calls_that_failed_are_told_and_fail_the_run():
    assert failures(MEASURES) == []
    assert failures([measure("etcd", 1, 1.0, errors=3)]) == ["3 of 1000 calls failed: etcd, put c=50 conn=8, round 2"]
    assert [row[6] for row in rate_table("r", [measure("etcd", n, 1.0, errors=n) for n in range(3)]).rows] == ["3"]


def test_a_busy_machine_is_named_as_such():
    assert "NOT A QUIET MACHINE" in quietness(MEASURES)
    assert "NOT" not in quietness([replace(each, foreign_cores=0.05) for each in MEASURES])


@pytest.mark.parametrize(
    ("up", "value", "verdict"),
    [
        (True, 2.0, "aim met"),
        (True, 1.0, "met"),
        (True, 0.99, "NOT MET"),
        (False, 0.4, "aim met"),
        (False, 1.0, "met"),
        (False, 1.01, "NOT MET"),
    ],
)
def test_a_bar_is_met_at_its_very_value(up: bool, value: float, verdict: str):
    assert Bar("x", "x", 1.0, 2.0 if up else 0.5, up).verdict(value) == verdict


def test_every_bar_has_its_row_measured_or_not():
    put = "put c=50 conn=8: rate flotta ÷ etcd"
    rows = bar_table({put: (Spread(1.2, 1.1, 1.4), "2026-11-21T10:00:00")}).rows
    assert len(rows) == len(BARS) == 39
    assert rows[0] == ["Put, c=50, 8 conn.: rate ÷ etcd's", "≥ 1", "≥ 1.5", "1.20 (1.10–1.40)", "met", "2026-11-21"]
    assert all(row[3] == "not measured" for row in rows[1:])
    assert len({bar.fact for bar in BARS}) == len(BARS)


def test_the_bars_facts_are_those_that_the_core_makes():
    facts = ratio_facts([replace(each, cell="put c=1 conn=1") for each in MEASURES], "flotta", "etcd")
    assert "put c=1 conn=1: p50 flotta ÷ etcd" in {bar.fact for bar in BARS} & set(facts)


def test_narrowed_runs_are_quick_looks_that_leave_the_records_alone():
    assert not arguments([]).quick
    assert arguments(["--only", "put"]).quick
    assert arguments(["--only", "put"]).parts == "core"
    assert arguments(["--smoke"]).quick
    assert not arguments(["--parts", "failover", "--kills", "30"]).quick
    assert arguments(["--parts", "failover", "--kills", "3"]).quick
    assert not arguments(["--full"]).quick
    with pytest.raises(SystemExit):
        arguments(["--parts", "nonsense"])


def test_silence_is_the_longest_time_without_an_acknowledgement():
    acks = [0.5, 1.0, 1.2, 1.9, 2.0, 5.0]
    assert longest_silence_s(acks, since=1.1, until=2.1) == pytest.approx(0.7)
    assert longest_silence_s(acks, since=1.95, until=4.0) == pytest.approx(2.0)
    assert longest_silence_s([], since=1.0, until=4.0) == 3.0
    assert first_after_s(acks, 1.2) == pytest.approx(0.7)
