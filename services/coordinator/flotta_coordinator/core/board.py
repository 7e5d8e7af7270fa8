"""The planner's working board: the view, with every decision of this round already counted in.

Counts are of what will be once everything in flight has come true, so a node that replicas are on their way to is not
taken for an empty one. Invariants: a shard gets at most one decision a round; the limits of `Policy` hold over what is
in flight and what is decided together.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from flotta_coordinator.core.commands import Command, HandOver, MoveShard
from flotta_coordinator.core.plan_view import NodeView, Policy, ShardView, View
from flotta_coordinator.core.state import Purpose


class Why(enum.Enum):
    """Why there is no node to choose."""

    NONE = "no other node can take one"
    UNSETTLED = "the nodes that could take one have not been ALIVE for long enough, or failed to a short while ago"
    TURN = "as many moves as allowed are in flight already"


@dataclass(frozen=True, slots=True)
class Chosen:
    nodes: tuple[str, ...]  # fewer than asked for when `why` is set
    why: Why | None = None


class Board:
    def __init__(self, view: View, policy: Policy) -> None:
        self.view = view
        self.policy = policy
        self.nodes = view.nodes
        self.takers = sorted(node.node_id for node in view.nodes.values() if node.takes)
        self.settled = frozenset(node_id for node_id in self.takers if view.nodes[node_id].settled(policy))
        self.shards = {shard.shard_id: shard for shard in view.shards}
        self.held: Counter[str] = Counter()  # replicas
        self.leads: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()  # moves in flight that the node takes part in
        self.moving = 0
        self.handing = 0
        self.waiting = False  # something that must be done waits for its turn
        self.actions: list[Command] = []
        for shard in view.shards:
            self._count(shard, 1)

    def _count(self, shard: ShardView, sign: int) -> None:
        for node_id in shard.placed:
            self.held[node_id] += sign
        if shard.led_by:
            self.leads[shard.led_by] += sign
        if shard.targets:
            self.moving += sign
            for node_id in set(shard.targets) ^ set(shard.members):
                self.busy[node_id] += sign
        if shard.active and shard.target_leader:
            self.handing += sign

    def _becomes(self, shard: ShardView) -> None:
        self._count(self.shards[shard.shard_id], -1)
        self.shards[shard.shard_id] = shard
        self._count(shard, 1)

    # --- decisions ------------------------------------------------------------------------------------------------

    def move(self, shard: ShardView, nodes: Sequence[str], purpose: Purpose, reason: str) -> None:
        self.actions.append(MoveShard(shard.shard_id, shard.epoch, tuple(nodes), purpose, reason))
        target_leader = shard.target_leader if shard.target_leader in nodes else ""
        self._becomes(replace(shard, targets=tuple(nodes), purpose=purpose, target_leader=target_leader))

    def hand_over(self, shard: ShardView, node_id: str, reason: str) -> None:
        self.actions.append(HandOver(shard.shard_id, shard.epoch, node_id, reason))
        self._becomes(replace(shard, target_leader=node_id))

    def undecided(self, shards: Iterable[ShardView]) -> Iterable[ShardView]:
        """Those that are at rest and that nothing was decided about this round, as they are now."""
        return (now for shard in shards if (now := self.shards[shard.shard_id]) is shard and now.at_rest)

    # --- limits ---------------------------------------------------------------------------------------------------

    def may_move(self) -> bool:
        return self.moving < self.policy.moves_max

    def may_hand_over(self) -> bool:
        return self.handing < self.policy.hand_overs_max

    def free(self, node_id: str) -> bool:
        """May this node take part in one more move?"""
        return self.busy[node_id] < self.policy.moves_per_node_max

    # --- choosing -------------------------------------------------------------------------------------------------

    def choose(self, shard: ShardView, staying: Sequence[str], number: int) -> Chosen:
        """Nodes for new replicas beside those that stay: spread over zones first, then the emptiest."""
        chosen: list[str] = []
        while len(chosen) < number:
            together = (*staying, *chosen)
            options = [found for found in self.takers if found not in together and found not in shard.members]
            usable = [found for found in options if found in self.settled and found not in shard.avoid]
            if not usable:
                return Chosen(tuple(chosen), Why.UNSETTLED if options else Why.NONE)
            apart = {found: self.collisions((*together, found)) for found in usable}
            best = min(apart.values())
            free = [found for found in usable if apart[found] == best and self.free(found)]
            if not free:
                return Chosen(tuple(chosen), Why.TURN)
            chosen.append(min(free, key=self.emptiness))
        return Chosen(tuple(chosen))

    def emptiness(self, node_id: str) -> tuple[int, str]:
        return self.held[node_id], node_id

    def zone(self, node_id: str) -> str:
        node = self.nodes.get(node_id)
        return node.zone if node is not None else ""

    def collisions(self, node_ids: Iterable[str]) -> int:
        """How many pairs of them share a zone: what is least is spread best."""
        sizes = Counter(self.zone(node_id) for node_id in node_ids)
        return sum(size * (size - 1) // 2 for size in sizes.values())

    def where(self, node_id: str) -> str:
        """The node, with its zone when there is more than one."""
        zones = {node.zone for node in self.nodes.values()}
        return f"{node_id} (zone {self.zone(node_id) or 'unnamed'})" if len(zones) > 1 else node_id

    def holders(self, fits: Callable[[NodeView], bool]) -> list[str]:
        """Nodes that hold replicas, or are to get some, and fit."""
        return sorted(
            node_id
            for node_id, held in self.held.items()
            if held and (node := self.nodes.get(node_id)) is not None and fits(node)
        )
