"""What the client hands out and takes in."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Consistency(enum.IntEnum):
    """What a read promises."""

    STRONG = 1
    """Linearizable: it sees every write that was acknowledged before the read began."""
    EVENTUAL = 2
    """Any replica's state; it may lag behind."""


class Guarantee(enum.IntEnum):
    """Which promise the answer to a read keeps. It may be a stronger one than was asked for."""

    UNKNOWN = 0
    """The gateway did not say."""
    LINEARIZABLE = 1
    """It sees every write that was acknowledged before the read began."""
    SESSION = 2
    """It sees what the session had seen."""
    BOUNDED = 3
    """It is no staler than `max_staleness_ms`."""
    ANY = 4
    """Some committed state of the past."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and what is stored under it. `value` is empty where only metadata was asked for.

    The last three say where and how it was read; two entries that differ only in them are equal.
    """

    key: bytes
    value: bytes
    version: int
    create_time_ms: int
    update_time_ms: int
    expire_time_ms: int
    """When it expires, in milliseconds since the epoch; 0: never."""
    guarantee: Guarantee = field(default=Guarantee.UNKNOWN, compare=False)
    shard_id: str = field(default="", compare=False)
    revision: int = field(default=0, compare=False)
    """Of the shard, at which it was read."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of a scan, in the order of their keys."""

    entries: tuple[Entry, ...]
    token: bytes
    """Where the next page begins; empty: there is none."""
    revisions: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Of each shard, at which this page read it."""


@dataclass(frozen=True, slots=True)
class Get:
    """A read in a batch; the fields are the arguments of `AsyncClient.get`."""

    key: str | bytes
    consistency: Consistency = Consistency.STRONG
    max_staleness_ms: int = 0
    head_only: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """A write in a batch; the fields are the arguments of `AsyncClient.put`."""

    key: str | bytes
    value: str | bytes
    ttl_ms: int = 0
    if_version: int = 0
    if_absent: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """A deletion in a batch; the fields are the arguments of `AsyncClient.delete`."""

    key: str | bytes
    if_version: int = 0
    request_id: str = ""


Operation = Get | Put | Delete
