"""Whole simulated clusters: the corpus, some more seeds, and that a run is a function of its seed.

SIM_CLUSTER_SEEDS sets how many more run (default 8), SIM_BASE the first one. By default they are the same every time:
what fresh ones find (docs/simulation.md) is for a campaign to find, not for whoever changes something else.
`make sim-cluster` draws fresh ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import CLUSTER, read_corpus, run_campaign

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("SIM_CLUSTER_SEEDS", "8"))
BASE = int(os.environ.get("SIM_BASE", "900000"))


@pytest.mark.timeout(600)
def test_every_cluster_seed_that_ever_failed() -> None:
    for seed, note in read_corpus(CLUSTER.corpus):
        result = CLUSTER.run(seed, None)
        assert not result.violation, f"{note}: {result.violation}\n{CLUSTER.reproduce(seed)}"


@pytest.mark.timeout(120 + 40 * SEEDS)
def test_more_clusters() -> None:
    campaign = run_campaign(CLUSTER, range(BASE, BASE + SEEDS), print)
    print(campaign.summary())
    assert not campaign.failures(), campaign.summary()
    if SEEDS >= 100:
        assert not campaign.missing(), campaign.summary()


@pytest.mark.timeout(300)
def test_a_cluster_is_a_function_of_its_seed() -> None:
    """Here, and twice in a fresh process whose hashes of strings differ."""
    seed = 20_261_121
    told = subprocess.run(
        [sys.executable, str(HERE / "run.py"), "--cluster", "--seed", str(seed), "--quiet"],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    ).stdout
    assert told.partition("transcript ")[2].partition(",")[0] == CLUSTER.run(seed, None).digest
