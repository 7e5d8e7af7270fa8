"""When a shard has something to sweep is looked up again only after it applied something."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from flotta_storage.core.writes import Write
from flotta_storage.expiries import Expiries
from flotta_storage.replica_table import Replica
from storage_support import DictView, ShardModel


class CountingView(DictView):
    scans = 0

    def scan(self, *bounds: Any, **how: Any) -> Iterator[tuple[bytes, bytes]]:
        CountingView.scans += 1
        return super().scan(*bounds, **how)


def replica_of(shard: ShardModel, number: int = 7) -> Any:
    machine = SimpleNamespace(
        applied_index=lambda: shard.index, view=lambda: CountingView(shard.rows), kept_row=shard.rows.get
    )
    return Replica("shard-0", 1, number, machine)  # type: ignore[arg-type]


def test_rows_are_looked_at_once_for_each_state() -> None:
    shard, expiries = ShardModel(), Expiries()
    replica = replica_of(shard)
    CountingView.scans = 0
    assert not any(expiries.is_due(replica, 10_000) for _ in range(5))
    looked = CountingView.scans
    shard.write(Write(b"k", b"v", ttl_ms=100), at_ms=1_000)
    assert [expiries.is_due(replica, stamp_ms) for stamp_ms in (0, 1_099, 1_100, 5_000)] == [False, False, True, True]
    assert CountingView.scans == 2 * looked
    shard.expire(1_100)
    assert not expiries.is_due(replica, 5_000)
    assert CountingView.scans == 3 * looked


def test_another_replica_of_the_same_group_is_another_state() -> None:
    shard, empty, expiries = ShardModel(), ShardModel(), Expiries()
    shard.write(Write(b"k", b"v", ttl_ms=100), at_ms=1_000)
    empty.index = shard.index
    assert expiries.is_due(replica_of(shard), 5_000)
    assert not expiries.is_due(replica_of(empty, number=8), 5_000)
    expiries.forget(1)
    expiries.forget(1)
    assert expiries.is_due(replica_of(shard), 5_000)
