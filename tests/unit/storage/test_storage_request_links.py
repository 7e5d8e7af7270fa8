"""Gateways' links at a storage node: who is let in, how answers leave, and what they count for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_cluster import wait_until
from fake_hub import FakeHub
from flotta_proto.flotta import storage_pb2 as pb
from flotta_runtime.auth import REFUSAL, TokenCheck, token_metadata
from flotta_runtime.links import Links, hello_of
from flotta_runtime.turns import Turns
from flotta_storage.budget import Budget
from flotta_storage.outbox import STOPPING, Connections
from flotta_storage.request_links import PURPOSE, UNCOUNTED_BYTES, RequestLinks, refusal

HELLO = hello_of(token_metadata("secret"))


class Handler:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], Callable[[list[pb.Reply]], None]]] = []
        self.value = b""
        self.at_once = True

    def handle(self, operations: Any, reply: Callable[[list[pb.Reply]], None]) -> None:
        calls = [operation.call for operation in operations]
        self.batches.append((calls, reply))
        if self.at_once:
            self.answer(-1)

    def answer(self, batch: int) -> None:
        calls, reply = self.batches[batch]
        reply([pb.Reply(call=call, value=self.value) for call in calls])


class Setup:
    def __init__(self) -> None:
        self.hub = FakeHub()
        self.turns = Turns()
        hub: Any = self.hub
        self.links = Links(hub, self.turns)
        self.handler = Handler()
        self.budget = Budget(100, 1 << 30)
        self.connections = Connections()
        self.reports: list[str] = []
        handler: Any = self.handler
        RequestLinks(self.links, handler, self.budget, self.connections, TokenCheck("secret"), self.reports.append)
        self.task = asyncio.create_task(self.links.run())

    def send(self, link: int, *calls: int) -> None:
        frame = pb.OperationFrame(operations=[pb.Operation(call=call) for call in calls])
        self.hub.frame(link, frame.SerializeToString())

    async def open(self, *links: int) -> None:
        for link in links:
            self.hub.hello(link, PURPOSE, HELLO)
        await wait_until(lambda: set(links) <= set(self.hub.accepted))

    def calls(self, link: int) -> list[list[int]]:
        return [[one.call for one in pb.ReplyFrame.FromString(frame).replies] for frame in self.hub.sent(link)]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    made.hub.release()


def test_who_is_refused() -> None:
    check = TokenCheck("secret")
    assert refusal(HELLO, check, leaving=False) is None
    assert refusal(HELLO, check, leaving=True) == STOPPING
    assert refusal(b"", check, leaving=True) == REFUSAL, "who we are about to be is nobody else's concern"
    for wrong in (b"", hello_of(token_metadata("Secret")), hello_of((("x-other", "secret"),))):
        assert refusal(wrong, check, leaving=False) == REFUSAL
    assert refusal(b"\xff\xff", check, leaving=False) == "the greeting cannot be read"


async def test_a_wrong_token_is_refused_and_reported(setup: Setup) -> None:
    setup.hub.hello(1, PURPOSE, hello_of(token_metadata("guess")))
    await wait_until(lambda: bool(setup.hub.refused))
    assert setup.hub.refused == {1: REFUSAL}
    assert setup.reports == [f"a link from ipv4:127.0.0.1 was refused: {REFUSAL}"]
    assert len(setup.connections) == 0


async def test_answers_of_a_turn_leave_in_one_call_for_all_links(setup: Setup) -> None:
    await setup.open(1, 2)
    setup.send(1, 11, 12)
    setup.send(2, 21)
    setup.send(1, 13)
    await wait_until(lambda: bool(setup.hub.sends))
    assert len(setup.hub.sends) == 1
    assert (setup.calls(1), setup.calls(2)) == ([[11, 12, 13]], [[21]])
    assert setup.budget.bytes == 0


async def test_late_answers_leave_at_the_end_of_the_turn_they_come_in(setup: Setup) -> None:
    setup.handler.at_once = False
    await setup.open(1)
    setup.send(1, 1)
    setup.send(1, 2)
    await wait_until(lambda: len(setup.handler.batches) == 2)
    with setup.turns:
        setup.handler.answer(1)
        setup.handler.answer(0)
    assert setup.calls(1) == [[2, 1]]


async def test_unsent_answers_count_until_they_are_written(setup: Setup) -> None:
    setup.handler.value = b"v" * 100_000
    await setup.open(1)
    setup.hub.unsent[1] = UNCOUNTED_BYTES + 1
    setup.send(1, *range(8))
    await wait_until(lambda: bool(setup.hub.sends))
    assert setup.budget.bytes > UNCOUNTED_BYTES
    setup.hub.unsent[1] = UNCOUNTED_BYTES
    await wait_until(lambda: setup.budget.bytes == 0)


async def test_answers_that_are_not_taken_go_when_there_is_room(setup: Setup) -> None:
    await setup.open(1)
    setup.hub.full.add(1)
    setup.send(1, 1, 2)
    await wait_until(lambda: bool(setup.hub.sends))
    assert setup.calls(1) == [] and setup.budget.bytes > 0
    setup.hub.full.clear()
    await wait_until(lambda: setup.calls(1) == [[1, 2]])
    await wait_until(lambda: setup.budget.bytes == 0)


async def test_a_link_that_dies_holds_nothing_any_more(setup: Setup) -> None:
    setup.handler.at_once = False
    await setup.open(1)
    setup.send(1, 1)
    setup.send(1, 2)
    setup.hub.full.add(1)
    await wait_until(lambda: len(setup.handler.batches) == 2)
    setup.handler.answer(0)
    assert setup.budget.bytes > 0
    setup.hub.down(1, "cut")
    await wait_until(lambda: len(setup.connections) == 0)
    assert setup.budget.bytes == 0
    setup.handler.answer(1)
    assert setup.budget.bytes == 0


async def test_a_stopping_node_answers_what_it_has_and_takes_nobody_new(setup: Setup) -> None:
    setup.handler.at_once = False
    await setup.open(1)
    setup.send(1, 1)
    await wait_until(lambda: bool(setup.handler.batches))
    leaving = asyncio.create_task(setup.connections.leave(60_000))
    await wait_until(lambda: bool(setup.hub.sent(1)))
    assert pb.ReplyFrame.FromString(setup.hub.sent(1)[0]).leaving
    setup.hub.hello(2, PURPOSE, HELLO)
    await wait_until(lambda: setup.hub.refused == {2: STOPPING})
    assert setup.reports == [], "that is nothing to worry about"
    setup.handler.answer(0)
    await wait_until(lambda: setup.calls(1) == [[], [1]])
    assert not leaving.done()
    setup.hub.down(1, "every operation is answered")
    await leaving


async def test_what_is_no_frame_closes_the_link(setup: Setup) -> None:
    await setup.open(1)
    setup.hub.frame(1, b"\xff\xff\xff")
    await wait_until(lambda: 1 in setup.hub.closed)
    assert setup.handler.batches == []
