"""The reference: what a shard must answer, in the plainest Python, from its committed log alone.

Written apart from the commands it judges: it shares their wire format and nothing of their logic. One dictionary of
rows, one of chains, the epoch, group time. Time is group time, so a row is there until an entry moves past its expiry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flotta_consensus.api import EntryKind, Members
from flotta_consensus.sim.checkers import AppliedEntry
from flotta_consensus.sim.observed import members_of_bytes
from flotta_embedded.codec import decode_command, decode_value
from flotta_runtime.hashing import shard_index
from flotta_storage.core.writes import Write, decode_write
from shard_commands import APPEND_WIRE, EMPTY_CHAIN, EXPIRE_WIRE, PRUNE_WIRE, SPLIT_WIRE, WRITE_WIRE, Chain, extend


@dataclass(frozen=True, slots=True)
class ModelRow:
    value: bytes
    version: int
    expire_ms: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a write must be told. `version`: of the row that is, or that stood in the way."""

    kind: str
    revision: int
    version: int = 0
    duplicate: bool = False


NO_EFFECT = ("SHARD_MOVED", "DEDUP_CONFLICT", "DEDUP_UNTIMELY")
"""Answers to a write that neither changed anything nor is remembered under its request id."""
DEDUP_WINDOW_MS = 600_000
DEDUP_SKEW_MS = 60_000


def _in_class(residue: int, count: int, key: bytes) -> bool:
    return shard_index(key, count) == residue


class ShardModel:
    """State after each committed entry, beginning at the birth of the shard."""

    def __init__(self, members: Members, owns: Callable[[bytes], bool], revision_base: int = 0) -> None:
        self.owns = owns
        self.rows: dict[bytes, ModelRow] = {}
        self.chains: dict[bytes, Chain] = {}
        self.requests: dict[tuple[bytes, bytes], tuple[int, Write, Answer]] = {}
        self.members = members
        self.epoch = 1
        self.now_ms = 0
        self.index = 1
        self.revision_base = revision_base
        self.residue = (0, 1)
        self.conf_index = 1
        self.children: dict[int, ShardModel] = {}  # by residue class, as they are born
        self.divided_at = 0  # the revision of the division

    def apply(self, entry: AppliedEntry) -> Answer | Chain | None:
        if entry.index != self.index + 1:
            raise ValueError(f"the model stands at {self.index} and cannot take {entry.index}")
        self.index = entry.index
        if entry.kind == EntryKind.CONF:
            self._change_members(members_of_bytes(entry.payload))
            return None
        if entry.kind == EntryKind.EMPTY:
            return None
        command = decode_command(entry.payload)
        self.now_ms = max(self.now_ms, command.stamp_ms)
        if command.wire == WRITE_WIRE:
            return self._write(decode_write(command.args))
        if command.wire == APPEND_WIRE:
            key, token = decode_value(command.args)
            self.chains[key] = extend(self.chains.get(key, EMPTY_CHAIN), token)
            return self.chains[key]
        if command.wire == SPLIT_WIRE:
            self._divide(*decode_value(command.args))
            return None
        if command.wire == PRUNE_WIRE:
            return None
        if command.wire != EXPIRE_WIRE:
            raise ValueError(f"the model does not know {command.wire!r}")
        return None

    def admits(self, epoch: int, key: bytes) -> bool:
        """A sender that knows no epoch (0) is held to the keys that the shard owns."""
        return epoch == self.epoch if epoch else self.owns(key)

    def row(self, key: bytes) -> ModelRow | None:
        """The row as a reader sees it now."""
        row = self.rows.get(key)
        return None if row is None or 0 < row.expire_ms <= self.now_ms else row

    @property
    def revision(self) -> int:
        return self.revision_base + self.index

    def living(self) -> dict[bytes, ModelRow]:
        return {key: row for key in sorted(self.rows) if (row := self.row(key)) is not None}

    def remembered(self) -> set[tuple[bytes, bytes]]:
        """(key, request id) of the requests that must still be answered as they were."""
        return {known for known, (at_ms, _, _) in self.requests.items() if self.now_ms < at_ms + DEDUP_WINDOW_MS}

    def _divide(self, count: int, conf_index: int, voters: list[int], children: list[list[Any]]) -> None:
        """Rows and requests go where their keys do; whoever was told of other voters is not heard."""
        index, own_count = self.residue
        if count == own_count or conf_index != self.conf_index:
            return
        self.residue, self.epoch, self.divided_at = (index, count), self.epoch + 1, self.revision
        self.owns = partial(_in_class, index, count)
        for _, _, residue, sequence in children:
            members = Members(tuple(sorted(voter >> 32 << 32 | sequence for voter in voters)))
            child = ShardModel(members, partial(_in_class, residue, count), self.revision)
            child.residue, child.now_ms = (residue, count), self.now_ms
            child.rows = {key: row for key, row in self.rows.items() if child.owns(key)}
            child.requests = {key: known for key, known in self.requests.items() if child.owns(key[0])}
            self.children[residue] = child
        self.rows = {key: row for key, row in self.rows.items() if self.owns(key)}
        self.requests = {key: known for key, known in self.requests.items() if self.owns(key[0])}

    def _change_members(self, after: Members) -> None:
        self.conf_index = self.index
        before = self.members
        old_voters = set(before.outgoing) or set(before.voters)
        if not after.outgoing and set(after.voters) != old_voters:
            self.epoch += 1
        self.members = after

    def _write(self, write: Write) -> Answer:
        if not self.admits(write.epoch, write.key):
            return Answer("SHARD_MOVED", self.revision)
        if not write.request_id:
            return self._change(write)
        payload = write._replace(epoch=0)
        earlier = self.requests.get((write.key, write.request_id))
        if earlier is not None and self.now_ms < earlier[0] + DEDUP_WINDOW_MS:
            if earlier[1] != payload:
                return Answer("DEDUP_CONFLICT", self.revision)
            return replace(earlier[2], duplicate=True)
        if write.request_id.startswith(b"flotta:"):
            first_ms = int(write.request_id.split(b":")[1])
            if not self.now_ms - DEDUP_WINDOW_MS + DEDUP_SKEW_MS < first_ms <= self.now_ms + DEDUP_SKEW_MS:
                return Answer("DEDUP_UNTIMELY", self.revision)
        answer = self._change(write)
        self.requests[write.key, write.request_id] = (self.now_ms, payload, answer)
        return answer

    def _change(self, write: Write) -> Answer:
        revision = self.revision
        row = self.row(write.key)
        if write.delete and row is None:
            return Answer("NOT_FOUND", revision)
        if write.if_not_exists and row is not None:
            return Answer("ALREADY_EXISTS", revision, row.version)
        if write.if_version_equals and (row is None or row.version != write.if_version_equals):
            return Answer("VERSION_MISMATCH", revision, row.version if row else 0)
        if write.delete:
            del self.rows[write.key]
        else:
            expire_ms = self.now_ms + write.ttl_ms if write.ttl_ms else 0
            self.rows[write.key] = ModelRow(bytes(write.value), revision, expire_ms)
        return Answer("OK", revision, revision)
