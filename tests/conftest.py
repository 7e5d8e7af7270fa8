"""Makes the helpers under tests/harness, and the benchmark's modules, importable by name from every test.

`--transport native|grpcio` runs only that half of the tests that run on both, and everything else that starts services
with it; by default both halves run, and everything else on what the services' own default is.

Properties are tried with the same examples every time, and with no bound on how long one may take: a machine that is
slow is no failure, and what fresh examples find is not for whoever changes something else; PROPERTIES=fresh tries such.
"""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "harness"))
sys.path.append(str(TESTS.parent / "bench"))
for name, the_same in (("same", True), ("fresh", False)):
    slow = (hypothesis.HealthCheck.too_slow,)
    hypothesis.settings.register_profile(name, deadline=None, derandomize=the_same, suppress_health_check=slow)
hypothesis.settings.load_profile(os.environ.get("PROPERTIES", "same"))


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
