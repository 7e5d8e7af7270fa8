"""What the request path costs, stage by stage, in one process and without a network: CPU microseconds per operation.

Each stage takes bytes and gives bytes, as its neighbours on the wire would hand them over, so that a change shows
where it was made. The CPU of the whole process is counted (the Raft host's thread and RocksDB's included), and beside
it that of the thread of the event loop, which is what a process runs out of first.

    python bench/path.py [--stages gateway-put,leader-put] [--batches 1,8,32,128] [--operations 8000] [--rounds 9]
    python bench/path.py --profile leader-put --batches 16
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import pstats
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import uvloop
from path_gateway import GatewayGets, GatewayPuts
from path_node import EventualGets, FollowerApply, LeaderPuts, StrongGets


class Stage(Protocol):
    """One stage of the path: `load` makes the input, `run` is what is measured, `check` looks at the output."""

    async def load(self, operations: int, batch: int) -> None: ...

    async def run(self) -> None: ...

    def check(self) -> None: ...

    async def close(self) -> None: ...


STAGES: dict[str, Callable[[Path], Awaitable[Stage]]] = {
    "gateway-put": GatewayPuts.start,
    "gateway-get": GatewayGets.start,
    "leader-put": LeaderPuts.start,
    "follower-put": FollowerApply.start,
    "strong-get": StrongGets.start,
    "eventual-get": EventualGets.start,
}


@dataclass(frozen=True)
class Cost:
    """CPU microseconds per operation."""

    process_us: float
    loop_us: float


async def measure(stage: Stage, operations: int, batch: int) -> Cost:
    await stage.load(operations, batch)
    gc.collect()
    gc.freeze()
    process, thread = time.process_time_ns(), time.thread_time_ns()
    await stage.run()
    process, thread = time.process_time_ns() - process, time.thread_time_ns() - thread
    stage.check()
    gc.unfreeze()
    return Cost(process / operations / 1000, thread / operations / 1000)


async def best(name: str, operations: int, batch: int, rounds: int) -> Cost:
    """The cheapest of some rounds: what disturbs a round only ever adds to it."""
    with tempfile.TemporaryDirectory(prefix="flotta-path-") as folder:
        stage = await STAGES[name](Path(folder))
        try:
            await measure(stage, operations // batch // 2 * batch or batch, batch)
            costs = [await measure(stage, operations, batch) for _ in range(rounds)]
        finally:
            await stage.close()
    return min(costs, key=lambda cost: cost.process_us)


@contextlib.contextmanager
def profiled(lines: int) -> Iterator[None]:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        yield
    finally:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(lines)


async def profile(name: str, operations: int, batch: int, lines: int) -> None:
    """Where the time of one stage goes. The profiler makes everything dearer; look at the shares."""
    with tempfile.TemporaryDirectory(prefix="flotta-path-") as folder:
        stage = await STAGES[name](Path(folder))
        try:
            await measure(stage, max(batch, operations // 10), batch)
            await stage.load(operations, batch)
            with profiled(lines):
                await stage.run()
        finally:
            await stage.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--operations", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", metavar="STAGE", help="show where the time of this stage goes, and no table")
    parser.add_argument("--lines", type=int, default=30, help="of the profile")
    arguments = parser.parse_args()
    batches = [int(batch) for batch in arguments.batches.split(",")]
    if arguments.profile:
        uvloop.run(profile(arguments.profile, arguments.operations, batches[0], arguments.lines))
        return
    print("CPU us per operation, whole process (of these: the event loop's thread)")
    print(f"{'stage':14}" + "".join(f"{f'batch {batch}':>18}" for batch in batches))
    for name in arguments.stages.split(","):
        cells = []
        for batch in batches:
            # A batch of one costs much more per operation, and shows it in a quarter of them.
            operations = arguments.operations // (4 if batch == 1 else 1) // batch * batch
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                cost = runner.run(best(name, operations, batch, arguments.rounds))
            cells.append(f"{cost.process_us:8.1f} ({cost.loop_us:6.1f})")
        print(f"{name:14}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
