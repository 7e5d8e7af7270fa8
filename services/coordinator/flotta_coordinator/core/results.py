"""What `transitions.apply` answers: the next state and everything that changed, or one typed rejection."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from flotta_coordinator.core.state import ClusterState


class RejectCode(enum.Enum):
    """The words travel in `rejection.code` of the replies."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"  # wrong whatever the state
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Nothing changed. `message` is a sentence that names the field and the limit."""

    code: RejectCode
    field: str
    message: str
    passing: bool = False  # it may be accepted some seconds later without anybody's doing


class Refused(Exception):
    """Raised inside a transition; `apply` turns it into its rejection."""

    def __init__(self, code: RejectCode, field: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.rejection = Rejection(code, field, message, passing)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller of an accepted command is told."""

    message: str
    map_version: int
    node_num: int = 0  # hello
    new_epoch: int = 0  # set_shard_replicas: the epoch the shard will have once it has moved
    job: int = 0  # the number of the job that this is, or is part of
    taken: int = 0  # reports: how many said something new


@dataclass(frozen=True, slots=True)
class Applied:
    """The command was accepted. `changed` is false for a repeat: `state` is then the very state that went in."""

    state: ClusterState
    reply: Reply
    changed: bool = False
    nodes: tuple[str, ...] = ()  # ids whose record changed or went away, sorted
    shards: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # keys of what stands now, or stands no more; not part of the map
    jobs: tuple[int, ...] = ()  # numbers of those that began, ended or were dropped
    decisions: int = 0  # how many were added
    roster: bool = False  # it changed, which is no part of the map
    leap: bool = False  # the map's version leapt: whoever has an earlier one needs all of it

    @property
    def visible(self) -> bool:
        """Did the map change?"""
        return bool(self.nodes or self.shards or self.tables or self.leap)


Result = Applied | Rejection
