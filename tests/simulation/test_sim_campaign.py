"""The simulated shard cluster: the corpus, some fresh seeds, and that a run is a function of its seed.

SIM_SEEDS sets how many fresh seeds run (default 30), SIM_BASE the first one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from campaign import SHARDS, Campaign, plain_seeds, read_corpus, run_campaign
from flotta_consensus.sim.profile import draw_profile
from shard_world import run_seed

HERE = Path(__file__).parent
SEEDS = int(os.environ.get("SIM_SEEDS", "30"))
BASE = int(os.environ.get("SIM_BASE", str(int(time.time()) % (1 << 40))))


@pytest.mark.parametrize(("seed", "note"), read_corpus(SHARDS.corpus))
def test_every_seed_that_ever_failed(seed: int, note: str) -> None:
    result = SHARDS.run(seed, None)
    assert not result.violation, f"{note}: {result.violation}\n{SHARDS.reproduce(seed)}"


@pytest.mark.timeout(60 + 20 * SEEDS)
def test_fresh_seeds() -> None:
    campaign = run_campaign(SHARDS, range(BASE, BASE + SEEDS), print)
    print(campaign.summary())
    assert not campaign.failures(), campaign.summary()
    if SEEDS >= 25:
        assert not campaign.missing(), campaign.summary()


def test_a_run_is_a_function_of_its_seed() -> None:
    """Twice in this process, and in a fresh one whose hashes of strings differ."""
    seed = 20_261_121
    digests = {run_seed(draw_profile(seed)).digest for _ in range(2)}
    for hash_seed in ("1", "77"):
        told = subprocess.run(
            [sys.executable, str(HERE / "run.py"), "--seed", str(seed), "--quiet"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout
        digests.add(told.partition("transcript ")[2].partition(",")[0])
    assert len(digests) == 1, digests


def test_a_campaign_in_which_nothing_happens_fails() -> None:
    campaign = Campaign(SHARDS)
    assert set(campaign.missing()) >= {"elections", "torn tails", "snapshots installed", "unknown outcomes"}
    assert "VACUOUS: no partitions" in campaign.summary()
    assert "clean" not in campaign.summary()


def test_the_corpus_needs_a_note(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("# all of them\n12  # a stale read\n")
    assert read_corpus(corpus) == [(12, "a stale read")]
    assert not plain_seeds(corpus)
    for wrong in ("12\n", "12 plane  # a stale read\n"):
        corpus.write_text(wrong)
        with pytest.raises(ValueError, match="line 1"):
            read_corpus(corpus)


def test_a_seed_is_plain_only_where_the_corpus_says_so(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("12 plain  # a stale read\n13  # another\n")
    assert plain_seeds(corpus) == {12}
    assert {seed for seed, _ in read_corpus(corpus)} == {12, 13}
    fresh = [draw_profile(seed).raft for seed in range(100)]
    assert {raft.in_step for raft in fresh} == {False, True}
    assert {raft.apply_delay_ms for raft in fresh} >= {0, 20}
    plain = draw_profile(12, plain=True)
    assert (plain.raft.apply_delay_ms, plain.raft.in_step) == (0, False)
    assert replace(plain, raft=draw_profile(12).raft) == draw_profile(12), "it changes nothing else"
