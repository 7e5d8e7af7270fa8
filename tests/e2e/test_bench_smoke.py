"""The benchmark still runs, from start to tables: real systems, real load generators, tiny counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from links import CARRIERS, measure
from records import load

ROOT = Path(__file__).resolve().parents[2]


def test_links_and_streams_carry_every_frame_of_the_benchmark_and_its_answer() -> None:
    for carrier in CARRIERS:
        way = measure(carrier, requests=4, window=3, seconds=0.2)
        assert way.frames_per_s > 0 and way.p50_us > 0, carrier


def test_the_benchmark_measures_every_system_and_takes_no_failure_for_a_success(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "bench" / "benchmark.py"),
            "--smoke",
            "--parts",
            "core",
            "--results",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = load(tmp_path / "quick.json")
    assert {measure.system for measure in result.measures} == {"flotta", "etcd", "redis"}
    assert {measure.errors for measure in result.measures} == {0}
    assert all(measure.rate > 0 and measure.p99_ms >= measure.p50_ms > 0 for measure in result.measures)
    assert set(result.measures[0].cpu_us) >= {"gateway", "node-1", "node-2", "node-3", "coordinator-1"}
    assert "put c=20 conn=8: rate flotta ÷ etcd" in result.facts
    assert "put c=20 conn=8 h2load: CPU flotta ÷ etcd" in result.facts
    assert "CPU by process" in done.stdout
