"""The reader of native links: who hears what, and how what is sent leaves together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_hub import FakeHub
from flotta_runtime.links import Links, hello_of, metadata_of
from flotta_runtime.turns import Turns


class Owner:
    def __init__(self) -> None:
        self.heard: list[tuple[str, object]] = []
        self.outgoing: list[bytes] = []
        self.not_taken_count = 0
        self.on_frame: Callable[[bytes], None] = lambda data: None

    def up(self, greeting: bytes) -> None:
        self.heard.append(("up", greeting))

    def frame(self, data: bytes) -> None:
        self.heard.append(("frame", data))
        self.on_frame(data)

    def down(self, reason: str) -> None:
        self.heard.append(("down", reason))

    def next_frame(self) -> bytes:
        return self.outgoing.pop(0) if self.outgoing else b""

    def not_taken(self) -> None:
        self.not_taken_count += 1


class Setup:
    def __init__(self) -> None:
        self.hub = FakeHub()
        self.turns = Turns()
        self.reports: list[str] = []
        hub: Any = self.hub
        self.links = Links(hub, self.turns, report=self.reports.append)

    async def settle(self) -> None:
        """Let the loop notice what the hub has."""
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    running = asyncio.create_task(made.links.run())
    await made.settle()
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    made.hub.release()


async def test_a_link_made_here_from_its_first_event_to_its_last(setup: Setup) -> None:
    owner = Owner()
    link = setup.links.connect("b:1", "raft", b"me", owner, 500)
    assert setup.hub.connects == [(link, "b:1", "raft", b"me")]
    setup.hub.up(link, b"welcome")
    setup.hub.frame(link, b"one")
    setup.hub.down(link, "bye")
    setup.hub.frame(link, b"a ghost")
    await setup.settle()
    assert owner.heard == [("up", b"welcome"), ("frame", b"one"), ("down", "bye")]
    assert len(setup.links) == 0


async def test_a_refusal_is_what_the_owner_hears(setup: Setup) -> None:
    owner = Owner()
    link = setup.links.connect("b:1", "raft", b"", owner, 500)
    setup.hub.refusal(link, "another cluster")
    await setup.settle()
    assert owner.heard == [("down", "another cluster")]


async def test_links_come_to_whoever_serves_their_purpose(setup: Setup) -> None:
    asked: list[tuple[int, bytes]] = []
    setup.links.serve("raft", lambda link, hello, peer: asked.append((link, hello)))
    setup.hub.hello(1, "raft", b"me")
    setup.hub.hello(2, "cats", b"me")
    await setup.settle()
    assert asked == [(1, b"me")]
    assert setup.hub.refused == {2: "this process takes no links for 'cats'"}
    owner = Owner()
    assert setup.links.accept(1, b"hi", owner)
    assert not setup.links.accept(1, b"hi", Owner()), "it has an owner already"
    assert setup.hub.accepted == {1: b"hi"}
    setup.hub.frame(1, b"x")
    await setup.settle()
    assert owner.heard == [("frame", b"x")]


async def test_a_link_that_goes_before_it_is_answered_has_no_owner(setup: Setup) -> None:
    setup.links.serve("raft", lambda link, hello, peer: None)
    setup.hub.hello(1, "raft", b"")
    setup.hub.down(1, "impatient")
    await setup.settle()
    assert not setup.links.accept(1, b"", Owner())
    setup.links.refuse(1, "too late")
    assert (setup.hub.accepted, setup.hub.refused) == ({}, {})


async def test_what_a_turn_produces_leaves_in_one_call_for_each_round(setup: Setup) -> None:
    owners = [Owner(), Owner()]
    links = [setup.links.connect("b:1", "x", b"", owner, 500) for owner in owners]

    def answer(data: bytes) -> None:
        for owner, link in zip(owners, links, strict=True):
            owner.outgoing.append(data)
            setup.links.wake(link)

    for owner in owners:
        owner.on_frame = answer
    setup.hub.frame(links[0], b"1")
    setup.hub.frame(links[1], b"2")
    await setup.settle()
    first, second = links
    assert setup.hub.sends == [[(first, b"1"), (second, b"1")], [(first, b"2"), (second, b"2")]]


async def test_what_is_not_taken_is_told_and_nothing_more_asked_for(setup: Setup) -> None:
    full, free = Owner(), Owner()
    blocked, open_link = (setup.links.connect("b:1", "x", b"", owner, 500) for owner in (full, free))
    setup.hub.full.add(blocked)
    full.outgoing = [b"1", b"2"]
    free.outgoing = [b"1", b"2"]
    with setup.turns:
        setup.links.wake(blocked)
        setup.links.wake(open_link)
    assert full.not_taken_count == 1 and full.outgoing == [b"2"]
    assert setup.hub.sent(open_link) == [b"1", b"2"]
    setup.hub.full.clear()
    with setup.turns:
        setup.links.wake(blocked)
    assert setup.hub.sent(blocked) == [b"2"]


async def test_an_error_over_a_frame_closes_that_link_alone(setup: Setup) -> None:
    bad, good = Owner(), Owner()
    bad_link, good_link = (setup.links.connect("b:1", "x", b"", owner, 500) for owner in (bad, good))

    def fail(data: bytes) -> None:
        raise ValueError("no such message")

    bad.on_frame = fail
    setup.hub.frame(bad_link, b"?")
    setup.hub.frame(good_link, b"!")
    await setup.settle()
    assert setup.hub.closed == {bad_link: "ValueError: no such message"}
    assert good.heard == [("frame", b"!")]
    assert setup.reports == ["a link was closed over what came from it: ValueError: no such message"]


async def test_a_failure_of_the_native_side_ends_the_task() -> None:
    setup = Setup()
    running = asyncio.create_task(setup.links.run())
    await setup.settle()

    def fail() -> list[tuple[int, int, Any]]:
        raise RuntimeError("the hub is gone")

    setup.hub.poll = fail  # type: ignore[method-assign]
    setup.hub.down(1, "")
    with pytest.raises(RuntimeError, match="the hub is gone"):
        await asyncio.wait_for(running, 10)
    setup.hub.release()


async def test_all_links_are_closed_accepted_or_not(setup: Setup) -> None:
    setup.links.serve("raft", lambda link, hello, peer: None)
    setup.hub.hello(1, "raft", b"")
    await setup.settle()
    made = setup.links.connect("b:1", "x", b"", Owner(), 500)
    setup.links.close_all("over")
    assert setup.hub.closed == {1: "over", made: "over"}


def test_a_hello_says_what_metadata_says() -> None:
    metadata = (("x-token", "secret"), ("x-node", "n-1"))
    assert metadata_of(hello_of(metadata)) == dict(metadata)
    with pytest.raises(ValueError, match="cannot be read"):
        metadata_of(b"\xff\xff\xff")
