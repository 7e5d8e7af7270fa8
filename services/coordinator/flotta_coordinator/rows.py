"""The cluster's state as rows of the replica's space: one row per node, shard, table, decision, note, job
and removed node, one for the roster once there is one, one for the rest.

Invariant: the rows written for a batch are exactly the records it changed, so rows and the state in memory are the
same value in two shapes; `sequence` in the head row says which state the rows are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flotta_embedded import keys
from flotta_embedded.api import Overlay, View

from flotta_coordinator.core.codec import decode, encode
from flotta_coordinator.core.results import Applied
from flotta_coordinator.core.state import (
    DECISIONS_MAX,
    ClusterState,
    Counters,
    Decision,
    Job,
    Node,
    Note,
    Roster,
    Shard,
    Table,
)

HEAD = keys.DATA + b"head"
_ROSTER = keys.DATA + b"roster"
_NODE = keys.DATA + b"node/"
_SHARD = keys.DATA + b"shard/"
_TABLE = keys.DATA + b"table/"
_DECISION = keys.DATA + b"why/"
_NOTE = keys.DATA + b"note/"
_JOB = keys.DATA + b"job/"
_GONE = keys.DATA + b"gone/"


@dataclass(frozen=True, slots=True)
class Head:
    cluster_id: str
    map_version: int
    sequence: int
    counters: Counters


def read_head(view: View) -> Head:
    """The head row; that of an empty state when there is none."""
    row = view.get(HEAD)
    return decode(Head, row) if row is not None else Head("", 0, 0, Counters())


def load(view: View) -> ClusterState:
    """The whole state from its rows."""
    head, roster = read_head(view), view.get(_ROSTER)
    nodes = [decode(Node, row) for row in _under(view, _NODE)]
    shards = [decode(Shard, row) for row in _under(view, _SHARD)]
    tables = [decode(Table, row) for row in _under(view, _TABLE)]
    notes = [decode(Note, row) for row in _under(view, _NOTE)]
    jobs = [decode(Job, row) for row in _under(view, _JOB)]
    gone = [decode(Node, row) for row in _under(view, _GONE)]
    return ClusterState(
        cluster_id=head.cluster_id,
        map_version=head.map_version,
        sequence=head.sequence,
        counters=head.counters,
        nodes={node.node_id: node for node in nodes},
        tables={table.name: table for table in tables},
        shards={shard.shard_id: shard for shard in shards},
        decisions=tuple(decode(Decision, row) for row in _under(view, _DECISION)),
        notes={note.key: note for note in notes},
        jobs={job.number: job for job in jobs},
        gone={node.node_id: node for node in gone},
        roster=decode(Roster, roster) if roster is not None else Roster(),
    )


def write(overlay: Overlay, applied: Applied) -> None:
    """The rows of what one command changed."""
    state = applied.state
    overlay.put(HEAD, encode(Head(state.cluster_id, state.map_version, state.sequence, state.counters)))
    _put(overlay, _NODE, applied.nodes, state.nodes)
    _put(overlay, _GONE, applied.nodes, state.gone)
    _put(overlay, _SHARD, applied.shards, state.shards)
    _put(overlay, _TABLE, applied.tables, state.tables)
    _put(overlay, _NOTE, applied.notes, state.notes)
    if applied.roster:
        overlay.put(_ROSTER, encode(state.roster))
    for number in applied.jobs:
        if number in state.jobs:
            overlay.put(_numbered(_JOB, number), encode(state.jobs[number]))
        else:
            overlay.delete(_numbered(_JOB, number))
    last = state.counters.decision - 1
    # Numbers have no gaps, so what falls out of the ring is known without reading.
    for decision in state.decisions[max(0, len(state.decisions) - applied.decisions) :]:
        overlay.put(_numbered(_DECISION, decision.number), encode(decision))
    for number in range(max(1, last - DECISIONS_MAX - applied.decisions + 1), last - DECISIONS_MAX + 1):
        overlay.delete(_numbered(_DECISION, number))


def _put(overlay: Overlay, prefix: bytes, names: Iterable[str], records: Mapping[str, object]) -> None:
    """The rows of these records; of those that are gone, none."""
    for name in names:
        if name in records:
            overlay.put(prefix + name.encode(), encode(records[name]))
        else:
            overlay.delete(prefix + name.encode())


def _numbered(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def _under(view: View, prefix: bytes) -> Iterator[bytes]:
    return (row for _, row in view.scan(prefix, keys.prefix_end(prefix)))
