"""What becomes of operations handed to a link, whichever way its sessions go and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from fake_cluster import wait_until
from flotta_gateway.storage_link import (
    Attempt,
    Carrier,
    LinkOptions,
    Lost,
    NotSpoken,
    Reason,
    SessionEnded,
    StorageLink,
)
from flotta_proto.flotta.storage_pb2 import Operation, OperationFrame, Reply, ReplyFrame

OPTIONS = LinkOptions(operations_max=4, bytes_max=1_000, frame_bytes=100, reconnect_ms=1, reconnect_ms_max=2)


class Log:
    """Everything a link reports, in the order it was told."""

    def __init__(self) -> None:
        self.answered: dict[str, Reply] = {}
        self.lost_for: dict[str, tuple[Reason, str]] = {}

    def replied(self, address: str, replies: Sequence[tuple[Attempt[str], Reply]]) -> None:
        for attempt, reply in replies:
            assert attempt.owner not in self.answered and attempt.owner not in self.lost_for
            self.answered[attempt.owner] = reply

    def lost(self, address: str, lost: Lost[str]) -> None:
        for attempt in lost.attempts:
            assert attempt.owner not in self.answered and attempt.owner not in self.lost_for
            self.lost_for[attempt.owner] = (lost.reason, lost.message)


class ScriptedSession:
    """A connection whose other end is the test."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.carrying = self.finished = self.closed = False
        self.wakes = 0

    async def connect(self) -> None:
        await self.accepted

    async def carry(self) -> None:
        self.carrying = True
        await self.ended

    def wake(self) -> None:
        self.wakes += 1

    def finish(self) -> None:
        self.finished = True

    async def close(self) -> None:
        self.closed = True

    def take(self) -> list[int]:
        """The next frame, as the node would see it."""
        return [operation.call for operation in OperationFrame.FromString(self.carrier.next_frame()).operations]

    def answer(self, *calls: int, leaving: bool = False) -> None:
        frame = ReplyFrame(replies=[Reply(call=call) for call in calls], leaving=leaving)
        self.carrier.received(frame.SerializeToString())


class Setup:
    def __init__(self, ways: int = 1) -> None:
        self.log = Log()
        self.sessions: list[list[ScriptedSession]] = [[] for _ in range(ways)]
        self.link = StorageLink("node:1", self.log, OPTIONS, [self._way(one) for one in self.sessions], lambda: 0.0)
        self._numbers = 0

    def _way(self, made: list[ScriptedSession]):  # type: ignore[no-untyped-def]
        def make(address: str, carrier: Carrier) -> ScriptedSession:
            made.append(ScriptedSession(carrier))
            return made[-1]

        return make

    async def session(self, number: int = 0, way: int = 0) -> ScriptedSession:
        await wait_until(lambda: len(self.sessions[way]) > number)
        return self.sessions[way][number]

    async def up(self, number: int = 0, way: int = 0) -> ScriptedSession:
        session = await self.session(number, way)
        session.accepted.set_result(None)
        await wait_until(lambda: session.carrying)
        return session

    def attempt(self, owner: str, size: int = 10) -> Attempt[str]:
        self._numbers += 1
        operation = Operation(call=self._numbers)
        operation.value = b"x" * max(0, size - operation.ByteSize() - 2)
        return Attempt(self._numbers, operation.SerializeToString(), owner)

    def submit(self, *owners: str, size: int = 10) -> Lost[str] | None:
        return self.link.submit([self.attempt(owner, size) for owner in owners])


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    running = asyncio.create_task(made.link.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert all(session.closed for way in made.sessions for session in way)


async def test_what_waits_for_the_connection_goes_with_it(setup: Setup) -> None:
    assert setup.submit("a", "b") is None
    session = await setup.up()
    assert session.take() == [1, 2]
    assert session.take() == []
    session.answer(2, 1, 77)
    assert sorted(setup.log.answered) == ["a", "b"]
    assert setup.link.operations_open == 0
    assert setup.submit("c") is None
    assert session.wakes == 1


async def test_a_refused_connection_leaves_nothing_in_doubt(setup: Setup) -> None:
    setup.submit("a")
    (await setup.session()).accepted.set_exception(SessionEnded("wrong token"))
    await wait_until(lambda: bool(setup.log.lost_for))
    assert setup.log.lost_for == {"a": (Reason.NOT_SENT, "storage node node:1: wrong token")}
    refused = setup.submit("b")
    assert refused is not None and refused.reason is Reason.NOT_SENT and "wrong token" in refused.message
    assert (await setup.session(1)).carrier is setup.link, "it tries again"


async def test_only_what_was_sent_is_in_doubt_when_a_session_ends(setup: Setup) -> None:
    session = await setup.up()
    setup.submit("sent", size=60)
    setup.submit("unsent", size=60)
    assert session.take() == [1]
    session.ended.set_exception(SessionEnded("cut"))
    await wait_until(lambda: len(setup.log.lost_for) == 2)
    assert {owner: reason for owner, (reason, _) in setup.log.lost_for.items()} == {
        "sent": Reason.LOST,
        "unsent": Reason.NOT_SENT,
    }
    session.answer(1)
    assert setup.log.answered == {}
    again = await setup.up(1)
    assert setup.submit("later") is None
    assert again.take() == [3]


async def test_a_frame_that_went_nowhere_is_not_in_doubt(setup: Setup) -> None:
    session = await setup.up()
    setup.submit("first", size=60)
    setup.submit("second", size=60)
    session.take()
    session.take()
    session.carrier.not_taken()
    assert list(setup.log.lost_for) == ["second"]
    assert setup.log.lost_for["second"][0] is Reason.NOT_SENT
    session.answer(1)
    assert list(setup.log.answered) == ["first"]
    assert setup.link.operations_open == 0


async def test_a_node_that_leaves_gets_nothing_more_and_is_waited_for(setup: Setup) -> None:
    session = await setup.up()
    setup.submit("one", "two")
    assert session.take() == [1, 2]
    setup.submit("queued")
    session.answer(1, leaving=True)
    assert list(setup.log.answered) == ["one"]
    assert setup.log.lost_for["queued"][0] is Reason.NOT_SENT
    refused = setup.submit("new")
    assert refused is not None and refused.reason is Reason.NOT_SENT and "stopping" in refused.message
    assert not session.finished, "one is still being answered"
    session.answer(2)
    assert session.finished
    session.ended.set_exception(SessionEnded("bye"))
    await setup.up(1)
    assert list(setup.log.lost_for) == ["queued"]
    assert setup.submit("after") is None


async def test_a_leaving_node_is_not_waited_for_when_nobody_waits(setup: Setup) -> None:
    session = await setup.up()
    attempt = setup.attempt("one")
    setup.link.submit([attempt])
    session.take()
    session.answer(leaving=True)
    assert not session.finished
    assert setup.link.forget(attempt)
    assert session.finished


async def test_bounds_and_what_nobody_waits_for(setup: Setup) -> None:
    refused = setup.submit("a", "b", "c", "d", "e")
    assert refused is not None and refused.reason is Reason.OVERLOAD
    assert [attempt.owner for attempt in refused.attempts] == ["e"]
    session = await setup.up()
    session.take()
    session.answer(1, 2, 3, 4)
    assert setup.submit("huge", size=5_000) is None, "one always fits into an empty link"
    refused = setup.submit("small")
    assert refused is not None and refused.reason is Reason.OVERLOAD
    session.take()
    session.answer(6)
    unsent, sent = setup.attempt("unsent"), setup.attempt("sent")
    setup.link.submit([unsent])
    assert setup.link.forget(unsent) is False
    assert setup.link.forget(unsent) is False
    setup.link.submit([sent])
    assert session.take() == [sent.number]
    assert setup.link.forget(sent) is True
    assert setup.link.operations_open == 0
    assert setup.submit("again", size=990) is None, "no bytes were counted twice"


async def test_another_way_is_taken_when_the_node_does_not_speak_the_first() -> None:
    setup = Setup(ways=2)
    running = asyncio.create_task(setup.link.run())
    setup.submit("a")
    (await setup.session()).accepted.set_exception(NotSpoken("no links here"))
    session = await setup.up(0, way=1)
    assert session.take() == [1]
    session.ended.set_exception(SessionEnded("restarts"))
    await setup.up(1, way=0)
    assert len(setup.sessions[1]) == 1, "each connection begins with the first way"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    refused = setup.submit("late")
    assert refused is not None and "closed this connection" in refused.message
