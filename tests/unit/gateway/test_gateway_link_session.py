"""A gateway's session over a native link: certain and uncertain ends, other ways to connect, and batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from fake_cluster import wait_until
from fake_hub import FakeHub
from flotta_gateway.link_session import PURPOSE, link_sessions
from flotta_gateway.storage_link import Attempt, Carrier, LinkOptions, Lost, Reason, SessionEnded, StorageLink
from flotta_proto.flotta.storage_pb2 import Operation, OperationFrame, Reply, ReplyFrame
from flotta_runtime.links import LINK_NOT_SPOKEN, Links, metadata_of
from flotta_runtime.turns import Turns

OPTIONS = LinkOptions(reconnect_ms=1, reconnect_ms_max=2)


class Other:
    """Another way to connect, which never gets through."""

    def __init__(self, tried: list[str], address: str) -> None:
        self._tried = tried
        self._address = address

    async def connect(self) -> None:
        self._tried.append(self._address)
        raise SessionEnded("nor this")

    async def carry(self) -> None: ...

    def wake(self) -> None: ...

    def finish(self) -> None: ...

    async def close(self) -> None: ...


class Setup:
    def __init__(self) -> None:
        self.hub = FakeHub()
        self.turns = Turns()
        hub: Any = self.hub
        self.links = Links(hub, self.turns)
        self.answered: list[int] = []
        self.lost_for: dict[int, tuple[Reason, str]] = {}
        self.others: list[str] = []
        ways = (link_sessions(self.links, OPTIONS, "secret"), self._other)
        self.link: StorageLink[None] = StorageLink("node:1", self, OPTIONS, ways, lambda: 0.0)
        self.tasks = [asyncio.create_task(self.links.run()), asyncio.create_task(self.link.run())]

    def _other(self, address: str, carrier: Carrier) -> Other:
        return Other(self.others, address)

    def replied(self, address: str, replies: Sequence[tuple[Attempt[None], Reply]]) -> None:
        self.answered += [attempt.number for attempt, _ in replies]

    def lost(self, address: str, lost: Lost[None]) -> None:
        self.lost_for.update((attempt.number, (lost.reason, lost.message)) for attempt in lost.attempts)

    def submit(self, *numbers: int) -> Lost[None] | None:
        with self.turns:
            return self.link.submit(
                [Attempt(number, Operation(call=number).SerializeToString(), None) for number in numbers]
            )

    async def connecting(self, attempts: int = 1) -> int:
        await wait_until(lambda: len(self.hub.connects) >= attempts)
        return self.hub.connects[attempts - 1][0]

    async def up(self, attempts: int = 1) -> int:
        link = await self.connecting(attempts)
        self.hub.up(link)
        await wait_until(lambda: self.link.up)
        await asyncio.sleep(0)
        return link

    def calls(self, link: int) -> list[list[int]]:
        return [[one.call for one in OperationFrame.FromString(frame).operations] for frame in self.hub.sent(link)]


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    made.hub.release()


async def test_operations_of_a_turn_go_in_one_frame_and_within_the_turn(setup: Setup) -> None:
    setup.submit(1, 2)
    link = await setup.up()
    _, address, purpose, hello = setup.hub.connects[0]
    assert (address, purpose) == ("node:1", PURPOSE)
    assert metadata_of(hello) == {"x-kvdb-internal-token": "secret"}
    await wait_until(lambda: setup.calls(link) == [[1, 2]])
    with setup.turns:
        setup.submit(3)
        setup.submit(4)
        assert len(setup.hub.sends) == 1
    assert setup.calls(link) == [[1, 2], [3, 4]], "no pass of the loop lies between"
    setup.hub.frame(link, ReplyFrame(replies=[Reply(call=3), Reply(call=1)]).SerializeToString())
    await wait_until(lambda: setup.answered == [3, 1])


async def test_only_what_was_sent_is_in_doubt(setup: Setup) -> None:
    link = await setup.up()
    setup.submit(1)
    setup.hub.full.add(link)
    setup.submit(2)
    assert setup.lost_for[2][0] is Reason.NOT_SENT
    setup.hub.down(link, "cut")
    await wait_until(lambda: 1 in setup.lost_for)
    assert setup.lost_for[1] == (Reason.LOST, "storage node node:1: cut")
    assert await setup.connecting(2) != link


async def test_a_refused_link_leaves_nothing_in_doubt(setup: Setup) -> None:
    setup.submit(1)
    setup.hub.refusal(await setup.connecting(), "Missing or invalid internal gRPC token")
    await wait_until(lambda: 1 in setup.lost_for)
    assert setup.lost_for[1] == (Reason.NOT_SENT, "storage node node:1: Missing or invalid internal gRPC token")
    assert setup.others == [], "it speaks links, so no other way is tried"


async def test_a_node_that_does_not_speak_links_is_tried_another_way(setup: Setup) -> None:
    setup.hub.down(await setup.connecting(), LINK_NOT_SPOKEN)
    await wait_until(lambda: setup.others == ["node:1"])


async def test_a_stopping_node_is_left_when_it_has_answered(setup: Setup) -> None:
    link = await setup.up()
    setup.submit(1)
    setup.hub.frame(link, ReplyFrame(leaving=True).SerializeToString())
    await wait_until(lambda: not setup.link.up)
    assert link not in setup.hub.closed
    setup.hub.frame(link, ReplyFrame(replies=[Reply(call=1)]).SerializeToString())
    await wait_until(lambda: link in setup.hub.closed)
    setup.hub.down(link, "done")
    await setup.up(2)
    assert setup.answered == [1] and setup.lost_for == {}


async def test_what_a_closed_link_still_has_does_not_reach_the_next(setup: Setup) -> None:
    link = await setup.up()
    setup.submit(1)
    setup.hub.frame(link, b"\xff\xff")  # no frame at all: the link is closed over it
    await wait_until(lambda: link in setup.hub.closed)
    setup.hub.down(link, setup.hub.closed[link])
    await wait_until(lambda: 1 in setup.lost_for)
    assert setup.lost_for[1][0] is Reason.LOST
    again = await setup.up(2)
    setup.hub.frame(link, ReplyFrame(leaving=True).SerializeToString())
    setup.submit(2)
    await wait_until(lambda: setup.calls(again) == [[2]])
    assert setup.link.up
