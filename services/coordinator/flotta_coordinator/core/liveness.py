"""The failure detector: heartbeats in, ALIVE → SUSPECT → DEAD out. Time is injected; nothing here is logged.

Only the leader has one, made anew when its leadership begins: every node is then granted a full timeout, because
silence towards an earlier leader says nothing. The same holds after the coordinator itself was paused: heartbeats
may lie unread, so a late check grants everybody a full timeout instead of judging.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flotta_coordinator.core.commands import NodeObservation
from flotta_coordinator.core.state import Node, NodeStatus


@dataclass(frozen=True, slots=True)
class Timeouts:
    suspect_after_ms: int = 3_000
    dead_after_ms: int = 10_000
    pause_ms: int = 1_500  # a check that comes this late was ours to blame

    def __post_init__(self) -> None:
        if not 0 < self.pause_ms <= self.suspect_after_ms < self.dead_after_ms:
            raise ValueError(
                f"pause_ms {self.pause_ms}, suspect_after_ms {self.suspect_after_ms} and dead_after_ms "
                f"{self.dead_after_ms} must be positive and in this order, the last one greater"
            )


class Liveness:
    def __init__(self, timeouts: Timeouts, now_ms: int) -> None:
        self._timeouts = timeouts
        self._checked_ms = now_ms
        self._began_ms = now_ms
        self._heard_ms: dict[str, int] = {}
        self._beating: set[str] = set()  # nodes whose own heartbeat came since `_began_ms`

    def heard(self, node_id: str, now_ms: int) -> None:
        """A heartbeat came."""
        self._heard_ms[node_id] = now_ms
        self._beating.add(node_id)

    def grant(self, node_id: str, now_ms: int) -> None:
        """An operator vouched for the node: it has a full timeout from now."""
        self._heard_ms[node_id] = now_ms

    def round_is_over(self, nodes: Iterable[Node], now_ms: int) -> bool:
        """Has everybody had the time to be heard, and was heard who is taken for ALIVE? Asked anew after a pause."""
        if now_ms - self._began_ms < self._timeouts.suspect_after_ms:
            return False
        alive = (node for node in nodes if node.status is NodeStatus.ALIVE and node.placeable)
        return all(node.node_id in self._beating for node in alive)

    def silent_ms(self, node_id: str, now_ms: int) -> int | None:
        """How long the node has been silent; None before anything is known of it."""
        heard = self._heard_ms.get(node_id)
        return None if heard is None else now_ms - heard

    def verdicts(self, nodes: Iterable[Node], now_ms: int) -> tuple[NodeObservation, ...]:
        """Status changes that are due, in node order. To be called about every half second."""
        paused = now_ms - self._checked_ms >= self._timeouts.pause_ms
        self._checked_ms = now_ms
        if paused:
            self._began_ms = now_ms
            self._beating.clear()
        due: list[NodeObservation] = []
        for node in sorted(nodes, key=lambda item: item.node_id):
            if paused or node.node_id not in self._heard_ms:
                self._heard_ms[node.node_id] = now_ms
            verdict = self._verdict(node, now_ms - self._heard_ms[node.node_id])
            if verdict is not None:
                due.append(verdict)
        return tuple(due)

    def _verdict(self, node: Node, silent_ms: int) -> NodeObservation | None:
        if node.status_pinned:
            return None
        limits = (
            (NodeStatus.DEAD, self._timeouts.dead_after_ms),
            (NodeStatus.SUSPECT, self._timeouts.suspect_after_ms),
        )
        for status, limit_ms in limits:
            if silent_ms >= limit_ms:
                return NodeObservation(node.node_id, status, silent_ms, limit_ms) if status > node.status else None
        return None


def is_news(node: Node) -> bool:
    """Would a heartbeat of this node change its record?"""
    revived = node.status is not NodeStatus.ALIVE and not node.status_pinned
    return revived or (not node.placeable and node.node_num != 0)
