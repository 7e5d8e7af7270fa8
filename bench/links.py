"""A frame there and its answer back, between two processes: a native link beside a bidirectional stream of grpc.aio.

Both ends are Python on uvloop, as a gateway and a node are; a frame is so many requests of 300 bytes, and is answered
by one as long. A window of one shows the way alone, a wider one what the way costs when it is busy. This is the choice
of docs/adr/0023, measured; run as a part of the benchmark, or alone:

    python bench/links.py [--seconds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import flotta_native
import grpc
import grpc.aio
import uvloop
from figures import percentile, spread
from flotta_runtime.links import Links
from flotta_runtime.turns import Turns
from machine import cpu_s
from records import Result, Table

REQUEST_BYTES = 300
CELLS = ((1, 1), (1, 16), (32, 1), (32, 16))  # (requests in a frame, frames under way)
METHOD = "/bench.Links/Echo"
CARRIERS = ("native", "grpcio")
TIMEOUT_MS = 5_000


@dataclass(frozen=True)
class Way:
    """What one carrier did with one shape of load."""

    frames_per_s: float
    p50_us: float
    client_us: float
    server_us: float


# The server: a process of its own.


class EchoLink:
    """Owns one link, and sends back what comes."""

    def __init__(self, links: Links, link: int) -> None:
        self._links, self._link = links, link
        self._frames: list[bytes] = []

    def up(self, greeting: bytes) -> None: ...

    def frame(self, data: bytes) -> None:
        self._frames.append(data)
        self._links.wake(self._link)

    def down(self, reason: str) -> None: ...

    def next_frame(self) -> bytes:
        return self._frames.pop(0) if self._frames else b""

    def not_taken(self) -> None:
        raise AssertionError("more frames wait than the window is wide")


def open_hub() -> Links:
    hub = flotta_native.LinkHub()
    return Links(hub, Turns())


async def serve_native() -> None:
    links = open_hub()

    def take(link: int, hello: bytes, peer: Any) -> None:
        links.accept(link, b"", EchoLink(links, link))

    links.serve("echo", take)
    print(links.hub.listen("127.0.0.1:0"), flush=True)
    await links.run()


async def serve_grpcio() -> None:
    async def echo(frames: Any, context: Any) -> Any:
        async for frame in frames:
            yield frame

    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Links", {"Echo": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


@contextmanager
def serving(carrier: str) -> Iterator[tuple[str, int]]:
    """(address, pid) of a process that echoes."""
    command = [sys.executable, __file__, "--serve", carrier]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


# The client: `window` frames are under way; each answer sends the next.


class Clock:
    """Round trips until the time is over; `done` is set when the last answer is there."""

    def __init__(self, window: int, seconds: float) -> None:
        self.done = asyncio.Event()
        self.trips_us: list[float] = []
        self._sent_at: list[float] = []
        self._window = window
        self._until = time.perf_counter() + seconds

    def sends(self) -> bool:
        """Whether one more frame goes out now; it counts from here."""
        if self._over():
            return False
        self._sent_at.append(time.perf_counter())
        return True

    def answered(self) -> None:
        self.trips_us.append((time.perf_counter() - self._sent_at[len(self.trips_us)]) * 1e6)
        self._over()

    def _over(self) -> bool:
        """The time may end between an answer and the frame that it lets out: so both look."""
        if time.perf_counter() < self._until:
            return False
        if len(self.trips_us) == len(self._sent_at):
            self.done.set()
        return True


class CallingLink:
    """Owns the client's link."""

    def __init__(self, links: Links, clock: Clock, frame: bytes, window: int) -> None:
        self._links, self._clock, self._frame = links, clock, frame
        self._credits = window
        self.link = 0

    def up(self, greeting: bytes) -> None:
        self._links.wake(self.link)

    def frame(self, data: bytes) -> None:
        self._clock.answered()
        self._credits += 1
        self._links.wake(self.link)

    def down(self, reason: str) -> None:
        if not self._clock.done.is_set():
            raise AssertionError(reason)

    def next_frame(self) -> bytes:
        if not self._credits or not self._clock.sends():
            return b""
        self._credits -= 1
        return self._frame

    def not_taken(self) -> None:
        raise AssertionError("more frames wait than the window is wide")


async def call_native(address: str, frame: bytes, window: int, seconds: float) -> list[float]:
    links, clock = open_hub(), Clock(window, seconds)
    owner = CallingLink(links, clock, frame, window)
    running = asyncio.create_task(links.run())
    try:
        owner.link = links.connect(address, "echo", b"", owner, TIMEOUT_MS)
        await clock.done.wait()
    finally:
        running.cancel()
        links.shut_down()
    return clock.trips_us


async def call_grpcio(address: str, frame: bytes, window: int, seconds: float) -> list[float]:
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        clock = Clock(window, seconds)
        stream: Any = channel.stream_stream(METHOD)()
        for _ in range(window):
            if clock.sends():
                await stream.write(frame)
        while not clock.done.is_set():
            await stream.read()
            clock.answered()
            if clock.sends():
                await stream.write(frame)
        stream.cancel()
    return clock.trips_us


def measure(carrier: str, requests: int, window: int, seconds: float) -> Way:
    call = call_native if carrier == "native" else call_grpcio
    frame = bytes(requests * REQUEST_BYTES)
    with serving(carrier) as (address, pid):
        uvloop.run(call(address, frame, window, seconds / 5))  # everything is imported, allocated and connected once
        server, client, began = cpu_s(pid), time.process_time(), time.perf_counter()
        trips = uvloop.run(call(address, frame, window, seconds))
        elapsed = time.perf_counter() - began
        server, client = cpu_s(pid) - server, time.process_time() - client
    count = len(trips)
    return Way(count / elapsed, percentile(sorted(trips), 50), client / count * 1e6, server / count * 1e6)


def run(given: argparse.Namespace, folder: Path) -> Result:
    """As a part of the benchmark: rounds in turn, medians."""
    seconds, rounds = (0.2, 1) if given.smoke else (given.seconds, given.rounds)
    rows, facts = [], {}
    for requests, window in CELLS:
        ways: dict[str, list[Way]] = {carrier: [] for carrier in CARRIERS}
        for _ in range(rounds):
            for carrier in CARRIERS:
                ways[carrier].append(measure(carrier, requests, window, seconds))
        shape = f"{requests} in a frame · {window} under way"
        rows += [[f"{carrier} · {shape}", *_medians(ways[carrier])] for carrier in CARRIERS]
        pairs = zip(ways["grpcio"], ways["native"], strict=True)
        facts[f"link CPU grpcio ÷ native {requests}×{window}"] = spread(
            [(g.client_us + g.server_us) / (n.client_us + n.server_us) for g, n in pairs]
        )
    header = ["way", "frames/s", "p50 µs", "CPU µs a frame, client", "server"]
    return Result("links", [Table("Between two processes, a frame there and its answer back", header, rows)], facts)


def _medians(ways: list[Way]) -> list[str]:
    figures = ("frames_per_s", "p50_us", "client_us", "server_us")
    return [f"{spread([getattr(way, figure) for way in ways]).middle:.0f}" for figure in figures]


def main() -> None:
    parsing = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsing.add_argument("--seconds", type=float, default=3)
    parsing.add_argument("--rounds", type=int, default=3)
    parsing.add_argument("--serve", choices=CARRIERS)
    given = parsing.parse_args()
    if given.serve is not None:
        uvloop.run(serve_native() if given.serve == "native" else serve_grpcio())
        return
    given.smoke = False
    result = run(given, Path())
    print(result.text())
    print("\n".join(f"{name}: {fact.text()}" for name, fact in result.facts.items()))


if __name__ == "__main__":
    main()
