"""What KvDB's own scripts and load tools do, request by request, on a cluster of KvDB's size: 2 nodes, 8 shards, RF 2.

Everything must be answered well; how fast is printed, not asserted. `bench/load_tools.py` runs the real tools.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flotta_proto.kvdb import gateway_pb2 as pb
from generators import go_tool
from process_cluster import ROOT, Client, ProcessCluster, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
NODES, SHARDS = 2, 8
PUTS = 2_000
CLIENTS, KEYSPACE, MIX = 20, 10_000, 1_500
OPERATORS, TURNS = 5, 8
RATE, RATE_SECONDS, CONNECTIONS = 300, 2, 20
READS = ("/admin/cluster/summary", "/admin/nodes", "/admin/shards")
OK = pb.Status.OK


class Kvdb:
    """The cluster as KvDB's scripts see it: addresses, a token, a key, and grpcurl."""

    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster
        self.token = cluster.internal_token()
        self.api_key = (cluster.folder / "data" / "admin-api-key").read_text().strip()

    def grpcurl(self, address: str, method: str, body: dict[str, Any], *, token: bool = False) -> Any:
        header = ["-H", f"x-kvdb-internal-token: {self.token}"] if token else []
        command = [go_tool("grpcurl"), "-plaintext", *header, "-d", json.dumps(body), address, method]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{method} at {address}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def bootstrap(self, coordinator: str) -> dict[str, Any]:
        """Registers the nodes at one coordinator, whichever it is, and makes the shards there."""
        for number in range(1, NODES + 1):
            address = f"localhost:{self.cluster.node_port + number - 1}"
            node = {"node_id": f"node-{number}", "address": address, "zone": "local"}
            assert self.grpcurl(coordinator, "kvdb.coordinator.Coordinator/RegisterNode", node, token=True)["success"]
        sizes = {"num_shards": SHARDS, "replication_factor": NODES}
        told: dict[str, Any] = self.grpcurl(coordinator, "kvdb.coordinator.Coordinator/InitShards", sizes, token=True)
        return told

    def answered(self, operation: str) -> Counter[str]:
        """What the gateway answered to an operation so far, by code."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.cluster.gateway_port + 10_000}/metrics") as page:
            text = page.read().decode()
        pattern = rf'^flotta_gateway_requests_total{{code="(\w+)",operation="{operation}"}} (\S+)$'
        return Counter({code: int(float(count)) for code, count in re.findall(pattern, text, re.MULTILINE)})


@pytest.fixture(scope="module")
def kvdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kvdb]:
    """Started, and bootstrapped as a KvDB operator does it: through a coordinator that does not lead."""
    cluster = ProcessCluster(Path(tmp_path_factory.mktemp("kvdb")), nodes=NODES, shards=SHARDS, gateways=1)
    try:
        asyncio.run(cluster.command("start"))
        leader = asyncio.run(until(cluster.coordinator_leader, "a coordinator leads"))
        follower = next(name for name in ("coordinator-2", "coordinator-3") if name != leader)
        found = Kvdb(cluster)
        told = found.bootstrap(f"localhost:{cluster.port(follower)}")
        print(f"{leader} leads; bootstrapped through {follower}: {told}")
        assert told["success"] and len(told["shard_ids"]) == SHARDS

        async def led() -> bool:
            return all(shard["leader"] for shard in (await cluster.shards()).values())

        asyncio.run(until(led, "every shard has a leader"))
        yield found
    except BaseException:
        print(cluster.tails())
        raise
    finally:
        stopped = asyncio.run(cluster.command("stop"))
        assert "killed" not in stopped, stopped


@dataclass
class Seen:
    """How long requests took, and how many of what answer there were."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def note(self, start: float, answer: str) -> None:
        self.seconds.append(time.perf_counter() - start)
        self.answers[answer] += 1

    def tell(self, what: str) -> None:
        took, ordered = time.perf_counter() - self.began, sorted(self.seconds)
        at = {share: ordered[int(len(ordered) * share / 100)] * 1000 for share in (50, 95, 99)}
        print(f"{what}: {len(ordered)} in {took:.1f} s, {len(ordered) / took:.0f}/s, {dict(self.answers)}")
        print("  " + ", ".join(f"p{share} {ms:.1f} ms" for share, ms in at.items()))


class Operator:
    """One connection to the admin service, kept."""

    def __init__(self, kvdb: Kvdb, seen: Seen) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", kvdb.cluster.admin_port, timeout=30)
        self._headers = {"X-Admin-Api-Key": kvdb.api_key, "Content-Type": "application/json"}
        self._seen = seen

    def ask(self, method: str, path: str, body: object = None) -> Any:
        start = time.perf_counter()
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, body=content, headers=self._headers)
        answer = self._connection.getresponse()
        told = json.load(answer)
        self._seen.note(start, str(answer.status))
        return told

    def close(self) -> None:
        self._connection.close()


async def test_bootstrap_again_through_every_coordinator(kvdb: Kvdb) -> None:
    version = await kvdb.cluster.map_version()
    for number in range(3):
        assert kvdb.bootstrap(f"localhost:{kvdb.cluster.coordinator_port + number}")["success"]
    assert set(await kvdb.cluster.shards()) == {f"shard-{number}" for number in range(SHARDS)}
    print(f"map version {version}, and {await kvdb.cluster.map_version()} after three more bootstraps")


def test_smoke(kvdb: Kvdb) -> None:
    gateway, key = f"localhost:{kvdb.cluster.gateway_port}", base64.b64encode(b"smoke-key10").decode()
    value = base64.b64encode(b"hello10").decode()
    put = kvdb.grpcurl(gateway, "kvdb.gateway.KvGateway/Put", {"key": key, "value": value})
    assert put["status"]["code"] == "OK", put
    get = {"key": key, "options": {"consistency": "STRONG"}}
    assert kvdb.grpcurl(gateway, "kvdb.gateway.KvGateway/Get", get)["kv"]["value"] == value


async def test_many_puts_of_one_key_under_one_request_id_are_all_done(kvdb: Kvdb) -> None:
    """By ghz itself, as `make ghz-gateway-bench` runs it: nobody asked for deduplication, so there is none."""
    address = kvdb.cluster.gateway_address()
    client = Client(address)
    assert (await client.put(b"bench-key", b"before")).status.code == OK
    first = (await client.get(b"bench-key")).kv.version
    counted = {operation: kvdb.answered(operation) for operation in ("PUT", "GET")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "bench" / "load_tools.py"), "ghz-gateway"),
        env={**os.environ, "GATEWAY": address, "TOTAL": str(PUTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    print(output.decode())
    assert process.returncode == 0
    assert output.decode().count(f"[OK]   {PUTS} responses") == 2
    assert {operation: kvdb.answered(operation) - before for operation, before in counted.items()} == {
        "PUT": Counter(OK=PUTS),
        "GET": Counter(OK=PUTS),
    }
    last = (await client.get(b"bench-key")).kv
    assert last.value == b"bench-val" and last.version >= first + PUTS, "some puts left no trace in the log"
    await client.close()


async def test_the_mix_of_the_gateway_load(kvdb: Kvdb) -> None:
    """A fifth of it puts, each with a request id of its own to be honoured, the rest gets of keys mostly not there."""
    client, chance, seen = Client(kvdb.cluster.gateway_address()), random.Random(6), Seen()
    write = pb.WriteOptions(durability=pb.WAL_SYNC, require_idempotency=True)
    read = pb.ReadOptions(consistency=pb.STRONG, read_mode=pb.READ_YOUR_WRITES)

    async def call(number: int, turn: int) -> str:
        key = f"k-{chance.randrange(KEYSPACE)}".encode()
        ctx = pb.RequestContext(request_id=f"req-{number}-{turn}-{time.time_ns()}", tenant_id="dev", principal="k6")
        if chance.random() < 0.2:
            put = await client.stub.Put(pb.PutRequest(ctx=ctx, key=key, value=b"x" * 256, options=write), timeout=30)
            return "Put " + pb.Status.Code.Name(put.status.code)
        get = await client.stub.Get(pb.GetRequest(ctx=ctx, key=key, options=read), timeout=30)
        return "Get " + pb.Status.Code.Name(get.status.code)

    async def one_client(number: int) -> None:
        for turn in range(MIX // CLIENTS):
            start = time.perf_counter()
            seen.note(start, await call(number, turn))

    await asyncio.gather(*(one_client(number) for number in range(CLIENTS)))
    await client.close()
    seen.tell("gateway mix")
    assert set(seen.answers) <= {"Put OK", "Get OK", "Get NOT_FOUND"}, seen.answers
    assert seen.answers["Put OK"] > 0 and sum(seen.answers.values()) == MIX


async def test_the_loop_of_the_admin_load(kvdb: Kvdb) -> None:
    """Operators who all make the same shards and register the same nodes, in another zone than these say, again and
    again: a 409 would count as a failure."""
    seen = Seen()

    def operate(number: int) -> None:
        with closing(Operator(kvdb, seen)) as operator:
            for turn in range(TURNS):
                which = (number + turn) % NODES
                name, address = f"node-{which + 1}", f"localhost:{kvdb.cluster.node_port + which}"
                operator.ask("POST", "/admin/config/shard-init", {"num_shards": SHARDS, "replication_factor": NODES})
                operator.ask("POST", "/admin/nodes", {"node_id": name, "address": address, "zone": "us-east-1a"})
                for path in (f"/admin/nodes/{name}/health", *READS):
                    operator.ask("GET", path)

    with ThreadPoolExecutor(OPERATORS) as crowd:
        await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(crowd, operate, n) for n in range(OPERATORS)))
    seen.tell("admin loop")
    assert seen.answers == Counter({"200": OPERATORS * TURNS * 6})
    with closing(Operator(kvdb, Seen())) as operator:
        nodes = operator.ask("GET", "/admin/nodes")
    assert {(one["zone"], one["status"]) for one in nodes} == {("us-east-1a", "ALIVE")}
    client = Client(kvdb.cluster.gateway_address())
    assert (await client.put(b"after", b"registered")).status.code == OK
    await client.close()


def test_the_rate_of_the_admin_reads(kvdb: Kvdb) -> None:
    """Each begun at its time, or as soon as its connection is free."""
    seen = Seen()

    def read(first: int) -> None:
        with closing(Operator(kvdb, seen)) as operator:
            for number in range(first, RATE * RATE_SECONDS, CONNECTIONS):
                time.sleep(max(0.0, seen.began + number / RATE - time.perf_counter()))
                operator.ask("GET", READS[number % len(READS)])

    with ThreadPoolExecutor(CONNECTIONS) as crowd:
        list(crowd.map(read, range(CONNECTIONS)))
    seen.tell(f"admin reads at {RATE}/s")
    assert seen.answers == Counter({"200": RATE * RATE_SECONDS})
