"""When work that was put off runs."""

from __future__ import annotations

import asyncio

import pytest
from flotta_runtime.turns import Turns


async def test_everything_of_a_turn_runs_before_it_returns_and_what_sends_runs_last() -> None:
    turns, seen = Turns(), []
    with turns:
        turns.at_end(lambda: seen.append("send"))
        turns.soon(lambda: turns.soon(lambda: seen.append("second")))
        with turns:
            turns.soon(lambda: seen.append("first"))
        assert seen == [], "the outermost turn is not over"
    assert seen == ["first", "second", "send"]


async def test_a_turn_within_an_action_waits_for_the_turn_it_is_in() -> None:
    turns, seen = Turns(), []

    def nested() -> None:
        with turns:
            turns.soon(lambda: seen.append("nested"))
        seen.append("action")

    with turns:
        turns.soon(nested)
    assert seen == ["action", "nested"]


async def test_outside_of_a_turn_it_is_the_next_pass_of_the_loop_and_one_for_all() -> None:
    turns, seen = Turns(), []
    turns.at_end(lambda: seen.append("send"))
    turns.soon(lambda: seen.append("first"))
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["first", "send"]
    turns.soon(lambda: seen.append("again"))
    await asyncio.sleep(0)
    assert seen == ["first", "send", "again"]


async def test_what_raises_keeps_nothing_else_from_running() -> None:
    turns, seen = Turns(), []

    def fail() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), turns:
        turns.soon(fail)
        turns.soon(lambda: seen.append("next"))
    with pytest.raises(RuntimeError, match="taken in badly"), turns:
        turns.at_end(lambda: seen.append("send"))
        raise RuntimeError("taken in badly")
    assert seen == []
    await asyncio.sleep(0)
    assert seen == ["next", "send"]
    with turns:
        turns.soon(lambda: seen.append("works"))
    assert seen[-1] == "works"
