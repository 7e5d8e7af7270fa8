"""Several manual hosts in one process, wired by hand: what the tests of the native half drive.

Frames are delivered in order until nothing moves; snapshots are built on demand as `state@<index>`.
"""

from dataclasses import dataclass, field

import flotta_native as native

GROUP = 9


def replica(node: int) -> int:
    return node << 32 | 1


@dataclass
class Node:
    host: native.RaftHost
    disk: native.SimDisk
    applies: list[tuple[int, int, int, int, int, object]] = field(default_factory=list)
    dropped: list[tuple[int, int, int, int]] = field(default_factory=list)
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    events: list[tuple[int, str, int, str]] = field(default_factory=list)
    snapshots: list[tuple[int, int, bytes]] = field(default_factory=list)
    applied: dict[int, int] = field(default_factory=dict)
    up: bool = True


class Cluster:
    def __init__(self, nodes: int, voters: int | None = None, *, apply_delay_ms: int = 0) -> None:
        self.apply_delay_ms = apply_delay_ms
        self.now_us = 0
        self.nodes: dict[int, Node] = {}
        self.cut: set[int] = set()
        for number in range(1, nodes + 1):
            disk = native.SimDisk(number)
            self.nodes[number] = Node(self._open(number, disk, {}), disk)
        birth = [replica(number) for number in range(1, (nodes if voters is None else voters) + 1)]
        for number, node in self.nodes.items():
            if replica(number) in birth:
                node.host.create_group(GROUP, replica(number), birth)
        self.settle()

    def _open(self, number: int, disk: native.SimDisk, applied: dict[int, int]) -> native.RaftHost:
        return native.RaftHost(
            number,
            "raft",
            applied=applied,
            mode="manual",
            disk=disk,
            seed=7,
            segment_bytes=64 << 10,
            apply_delay_ms=self.apply_delay_ms,
        )

    def host(self, number: int) -> native.RaftHost:
        return self.nodes[number].host

    def kill(self, number: int, *, power_cut: bool) -> dict[str, int]:
        node = self.nodes[number]
        node.up = False
        return node.disk.crash() if power_cut else {}

    def start(self, number: int) -> None:
        node = self.nodes[number]
        node.host = self._open(number, node.disk, node.applied)
        node.up = True
        self.settle()

    def settle(self) -> None:
        """Rounds and deliveries until nothing moves."""
        for _ in range(300):
            sent: list[tuple[int, bytes]] = []
            for number, node in self.nodes.items():
                if node.up:
                    node.host.drive(self.now_us)
                    sent += self._take(number, node)
            for to, frame in sent:
                if to not in self.cut and self.nodes[to].up:
                    self.nodes[to].host.step(frame)
            if not sent:
                return
        raise AssertionError("the cluster does not come to rest")

    def _take(self, number: int, node: Node) -> list[tuple[int, bytes]]:
        batch = node.host.poll()
        for item in batch.applies:
            node.applied[item[0]] = item[1]
        node.applies += batch.applies
        node.dropped += batch.dropped
        node.reads += batch.reads
        node.events += batch.events
        for group, minimum, _ in batch.snapshots_wanted:
            if (index := node.applied.get(group, 1)) >= minimum:
                node.host.snapshot_ready(group, index, b"state@%d" % index)
        frames = [(to, frame) for to, frame in batch.messages if number not in self.cut]
        for to, _, _, _, index, term, manifest, frame in batch.snapshot_messages:
            node.snapshots.append((index, term, manifest))
            if number not in self.cut:
                frames.append((to, frame))
        return frames

    def tick(self, ticks: int) -> None:
        for _ in range(ticks):
            for node in self.nodes.values():
                if node.up:
                    node.host.tick()
            self.settle()

    def status(self, number: int) -> native.GroupStatus:
        return self.host(number).status([GROUP])[0]

    def leader(self) -> int | None:
        """The leader of the highest term among those that are up and reachable."""
        leading = [
            (status.term, number)
            for number, node in self.nodes.items()
            if node.up and number not in self.cut
            for status in node.host.status([GROUP])
            if status.role == native.ROLE_LEADER
        ]
        return max(leading)[1] if leading else None

    def elect(self) -> int:
        for _ in range(200):
            if (leader := self.leader()) is not None:
                return leader
            self.tick(1)
        raise AssertionError("nobody was elected")

    def propose(self, number: int, *payloads: tuple[int, bytes]) -> None:
        self.host(number).propose_many([(GROUP, request, payload) for request, payload in payloads])
        self.settle()

    def values(self, number: int) -> list[bytes]:
        return [
            payload
            for _, _, _, _, kind, payload in self.nodes[number].applies
            if kind == native.APPLY_NORMAL and isinstance(payload, bytes)
        ]
