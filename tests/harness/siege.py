"""A member of a cluster under attack, beside a quiet client with a connection of its own.

A `Siege` carries one attack out in a process of its own and says what it came to: whether every call of the quiet
client was answered and how long they took without and with the attack, what the attacked process held of memory and
descriptors before, at most and after, and what it wrote to its log.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from attacks import BIG_KEY, BIG_VALUE_BYTES, Attack
from flotta_proto.kvdb.gateway_pb2 import Status
from process_cluster import Client, ProcessCluster

ATTACKS_FILE = Path(__file__).with_name("attacks.py")
QUIET_PAUSE_S = 0.005
QUIET_TIMEOUT_S = 20
KIB_PER_MIB = 1_024


@dataclass
class Quiet:
    """One call at a time, a put and a get in turn; what failed, and how long each call took."""

    calls: int = 0
    failures: list[str] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)

    async def run(self, client: Client, until: asyncio.Event) -> None:
        while not until.is_set():
            self.calls += 1
            value, begun = b"%d" % self.calls, time.monotonic()
            try:
                if self.calls % 2:
                    put = await client.put(b"quiet", value, timeout=QUIET_TIMEOUT_S)
                    answer, expected = put.status, value
                else:
                    got = await client.get(b"quiet", timeout=QUIET_TIMEOUT_S)
                    answer, expected = got.status, got.kv.value
                    value = b"%d" % (self.calls - 1)
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                continue
            self.took_ms.append((time.monotonic() - begun) * 1_000)
            if answer.code != Status.OK:
                self.failures.append(f"{Status.Code.Name(answer.code)}: {answer.message}")
            elif expected != value:
                self.failures.append(f"read {expected!r}, written {value!r}")
            await asyncio.sleep(QUIET_PAUSE_S)

    def percentile_ms(self, share: float) -> float:
        ranked = sorted(self.took_ms)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


@asynccontextmanager
async def quiet_client(client: Client) -> AsyncIterator[Quiet]:
    """It calls while the block runs."""
    quiet, over = Quiet(), asyncio.Event()
    task = asyncio.create_task(quiet.run(client, over))
    try:
        yield quiet
    finally:
        over.set()
        await task


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    rss_mib: float
    peak_mib: float  # the most since `reset_peak`
    descriptors: int


def held(pid: int) -> Held:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    rss, peak = (int(status[name].split()[0]) / KIB_PER_MIB for name in ("VmRSS", "VmHWM"))
    return Held(rss, peak, len(list(Path(f"/proc/{pid}/fd").iterdir())))


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass(frozen=True)
class Outcome:
    """One attack, and what it came to."""

    attack: Attack
    seen: dict[str, int]
    before: Held
    after: Held
    alone: Quiet
    beside: Quiet
    log_lines: tuple[str, ...]
    crashed: bool

    def row(self) -> str:
        """One line of the table in docs/operations.md."""
        alone, beside = self.alone, self.beside
        times = (
            f"{alone.percentile_ms(0.5):.1f} / {alone.percentile_ms(0.99):.1f}",
            f"{beside.percentile_ms(0.5):.1f} / {beside.percentile_ms(0.99):.1f}",
        )
        calls = f"{beside.calls}, {len(beside.failures)} failed"
        memory = f"{self.before.rss_mib:.0f} / {self.after.peak_mib:.0f} / {self.after.rss_mib:.0f}"
        answered = ", ".join(f"{name}: {count}" for name, count in self.seen.items() if name != "bytes sent")
        line = self.log_lines[0] if self.log_lines else ""
        said = f"{len(self.log_lines)}: `{_event(line)}`" if line else "none"
        return f"| {self.attack.what} | {answered} | {' | '.join(times)} | {calls} | {memory} | {said} |"

    @staticmethod
    def head() -> str:
        columns = (
            *("attack", "what it saw", "quiet p50 / p99 ms, alone", "beside it", "quiet calls"),
            *("server MiB before / peak / after", "log lines, the first"),
        )
        return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _event(line: str) -> str:
    try:
        return str(json.loads(line)["event"])
    except (ValueError, KeyError, TypeError):
        return line


class Siege:
    """Attacks on one member of a cluster. `gateway` serves the quiet client: the attacked one itself, or one behind
    which it stands."""

    def __init__(self, cluster: ProcessCluster, member: str, address: str) -> None:
        self.cluster, self.member, self.address = cluster, member, address

    async def prepare(self) -> None:
        """Put what some attacks ask for."""
        client = Client(self.cluster.gateway_address())
        try:
            put = await client.put(BIG_KEY, bytes(BIG_VALUE_BYTES), timeout=QUIET_TIMEOUT_S)
            if put.status.code != Status.OK:
                raise RuntimeError(f"cannot prepare: {put.status}")
        finally:
            await client.close()

    async def carry_out(
        self, attack: Attack, seconds: float, *, full: bool, alone_s: float, also: Sequence[Attack] = ()
    ) -> Outcome:
        """`also`: attacks at the same time, whose answers are counted in."""
        pid, client = self.cluster.pid(self.member), Client(self.cluster.gateway_address())
        try:
            async with quiet_client(client) as alone:
                await asyncio.sleep(alone_s)
            before, log_before = held(pid), len(self.cluster.log(self.member))
            reset_peak(pid)
            async with quiet_client(client) as beside:
                attacks = (self._attack(one, seconds, full=full) for one in (attack, *also))
                seen = dict(sum(map(Counter, await asyncio.gather(*attacks)), Counter[str]()))
            after = await self._settled(pid, before)
        finally:
            await client.close()
        lines = tuple(self.cluster.log(self.member)[log_before:].splitlines())
        crashed = not self.cluster.alive(self.member) or self.cluster.pid(self.member) != pid
        return Outcome(attack, seen, before, after, alone, beside, lines, crashed)

    async def _attack(self, attack: Attack, seconds: float, *, full: bool) -> dict[str, int]:
        words: Sequence[str] = (attack.name, self.address, "--seconds", str(seconds), *(["--full"] if full else []))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ATTACKS_FILE), *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            told, wrong = await asyncio.wait_for(process.communicate(), seconds + 60)
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            raise RuntimeError(f"the attack itself failed: {wrong.decode()}")
        found: dict[str, int] = json.loads(told)
        return found

    async def _settled(self, pid: int, before: Held, seconds: float = 30) -> Held:
        """What it holds once the descriptors are back, or after so long."""
        end = time.monotonic() + seconds
        most = before.descriptors + DESCRIPTORS_SLACK
        while time.monotonic() < end and held(pid).descriptors > most:  # noqa: ASYNC110 - /proc signals nobody
            await asyncio.sleep(0.05)
        return held(pid)


DESCRIPTORS_SLACK = 8
"""Descriptors that a process may open for itself meanwhile: a table file, a link."""


def problems(outcome: Outcome, *, growth_mib_max: float, log_lines_max: int) -> list[str]:
    """What must not be, of an outcome; times are not among it."""
    found: list[str] = []

    def must(holds: object, otherwise: Any) -> None:
        if not holds:
            found.append(f"{outcome.attack.name}: {otherwise}")

    must(not outcome.crashed, "the process died")
    must(outcome.beside.calls > 0 and outcome.alone.calls > 0, "the quiet client did not come to call")
    must(not outcome.beside.failures, f"the quiet client failed: {outcome.beside.failures[:3]}")
    growth = outcome.after.peak_mib - outcome.before.rss_mib
    must(growth <= growth_mib_max, f"memory grew by {growth:.0f} MiB, at most {growth_mib_max:.0f} may it")
    leaked = outcome.after.descriptors - outcome.before.descriptors
    must(leaked <= DESCRIPTORS_SLACK, f"{leaked} descriptors did not come back")
    must(outcome.seen.get("connections", 0) > 0, f"nothing was attacked: {outcome.seen}")
    for answer in outcome.attack.bites:
        must(outcome.seen.get(answer), f"{answer!r} was never seen: {outcome.seen}")
    must(len(outcome.log_lines) <= log_lines_max, f"{len(outcome.log_lines)} log lines: {outcome.log_lines[:3]}")
    surprises = [line for line in outcome.log_lines if "Traceback" in line or '"level": "error"' in line]
    must(not surprises, f"the log holds a surprise: {surprises[:2]}")
    return found
