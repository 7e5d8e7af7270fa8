"""A linearizability checker after Wing, Gong and Lowe: is there an order of the operations that a sequential model
explains and that keeps the real-time order?

The search walks the calls and returns in time order, linearises a call whenever the model allows it, and backtracks
at a return that was not linearised. A memo of (set of linearised operations, state) prunes what was tried.
Histories are checked per key, so they stay short; a step budget bounds the rest, and running out of it is its own
verdict, never a pass.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

State = Hashable
Step = Callable[[State, Any, Any], tuple[bool, State]]
"""(state, what was asked, what was answered or UNSEEN) -> (is that answer legal here, state after it)."""


class Unseen:
    """The answer of an operation that happened, but whose answer nobody saw."""

    def __repr__(self) -> str:
        return "UNSEEN"


UNSEEN = Unseen()


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that happened at one instant in [called, returned]; `returned` may be infinite."""

    called: float
    returned: float
    asked: Any
    answered: Any
    name: str = ""


class Linearizable(enum.Enum):
    YES = "yes"
    NO = "no"
    UNDECIDED = "undecided"  # out of budget


@dataclass(frozen=True, slots=True)
class LinearizabilityResult:
    verdict: Linearizable
    steps: int
    stuck_at: str = ""  # the operation whose return the longest attempt could not pass


class _Node:
    """A call or a return in a doubly linked list in time order."""

    __slots__ = ("call_number", "is_call", "next", "partner", "previous")

    def __init__(self, call_number: int, is_call: bool) -> None:
        self.call_number = call_number
        self.is_call = is_call
        self.partner: _Node = self
        self.previous: _Node | None = None
        self.next: _Node | None = None


def _linked(calls: Sequence[Call]) -> _Node:
    """The history as a list behind a head node. At one instant calls come before returns: they overlap."""
    events: list[tuple[float, int, int]] = []
    for number, call in enumerate(calls):
        if call.returned < call.called:
            raise ValueError(
                f"operation {call.name or number} returns at {call.returned}, before its call {call.called}"
            )
        events.append((call.called, 0, number))
        events.append((call.returned, 1, number))
    events.sort()
    head = _Node(-1, False)
    last = head
    open_calls: dict[int, _Node] = {}
    for _, is_return, number in events:
        node = _Node(number, not is_return)
        if is_return:
            opened = open_calls.pop(number)
            opened.partner, node.partner = node, opened
        else:
            open_calls[number] = node
        last.next, node.previous = node, last
        last = node
    return head


def _unlink(node: _Node) -> None:
    """Take a call and its return out of the list."""
    for gone in (node, node.partner):
        if gone.previous is not None:
            gone.previous.next = gone.next
        if gone.next is not None:
            gone.next.previous = gone.previous


def _relink(node: _Node) -> None:
    """Put back what `_unlink` took out last."""
    for back in (node.partner, node):
        if back.previous is not None:
            back.previous.next = back
        if back.next is not None:
            back.next.previous = back


def check_linearizable(
    calls: Sequence[Call], initial: State, step: Step, *, steps_max: int = 2_000_000
) -> LinearizabilityResult:
    """Search for a legal order of all calls."""
    head = _linked(calls)
    state = initial
    done = 0
    memo: set[tuple[int, State]] = {(0, initial)}
    undo: list[tuple[_Node, State]] = []
    node = head.next
    steps, farthest, stuck_at = 0, -1, ""
    while head.next is not None:
        steps += 1
        if steps > steps_max:
            return LinearizabilityResult(Linearizable.UNDECIDED, steps, stuck_at)
        if node is None:
            raise RuntimeError("the search ran past a return, so the history list is broken")
        call = calls[node.call_number]
        if node.is_call:
            legal, after = step(state, call.asked, call.answered)
            key = (done | 1 << node.call_number, after)
            if legal and key not in memo:
                memo.add(key)
                undo.append((node, state))
                state, done = after, key[0]
                _unlink(node)
                node = head.next
            else:
                node = node.next
        else:
            if len(undo) > farthest:
                farthest, stuck_at = len(undo), call.name
            if not undo:
                return LinearizabilityResult(Linearizable.NO, steps, stuck_at)
            node, state, done = _backtrack(undo, done)
    return LinearizabilityResult(Linearizable.YES, steps)


def _backtrack(undo: list[tuple[_Node, State]], done: int) -> tuple[_Node | None, State, int]:
    """Take the last linearised call back and go on behind it."""
    node, state = undo.pop()
    _relink(node)
    return node.next, state, done & ~(1 << node.call_number)
