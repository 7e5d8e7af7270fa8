"""One environment variable chooses what real clusters of the tests speak, unless a test chooses itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from process_cluster import ProcessCluster


def test_the_run_chooses_unless_the_test_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLOTTA_TRANSPORT", raising=False)
    monkeypatch.delenv("FLOTTA_TEST_TRANSPORT", raising=False)
    assert "FLOTTA_TRANSPORT" not in ProcessCluster(tmp_path).environment
    for named in ("grpcio", "native"):
        monkeypatch.setenv("FLOTTA_TEST_TRANSPORT", named)
        assert ProcessCluster(tmp_path).environment["FLOTTA_TRANSPORT"] == named
        assert ProcessCluster(tmp_path, transport="native").environment["FLOTTA_TRANSPORT"] == "native"
    monkeypatch.setenv("FLOTTA_TEST_TRANSPORT", "pigeons")
    with pytest.raises(ValueError, match="native, grpcio"):
        ProcessCluster(tmp_path)
