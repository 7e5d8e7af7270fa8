"""The transcripts drive the same cluster as the native unit tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "native"))
