"""The linearizability checker against histories whose verdict is known."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from flotta_consensus.sim.linearizability import UNSEEN, Call, Linearizable, State, check_linearizable

NO, YES = Linearizable.NO, Linearizable.YES


def register(state: State, asked: Any, answered: Any) -> tuple[bool, State]:
    """("put", value), ("get",) and ("cas", expected, value); a cas answers whether it swapped."""
    kind = asked[0]
    if kind == "put":
        return True, asked[1]
    if kind == "get":
        return answered is UNSEEN or answered == state, state
    swaps = state == asked[1]
    return answered is UNSEEN or answered == swaps, asked[2] if swaps else state


def put(called: float, returned: float, value: int) -> Call:
    return Call(called, returned, ("put", value), None, f"put {value}")


def get(called: float, returned: float, value: int | None) -> Call:
    return Call(called, returned, ("get",), value, f"get {value}")


def cas(called: float, returned: float, expected: int | None, value: int, swapped: Any) -> Call:
    return Call(called, returned, ("cas", expected, value), swapped, f"cas {expected}->{value}")


def verdict(*calls: Call) -> Linearizable:
    return check_linearizable(calls, None, register).verdict


@pytest.mark.parametrize(
    ("expected", "calls"),
    [
        (YES, []),
        (YES, [get(0, 1, None)]),
        (NO, [get(0, 1, 7)]),
        (YES, [put(0, 1, 1), get(2, 3, 1)]),
        # A stale read after the write's return.
        (NO, [put(0, 1, 1), get(2, 3, None)]),
        # Overlapping: both answers are fine, but not new and then old.
        (YES, [put(0, 10, 1), get(1, 2, None), get(3, 4, 1)]),
        (NO, [put(0, 10, 1), get(1, 2, 1), get(3, 4, None)]),
        # Two writes one after the other; a read between two reads goes back.
        (NO, [put(0, 1, 1), put(2, 3, 2), get(4, 5, 1)]),
        (YES, [put(0, 5, 1), put(0, 5, 2), get(6, 7, 1), get(6, 7, 1)]),
        (NO, [put(0, 5, 1), put(0, 5, 2), get(6, 7, 1), get(8, 9, 2)]),
        # Compare and swap: only one of two may win.
        (YES, [cas(0, 5, None, 1, True), cas(0, 5, None, 2, False)]),
        (NO, [cas(0, 5, None, 1, True), cas(0, 5, None, 2, True)]),
        (YES, [cas(0, 5, None, 1, True), cas(0, 5, 1, 2, True), get(6, 7, 2)]),
        # At one instant a call comes before a return, so these overlap.
        (YES, [put(0, 1, 1), get(1, 2, None)]),
        # An operation whose answer was not seen, but which happened: some time after its call.
        (YES, [Call(0, math.inf, ("put", 1), UNSEEN), get(5, 6, None), get(7, 8, 1)]),
        (NO, [Call(0, math.inf, ("put", 1), UNSEEN), get(5, 6, 1), get(7, 8, None)]),
        (YES, [Call(0, math.inf, ("put", 1), UNSEEN), get(5, 6, None)]),
        (NO, [get(1, 2, 1), Call(3, math.inf, ("put", 1), UNSEEN)]),
    ],
)
def test_known_histories(expected: Linearizable, calls: list[Call]) -> None:
    assert verdict(*calls) is expected


def test_the_stuck_operation_is_named() -> None:
    result = check_linearizable([put(0, 1, 1), put(2, 3, 2), get(4, 5, 1)], None, register)
    assert result.stuck_at == "get 1"


def test_out_of_budget_is_not_a_pass() -> None:
    calls = [put(0, 100, value) for value in range(12)] + [get(0, 100, 99)]
    assert check_linearizable(calls, None, register, steps_max=500).verdict is Linearizable.UNDECIDED


def test_a_return_before_its_call_is_refused() -> None:
    with pytest.raises(ValueError, match="before its call"):
        verdict(put(5, 1, 1))


def brute_force(calls: list[Call]) -> Linearizable:
    """Every order, checked against real time and the model."""
    for order in itertools.permutations(calls):
        if any(later.returned < earlier.called for i, earlier in enumerate(order) for later in order[i + 1 :]):
            continue
        state: State = None
        for call in order:
            legal, state = register(state, call.asked, call.answered)
            if not legal:
                break
        else:
            return YES
    return NO


def random_history(rng: random.Random) -> list[Call]:
    calls = []
    for number in range(rng.randint(1, 6)):
        called = rng.randint(0, 12)
        returned = math.inf if rng.random() < 0.15 else called + rng.randint(0, 6)
        unseen = math.isinf(returned)
        kind = rng.choice(("put", "get", "cas"))
        if kind == "put":
            calls.append(Call(called, returned, ("put", rng.randint(1, 2)), UNSEEN if unseen else None, str(number)))
        elif kind == "get":
            calls.append(Call(called, returned, ("get",), UNSEEN if unseen else rng.choice((None, 1, 2)), str(number)))
        else:
            asked = ("cas", rng.choice((None, 1, 2)), rng.randint(1, 2))
            calls.append(Call(called, returned, asked, UNSEEN if unseen else rng.random() < 0.5, str(number)))
    return calls


def test_agrees_with_brute_force() -> None:
    rng = random.Random("linearizability")
    seen = {YES: 0, NO: 0}
    for _ in range(1_500):
        calls = random_history(rng)
        expected = brute_force(calls)
        seen[expected] += 1
        assert check_linearizable(calls, None, register).verdict is expected, calls
    assert min(seen.values()) > 200
