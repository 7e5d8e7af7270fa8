"""Answers between the handler and a connection: frames, bounds, what a stopping node says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio
from flotta_proto.flotta import storage_pb2 as pb
from flotta_storage.batch_handler import OVERHEAD_BYTES
from flotta_storage.budget import Budget
from flotta_storage.outbox import FRAME_BYTES, UNSENT_BYTES_MAX, Connections, Outbox
from flotta_storage.shards_service import ShardsService


def new_outbox(wakes: list[None] | None = None) -> tuple[Budget, Outbox]:
    budget = Budget(10, 1 << 30)
    return budget, Outbox(budget, lambda: None if wakes is None else wakes.append(None))


def calls(frame: pb.ReplyFrame) -> list[int]:
    return [reply.call for reply in frame.replies]


def test_frames_are_bounded_and_lose_nothing() -> None:
    budget, outbox = new_outbox()
    outbox.expected = 5
    sizes = [0, FRAME_BYTES * 2, 10, FRAME_BYTES, 1]
    outbox.put([pb.Reply(call=number, value=b"v" * size) for number, size in enumerate(sizes)])
    assert budget.bytes == sum(sizes) + 5 * OVERHEAD_BYTES
    seen = []
    while (taken := outbox.take()) is not None:
        frame, size = taken
        assert size <= FRAME_BYTES or len(frame.replies) == 1
        seen += calls(frame)
        assert not outbox.idle
        outbox.sent(size)
    assert seen == [0, 1, 2, 3, 4]
    assert outbox.idle and budget.bytes == 0


def test_a_frame_that_was_not_sent_goes_again_before_the_rest() -> None:
    budget, outbox = new_outbox()
    outbox.expected = 4
    outbox.put([pb.Reply(call=number, value=b"v" * (FRAME_BYTES // 2)) for number in range(3)])
    first = outbox.take()
    assert first is not None and calls(first[0]) == [0]
    second = outbox.take()
    assert second is not None and calls(second[0]) == [1]
    outbox.give_back(second[0])
    outbox.put([pb.Reply(call=3)])
    again = [outbox.take(), outbox.take()]
    assert [calls(each[0]) for each in again if each is not None] == [[1], [2, 3]]
    assert outbox.take() is None
    outbox.leave()
    last = outbox.take()
    assert last is not None and last[0].leaving
    outbox.give_back(last[0])
    last = outbox.take()
    assert last is not None and last[0].leaving and outbox.take() is None
    assert budget.bytes == outbox.unsent_bytes


def test_what_comes_for_a_connection_that_is_gone_holds_nothing() -> None:
    wakes: list[None] = []
    budget, outbox = new_outbox(wakes)
    outbox.expected = 2
    outbox.put([pb.Reply(value=b"v" * 1_000)])
    assert budget.bytes and len(wakes) == 1
    outbox.close()
    assert budget.bytes == 0
    outbox.put([pb.Reply(value=b"late")])
    outbox.leave()
    assert budget.bytes == 0 and len(wakes) == 1


async def test_leaving_waits_for_every_gateway_and_no_longer_than_it_may() -> None:
    connections = Connections()
    await connections.leave(60_000)  # nobody is there
    connections = Connections()
    outboxes = [new_outbox()[1] for _ in range(2)]
    for outbox in outboxes:
        connections.add(outbox)
    leaving = asyncio.create_task(connections.leave(60_000))
    await asyncio.sleep(0)
    for outbox in outboxes:
        taken = outbox.take()
        assert taken is not None and taken[0].leaving
    connections.remove(outboxes[0])
    await asyncio.sleep(0)
    assert not leaving.done() and connections.leaving
    connections.remove(outboxes[1])
    await leaving
    connections.add(new_outbox()[1])
    await connections.leave(1)  # this one never goes
    assert len(connections) == 1


class Context:
    """A gRPC stream whose other end is the test."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[object] = asyncio.Queue()
        self.written: list[pb.ReplyFrame] = []
        self.writable = asyncio.Event()
        self.writable.set()
        self.reads = 0

    async def send_initial_metadata(self, metadata: object) -> None:
        pass

    async def read(self) -> object:
        self.reads += 1
        return await self.incoming.get()

    async def write(self, frame: pb.ReplyFrame) -> None:
        await self.writable.wait()
        self.written.append(frame)


async def test_a_gateway_that_does_not_read_is_not_read_and_all_is_answered_after_a_half_close() -> None:
    big = b"v" * (UNSENT_BYTES_MAX // 2)

    class Handler:
        def handle(self, operations: list[pb.Operation], reply: Callable[[list[pb.Reply]], None]) -> None:
            reply([pb.Reply(call=one.call, value=big) for one in operations])

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0)

    budget, connections, context = Budget(10, 1 << 30), Connections(), Context()
    handler: object = Handler()
    service = ShardsService(handler, None, budget, connections)  # type: ignore[arg-type]
    context.writable.clear()
    serving = asyncio.create_task(service.Execute(None, context))  # type: ignore[arg-type]
    for call in range(4):
        context.incoming.put_nowait(pb.OperationFrame(operations=[pb.Operation(call=call)]))
    await until(lambda: budget.bytes > UNSENT_BYTES_MAX)
    for _ in range(20):
        await asyncio.sleep(0)
    assert context.reads == 2, "no further frame is read"
    context.incoming.put_nowait(grpc.aio.EOF)
    context.writable.set()
    async with asyncio.timeout(60):
        await serving
    assert [call for frame in context.written for call in calls(frame)] == [0, 1, 2, 3]
    assert budget.bytes == 0 and len(connections) == 0
