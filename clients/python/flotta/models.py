"""What the client hands out and takes in."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Consistency(enum.IntEnum):
    """What a read promises."""

    STRONG = 1
    """Linearizable: it sees every write that was acknowledged before the read began."""
    EVENTUAL = 2
    """Any replica's state; it may lag behind."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and what is stored under it. `value` is empty where only metadata was asked for."""

    key: bytes
    value: bytes
    version: int
    create_time_ms: int
    update_time_ms: int
    expire_time_ms: int
    """When it expires, in milliseconds since the epoch; 0: never."""
