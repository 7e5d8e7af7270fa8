"""What the last replica of a shard that lost its quorum writes behind its log when it goes on alone.

Invariants: no revision that the lost voters may have given is ever given again, and no epoch that they may have come
to. Both end up as absolute figures of the log, so replaying it gives the same ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from flotta_consensus.api import SEQUENCE_BITS
from flotta_embedded.api import Command, Overlay
from flotta_embedded.codec import command_encoder
from flotta_embedded.registry import raise_revisions

from . import keys
from .shard_state import ShardState, decode_state, encode_state

TAKEOVER: Final = "shard.takeover"
TAKEOVER_VERSION: Final = 1
REVISIONS_SKIPPED: Final = 1 << 32  # no log ever got so far ahead of another

_EPOCH = struct.Struct(">Q")
_encode = command_encoder(TAKEOVER, TAKEOVER_VERSION)


def takeover_payloads(state: ShardState, epoch_min: int) -> tuple[bytes, ...]:
    """The entries, for a replica whose record is this one. The new membership before them raises the epoch by one, and
    a change that was delivered and is not applied yet may have done so."""
    epoch = max(state.epoch + 2, epoch_min)
    return raise_revisions(REVISIONS_SKIPPED), _encode(0, _EPOCH.pack(epoch))


def apply_takeovers(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A run of `shard.takeover@1`."""
    for command in commands:
        raw = overlay.get(keys.SHARD_KEY)
        if raw is not None:
            (epoch,) = _EPOCH.unpack(command.args)
            overlay.put(keys.SHARD_KEY, encode_state(replace(decode_state(raw), epoch=epoch)))
    return [None] * len(commands)


def sequence_of(replica: int) -> int:
    """The part of a replica id that grows with every replica of the cluster."""
    return replica & ((1 << SEQUENCE_BITS) - 1)
