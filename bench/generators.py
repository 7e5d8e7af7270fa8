"""The load generators, each run as its own process: ghz for everything that speaks gRPC, h2load where ghz is the limit,
redis-benchmark for Redis.

ghz runs by count (`-n`): by time (`-z`) it reports calls it cut off itself as errors. h2load sends one fixed body and
counts HTTP 200 whatever the gRPC status says, so eight of them run at once, on a key or a batch each, and what they
claim is checked against the servers' own counts by whoever calls this.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import Load, load_from
from systems import ROOT, Target

KEY_FORMAT = b"bench-%08d"
RUN_TIMEOUT_S = 600


@dataclass(frozen=True)
class BatchDialect:
    """The request that has many operations: the field of its items, and of the operation in an item."""

    method: str
    items: str
    items_number: int
    operation: str
    operation_number: int


@dataclass(frozen=True)
class Dialect:
    """How one operation looks in one system's protocol. Without `proto` it is learnt from the server."""

    proto: Path | None
    method: str
    json_body: Callable[[str, str], dict[str, Any]]
    fields: Callable[[bytes, bytes], bytes]
    batch: BatchDialect | None = None

    @property
    def path(self) -> str:
        service, _, name = self.method.rpartition(".")
        return f"/{service}/{name}"

    def json_request(self, keys: Sequence[bytes], value: bytes) -> dict[str, Any]:
        """The request for one key or, in a batch, several, in ghz's JSON."""
        encoded = base64.b64encode(value).decode()
        bodies = [self.json_body(base64.b64encode(key).decode(), encoded) for key in keys]
        batch = self.batch
        return bodies[0] if batch is None else {batch.items: [{batch.operation: body} for body in bodies]}

    def request(self, keys: Sequence[bytes], value: bytes) -> bytes:
        """The same in protobuf's own encoding."""
        bodies = [self.fields(key, value) for key in keys]
        batch = self.batch
        if batch is None:
            return bodies[0]
        return b"".join(_field(batch.items_number, _field(batch.operation_number, body)) for body in bodies)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    length, size = len(data), bytearray()
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + data


GATEWAY = ROOT / "proto" / "kvdb" / "gateway.proto"
ETCD = ROOT / "bench" / "protos" / "etcd_kv.proto"
STRONG = b"\x08\x01"  # ReadOptions.consistency
DIALECTS = {
    ("flotta", "put"): Dialect(
        GATEWAY,
        "kvdb.gateway.KvGateway.Put",
        lambda key, value: {"key": key, "value": value},
        lambda key, value: _field(2, key) + _field(3, value),
    ),
    ("flotta", "get"): Dialect(
        GATEWAY,
        "kvdb.gateway.KvGateway.Get",
        lambda key, value: {"key": key, "options": {"consistency": "STRONG"}},
        lambda key, value: _field(2, key) + _field(3, STRONG),
    ),
    ("etcd", "put"): Dialect(
        ETCD,
        "etcdserverpb.KV.Put",
        lambda key, value: {"key": key, "value": value},
        lambda key, value: _field(1, key) + _field(2, value),
    ),
    ("etcd", "get"): Dialect(
        ETCD, "etcdserverpb.KV.Range", lambda key, value: {"key": key}, lambda key, value: _field(1, key)
    ),
}

BATCHES = {
    ("flotta", "get"): BatchDialect("flotta.kv.v1.Kv.Batch", "items", 1, "get", 1),
    ("flotta", "put"): BatchDialect("flotta.kv.v1.Kv.Batch", "items", 1, "put", 2),
    ("etcd", "put"): BatchDialect("etcdserverpb.KV.Txn", "success", 2, "request_put", 2),
}


def dialect_of(system: str, operation: str, batch: int) -> Dialect:
    found = DIALECTS[system, operation]
    if batch == 1:
        return found
    many = BATCHES[system, operation]
    return replace(found, proto=None, method=many.method, batch=many)


@dataclass(frozen=True)
class Work:
    """What a run sends: the keys in their order, one value for all, how many calls, over how much concurrency."""

    operation: str
    keys: Sequence[bytes]
    value: bytes
    calls: int
    concurrency: int
    connections: int
    rate: int = 0  # calls per second to start, whatever the answers do; 0: as fast as they come
    batch: int = 1  # keys of one call

    def groups(self) -> list[Sequence[bytes]]:
        """The keys of each call, in the order in which they are used, round and round."""
        whole = len(self.keys) - len(self.keys) % self.batch
        return [self.keys[start : start + self.batch] for start in range(0, whole, self.batch)]


def shuffled_keys(count: int, seed: int) -> list[bytes]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [KEY_FORMAT % number for number in order]


def go_tool(name: str) -> str:
    """Where a program is that scripts/go_tools.sh installs."""
    found = shutil.which(name)
    if found is None:
        asked = subprocess.run(["go", "env", "GOPATH"], capture_output=True, text=True, check=True)
        found = f"{asked.stdout.strip()}/bin/{name}"
    return found


def ghz(target: Target, work: Work, folder: Path) -> Load:
    dialect = dialect_of(target.name, work.operation, work.batch)
    bodies = [dialect.json_request(keys, work.value) for keys in work.groups()]
    data = folder / "ghz-data.json"
    data.write_text(json.dumps(bodies))
    command = [
        *(go_tool("ghz"), "--insecure", "--call", dialect.method, "-D", str(data)),
        *(("--proto", str(dialect.proto)) if dialect.proto else ()),
        *("-n", str(work.calls), "-c", str(work.concurrency), "--connections", str(work.connections)),
        *("--disable-template-data", "--disable-template-functions", "--timeout", "10s", "-O", "json"),
        *(("--rps", str(work.rate), "--async") if work.rate else ()),
        target.address,
    ]
    return parse_ghz(_run(command))


def parse_ghz(text: str) -> Load:
    """The JSON report of ghz; only calls with status OK count, and only they have a latency."""
    report = json.loads(text)
    durations = [row["latency"] / 1e6 for row in report["details"] or [] if row["status"] == "OK"]
    return load_from(durations, report["count"], report["total"] / 1e9)


def h2load(target: Target, work: Work, folder: Path) -> Load:
    """One process a connection, on a key or a batch each; the durations of all together."""
    dialect, groups = dialect_of(target.name, work.operation, work.batch), work.groups()
    share, streams = work.calls // work.connections, max(1, work.concurrency // work.connections)
    commands = []
    for number in range(work.connections):
        message = dialect.request(groups[number % len(groups)], work.value)
        body, log = folder / f"h2load-{number}.bin", folder / f"h2load-{number}.log"
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        log.unlink(missing_ok=True)
        commands.append(
            [
                *("h2load", "-n", str(share), "-c", "1", "-m", str(streams), "-d", str(body), f"--log-file={log}"),
                *("-H", "te: trailers", "-H", "content-type: application/grpc"),
                f"http://{target.address}{dialect.path}",
            ]
        )
    began = time.perf_counter()
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in running:
        _, errors = process.communicate(timeout=RUN_TIMEOUT_S)
        if process.returncode != 0:
            raise SystemExit(f"error: h2load ended with {process.returncode}: {errors[-500:]}")
    elapsed = time.perf_counter() - began
    rows = "".join((folder / f"h2load-{number}.log").read_text() for number in range(work.connections))
    return parse_h2load(rows, share * work.connections, elapsed)


def parse_h2load(rows: str, calls: int, seconds: float) -> Load:
    """h2load's log: start, HTTP status, duration, in µs. Their span replaces `seconds`, which has the start in it."""
    found = [tuple(map(int, row.split("\t"))) for row in rows.splitlines()]
    good = [(start, duration) for start, status, duration in found if status == 200]
    if good:
        seconds = (max(start + duration for start, duration in good) - min(start for start, _ in good)) / 1e6
    return load_from([duration / 1e3 for _, duration in good], calls, seconds)


def redis_benchmark(target: Target, work: Work, folder: Path) -> Load:
    """RESP, another protocol than the others'; keys are Redis's own, as many and as random."""
    host, _, port = target.address.partition(":")
    test = {"put": "set", "get": "get"}[work.operation]
    command = [
        *("redis-benchmark", "-h", host, "-p", port, "-c", str(work.concurrency), "-n", str(work.calls)),
        *("-r", str(len(work.keys)), "-d", str(len(work.value)), "-t", test, "--precision", "3"),
    ]
    return parse_redis(_run(command), work.calls)


_REDIS_RATE = re.compile(r"throughput summary: ([0-9.]+) requests per second")
_REDIS_STEP = re.compile(r"^([0-9.]+)% <= ([0-9.]+) milliseconds \(cumulative count (\d+)\)", re.MULTILINE)


def parse_redis(text: str, calls: int) -> Load:
    """The text report: its rate, and percentiles to the width of its buckets (their upper ends)."""
    rate = _REDIS_RATE.search(text)
    steps = sorted((float(share), float(ms)) for share, ms, _ in _REDIS_STEP.findall(text))
    if rate is None or not steps:
        raise ValueError(f"no report of redis-benchmark: {text[-300:]!r}")

    def at(percent: float) -> float:
        return next((ms for share, ms in steps if share >= percent), steps[-1][1])

    return Load(calls, calls, calls / float(rate[1]), at(50), at(99), at(99.9))


GENERATORS = {"ghz": ghz, "h2load": h2load, "redis-benchmark": redis_benchmark}


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {os.path.basename(command[0])} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout
