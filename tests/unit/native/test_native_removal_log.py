"""A group's removal and the records about it that were still waiting share no frame: the log opens again."""

from __future__ import annotations

import flotta_native

KEPT, GONE = 1 << 32 | 1, 1 << 32 | 2


def open_host(disk: flotta_native.SimDisk, applied: dict[int, int]) -> flotta_native.RaftHost:
    return flotta_native.RaftHost(1, "raft", applied=applied, mode="manual", disk=disk, seed=1, segment_bytes=4096)


def remove_after(padding_bytes: int) -> bool:
    """Compact and remove a group in one round, with so much in the log before; True if that began a segment."""
    disk = flotta_native.SimDisk(1)
    host = open_host(disk, {})
    for group, replica in ((1, KEPT), (2, GONE)):
        host.create_group(group, replica, [replica])
        host.drive()
        host.campaign(group)
        host.drive()
    host.propose_many([(2, number, b"x" * 300) for number in range(1, 4)])
    host.drive()
    host.propose_many([(1, 10, b"." * padding_bytes)])
    host.drive()
    host.poll()
    before = host.log_stats().rotations
    # Nothing of the old segments is needed any more, so they go, and with them the group's creation.
    host.compact(1, 3)
    host.compact(2, 3)
    host.remove_group(2)
    host.drive()
    began = host.log_stats().rotations > before
    again = open_host(disk, {1: 3})
    assert again.groups() == [1]
    assert again.tombstones() == {2: [GONE]}
    return began


def test_a_compaction_and_a_removal_in_one_round() -> None:
    began = [remove_after(padding_bytes) for padding_bytes in range(1, 3_200, 16)]
    assert True in began, "no removal's frame was the first of its segment"
    assert False in began
