"""Makes the helpers under tests/harness, and the benchmark's modules, importable by name from every test."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS / "harness"))
sys.path.append(str(TESTS.parent / "bench"))
