"""Both engines against a dictionary, under any order of writes, flushes, frozen views, drops and crashes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from embedded_harness import Crashable, rows_of
from flotta_embedded.api import FrozenView
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

SPACES = st.sampled_from(["a", "b"])
KEYS = st.binary(max_size=3)
Rows = dict[bytes, bytes]


class EngineModel(RuleBasedStateMachine):
    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="flotta-engine-"))
        self.crashable = Crashable(self.kind, self.directory)
        self.live: dict[str, Rows] = {}
        self.flushed: dict[str, Rows] = {}
        self.frozen: list[tuple[FrozenView, Rows]] = []

    def teardown(self) -> None:
        self._close_frozen()
        self.crashable.close()
        shutil.rmtree(self.directory)

    def _close_frozen(self) -> None:
        for view, _ in self.frozen:
            view.close()
        self.frozen.clear()

    @rule(space=SPACES)
    def create_or_drop(self, space: str) -> None:
        if space in self.live:
            self.crashable.engine.drop(space)
            del self.live[space], self.flushed[space]
        else:
            self.crashable.engine.create(space)
            self.live[space], self.flushed[space] = {}, {}

    @precondition(lambda self: self.live)
    @rule(data=st.data(), puts=st.dictionaries(KEYS, st.binary(max_size=4), max_size=6), deletes=st.sets(KEYS))
    def write(self, data: st.DataObject, puts: Rows, deletes: set[bytes]) -> None:
        space = data.draw(st.sampled_from(sorted(self.live)))
        deletes -= puts.keys()
        self.crashable.engine.write(space, list(puts.items()), sorted(deletes))
        self.live[space] = {key: value for key, value in (self.live[space] | puts).items() if key not in deletes}

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def flush(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from(sorted(self.live)))
        self.crashable.engine.flush(space)
        self.flushed[space] = dict(self.live[space])

    @precondition(lambda self: self.live and len(self.frozen) < 3)
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        space = data.draw(st.sampled_from(sorted(self.live)))
        self.frozen.append((self.crashable.engine.freeze(space), dict(self.live[space])))

    @rule()
    def crash(self) -> None:
        self._close_frozen()
        self.crashable.crash()
        self.live = {space: dict(rows) for space, rows in self.flushed.items()}

    @precondition(lambda self: self.live)
    @rule(data=st.data(), low=KEYS, high=st.none() | KEYS, reverse=st.booleans(), limit=st.none() | st.integers(0, 5))
    def scan(self, data: st.DataObject, low: bytes, high: bytes | None, reverse: bool, limit: int | None) -> None:
        space = data.draw(st.sampled_from(sorted(self.live)))
        expected = sorted(row for row in self.live[space].items() if row[0] >= low and (high is None or row[0] < high))
        if reverse:
            expected.reverse()
        view = self.crashable.engine.view(space)
        assert list(view.scan(low, high, reverse=reverse, limit=limit)) == expected[:limit]

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        assert self.crashable.engine.spaces() == sorted(self.live)
        for space, rows in self.live.items():
            assert rows_of(self.crashable.engine.view(space)) == sorted(rows.items())
        for view, rows in self.frozen:
            assert rows_of(view) == sorted(rows.items())


class SimModel(EngineModel):
    kind = "sim"


class RocksModel(EngineModel):
    kind = "rocks"


TestSimModel = SimModel.TestCase
TestSimModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRocksModel = RocksModel.TestCase
TestRocksModel.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
