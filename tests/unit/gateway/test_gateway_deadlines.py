"""The timing wheel against a plain dictionary of deadlines."""

from __future__ import annotations

from flotta_gateway.core.deadlines import DeadlineWheel
from hypothesis import given
from hypothesis import strategies as st

TICK_MS = 10


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 8), st.floats(0, 2000)),
            st.tuples(st.just("discard"), st.integers(0, 8), st.just(0.0)),
            st.tuples(st.just("pass"), st.just(0), st.floats(0, 600)),
        )
    )
)
def test_like_a_dictionary(steps: list[tuple[str, int, float]]) -> None:
    wheel: DeadlineWheel[int] = DeadlineWheel(TICK_MS)
    model: dict[int, float] = {}
    now_ms = 0.0
    for what, item, value in steps:
        if what == "set":
            wheel.set(item, now_ms + value)
            model[item] = now_ms + value
        elif what == "discard":
            wheel.discard(item)
            model.pop(item, None)
        else:
            now_ms += value
            due = wheel.due(now_ms)
            assert len(due) == len(set(due))
            for fired in due:
                assert model.pop(fired) <= now_ms
            assert all(at_ms > now_ms - TICK_MS for at_ms in model.values())
        assert len(wheel) == len(model)
    wheel.due(now_ms + 10_000)
    assert len(wheel) == 0
