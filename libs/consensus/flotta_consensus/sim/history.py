"""What clients saw: one record per operation, with the virtual times of its call and its answer.

An outcome is `OK` (with a result), `REJECTED` (it certainly had and will have no effect) or `UNKNOWN`. Resolving an
unknown outcome is not the client's business: the checkers read the committed log for it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


class Verdict(enum.Enum):
    PENDING = "pending"
    OK = "ok"
    REJECTED = "rejected"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Operation:
    """One attempt of one client. `args` and `result` belong to the workload."""

    number: int
    client: int
    group: int
    kind: str
    key: bytes
    args: Any
    called_us: int
    returned_us: int | None = None
    verdict: Verdict = Verdict.PENDING
    result: Any = None
    revision: int = 0  # of a write: where it happened; of a read: a revision its answer includes
    reason: str = ""
    notes: dict[str, Any] = field(default_factory=dict)


class History:
    """Every operation of a run, in the order of the calls."""

    def __init__(self) -> None:
        self._operations: list[Operation] = []

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._operations)

    def __len__(self) -> int:
        return len(self._operations)

    def __getitem__(self, number: int) -> Operation:
        return self._operations[number - 1]

    def call(self, client: int, group: int, kind: str, key: bytes, args: Any, now_us: int) -> Operation:
        operation = Operation(len(self._operations) + 1, client, group, kind, key, args, now_us)
        self._operations.append(operation)
        return operation

    def with_verdict(self, verdict: Verdict) -> Iterable[Operation]:
        return (operation for operation in self._operations if operation.verdict is verdict)

    def close(self) -> None:
        """What was never answered has an unknown outcome."""
        for operation in self._operations:
            if operation.verdict is Verdict.PENDING:
                operation.verdict = Verdict.UNKNOWN
                operation.reason = operation.reason or "never answered"
