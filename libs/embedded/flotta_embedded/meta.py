"""The machine's own rows: applied index, term, group time, revision base and members.

Invariant: a space is a machine if and only if it has these rows; whoever fills a space writes them last.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from flotta_consensus.api import Members

from . import keys
from .api import Engine, View
from .codec import decode_value, encode_value
from .overlay import Row

STATE_FORMAT = 1
SLICE_BYTES = 1 << 20

_STATE = struct.Struct(">BQQQQ")


@dataclass(slots=True)
class Header:
    """Everything of a machine that is not a data row. Never changed, and not frozen, as `Command`: every batch makes
    one."""

    index: int
    term: int
    group_time_ms: int
    revision_base: int
    members: Members

    def encode(self) -> bytes:
        """As it stands in a snapshot."""
        return encode_value(
            [self.index, self.term, self.group_time_ms, self.revision_base, encode_members(self.members)]
        )

    @staticmethod
    def decode(encoded: bytes) -> Header:
        fields = decode_value(encoded)
        if not isinstance(fields, list) or len(fields) != 5 or not all(isinstance(field, int) for field in fields[:4]):
            raise ValueError("machine header does not have its five fields")
        index, term, group_time_ms, revision_base, members = fields
        return Header(index, term, group_time_ms, revision_base, decode_members(members))


def encode_members(members: Members) -> bytes:
    return encode_value([members.voters, members.learners, members.outgoing])


def decode_members(encoded: bytes) -> Members:
    voters, learners, outgoing = decode_value(encoded)
    return Members(tuple(voters), tuple(learners), tuple(outgoing))


def encode_state(index: int, term: int, group_time_ms: int, revision_base: int) -> bytes:
    return _STATE.pack(STATE_FORMAT, index, term, group_time_ms, revision_base)


def read_header(view: View) -> Header | None:
    """The machine's own rows; None if the space holds no machine (yet)."""
    state, members = view.multi_get([keys.META_STATE, keys.META_MEMBERS])
    if state is None or members is None:
        return None
    if len(state) != _STATE.size or state[0] != STATE_FORMAT:
        raise ValueError(f"machine state has format {state[:1].hex()}, this build reads {STATE_FORMAT:02x}")
    _, index, term, group_time_ms, revision_base = _STATE.unpack(state)
    return Header(index, term, group_time_ms, revision_base, decode_members(members))


def write_header(engine: Engine, space: str, header: Header) -> None:
    state = encode_state(header.index, header.term, header.group_time_ms, header.revision_base)
    engine.write(space, [(keys.META_STATE, state), (keys.META_MEMBERS, encode_members(header.members))], ())


def write_rows(engine: Engine, space: str, rows: Iterable[Row]) -> None:
    """Many rows in bounded batches: for a space that is not a machine yet."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        if row[0].startswith(keys.META):
            raise ValueError(f"row {row[0].hex()} is under the machine's own prefix")
        batch.append(row)
        size += len(row[0]) + len(row[1])
        if size >= SLICE_BYTES:
            engine.write(space, batch, ())
            batch = []
            size = 0
    if batch:
        engine.write(space, batch, ())
