"""Put and Get through the gateway beside etcd's three members: same machine, same run, same load generator.

Each system runs alone in alternating rounds; ghz drives both with 256-byte values over the same keys. Printed: rate,
percentiles, and CPU microseconds per call of every server process. The gateway hop is on our side only.

    python bench/run.py [--rounds 1] [--calls 8000] [--concurrency 1,50,200]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from processes import ROOT, Target, etcd, flotta

VALUE_BYTES = 256
KEYS = 10_000


@dataclass(frozen=True)
class Measure:
    """One ghz run. Times in milliseconds, CPU in microseconds per call."""

    system: str
    operation: str
    concurrency: int
    rate: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: dict[str, float]

    @property
    def cpu_us_total(self) -> float:
        return sum(self.cpu_us.values())


@dataclass(frozen=True)
class Call:
    """How one operation looks in one system's protocol."""

    proto: Path
    method: str
    body: Callable[[bytes, bytes], dict[str, Any]]


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


GATEWAY = ROOT / "proto" / "kvdb" / "gateway.proto"
ETCD = ROOT / "bench" / "protos" / "etcd_kv.proto"
CALLS: dict[tuple[str, str], Call] = {
    ("flotta", "put"): Call(GATEWAY, "kvdb.gateway.KvGateway.Put", lambda k, v: {"key": text(k), "value": text(v)}),
    ("flotta", "get"): Call(
        GATEWAY, "kvdb.gateway.KvGateway.Get", lambda k, v: {"key": text(k), "options": {"consistency": "STRONG"}}
    ),
    ("etcd", "put"): Call(ETCD, "etcdserverpb.KV.Put", lambda k, v: {"key": text(k), "value": text(v)}),
    ("etcd", "get"): Call(ETCD, "etcdserverpb.KV.Range", lambda k, v: {"key": text(k)}),
}


def requests_file(folder: Path, call: Call, name: str) -> Path:
    """The bodies of all calls; ghz sends them in turn."""
    chance = random.Random(7)
    value = chance.randbytes(VALUE_BYTES)
    order = list(range(KEYS))
    chance.shuffle(order)
    path = folder / f"{name}.json"
    path.write_text(json.dumps([call.body(b"bench-%08d" % n, value) for n in order]))
    return path


def ghz_path() -> str:
    found = shutil.which("ghz")
    if found is None:
        go_path = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True).stdout.strip()
        found = f"{go_path}/bin/ghz"
    return found


def measure(target: Target, operation: str, concurrency: int, calls: int, folder: Path) -> Measure:
    call = CALLS[target.name, operation]
    bodies = requests_file(folder, call, f"{target.name}-{operation}")
    command = [
        *(ghz_path(), "--insecure", "--proto", str(call.proto), "--call", call.method, "-D", str(bodies)),
        *("-n", str(calls), "-c", str(concurrency), "--connections", str(1 if concurrency < 8 else 8)),
        *("--timeout", "20s", "-O", "json", target.address),
    ]
    before = target.cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    after = target.cpu_s()
    report = json.loads(done.stdout)
    percentiles = {row["percentage"]: row["latency"] / 1e6 for row in report["latencyDistribution"] or []}
    return Measure(
        system=target.name,
        operation=operation,
        concurrency=concurrency,
        rate=report["rps"],
        p50_ms=percentiles.get(50, 0.0),
        p99_ms=percentiles.get(99, 0.0),
        errors=calls - report["statusCodeDistribution"].get("OK", 0),
        cpu_us={name: (after[name] - before[name]) * 1e6 / calls for name in after},
    )


def one_round(system: Callable[[Path], AbstractContextManager[Target]], levels: list[int], calls: int) -> list[Measure]:
    with tempfile.TemporaryDirectory(prefix="flotta-bench-") as name, system(Path(name)) as target:
        folder, found = Path(name), []
        measure(target, "put", 50, KEYS, folder)  # every key exists, everything is warm
        for operation in ("put", "get"):
            for concurrency in levels:
                budget = calls if concurrency > 1 else max(500, calls // 5)
                found.append(measure(target, operation, concurrency, budget, folder))
        return found


def report(measures: list[Measure], levels: list[int]) -> None:
    print("operation    c  system     calls/s   p50 ms   p99 ms  errors  CPU us/call: all  (each process)")
    for operation in ("put", "get"):
        for concurrency in levels:
            rates = {}
            for system in ("flotta", "etcd"):
                rows = [
                    m for m in measures if (m.system, m.operation, m.concurrency) == (system, operation, concurrency)
                ]
                cpu = {name: median(m.cpu_us[name] for m in rows) for name in rows[0].cpu_us}
                rates[system] = median(m.rate for m in rows), sum(cpu.values())
                each = "  ".join(f"{name} {us:.0f}" for name, us in cpu.items())
                print(
                    f"{operation:<9} {concurrency:>4}  {system:<8} {rates[system][0]:>9.0f} "
                    f"{median(m.p50_ms for m in rows):>8.2f} {median(m.p99_ms for m in rows):>8.2f} "
                    f"{sum(m.errors for m in rows):>7}  {rates[system][1]:>16.0f}  ({each})"
                )
            (rate, cpu_us), (etcd_rate, etcd_cpu_us) = rates["flotta"], rates["etcd"]
            print(f"{'':<16}ratio to etcd: rate {rate / etcd_rate:.2f}, CPU per call {cpu_us / etcd_cpu_us:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--calls", type=int, default=8000)
    parser.add_argument("--concurrency", default="1,50,200")
    given = parser.parse_args()
    levels = [int(level) for level in given.concurrency.split(",")]
    measures: list[Measure] = []
    for number in range(given.rounds):
        for system in (flotta, etcd) if number % 2 == 0 else (etcd, flotta):
            measures += one_round(system, levels, given.calls)
    report(measures, levels)
    results = ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    out = results / "latest.json"
    out.write_text(json.dumps({"cores": os.cpu_count(), "measures": [asdict(m) for m in measures]}, indent=1) + "\n")
    print(f"every figure: {out.relative_to(ROOT)}")
    return 1 if any(m.errors for m in measures) else 0


if __name__ == "__main__":
    sys.exit(main())
