"""Hostile clients on a gateway of a real cluster: a quiet client is answered, memory stays bounded, the log says so.

Small sizes, a few seconds each: `make overload` runs every attack in full. What a quiet client's calls took is printed
and not judged.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attacks import BY_NAME
from process_cluster import running
from siege import Outcome, Siege, problems

GROWTH_MIB_MAX = 1_200  # the bounds are 512 MiB of requests in work and as much of unread replies
LOG_LINES_MAX = 16
STALL_S = 20
FLOODS = {
    "flood": "calls wait: a client sends more than is served",
    "gzip-bomb": "calls are refused: their messages are too big, packed or not",
    "pings": "a client floods its connection with frames that carry nothing",
    "rapid-reset": "a client opens calls and resets them, over and over",
}
"""What is cut or slowed down at once, and the line in the log."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@asynccontextmanager
async def siege(folder: Path) -> AsyncIterator[Siege]:
    async with running(folder, gateways=1, transport="native") as cluster:
        made = Siege(cluster, "gateway", cluster.gateway_address())
        await made.prepare()
        yield made


def held(outcome: Outcome) -> list[str]:
    """It held; the events of its log."""
    print(f"\n{Outcome.head()}\n{outcome.row()}")
    assert not problems(outcome, growth_mib_max=GROWTH_MIB_MAX, log_lines_max=LOG_LINES_MAX)
    return [json.loads(line)["event"] for line in outcome.log_lines]


async def test_floods_are_slowed_down_or_cut_and_told_of(tmp_path: Path) -> None:
    async with siege(tmp_path) as besieged:
        for name, event in FLOODS.items():
            outcome = await besieged.carry_out(BY_NAME[name], 1.5, full=name == "flood", alone_s=0.3)
            assert event in held(outcome), (name, outcome.log_lines)


async def test_who_stands_still_is_given_up_and_told_of(tmp_path: Path) -> None:
    """10,000 calls without a message, half frames, half messages, replies that nobody reads: all at the same time,
    until the server has had enough."""
    standing = [BY_NAME[name] for name in ("half-frame", "half-message", "gives-no-window", "reads-nothing")]
    async with siege(tmp_path) as besieged:
        outcome = await besieged.carry_out(BY_NAME["streams"], STALL_S + 5, full=False, alone_s=0.3, also=standing)
        events = held(outcome)
        assert {"a client leaves its requests unfinished", "a client does not read its reply"} <= set(events), events
