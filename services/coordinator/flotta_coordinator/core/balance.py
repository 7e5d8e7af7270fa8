"""What may be done when nothing must be: replicas further apart, equal shares of replicas and of leaderships.

Each step makes one measure strictly better and none that comes before it worse, in this order: pairs of replicas in one
zone, spread of replicas over nodes, spread of leaderships. A difference of one is no reason to move anything. So it
ends, and does not swing. Only shards whose members are all ALIVE are touched, and none that an operator placed.
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Iterable

from flotta_coordinator.core.board import Board
from flotta_coordinator.core.plan_view import NodeView, ShardView
from flotta_coordinator.core.state import Purpose
from flotta_coordinator.core.wording import count


def is_calm(board: Board) -> bool:
    """Nothing is about to change by itself: nobody is silent, lately dead, or new."""
    policy = board.policy
    unsure = board.holders(lambda node: not node.alive and not node.lost(policy))
    coming = [node for node in board.nodes.values() if node.takes and node.flaps <= 1 and not node.settled(policy)]
    return not board.waiting and not unsure and not coming


def balance(board: Board) -> None:
    if not is_calm(board):
        return
    _spread_over_zones(board)
    _level_replicas(board)
    _level_leaders(board)


# --- zones ------------------------------------------------------------------------------------------------------------


def _spread_over_zones(board: Board) -> None:
    zones = {board.zone(node_id) for node_id in board.settled}
    for shard in _movable(board, board.view.shards):
        if not board.may_move():
            return
        now = board.collisions(shard.members)
        if now == _collisions_min(len(shard.members), len(zones | {board.zone(found) for found in shard.members})):
            continue
        steps = [
            (
                board.collisions(_exchanged(shard, leaving, coming)),
                leaving == shard.led_by,
                board.held[coming] - board.held[leaving],
                leaving,
                coming,
            )
            for leaving in shard.members
            for coming in board.settled
            if coming not in shard.members and coming not in shard.avoid
        ]
        after, _, _, leaving, coming = min(steps, default=(now, False, 0, "", ""))
        if after < now and board.free(leaving) and board.free(coming):
            reason = (
                f"{shard.shard_id} has replicas that share a zone: the one on {board.where(leaving)} moves to "
                f"{board.where(coming)}"
            )
            board.move(shard, _exchanged(shard, leaving, coming), Purpose.ZONES, reason)


@functools.cache
def _collisions_min(replicas: int, zones: int) -> int:
    """Of so many replicas over so many zones, as evenly as can be."""
    each, more = divmod(replicas, zones)
    return zones * (each * (each - 1) // 2) + more * each


def _exchanged(shard: ShardView, leaving: str, coming: str) -> tuple[str, ...]:
    return tuple(coming if node_id == leaving else node_id for node_id in shard.members)


# --- replicas ---------------------------------------------------------------------------------------------------------


def _level_replicas(board: Board) -> None:
    """From the fullest node to the emptiest, one shard at a time, for as long as they differ by two or more."""
    while board.may_move():
        step = _next_step(board)
        if step is None:
            return
        shard, leaving, coming = step
        if not board.free(leaving) or not board.free(coming):
            return  # any other pair would move more than is needed
        reason = (
            f"{leaving} holds {count(board.held[leaving], 'replica')} and {coming} {board.held[coming]}, "
            f"so {shard.shard_id} moves from {board.where(leaving)} to {board.where(coming)}"
        )
        board.move(shard, _exchanged(shard, leaving, coming), Purpose.BALANCE, reason)


def _next_step(board: Board) -> tuple[ShardView, str, str] | None:
    takers = sorted(board.settled, key=board.emptiness)
    if not takers:
        return None
    least = board.held[takers[0]]
    sources = [node_id for node_id in board.holders(_may_lose) if board.held[node_id] - least >= 2]
    if not sources:
        return None
    held_by: dict[str, list[ShardView]] = defaultdict(list)
    for shard in _movable(board, board.view.shards):
        for node_id in shard.members:
            held_by[node_id].append(shard)
    for leaving in sorted(sources, key=lambda found: (-board.held[found], found)):
        best: tuple[int, bool, int, ShardView, str] | None = None
        for place, shard in enumerate(held_by[leaving]):
            coming = _taker(board, shard, leaving, takers)
            if coming is not None:
                found = (board.held[coming], leaving == shard.led_by, place, shard, coming)
                if best is None or found[:3] < best[:3]:
                    best = found
                if found[:2] == (least, False):
                    break
        if best is not None:
            return best[3], leaving, best[4]
    return None


def _taker(board: Board, shard: ShardView, leaving: str, takers: list[str]) -> str | None:
    """The emptiest node that the shard could go to, no worse spread over zones than it is."""
    now = board.collisions(shard.members)
    for coming in takers:
        if board.held[leaving] - board.held[coming] < 2:
            return None
        if coming in shard.members or coming in shard.avoid:
            continue
        if board.collisions(_exchanged(shard, leaving, coming)) <= now:
            return coming
    return None


def _may_lose(node: NodeView) -> bool:
    return node.alive and not node.draining


def _movable(board: Board, shards: Iterable[ShardView]) -> list[ShardView]:
    return [
        shard
        for shard in board.undecided(shards)
        if not shard.replicas_pinned
        and not shard.target_leader
        and board.view.alive(shard.members) == len(shard.members)
    ]


# --- leaderships ------------------------------------------------------------------------------------------------------


def _level_leaders(board: Board) -> None:
    """Along the shortest chain of hand-overs from the node that leads most to one that leads two fewer or less."""
    while board.may_hand_over():
        chain = _chain(board)
        if not chain:
            return
        most = chain[0][0].leader
        for shard, coming in reversed(chain):  # the far end first: no node ever leads more than the first one does
            if not board.may_hand_over():
                return
            reason = (
                f"{most} leads {count(board.leads[most], 'shard')}, more than its share, so {coming} is to lead "
                f"{shard.shard_id} in place of {shard.leader}"
            )
            board.hand_over(shard, coming, reason)


def _chain(board: Board) -> list[tuple[ShardView, str]]:
    able = [node_id for node_id, node in board.nodes.items() if _may_lose(node)]
    if not able or not board.settled:
        return []
    least = min(board.leads[node_id] for node_id in board.settled)
    sources = [node_id for node_id in able if board.leads[node_id] - least >= 2]
    if not sources:
        return []
    led_by: dict[str, list[ShardView]] = defaultdict(list)
    for shard in board.undecided(board.view.shards):
        if not shard.leader_pinned and not shard.target_leader and board.view.margin(shard.members) >= 0:
            led_by[shard.leader].append(shard)
    for source in sorted(sources, key=lambda found: (-board.leads[found], found)):
        chain = _shortest(board, source, led_by)
        if chain:
            return chain
    return []


def _shortest(board: Board, source: str, led_by: dict[str, list[ShardView]]) -> list[tuple[ShardView, str]]:
    """Breadth first over "a shard led here has a member there"."""
    came: dict[str, tuple[str, ShardView] | None] = {source: None}
    rest = deque([source])
    while rest:
        node_id = rest.popleft()
        for shard in led_by[node_id]:
            for member in sorted(shard.members, key=lambda found: (board.leads[found], found)):
                if member in came or member not in board.settled or member in shard.avoid:
                    continue
                came[member] = (node_id, shard)
                if board.leads[source] - board.leads[member] >= 2:
                    return _back(came, member)
                rest.append(member)
    return []


def _back(came: dict[str, tuple[str, ShardView] | None], end: str) -> list[tuple[ShardView, str]]:
    chain: list[tuple[ShardView, str]] = []
    node_id = end
    while (step := came[node_id]) is not None:
        chain.append((step[1], node_id))
        node_id = step[0]
    return chain[::-1]
