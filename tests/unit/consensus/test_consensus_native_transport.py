"""The native transport's handshakes and links, without a network: who is let in, who is sent to, what goes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import wait_until
from fake_hub import FakeHub
from flotta_consensus.frame_link import PURPOSE
from flotta_consensus.grpc_transport import NOT_READY, STOPPING, WRONG_TOKEN
from flotta_consensus.identity import DataDirectory, Identity
from flotta_consensus.native_transport import NativeTransport
from flotta_consensus.peer_identity import stream_metadata, to_message
from flotta_consensus.peer_link import LinkOptions
from flotta_proto.flotta import raft_pb2
from flotta_runtime.links import Links, hello_of, metadata_of
from flotta_runtime.turns import Turns

FAST = LinkOptions(backoff_first_ms=1, backoff_longest_ms=2)
TWO = Identity("node-2", "store-2", "c", 2)


class Inbox:
    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.lost: list[int] = []

    def receive(self, frame: bytes) -> None:
        self.frames.append(frame)

    def unreachable(self, node_num: int) -> None:
        self.lost.append(node_num)


class Setup:
    def __init__(self, root: Path) -> None:
        self.hub = FakeHub()
        hub: Any = self.hub
        self.links = Links(hub, Turns())
        self.directory = DataDirectory.open(root / "n1", "node-1")
        self.directory.adopt("c", 1)
        self.inbox = Inbox()
        self.reports: list[str] = []
        self.addresses = {2: "b:2"}
        self.transport = NativeTransport(
            self.directory, self.addresses.get, self.links, token="t", options=FAST, report=self.reports.append
        )
        self.tasks = [asyncio.create_task(self.links.run()), asyncio.create_task(self.transport.run())]

    async def connecting(self, attempt: int = 1) -> int:
        await wait_until(lambda: len(self.hub.connects) >= attempt)
        return self.hub.connects[attempt - 1][0]

    def greeting(self, identity: Identity = TWO, known: str = "") -> bytes:
        return to_message(identity, known).SerializeToString()

    def hello(self, sender: Identity = TWO, to: int = 1, token: str = "t") -> bytes:
        return hello_of(stream_metadata(sender, to, token))


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    made = Setup(tmp_path)
    made.transport.attach(made.inbox, tmp_path)
    await asyncio.sleep(0)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    made.directory.close()
    made.hub.release()


# Links made here


async def test_what_waited_goes_before_the_host_is_bound(setup: Setup) -> None:
    setup.transport.send(2, b"one")
    link = await setup.connecting()
    _, address, purpose, hello = setup.hub.connects[0]
    assert (address, purpose) == ("b:2", PURPOSE)
    assert metadata_of(hello) == dict(stream_metadata(setup.directory.identity, 2, "t"))
    setup.transport.send(2, b"two")
    assert setup.hub.sends == []
    setup.hub.up(link, setup.greeting())
    await wait_until(lambda: bool(setup.hub.raft))
    assert setup.hub.sent(link) == [b"one", b"two"]
    assert setup.hub.raft == [("bind", (link, 2))]
    assert setup.directory.peers.store_of_node("node-2") == "store-2"
    setup.transport.send(2, b"given out while it was bound")
    await wait_until(lambda: len(setup.hub.sent(link)) == 3)
    assert setup.reports == [] and setup.inbox.lost == []


@pytest.mark.parametrize(
    ("greeting", "complaint"),
    [
        (to_message(Identity("node-2", "store-2", "other", 2)), "node-2 belongs to cluster 'other'"),
        (to_message(Identity("node-3", "store-3", "c", 3)), "node number 2 was expected, node-3 with number 3"),
        (to_message(TWO, "another-store"), "knows node-1 with store another-store"),
        (None, "nothing that can be read"),
    ],
)
async def test_whoever_else_answers_is_sent_nothing(
    setup: Setup, greeting: raft_pb2.Identity | None, complaint: str
) -> None:
    setup.transport.send(2, b"secret")
    link = await setup.connecting()
    setup.hub.up(link, greeting.SerializeToString() if greeting is not None else b"\xff\xff")
    await wait_until(lambda: link in setup.hub.closed)
    assert complaint in setup.hub.closed[link]
    await wait_until(lambda: bool(setup.reports))
    assert complaint in setup.reports[0]
    assert setup.hub.sends == [] and setup.hub.raft == []
    assert setup.inbox.lost == [2]


async def test_a_problem_is_reported_once_and_tried_again(setup: Setup) -> None:
    for attempt in range(1, 4):
        setup.transport.send(2, b"x")
        setup.hub.refusal(await setup.connecting(attempt), "another cluster")
        await wait_until(lambda attempt=attempt: len(setup.inbox.lost) == attempt)
    assert setup.reports == ["node number 2 at b:2: another cluster"]
    setup.transport.send(2, b"x")
    link = await setup.connecting(4)
    setup.hub.up(link, setup.greeting())
    await wait_until(lambda: bool(setup.hub.raft))
    setup.hub.down(link, "another cluster")
    await wait_until(lambda: len(setup.reports) == 2)


async def test_a_link_that_dies_is_made_again_when_there_is_something_to_send(setup: Setup) -> None:
    setup.transport.send(2, b"x")
    link = await setup.connecting()
    setup.hub.up(link, setup.greeting())
    await wait_until(lambda: bool(setup.hub.raft))
    setup.hub.down(link, "cut")
    await wait_until(lambda: setup.inbox.lost == [2])
    setup.transport.send(2, b"again")
    link = await setup.connecting(2)
    setup.hub.up(link, setup.greeting())
    await wait_until(lambda: setup.hub.sent(link) == [b"again"])


async def test_a_link_that_dies_while_its_peer_is_put_on_record_is_not_bound(setup: Setup) -> None:
    setup.transport.send(2, b"x")
    link = await setup.connecting()
    setup.hub.up(link, setup.greeting())
    setup.hub.down(link, "cut")
    await wait_until(lambda: setup.inbox.lost == [2])
    assert setup.hub.raft == [] and setup.hub.sends == []


# Links of peers


async def test_a_peer_is_let_in_and_its_first_frames_are_delivered(setup: Setup) -> None:
    setup.hub.hello(7, PURPOSE, setup.hello())
    await wait_until(lambda: 7 in setup.hub.accepted)
    assert setup.hub.raft == [("accept", (7, 2))]
    said = raft_pb2.Identity.FromString(setup.hub.accepted[7])
    assert (said.node_id, said.node_num, said.known_store_id) == ("node-1", 1, "store-2")
    setup.hub.frame(7, b"frame")
    await wait_until(lambda: setup.inbox.frames == [b"frame"])


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (hello_of(stream_metadata(TWO, 1, "guess")), WRONG_TOKEN),
        (hello_of(stream_metadata(TWO, 1, "")), WRONG_TOKEN),
        (b"\xff", "the greeting cannot be read"),
        (hello_of(stream_metadata(TWO, 3, "t")), "this is node-1, number 1; the message was meant for '3'"),
        (hello_of(stream_metadata(Identity("node-2", "s", "other", 2), 1, "t")), "node-2 belongs to cluster 'other'"),
    ],
)
async def test_who_is_not_let_in(setup: Setup, hello: bytes, reason: str) -> None:
    setup.hub.hello(7, PURPOSE, hello)
    await wait_until(lambda: 7 in setup.hub.refused)
    assert reason in setup.hub.refused[7]
    assert setup.hub.accepted == {} and setup.hub.raft == []


async def test_a_wiped_node_that_comes_back_is_not_let_in(setup: Setup) -> None:
    setup.hub.hello(7, PURPOSE, setup.hello())
    await wait_until(lambda: 7 in setup.hub.accepted)
    setup.hub.hello(8, PURPOSE, setup.hello(Identity("node-2", "new-store", "c", 2)))
    await wait_until(lambda: 8 in setup.hub.refused)
    assert "store" in setup.hub.refused[8]


async def test_peers_are_told_to_come_back_before_attach_and_after_the_end(setup: Setup, tmp_path: Path) -> None:
    setup.hub.hello(7, PURPOSE, setup.hello())
    await wait_until(lambda: 7 in setup.hub.accepted)
    setup.transport.end_streams()
    assert setup.hub.closed == {7: STOPPING}
    setup.hub.down(7, "done")
    setup.hub.hello(8, PURPOSE, setup.hello())
    await wait_until(lambda: setup.hub.refused == {8: NOT_READY})
    setup.transport.attach(setup.inbox, tmp_path)
    setup.hub.hello(9, PURPOSE, setup.hello())
    await wait_until(lambda: 9 in setup.hub.accepted)
    setup.transport.detach()
    assert setup.hub.closed == {7: STOPPING, 9: STOPPING}
    assert setup.hub.raft[-1] == ("detach", None)


async def test_a_link_that_goes_while_its_peer_is_put_on_record_is_forgotten(setup: Setup) -> None:
    setup.hub.hello(7, PURPOSE, setup.hello())
    setup.hub.down(7, "impatient")
    await wait_until(lambda: setup.directory.peers.store_of_node("node-2") == "store-2")
    setup.hub.hello(8, PURPOSE, setup.hello())
    await wait_until(lambda: 8 in setup.hub.accepted)
    assert setup.hub.raft == [("accept", (8, 2))]


async def test_the_clocks_of_peers_are_heard_on_our_own_monotonic_clock(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    now_ms = setup.transport._monotonic_ms()
    setup.hub.clocks = [(2, 5_000_000, now_ms)]
    # At once: the first stamp of a leader is held to the clocks of those who elected it.
    assert setup.transport.peer_clocks.walls_ms(now_ms + 70) == [5_000_070]
    setup.hub.clocks = [(2, 5_001_000, now_ms + 100)]
    await wait_until(lambda: setup.transport.peer_clocks.walls_ms(now_ms + 100) == [5_001_000])
    for task in setup.tasks:
        task.cancel()
    await asyncio.gather(*setup.tasks, return_exceptions=True)
    setup.directory.close()
    setup.hub.release()


async def test_a_link_that_comes_as_the_transport_ends_is_refused(setup: Setup) -> None:
    """The task group of `run` takes nothing more once its tasks have ended, a turn of the loop before `run` has."""
    ended = asyncio.TaskGroup()
    async with ended:
        pass
    setup.transport._tasks = ended
    setup.hub.hello(7, PURPOSE, setup.hello())
    await wait_until(lambda: bool(setup.hub.refused))
    assert setup.hub.refused == {7: STOPPING}
    assert not setup.tasks[0].done(), "the links of the process go on"
