"""Makes the helpers under tests/harness, and the benchmark's modules, importable by name from every test.

`--transport native|grpcio` runs only that half of the tests that run on both, and everything else that starts services
with it; by default both halves run, and everything else on what the services' own default is.
"""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "harness"))
sys.path.append(str(TESTS.parent / "bench"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--transport", choices=["native", "grpcio", "both"], default="both", help="what serves gRPC")


def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("--transport")
    if chosen != "both":
        os.environ["FLOTTA_TRANSPORT"] = chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("--transport")
    if chosen == "both":
        return
    left_out = [item for item in items if _transport_of(item) not in (None, chosen)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _transport_of(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("transport")
