"""Failpoints: what is armed happens at the pass it was armed for, and a typo stops the start."""

from __future__ import annotations

import pytest
from flotta_consensus.api import NoFailpoints
from flotta_consensus.failpoints import (
    CONSENSUS_FAILPOINTS,
    VARIABLE,
    ArmedFailpoints,
    FailpointError,
    from_environment,
)


def test_nothing_is_armed_by_default() -> None:
    assert isinstance(from_environment({}), NoFailpoints)
    assert isinstance(from_environment({VARIABLE: ""}), NoFailpoints)


def test_abort_at_the_third_pass() -> None:
    aborted: list[int] = []
    points = ArmedFailpoints("a.b=abort@3", ["a.b"], abort=lambda: aborted.append(1))
    for _ in range(2):
        points.reach("a.b")
        points.reach("a.c")
    assert aborted == []
    points.reach("a.b")
    assert aborted == [1]
    points.reach("a.b")
    assert aborted == [1]


def test_error_and_sleep() -> None:
    points = ArmedFailpoints("a=error, b=sleep:0", ["a", "b"])
    with pytest.raises(FailpointError, match="failpoint a, pass 1"):
        points.reach("a")
    points.reach("b")


def test_extra_names_and_native_ones() -> None:
    points = from_environment({VARIABLE: "raft.before_sync=abort@3,storage.x=error"}, extra=["storage.x"])
    points.reach("raft.before_sync")  # the native host's own business
    with pytest.raises(FailpointError):
        points.reach("storage.x")


@pytest.mark.parametrize(
    "text", ["a", "a=explode", "a=abort@0", "a=abort@x", "a=sleep", "A B=abort", "consensus.before_flish=abort"]
)
def test_typos_stop_the_start(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        ArmedFailpoints(text, ["a", *CONSENSUS_FAILPOINTS])
