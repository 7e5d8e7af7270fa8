"""The blocking client: that it is what is generated, and that it works with threads instead of a loop."""

from __future__ import annotations

import ast
import importlib.util
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flotta
import grpc
import pytest
from fake_gateway import FakeGateway
from flotta import Client, Consistency, Delete, Entry, Get, Put
from flotta_proto.kvdb import gateway_pb2 as gw
from loop_thread import LoopThread

ROOT = Path(__file__).resolve().parents[3]
NOBODY = "127.0.0.1:1"
BUSY = gw.Status(code=gw.Status.RATE_LIMITED, message="busy", retry_after_ms=30)

spec = importlib.util.spec_from_file_location("gen_sync_client", ROOT / "scripts" / "gen_sync_client.py")
if spec is None or spec.loader is None:
    raise RuntimeError("scripts/gen_sync_client.py is missing")
gen_sync_client = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gen_sync_client)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with LoopThread() as loop:
        made = loop.run(FakeGateway().start())
        yield made
        loop.run(made.kill())


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with Client(gateway.address, timeout_ms=2_000) as made:
        yield made


def test_the_committed_modules_are_the_generated_ones() -> None:
    sources = gen_sync_client.sources()
    for source in sources:
        written = gen_sync_client.target(source).read_text("utf-8")
        assert written == gen_sync_client.generated(source), "run python scripts/gen_sync_client.py"
    names = {source.name for source in sources} | gen_sync_client.BY_HAND
    for side in ("_async", "_sync"):
        assert {path.name for path in (gen_sync_client.PACKAGE / side).glob("*.py")} == names


def test_both_sides_have_the_same_primitives() -> None:
    def public_names(side: str) -> set[str]:
        tree = ast.parse((gen_sync_client.PACKAGE / side / "primitives.py").read_text("utf-8"))
        named = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        named |= {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                named |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        return {name for name in named if not name.startswith("_")}

    assert public_names("_async") == public_names("_sync")


def test_nothing_asynchronous_is_left() -> None:
    for source in gen_sync_client.sources():
        tree = ast.parse(gen_sync_client.target(source).read_text("utf-8"))
        kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
        assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]


def test_what_is_put_is_got(client: Client) -> None:
    version = client.put("text", "wört")
    assert client.get(b"text") == Entry(b"text", "wört".encode(), version, 1000, 1000 + version, 0)
    head = client.get("text", consistency=Consistency.EVENTUAL, head_only=True)
    assert head is not None
    assert (head.value, head.version) == (b"", version)
    with pytest.raises(flotta.AlreadyExistsError):
        client.put("text", "again", if_absent=True)
    assert client.delete("text") == version + 1
    assert client.delete("text") is None
    assert client.get("text") is None


def test_a_batch_waits_out_what_was_refused_for_now(client: Client, gateway: FakeGateway) -> None:
    gateway.script = [None, BUSY]
    found = client.batch([Put("a", "1"), Put("b", "2"), Get("a"), Delete("absent")])
    assert found == [1, 2, Entry(b"a", b"1", 1, 1000, 1001, 0), None]
    assert gateway.batches == [4, 1]


def test_a_lost_answer_is_asked_for_again_only_when_that_is_safe(client: Client, gateway: FakeGateway) -> None:
    gateway.script = [grpc.StatusCode.UNAVAILABLE]
    assert client.put("k", "v") == 1
    first, second = gateway.seen
    assert first.ctx.request_id == second.ctx.request_id != ""
    assert gateway.version == 1
    gateway.seen.clear()
    with Client(gateway.address, idempotent_writes=False) as plain:
        gateway.script = [grpc.StatusCode.UNAVAILABLE]
        with pytest.raises(flotta.OutcomeUnknownError):
            plain.put("k", "v")
    assert len(gateway.seen) == 1


def test_the_timeout_holds(client: Client, gateway: FakeGateway) -> None:
    client.put("k", "v")  # connected
    gateway.script = ["hang"]
    with pytest.raises(flotta.OutcomeUnknownError, match=gateway.address):
        client.put("k", "v", timeout_ms=150)


def test_the_next_gateway_is_used_when_one_is_down(gateway: FakeGateway) -> None:
    with Client(NOBODY, gateway.address, idempotent_writes=False) as client:
        assert client.put("k", "v") == 1
    with Client(NOBODY, timeout_ms=300) as client, pytest.raises(flotta.UnavailableError, match=NOBODY):
        client.put("k", "v")


def test_threads_share_a_client_and_its_connection(client: Client, gateway: FakeGateway) -> None:
    together = threading.Barrier(8)

    def write(number: int) -> int:
        together.wait(10)
        return client.put(f"k{number}", "v")

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(write, range(8)))
    assert sorted(versions) == list(range(1, 9))
    assert len(gateway.peers) == 1


def test_a_client_can_be_closed_twice(gateway: FakeGateway) -> None:
    client = Client(gateway.address)
    assert client.get("k") is None
    client.close()
    client.close()
