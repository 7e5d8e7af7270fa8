"""The simulators' command line: `make sim SEEDS=n` runs fresh seeds, `make sim SEED=k` replays one and prints it all;
`make sim-cluster` (here `--cluster`) does the same with whole clusters.

A replay runs the seed twice, the second time in silence, and fails if the two transcripts differ.
"""

from __future__ import annotations

import argparse
import sys
import time

from campaign import CLUSTER, SHARDS, Simulator, fresh_seeds, read_corpus, run_campaign

SEED_SPACE = 1 << 40


def replay(simulator: Simulator, seed: int, *, quiet: bool) -> int:
    """Run one seed and print its transcript; 1 if something is broken or the run is not a function of its seed."""
    result = simulator.run(seed, None if quiet else print)
    print(f"{result.described}\ntranscript {result.digest}, {result.steps} events")
    for name, count in result.counts.items():
        print(f"  {name:<40} {count:>9}")
    again = simulator.run(seed, None)
    if again.digest != result.digest:
        print(f"NOT DETERMINISTIC: {result.digest} and then {again.digest}")
        return 1
    print(result.violation or "ok")
    return 1 if result.violation else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50, help="how many fresh seeds, after the corpus")
    parser.add_argument("--seed", type=int, help="replay this one and print its transcript")
    parser.add_argument("--base", type=int, help="the first fresh seed (default: from the time of day)")
    parser.add_argument("--no-corpus", action="store_true", help="fresh seeds only")
    parser.add_argument("--first-failure", action="store_true", help="stop at the first seed that fails")
    parser.add_argument("--quiet", action="store_true", help="with --seed: no transcript, only its hash and counts")
    parser.add_argument("--cluster", action="store_true", help="whole clusters instead of bare shards")
    options = parser.parse_args()
    simulator = CLUSTER if options.cluster else SHARDS
    if options.seed is not None:
        return replay(simulator, options.seed, quiet=options.quiet)
    base = options.base if options.base is not None else int(time.time() * 1_000) % SEED_SPACE
    corpus = [] if options.no_corpus else [seed for seed, _ in read_corpus(simulator.corpus)]
    print(f"{len(corpus)} seeds of the corpus, then {options.seeds} from {base} on", flush=True)
    seeds = [*corpus, *fresh_seeds(options.seeds, base)]
    failures_max = 1 if options.first_failure else 5
    campaign = run_campaign(simulator, seeds, lambda line: print(line, flush=True), failures_max)
    print(campaign.summary())
    for failure in campaign.failures():
        print(f"add to tests/simulation/{simulator.corpus.name}: {failure.seed}  # {failure.violation[:80]}")
        print(f"reproduce with: {simulator.reproduce(failure.seed)}")
    return 1 if campaign.failures() or campaign.missing() else 0


if __name__ == "__main__":
    sys.exit(main())
