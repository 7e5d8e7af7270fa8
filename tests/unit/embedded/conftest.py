"""Fixtures of the embedded core's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_harness import KINDS, Crashable, make_registry
from flotta_embedded.registry import Registry


@pytest.fixture(params=KINDS)
def crashable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crashable]:
    found = Crashable(str(request.param), tmp_path)
    yield found
    found.close()


@pytest.fixture
def registry() -> Registry:
    return make_registry()
