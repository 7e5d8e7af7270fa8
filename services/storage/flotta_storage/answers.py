"""Where the answers of one batch go: counted, taken out of the budget, handed to whoever sent the operations.

Invariant: what an operation took of the budget is given back with its answer, whichever list that travels in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flotta_proto.flotta.storage_pb2 import Reply

from flotta_storage.budget import Budget

ReplyCallback = Callable[[list[Reply]], None]


class Observer(Protocol):
    """Counts, once per batch."""

    def batch(self, operations: int) -> None: ...

    def answered(self, replies: Sequence[Reply]) -> None: ...


@dataclass(slots=True, eq=False)
class Answers:
    """Of the operations of one batch; compared by identity."""

    budget: Budget
    observer: Observer
    reply: ReplyCallback

    def refuse(self, replies: list[Reply]) -> None:
        """Of operations that were never admitted."""
        self.observer.answered(replies)
        self.reply(replies)

    def give(self, replies: list[Reply], size: int) -> None:
        """Of admitted operations, which took `size` bytes together."""
        self.budget.give_back(len(replies), size)
        self.observer.answered(replies)
        self.reply(replies)
