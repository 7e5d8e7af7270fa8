"""What must be done: replace what is lost, reach the replication factor, empty nodes that are drained.

The most endangered shard comes first. A shard without a quorum of ALIVE replicas gets no decision: nothing can be
committed there, a replacement of its members neither. No step leaves a shard with less than such a quorum.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from flotta_coordinator.core.board import Board, Chosen, Why
from flotta_coordinator.core.plan_view import ShardView
from flotta_coordinator.core.state import Purpose
from flotta_coordinator.core.wording import count, seconds

_RANKS = {Purpose.DEAD: 0, Purpose.MISSING: 1, Purpose.DRAIN: 2, Purpose.SURPLUS: 3}


@dataclass(frozen=True, slots=True)
class Need:
    """What a shard needs most: these members gone, and so many new ones."""

    purpose: Purpose
    leaving: tuple[str, ...]
    coming: int = 0


class Repairs:
    """`run` decides as far as limits allow; `unmet` then says what no node could be found for."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.unmet: dict[Purpose, list[ShardView]] = defaultdict(list)

    def run(self) -> None:
        board = self._board
        self._empty_leaderships()
        needs = [(need, shard) for shard in board.undecided(board.view.shards) if (need := need_of(board, shard))]
        needs.sort(key=lambda found: (_RANKS[found[0].purpose], board.view.margin(found[1].members)))
        for need, shard in needs:
            self._meet(shard, need)
        if board.holders(lambda node: node.draining and not node.dead) and not self.unmet[Purpose.DRAIN]:
            board.waiting = True  # what leaves there will fill other nodes

    def _meet(self, shard: ShardView, need: Need) -> None:
        board = self._board
        if need.purpose is Purpose.SURPLUS:  # chosen anew: what was decided before it has made other nodes the fullest
            need = Need(need.purpose, _surplus_of(board, shard))
        staying = tuple(node_id for node_id in shard.members if node_id not in need.leaving)
        if need.purpose is Purpose.SURPLUS:
            if not board.may_move():
                board.waiting = True
            elif board.view.margin(staying) >= 0:
                board.move(shard, staying, need.purpose, self._surplus(shard, need))
            return
        chosen = board.choose(shard, staying, need.coming)
        if chosen.why is Why.NONE and not chosen.nodes:
            self.unmet[need.purpose].append(shard)
            return
        if chosen.why is Why.NONE and need.purpose is Purpose.MISSING:
            self.unmet[need.purpose].append(shard)
        nodes = self._nodes(shard, need, chosen)
        if nodes is None or not board.may_move():
            board.waiting = True
        elif board.view.margin(nodes) >= 0:
            board.move(shard, nodes, need.purpose, self._reason(shard, need, chosen.nodes))

    def _nodes(self, shard: ShardView, need: Need, chosen: Chosen) -> tuple[str, ...] | None:
        """The members with as many exchanged or added as nodes were found; None when it is better to wait."""
        if not chosen.nodes or (need.purpose is Purpose.MISSING and chosen.why in (Why.TURN, Why.UNSETTLED)):
            # Adding half of what is missing would make an even group, which one failure stops sooner.
            return None
        if need.purpose is Purpose.DRAIN and not all(self._board.free(node_id) for node_id in need.leaving):
            return None
        coming = list(chosen.nodes)
        leaving = need.leaving[: len(coming)]
        kept = [coming.pop(0) if node_id in leaving else node_id for node_id in shard.members]
        return (*kept, *coming)

    # --- leaderships of nodes that are drained --------------------------------------------------------------------

    def _empty_leaderships(self) -> None:
        board = self._board
        for shard in list(board.undecided(board.view.shards)):
            node = board.nodes.get(shard.leader)
            if node is None or not node.draining or shard.target_leader or node.dead:
                continue
            heir = heir_of(board, shard)
            if not heir:
                continue
            if not board.may_hand_over():
                board.waiting = True
                return
            reason = f"{node.node_id} is being drained, so {heir} is to lead {shard.shard_id} in its place"
            board.hand_over(shard, heir, reason)

    # --- sentences ------------------------------------------------------------------------------------------------

    def _reason(self, shard: ShardView, need: Need, coming: tuple[str, ...]) -> str:
        board = self._board
        where = " and ".join(board.where(node_id) for node_id in coming)
        if need.purpose is Purpose.MISSING:
            have, more = count(len(shard.members), "replica"), f"{len(coming)} more"
            return f"{shard.shard_id} has {have}, the replication factor is {shard.wanted}: it gets {more}, on {where}"
        leaving = need.leaving[: len(coming)]
        who = " and ".join(board.where(node_id) for node_id in leaving)
        if need.purpose is Purpose.DRAIN:
            return f"{who} is being drained, so {shard.shard_id} moves from there to {where}"
        node = board.nodes[leaving[0]]
        grace = seconds(board.policy.replace_after_ms)
        waited = "and being drained" if node.draining else f"for {seconds(node.age_ms)} ({grace} is waited for)"
        return f"{who} is DEAD {waited}, so {shard.shard_id} gets a replica on {where} in its place"

    def _surplus(self, shard: ShardView, need: Need) -> str:
        have = count(len(shard.members), "replica")
        who = " and ".join(need.leaving)
        gone = f"the one on {who} goes" if len(need.leaving) == 1 else f"those on {who} go"
        return f"{shard.shard_id} has {have}, the replication factor is {shard.wanted}: {gone}"


def need_of(board: Board, shard: ShardView) -> Need | None:
    """What a shard at rest needs most, if anything can be done for it."""
    view = board.view
    if view.margin(shard.members) < 0:  # nothing can commit; who is SUSPECT will be back soon, or DEAD
        return None
    if len(shard.members) > shard.wanted and not shard.replicas_pinned:
        return Need(Purpose.SURPLUS, _surplus_of(board, shard))
    lost = tuple(node_id for node_id in shard.members if is_lost(board, node_id))
    if lost:
        return Need(Purpose.DEAD, lost, len(lost))
    if len(shard.members) < shard.wanted and not shard.replicas_pinned:
        return Need(Purpose.MISSING, (), shard.wanted - len(shard.members))
    draining = [found for found in shard.members if found in view.nodes and view.nodes[found].draining]
    followers = [node_id for node_id in draining if node_id != shard.led_by and node_id != shard.leader]
    if followers:
        return Need(Purpose.DRAIN, (followers[0],), 1)
    if draining and not shard.target_leader and not heir_of(board, shard):
        return Need(Purpose.DRAIN, (draining[0],), 1)  # nobody else could lead first
    return None


def is_lost(board: Board, node_id: str) -> bool:
    node = board.nodes.get(node_id)
    return node is None or node.lost(board.policy)


def heir_of(board: Board, shard: ShardView) -> str:
    """The member that should lead instead of the one that does; empty when there is none."""
    others = [found for found in shard.members if found != shard.leader and found not in shard.avoid]
    fit = [found for found in others if shard.leader and found in board.takers]
    settled = [found for found in fit if found in board.settled]
    return min(settled or fit, key=lambda found: (board.leads[found], found), default="")


def _surplus_of(board: Board, shard: ShardView) -> tuple[str, ...]:
    """Whom to let go: the dead and draining first, then where a zone is crowded, then the fullest, then who is
    named last; a leader last."""
    staying = list(shard.members)
    leaving: list[str] = []

    def keeps(node_id: str) -> tuple[bool, bool, int, bool, int, int]:
        node = board.nodes.get(node_id)
        without = [other for other in staying if other != node_id]
        return (
            node is not None and node.alive,
            node is not None and not node.draining,
            board.collisions(without),
            node_id == shard.led_by,
            -board.held[node_id],
            -shard.members.index(node_id),
        )

    while len(staying) > shard.wanted:
        gone = min(staying, key=keeps)
        staying.remove(gone)
        leaving.append(gone)
    return tuple(leaving)
