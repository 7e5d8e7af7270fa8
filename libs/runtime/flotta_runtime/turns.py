"""The end of a turn: what waits for the rest of its batch, and for nothing longer.

Whoever takes in a batch on the event loop (frames of links, calls, news of the Raft host) does so inside `with turns:`.
What is put off with `soon` runs when the outermost of these ends, in the order it was put off; what is put off with
`at_end` runs after all of that, so that one call carries everything a turn has produced. Both still run in the same
callback of the event loop: a lone request never waits for the loop to come round again. Outside of any turn they run
in the next pass of the loop, together.

Invariants: every action runs exactly once; one that raises keeps no other from running. Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

Action = Callable[[], None]


class Turns:
    """One for all parts of a service that work for each other."""

    __slots__ = ("_depth", "_last", "_next", "_scheduled")

    def __init__(self) -> None:
        self._depth = 0
        self._scheduled = False
        self._next: deque[Action] = deque()
        self._last: deque[Action] = deque()

    def soon(self, action: Action) -> None:
        """Run `action` when everything of this turn has come in."""
        self._next.append(action)
        if not self._depth:
            self._schedule()

    def at_end(self, action: Action) -> None:
        """Run `action` when nothing else is left to do in this turn."""
        self._last.append(action)
        if not self._depth:
            self._schedule()

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._depth == 1 and error is None:
                while self._next or self._last:
                    (self._next or self._last).popleft()()
        finally:
            self._depth -= 1
            if not self._depth and (self._next or self._last):
                self._schedule()  # something raised: the others are not to blame

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        with self:
            pass
