"""The small pure parts: key ranges, failure detector, history limits, codec strictness."""

from __future__ import annotations

import pytest
from flotta_coordinator.core import commands
from flotta_coordinator.core.codec import decode, encode
from flotta_coordinator.core.deltas import Change, History
from flotta_coordinator.core.keyrange import key_range
from flotta_coordinator.core.liveness import Liveness, Timeouts, is_news
from flotta_coordinator.core.state import Node, NodeStatus, Table
from flotta_embedded.codec import encode_value


def test_key_ranges_cut_the_positive_int32_space() -> None:
    assert key_range(0, 8) == (bytes(4), (268435455).to_bytes(4, "big"))
    assert key_range(7, 8) == ((7 * 268435455).to_bytes(4, "big"), (2147483647).to_bytes(4, "big"))
    assert key_range(0, 1) == (bytes(4), (2147483647).to_bytes(4, "big"))
    for index in range(99):
        assert key_range(index, 100)[1] == key_range(index + 1, 100)[0]
    with pytest.raises(ValueError, match="between 0 and 7"):
        key_range(8, 8)


def node(name: str, status: NodeStatus = NodeStatus.ALIVE, *, pinned: bool = False) -> Node:
    return Node(name, "h:1", "", status, status_pinned=pinned, node_num=1, store_id="s", placeable=True)


def test_silence_makes_suspect_then_dead_and_only_once() -> None:
    detector = Liveness(Timeouts(3000, 10_000, 1500), 0)
    found = []
    status = NodeStatus.ALIVE
    for now in range(500, 15_000, 500):
        for seen in detector.verdicts([node("a", status)], now):
            found.append((now, NodeStatus(seen.status), seen.silent_ms))
            status = NodeStatus(seen.status)
    # Granted from the first check at 500.
    assert found == [(3500, NodeStatus.SUSPECT, 3000), (10_500, NodeStatus.DEAD, 10_000)]


def test_a_pinned_status_is_left_alone() -> None:
    detector = Liveness(Timeouts(3000, 10_000, 3000), 0)
    detector.heard("a", 0)
    assert [detector.verdicts([node("a", pinned=True)], now) for now in range(1000, 20_000, 1000)] == [()] * 19


def test_a_late_check_blames_nobody() -> None:
    detector = Liveness(Timeouts(3000, 10_000, 1500), 0)
    detector.heard("a", 0)
    assert detector.verdicts([node("a")], 20_000) == ()
    assert detector.verdicts([node("a")], 21_000) == ()
    assert detector.silent_ms("a", 21_000) == 1000
    assert detector.silent_ms("b", 21_000) is None


@pytest.mark.parametrize("bad", [(0, 5, 1), (3000, 3000, 1000), (3000, 9000, 4000), (3000, 9000, 0)])
def test_timeouts_must_be_in_order(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive and in this order"):
        Timeouts(*bad)


def test_a_heartbeat_is_news_only_when_it_changes_the_record() -> None:
    assert not is_news(node("a"))
    assert is_news(node("a", NodeStatus.SUSPECT))
    assert not is_news(node("a", NodeStatus.DEAD, pinned=True))
    assert is_news(Node("a", "h:1", "", NodeStatus.ALIVE, node_num=1, store_id="s"))
    assert not is_news(Node("a", "h:1", "", NodeStatus.ALIVE))


def test_history_forgets_before_a_gap_and_bounds_its_ids() -> None:
    history = History(4)
    history.record(Change(5, ("a",), (), False))
    history.record(Change(9, ("b",), (), False))
    assert history.since(5) is None
    delta = history.since(8)
    assert delta is not None and delta.nodes == ("b",)
    small = History(0, ids_max=10)
    small.record(Change(1, (), tuple(f"s{number}" for number in range(30)), True))
    assert small.since(0) is None
    assert small.since(1) is not None


def test_a_field_too_many_or_too_few_is_refused() -> None:
    good = {"name": "default", "num_shards": 1, "replication_factor": 1}
    assert decode(Table, encode_value(good)) == Table("default", 1, 1)
    wrong: list[object] = [{**good, "more": 1}, {"name": "x"}, {**good, "num_shards": True}, {**good, "name": 3}, []]
    for bad in wrong:
        with pytest.raises(ValueError, match="Table"):
            decode(Table, encode_value(bad))
    with pytest.raises(ValueError, match="cannot encode a float"):
        encode(1.5)


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'split_brain\.1', which this version does not know"):
        commands.decode_batch(encode_value([["split_brain.1", {}]]))
