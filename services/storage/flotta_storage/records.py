"""What a node has durably recorded of its replicas: the `LocalState` that decisions are made from.

It lies in an engine space of its own, as one row per fact. Invariants: every change is flushed before the method
returns, so a replica is never made before its record is durable, and a record never goes before its replica is gone
for good; tombstones are for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flotta_embedded.api import Engine
from flotta_embedded.codec import decode_value, encode_value

from flotta_storage.core.replicas import LocalReplica, LocalState, Origin

SPACE = "node"

_FORMAT = 1
_ABOUT = b"about"
_ADDRESSES = b"addresses"
_REPLICA = b"replica/"
_TOMBSTONE = b"tombstone/"


class RecordsError(Exception):
    """The records do not fit this node. The text is one clear sentence."""


class NodeRecords:
    """Not thread-safe; `state` is a frozen value and may be handed anywhere."""

    def __init__(self, engine: Engine, state: LocalState) -> None:
        self._engine = engine
        self.state = state

    @classmethod
    def open(cls, engine: Engine, *, node_id: str, node_num: int, cluster_id: str, formed: bool) -> NodeRecords:
        """Read the records, or begin them. `formed`: this directory has held replicas, so records must exist."""
        if SPACE not in engine.spaces():
            if formed:
                raise RecordsError(
                    f"node {node_id} held replicas, but its record of them is gone; restore the data directory, or "
                    "remove the node and add it again with an empty one"
                )
            engine.create(SPACE)
        state = LocalState(node_id, node_num, cluster_id)
        about = engine.view(SPACE).get(_ABOUT)
        if about is None:
            records = cls(engine, state)
            records._write(state, [])
            return records
        found = _read(engine, decode_value(about))
        if (found.node_id, found.node_num, found.cluster_id) != (node_id, node_num, cluster_id):
            raise RecordsError(
                f"the records are of node {found.node_id} number {found.node_num} of cluster {found.cluster_id}, "
                f"not of node {node_id} number {node_num} of cluster {cluster_id}"
            )
        return cls(engine, found)

    def intend(self, replicas: Sequence[LocalReplica], map_version: int) -> None:
        """Record replicas that are about to be made, and the map that asked for them (0: no map did)."""
        if not replicas:
            return
        kept = {**self.state.replicas, **{replica.group: replica for replica in replicas}}
        version = max(self.state.acted_version, map_version)
        self._write(replace(self.state, replicas=kept, acted_version=version), [r.group for r in replicas])

    def mark_made(self, group: int) -> None:
        """The Raft host holds the replica durably."""
        made = replace(self.state.replicas[group], made=True)
        self._write(replace(self.state, replicas={**self.state.replicas, group: made}), [group])

    def intend_takeover(self, group: int, heir: int, map_version: int) -> None:
        """The replica is about to go on under another id."""
        kept = {**self.state.replicas, group: replace(self.state.replicas[group], heir=heir)}
        version = max(self.state.acted_version, map_version)
        self._write(replace(self.state, replicas=kept, acted_version=version), [group])

    def mark_taken_over(self, group: int) -> None:
        """It goes on under that id; the one it had is gone for good."""
        before = self.state.replicas[group]
        kept = {**self.state.replicas, group: replace(before, replica=before.heir, heir=0)}
        tombstones = self.state.tombstones | {before.replica}
        self._write(replace(self.state, replicas=kept, tombstones=tombstones), [group])

    def bury(self, group: int, map_version: int = 0) -> None:
        """The replica is gone for good."""
        left = {number: replica for number, replica in self.state.replicas.items() if number != group}
        tombstones = self.state.tombstones | {self.state.replicas[group].replica}
        version = max(self.state.acted_version, map_version)
        self._write(replace(self.state, replicas=left, tombstones=tombstones, acted_version=version), [group])

    def addresses(self) -> dict[int, str]:
        """node_num -> host:port, as last remembered."""
        row = self._engine.view(SPACE).get(_ADDRESSES)
        return {} if row is None else dict(decode_value(row))

    def remember_addresses(self, addresses: Mapping[int, str]) -> None:
        """Peers must be found after a restart even while no coordinator answers."""
        row = encode_value(dict(addresses))
        if row != self._engine.view(SPACE).get(_ADDRESSES):
            self._engine.write(SPACE, [(_ADDRESSES, row)], [])
            self._engine.flush(SPACE)

    def _write(self, state: LocalState, groups: Sequence[int]) -> None:
        puts = [(_ABOUT, encode_value([_FORMAT, state.node_id, state.node_num, state.cluster_id, state.acted_version]))]
        deletes = []
        for group in groups:
            replica = state.replicas.get(group)
            if replica is None:
                deletes.append(_number(_REPLICA, group))
            else:
                puts.append((_number(_REPLICA, group), _encode(replica)))
        puts += [(_number(_TOMBSTONE, dead), b"") for dead in sorted(state.tombstones - self.state.tombstones)]
        self._engine.write(SPACE, puts, deletes)
        self._engine.flush(SPACE)
        self.state = state


def _number(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def _encode(replica: LocalReplica) -> bytes:
    return encode_value(
        [
            replica.group,
            replica.replica,
            replica.shard_id,
            replica.origin.value,
            replica.voters,
            replica.table,
            replica.shard_index,
            replica.shard_count,
            replica.revision_base,
            replica.made,
            replica.parent,
            replica.heir,
        ]
    )


def _decode(row: bytes) -> LocalReplica:
    group, replica, shard_id, origin, voters, table, index, count, base, made, *later = decode_value(row)
    parent, heir = (*later, 0, 0)[:2]  # rows of before there were any lack them
    return LocalReplica(
        group, replica, shard_id, Origin(origin), tuple(voters), table, index, count, base, made, parent, heir
    )


def _read(engine: Engine, about: Any) -> LocalState:
    if not isinstance(about, list) or about[0] != _FORMAT:
        raise RecordsError(f"the node's records have a format this version does not know (it knows {_FORMAT})")
    view = engine.view(SPACE)
    replicas = [_decode(row) for _, row in view.scan(_REPLICA, _REPLICA + b"\xff" * 9)]
    dead = [int.from_bytes(key[len(_TOMBSTONE) :], "big") for key, _ in view.scan(_TOMBSTONE, _TOMBSTONE + b"\xff" * 9)]
    _, node_id, node_num, cluster_id, acted = about
    by_group = {replica.group: replica for replica in replicas}
    return LocalState(node_id, node_num, cluster_id, acted, by_group, frozenset(dead))
