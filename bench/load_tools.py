"""The load tools that KvDB's users know, k6, ghz and vegeta, each with the shape of KvDB's own run and a verdict.

    python bench/load_tools.py k6-gateway      what `make k6-gateway-bench` runs: 20 % writes, up to 50 clients
    python bench/load_tools.py k6-admin        … k6-admin-bench: repeated shard-init and registration, and reads
    python bench/load_tools.py ghz-gateway     … ghz-gateway-bench: 20,000 puts, then gets, of one key
    python bench/load_tools.py vegeta-admin    … vegeta-admin-bench: three reads of the admin service, 300 a second

Each starts a cluster for itself, of KvDB's size (2 nodes, 8 shards of 2 replicas), on free ports, unless the
environment names another: GATEWAY=host:port, or ADMIN=http://host:port and ADMIN_API_KEY. The tool's own summary is
printed. The exit code is 0 if every threshold was kept and every call was answered well: where the cluster is our own,
by the gateway's count too, for ghz takes any reply for a success.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from generators import GATEWAY, go_tool
from systems import ROOT, Flotta, flotta

NODES, SHARDS, REPLICAS = 2, 8, 2
TIMEOUT_S = 170
K6 = ROOT / "bench" / "k6"
GHZ_KEY, GHZ_VALUE = "YmVuY2gta2V5", "YmVuY2gtdmFs"  # bench-key, bench-val
ADMIN_READS = ("/admin/cluster/summary", "/admin/nodes", "/admin/shards")


class Failed(Exception):
    """The run was not as it must be; the text says what."""


@dataclass(frozen=True)
class Place:
    """Where the load goes. `own` is the cluster that was started for it, if one was."""

    gateway: str
    admin: str
    api_key: str
    own: Flotta | None = None

    def answers(self) -> Counter[str]:
        """What the gateway answered so far, where that can be asked: `PUT OK` and how often."""
        return Counter(self.own.answers() if self.own else {})


@contextlib.contextmanager
def place(wanted: str, environment: Mapping[str, str], folder: Path) -> Iterator[Place]:
    """The place that the environment names for `wanted` ("GATEWAY" or "ADMIN"), or a cluster of our own."""
    if environment.get(wanted):
        admin = environment.get("ADMIN", "")
        admin = admin if "://" in admin or not admin else f"http://{admin}"
        yield Place(environment.get("GATEWAY", ""), admin.rstrip("/"), environment.get("ADMIN_API_KEY", ""))
        return
    print(f"a cluster of {NODES} nodes, {SHARDS} shards of {REPLICAS} replicas", flush=True)
    with flotta(folder, nodes=NODES, shards=SHARDS, variables={"RF": str(REPLICAS)}) as own:
        key = (folder / "data" / "admin-api-key").read_text().strip()
        yield Place(own.address, f"http://127.0.0.1:{own.admin_port}", key, own)


def run(command: list[str], environment: Mapping[str, str] | None = None, *, kept: bool = False) -> str:
    """Runs a tool that writes to our own output, or whose output is `kept` and returned. Failed if it ends badly or not
    in time."""
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if kept else None,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{name} did not end within {TIMEOUT_S} s") from late
    except OSError as missing:
        raise Failed(f"{name} cannot be run ({missing}); scripts/go_tools.sh {name} installs it") from missing
    if done.returncode != 0:
        raise Failed(f"{name} ended with {done.returncode}\n{done.stdout or ''}")
    return done.stdout or ""


# --- the runs ---------------------------------------------------------------------------------------------------------


def k6_gateway(given: argparse.Namespace, folder: Path) -> None:
    with place("GATEWAY", os.environ, folder) as where:
        before = where.answers()
        _k6("gateway.js", given, {"GATEWAY": where.gateway, "PROTO_DIR": str(GATEWAY.parent)})
        _tell(where.answers() - before)


def k6_admin(given: argparse.Namespace, folder: Path) -> None:
    with place("ADMIN", os.environ, folder) as where:
        _k6("admin.js", given, {"ADMIN": where.admin, "ADMIN_API_KEY": where.api_key})


def _k6(script: str, given: argparse.Namespace, variables: dict[str, str]) -> None:
    """k6 keeps its thresholds itself, and ends with 99 when one is crossed."""
    scale = {"SCALE": "0.1"} if given.small else {}
    command = [go_tool("k6"), "run", "--quiet", "--no-usage-report", str(K6 / script)]
    run(command, {**variables, **scale})


def ghz_gateway(given: argparse.Namespace, folder: Path) -> None:
    """One key and one request id for all calls, which nobody asked to deduplicate."""
    total = int(os.environ.get("TOTAL", "500" if given.small else "20000"))
    with place("GATEWAY", os.environ, folder) as where:
        ctx = {"request_id": f"ghz-put-{os.getpid()}", "tenant_id": "dev", "principal": "ghz"}
        put = {"ctx": ctx, "key": GHZ_KEY, "value": GHZ_VALUE, "options": {}}
        get = {"ctx": ctx, "key": GHZ_KEY, "options": {"consistency": "STRONG"}, "head_only": False}
        for name, body in (("Put", put), ("Get", get)):
            before = where.answers()
            print(f"\n{name} x {total}", flush=True)
            text = run(ghz_command(name, body, total, where.gateway), kept=True)
            print(text.strip(), flush=True)
            check_ghz(text, total)
            counted = where.answers() - before
            if where.own is not None and counted != Counter({f"{name.upper()} OK": total}):
                raise Failed(f"the gateway answered {dict(counted)}, not {total} times OK")
            _tell(counted)


def ghz_command(name: str, body: Mapping[str, object], total: int, address: str) -> list[str]:
    concurrency = os.environ.get("CONCURRENCY", "50")
    return [
        *(go_tool("ghz"), "--insecure", "--proto", str(GATEWAY), "--call", f"kvdb.gateway.KvGateway.{name}"),
        *("-d", json.dumps(body), "-n", str(total), "-c", concurrency, "--timeout", "10s"),
        *("--disable-template-data", "--disable-template-functions", address),
    ]


def check_ghz(text: str, total: int) -> None:
    """ghz ends with 0 whatever the calls came to."""
    found = re.search(r"^\s*\[OK\]\s+(\d+) responses", text, re.MULTILINE)
    good = int(found[1]) if found else 0
    if good != total:
        raise Failed(f"{good} of {total} calls were OK")


def vegeta_admin(given: argparse.Namespace, folder: Path) -> None:
    rate, connections = os.environ.get("RATE", "300"), os.environ.get("CONNECTIONS", "50")
    duration = os.environ.get("DURATION", "3s" if given.small else "30s")
    folder.mkdir(parents=True, exist_ok=True)
    with place("ADMIN", os.environ, folder / "cluster") as where:
        targets, results = folder / "targets", folder / "results.bin"
        targets.write_text(vegeta_targets(where))
        attack = ["attack", "-rate", rate, "-duration", duration, "-connections", connections]
        run([go_tool("vegeta"), *attack, "-targets", str(targets), "-output", str(results)])
        run([go_tool("vegeta"), "report", str(results)])
        check_vegeta(run([go_tool("vegeta"), "report", "-type", "json", str(results)], kept=True))


def vegeta_targets(where: Place) -> str:
    return "\n".join(f"GET {where.admin}{path}\nX-Admin-Api-Key: {where.api_key}\n" for path in ADMIN_READS)


def check_vegeta(text: str) -> None:
    """vegeta ends with 0 whatever the requests came to; its ratio takes 200 to 399 for a success."""
    report = json.loads(text)
    codes = report["status_codes"]
    if set(codes) != {"200"}:
        raise Failed(f"not every request was answered 200: {codes}, {report['errors'][:3]}")


def _tell(counted: Counter[str]) -> None:
    if counted:
        print("the gateway's own count: " + ", ".join(f"{count} x {name}" for name, count in sorted(counted.items())))


RUNS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "k6-gateway": k6_gateway,
    "k6-admin": k6_admin,
    "ghz-gateway": ghz_gateway,
    "vegeta-admin": vegeta_admin,
}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--small", action="store_true", help="a tenth of it or less, no figures worth reading")
    given = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory(prefix="flotta-load-") as folder:
            RUNS[given.run](given, Path(folder) / given.run)
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    print(f"{given.run}: kept")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that everything started is stopped
    sys.exit(main())
