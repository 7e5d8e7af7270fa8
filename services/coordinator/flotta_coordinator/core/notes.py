"""What the planner finds and cannot mend, or has finished: sentences that stand for as long as they are true.

A note's sentence holds no figure that changes while it stands: it is written down once, and once more when it is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flotta_coordinator.core.board import Board
from flotta_coordinator.core.commands import SetNotes, Standing
from flotta_coordinator.core.plan_view import ShardView
from flotta_coordinator.core.repairs import Repairs, is_lost
from flotta_coordinator.core.state import Purpose
from flotta_coordinator.core.wording import count, seconds, some

QUORUM_LOST = "quorum-lost"
DEAD_KEPT = "dead-not-replaced"
TOO_FEW = "replicas-missing"
DRAIN_STUCK = "drain-stuck"
DRAINED = "node-drained"
FLAPPING = "node-flapping"


def take_notes(board: Board, repairs: Repairs) -> None:
    """Add what is new and what is over to the decisions, if anything is."""
    standing = [
        *_quorum_lost(board),
        *_dead_kept(board, repairs.unmet[Purpose.DEAD]),
        *_too_few(repairs.unmet[Purpose.MISSING]),
        *_drains(board, repairs.unmet[Purpose.DRAIN]),
        *_flapping(board),
    ]
    found = {f"{one.kind}/{one.subject}": one for one in standing}
    noted = board.view.notes
    fresh = tuple(one for key, one in sorted(found.items()) if noted.get(key) != one.text)
    over = tuple(sorted(noted.keys() - found.keys()))
    if fresh or over:
        board.actions.append(SetNotes(fresh, over))


def _quorum_lost(board: Board) -> Iterator[Standing]:
    lost = [shard for shard in board.view.shards if not board.view.has_quorum(shard.members)]
    for table, shards in _by_table(lost):
        dead = sorted({node_id for shard in shards for node_id in shard.members if not board.view.living((node_id,))})
        yield Standing(
            QUORUM_LOST,
            table,
            f"{count(len(shards), 'shard')} of {table} ({_names(shards)}) lost the quorum, because {some(dead)} "
            f"{'is' if len(dead) == 1 else 'are'} DEAD: they take no writes and cannot be moved or mended; "
            "start the nodes again with their data directories, or, if those are lost, see `flotta recover`",
        )


def _dead_kept(board: Board, unmet: Iterable[ShardView]) -> Iterator[Standing]:
    shards = list(unmet)
    for node_id in sorted({node_id for shard in shards for node_id in shard.members if is_lost(board, node_id)}):
        held = [shard for shard in shards if node_id in shard.members]
        yield Standing(
            DEAD_KEPT,
            node_id,
            f"{node_id} is DEAD for longer than it is waited for, and no other node can take its replicas of "
            f"{_names(held)}: start it again, or add a node",
        )


def _too_few(unmet: Iterable[ShardView]) -> Iterator[Standing]:
    for table, shards in _by_table(unmet):
        yield Standing(
            TOO_FEW,
            table,
            f"{count(len(shards), 'shard')} of {table} ({_names(shards)}) cannot get {shards[0].wanted} replicas, "
            "because no further node can take one: add nodes, or lower the replication factor",
        )


def _drains(board: Board, unmet: list[ShardView]) -> Iterator[Standing]:
    for node in sorted((node for node in board.nodes.values() if node.draining), key=lambda node: node.node_id):
        stuck = [shard for shard in unmet if node.node_id in shard.members]
        if stuck:
            yield Standing(
                DRAIN_STUCK,
                node.node_id,
                f"{node.node_id} cannot be emptied, because no other node can take its replicas of {_names(stuck)}: "
                "add a node, or end the drain",
            )
        elif not board.held[node.node_id] and not _still_there(board, node.node_id):
            yield Standing(DRAINED, node.node_id, f"{node.node_id} is drained: it holds nothing, and may be stopped")


def _still_there(board: Board, node_id: str) -> bool:
    return any(node_id in shard.members for shard in board.view.shards)


def _flapping(board: Board) -> Iterator[Standing]:
    policy = board.policy
    for node in sorted(board.nodes.values(), key=lambda node: node.node_id):
        if node.takes and node.flaps > 1 and not node.settled(policy):
            yield Standing(
                FLAPPING,
                node.node_id,
                f"{node.node_id} came back {node.flaps} times lately: it is given nothing new before it has stayed for "
                f"{seconds(node.settle_ms(policy))}",
            )


def _names(shards: list[ShardView]) -> str:
    return some([shard.shard_id for shard in shards])


def _by_table(shards: Iterable[ShardView]) -> list[tuple[str, list[ShardView]]]:
    found: dict[str, list[ShardView]] = {}
    for shard in shards:
        found.setdefault(shard.table, []).append(shard)
    return sorted(found.items())
