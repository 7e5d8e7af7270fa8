"""`flotta scan`: a line for each row, in order, and what to do when it ends half-way."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from fake_gateway import FakeGateway
from flotta import cli
from flotta_proto.kvdb import gateway_pb2 as gw
from typer.testing import CliRunner

Run = Callable[..., Awaitable[Any]]


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    made = await FakeGateway().start()
    for number in range(7):
        key = b"user:%d" % number
        made.rows[key] = gw.KeyValue(key=key, value=b"v%d" % number, version=number + 1, update_time_ms=9)
    made.rows[b"odd\t\xff"] = gw.KeyValue(key=b"odd\t\xff", value=b"two\nlines", version=8)
    made.page_rows = 3
    yield made
    await made.kill()


@pytest.fixture
def scan(gateway: FakeGateway, tmp_path: Path) -> Run:
    async def run(*arguments: str) -> Any:
        environ = {"FLOTTA_GATEWAY": gateway.address, "FLOTTA_DATA": str(tmp_path), "TERM": "dumb"}
        runner = CliRunner(env=environ | {"FLOTTA_CONFIG": "", "XDG_CONFIG_HOME": str(tmp_path)})
        return await asyncio.to_thread(runner.invoke, cli.build(), ["scan", *arguments])

    return run


async def test_a_line_for_each_row_in_order(scan: Run) -> None:
    ended = await scan("--prefix", "user:")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [f"user:{number}\tv{number}" for number in range(7)]
    ended = await scan("--start", "user:2", "--end", "user:5", "--reverse", "--keys-only")
    assert ended.stdout.splitlines() == ["user:4", "user:3", "user:2"]
    ended = await scan("--end", "p")
    assert ended.stdout == "odd\\t\\xff\ttwo\\nlines\n"
    assert (await scan("--prefix", "nothing")).exit_code == 0
    assert (await scan("--count")).stdout == "8\n"
    assert json.loads((await scan("--count", "--json", "--prefix", "user:")).stdout) == {"count": 7}


async def test_json_is_an_object_a_line(scan: Run, gateway: FakeGateway) -> None:
    ended = await scan("--prefix", "user:", "--limit", "2", "--json", "--eventual")
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert rows[1] == {
        "key": "user:1",
        "key_base64": "dXNlcjox",
        "value": "v1",
        "value_base64": "djE=",
        "version": 2,
        "update_time_ms": 9,
        "expire_time_ms": 0,
    }
    assert gateway.seen[-1].options.consistency == gw.EVENTUAL
    names = await scan("--prefix", "user:", "--json", "--keys-only", "-n", "1")
    assert "value" not in json.loads(names.stdout)


async def test_a_token_says_where_to_go_on(scan: Run) -> None:
    ended = await scan("--prefix", "user:", "--limit", "4", "-k")
    assert ended.stdout.splitlines() == [f"user:{number}" for number in range(4)]
    assert "go on with --token " in ended.stderr
    token = ended.stderr.rpartition(" ")[2].strip()
    rest = await scan("--prefix", "user:", "--token", token, "-k")
    assert rest.stdout.splitlines() == [f"user:{number}" for number in range(4, 7)]
    assert rest.stderr == ""


async def test_a_scan_that_fails_half_way_keeps_what_it_has(scan: Run, gateway: FakeGateway) -> None:
    gateway.script = [None, gw.Status(code=gw.Status.UNAVAILABLE, message="shard-1 has no leader")]
    ended = await scan("--prefix", "user:", "-k")
    assert (ended.exit_code, ended.stdout.splitlines()) == (4, ["user:0", "user:1", "user:2"])
    assert "shard-1 has no leader" in ended.stderr and "flotta status" in ended.stderr
    said = next(line for line in ended.stderr.splitlines() if "go on with" in line)
    assert base64.urlsafe_b64decode(said.rpartition(" ")[2]) == b"user:2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", "b", "--end", "a"), "start comes after end"),
        (("--limit", "0"), "--limit"),
        (("--limit", "-5"), "--limit"),
        (("--token", "%%%"), "--token is no token"),
        (("--count", "--limit", "3"), "--count prints a number"),
        (("--timeout", "soon"), "'soon' is no duration"),
    ],
)
async def test_wrong_use_is_explained(scan: Run, gateway: FakeGateway, arguments: tuple[str, ...], words: str) -> None:
    ended = await scan(*arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert not gateway.seen
