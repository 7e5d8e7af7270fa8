"""Raft hosts joined by links: frames never pass Python once a link is bound, and every loss is told."""

import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import flotta_native as native
import pytest
from native_cluster import GROUP, replica
from native_links import PATIENCE_MS, PATIENCE_S, End, HalfOpen, Member, Members, Pair


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Members]:
    members = Members(tmp_path)
    yield members
    members.close()


def propose(leader: Member, first: int, count: int) -> list[bytes]:
    payloads = [b"%d" % number for number in range(first, first + count)]
    leader.host.propose_many([(GROUP, number, b"%d" % number) for number in range(first, first + count)])
    return payloads


def test_three_hosts_replicate_over_links_without_python_in_between(trio: Members) -> None:
    leader = trio.settle()
    polled = {number: member.polled_frames for number, member in trio.up.items()}
    sent = propose(leader, 1, 500)
    trio.until(lambda: all(member.applied == sent for member in trio.up.values()))
    assert leader.answered == list(range(1, 501))
    # Between two followers nothing needs to be said; from and to the leader nothing passed Python.
    assert {number: member.polled_frames for number, member in trio.up.items()} == polled
    stats = leader.hub.stats()
    assert stats.raft_frames_in > 0
    assert stats.raft_frames_out > 0
    assert stats.raft_frames_lost == 0
    for member in trio.up.values():
        assert not [event for event in member.events if event[1] != "created"]


def test_heartbeats_alone_wake_nobody(trio: Members) -> None:
    leader = trio.settle()
    deadline = time.monotonic() + PATIENCE_S
    # An election in between (the machine may be busy) wakes everybody, and is no heartbeat.
    while time.monotonic() < deadline:
        wakes = [member.host.log_stats().wakes for member in trio.up.values()]
        received = leader.hub.stats().raft_frames_in
        trio.until(lambda received=received: leader.hub.stats().raft_frames_in > received + 20)  # type: ignore[misc]
        if wakes == [member.host.log_stats().wakes for member in trio.up.values()]:
            return
    raise AssertionError("somebody is woken all the time")


def test_a_member_that_was_gone_is_connected_again_and_catches_up(trio: Members) -> None:
    leader = trio.settle()
    gone = next(number for number in trio.up if number != leader.number)
    sent = propose(leader, 1, 50)
    trio.until(lambda: all(member.applied == sent for member in trio.up.values()))
    trio.stop(gone)
    trio.until(lambda: gone not in leader.bound)
    assert any("the peer closed it: the Raft host ended: the host is stopped" in text for text in leader.downs)
    sent += propose(leader, 51, 50)
    trio.until(lambda: all(member.applied == sent for member in trio.up.values()))
    back = trio.start(gone, [])
    trio.until(lambda: back.applied == sent)
    assert trio.leader().hub.stats().raft_frames_in > 0


def test_a_lost_leader_is_replaced_and_no_answered_entry_is_lost(trio: Members) -> None:
    leader = trio.settle()
    sent = propose(leader, 1, 100)
    trio.until(lambda: len(leader.answered) == 100)
    trio.stop(leader.number)
    second = trio.leader()
    sent += propose(second, 101, 10)
    trio.until(lambda: all(member.applied == sent for member in trio.up.values()))


def test_nothing_is_forgotten_where_applies_wait_for_company(tmp_path: Path) -> None:
    trio = Members(tmp_path, apply_delay_ms=50)
    leader = trio.settle()
    followers = [member for member in trio.up.values() if member is not leader]
    sent: list[bytes] = []
    for number in range(1, 11):
        sent += propose(leader, number, 1)
        for follower in followers:
            follower.host.read_index_many([(GROUP, 100 + number)])
        trio.until(lambda number=number: number in leader.answered)  # type: ignore[misc]
    trio.until(lambda: all(member.applied == sent for member in trio.up.values()))
    trio.until(lambda: all({read for _, read, _ in member.reads} == set(range(101, 111)) for member in followers))
    trio.close()


def test_clocks_are_told_with_frames(trio: Members) -> None:
    leader = trio.settle()
    others = {number for number in trio.up if number != leader.number}
    trio.until(lambda: {node for node, _, _ in leader.hub.peer_clocks()} == others)
    for _, wall_ms, heard_ms in leader.hub.peer_clocks():
        assert abs(wall_ms - time.time_ns() // 1_000_000) < PATIENCE_MS
        assert abs(heard_ms - time.monotonic_ns() // 1_000_000) < PATIENCE_MS


def lone_host(root: Path, number: int = 1) -> native.RaftHost:
    """A leader of three whose peers are whatever the test makes them; it knows nobody yet."""
    host = native.RaftHost(number, str(root / f"lone-{number}"), applied={}, tick_ms=10)
    host.create_group(GROUP, replica(number), [replica(1), replica(2), replica(3)])
    return host


def test_frames_nobody_polled_go_first_and_then_all_others(tmp_path: Path) -> None:
    host, sink = lone_host(tmp_path), lone_host(tmp_path, 2)
    pair = Pair()
    pair.client.hub.attach_raft(host)
    pair.server.hub.attach_raft(sink)
    link = pair.client.hub.connect(pair.address, "raft", b"", timeout_ms=PATIENCE_MS)
    pair.server.hub.accept_raft(pair.server.of(native.LINK_HELLO)[1], b"", 1)
    pair.client.of(native.LINK_UP, link)
    sink.start()
    host.start()
    host.status()
    host.poll()
    host.campaign(GROUP)
    assert select.select([host.notify_fd()], [], [], PATIENCE_S)[0], "there are messages to unbound nodes"
    pair.client.hub.bind_raft(link, 2)
    messages = host.poll().messages
    while {node for node, _ in messages} != {3}:
        assert 2 not in {node for node, _ in messages}
        assert select.select([host.notify_fd()], [], [], PATIENCE_S)[0]
        messages += host.poll().messages
    deadline = time.monotonic() + PATIENCE_S
    while [node for node, _, _ in pair.server.hub.peer_clocks()] != [1]:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    host.stop()
    assert "the Raft host ended" in pair.client.down(link)
    sink.stop()


def test_a_failing_host_takes_its_links_along(tmp_path: Path) -> None:
    disk = native.SimDisk(1)
    host = native.RaftHost(1, "raft", applied={}, disk=disk, tick_ms=10)
    host.create_group(GROUP, replica(1), [replica(1)])
    host.start()
    pair = Pair()
    pair.client.hub.attach_raft(host)
    pair.client.hub.bind_raft(pair.link, 2)
    incoming = End()
    link = incoming.hub.connect(
        f"127.0.0.1:{pair.client.hub.listen('127.0.0.1:0')}", "raft", b"", timeout_ms=PATIENCE_MS
    )
    served = pair.client.of(native.LINK_HELLO)[1]
    pair.client.hub.accept_raft(served, b"", 3)
    incoming.of(native.LINK_UP, link)
    disk.fail_sync_after(0)
    host.campaign(GROUP)
    reason = "the Raft host ended: the log cannot be written"
    assert pair.client.down(pair.link).startswith(reason)
    assert pair.client.down(served).startswith(reason)
    assert incoming.down(link).startswith(f"the peer closed it: {reason}")
    assert pair.server.down(pair.served).startswith(f"the peer closed it: {reason}")
    with pytest.raises(RuntimeError, match="no Raft host"):
        pair.client.hub.bind_raft(pair.client.hub.connect(pair.address, "raft", b"", timeout_ms=PATIENCE_MS), 2)
    host.stop()


def test_a_peer_that_takes_nothing_loses_the_oldest_and_catches_up_later(tmp_path: Path) -> None:
    trio = Members(tmp_path, unsent_bytes_max=64 << 10)
    leader = trio.settle()
    stuck = next(member for member in trio.up.values() if member is not leader)
    end = End(leader.hub)
    sent: list[bytes] = []
    peer = HalfOpen(end)
    with peer.socket:
        leader.hub.bind_raft(peer.link, stuck.number)
        for event in end.events:
            leader.link_event(*event)
        while leader.hub.stats().raft_frames_lost == 0:
            sent.append(bytes([len(sent)]) * (1 << 20))
            leader.host.propose_many([(GROUP, len(sent), sent[-1])])
            trio.until(lambda: len(leader.answered) == len(sent))
        assert leader.hub.unsent_bytes(peer.link) < 4 << 20
    trio.until(lambda: stuck.applied == sent)
    assert len(leader.downs) == 2
    trio.close()


def test_a_frame_of_somebody_else_ends_the_link(tmp_path: Path) -> None:
    host = lone_host(tmp_path)
    pair = Pair()
    pair.server.hub.attach_raft(host)
    with socket.create_connection(("127.0.0.1", int(pair.address.split(":")[1]))) as peer:
        peer.sendall(b"FLOTTA/1\n" + struct.pack("<IB", 1, 1) + b"\0")
        served = pair.server.of(native.LINK_HELLO)[1]
        pair.server.hub.accept_raft(served, b"", 2)
        frame = struct.pack("<QIIII", 0, 0x3152_4C46, 3, 1, 0)
        peer.sendall(struct.pack("<IB", len(frame), 5) + frame)
        assert "a Raft frame that is not from node 2" in pair.server.down(served)
    host.stop()


def test_hosts_driven_by_hand_and_second_hosts_are_refused(tmp_path: Path) -> None:
    hub = native.LinkHub()
    manual = native.RaftHost(1, "raft", applied={}, mode="manual", disk=native.SimDisk(1))
    with pytest.raises(RuntimeError, match="manual"):
        hub.attach_raft(manual)
    host, other = lone_host(tmp_path), lone_host(tmp_path, 2)
    hub.attach_raft(host)
    hub.attach_raft(host)
    with pytest.raises(RuntimeError, match="another host"):
        hub.attach_raft(other)
    hub.detach_raft()
    hub.attach_raft(other)
    del other
    hub.attach_raft(host)
    hub.detach_raft()
    with pytest.raises(RuntimeError, match="no Raft host"):
        hub.accept_raft(Pair().link, b"", 1)
