"""What the cluster should do next by itself: `plan(view, policy)`, a pure function.

Its answer is a list of commands, each with the sentence that gives its reason; they are checked once more where they
are applied (`planner_transitions.py`). In order: give up what leads nowhere, mend what must be mended, level what may
be levelled, note what cannot be mended. The same view always gets the same answer, and the view that comes of
fulfilling everything asked for gets none: a cluster at rest is left at rest.
"""

from __future__ import annotations

from flotta_coordinator.core.balance import balance
from flotta_coordinator.core.board import Board
from flotta_coordinator.core.commands import Command
from flotta_coordinator.core.given_up import give_up
from flotta_coordinator.core.notes import take_notes
from flotta_coordinator.core.plan_view import Policy, View
from flotta_coordinator.core.repairs import Repairs


def plan(view: View, policy: Policy) -> tuple[Command, ...]:
    """The decisions that are due. None while it is not known which nodes are there."""
    if not view.ready:
        return ()
    board = Board(view, policy)
    give_up(board)
    repairs = Repairs(board)
    repairs.run()
    balance(board)
    take_notes(board, repairs)
    return tuple(board.actions)
