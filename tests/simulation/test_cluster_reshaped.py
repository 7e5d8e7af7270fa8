"""The check by versions refuses what it should, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from cluster_reshaped import check_versions
from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.history import History, Operation, Verdict
from shard_model import Answer

KEY = b"key"


def told(history: History, kind: str, called_us: int, returned_us: int, result: Any, **notes: Any) -> Operation:
    value = notes.pop("value", b"value of %d" % called_us)
    operation = history.call(1, 0, kind, KEY, (value, 0), called_us)
    operation.returned_us, operation.result, operation.verdict = returned_us, result, Verdict.OK
    operation.notes.update(notes)
    return operation


def put(history: History, called_us: int, returned_us: int, version: int, **notes: Any) -> Operation:
    return told(history, "put", called_us, returned_us, Answer("OK", version, version), **notes)


def get(history: History, called_us: int, returned_us: int, version: int, **notes: Any) -> Operation:
    return told(history, "get", called_us, returned_us, (b"v%d" % version, version) if version else None, **notes)


def test_what_may_be() -> None:
    history = History()
    put(history, 0, 10, 5, value=b"v5")
    get(history, 5, 12, 0)  # it was under way
    get(history, 20, 25, 5)
    get(history, 20, 40, 8)  # as the write that it met
    put(history, 22, 30, 8, value=b"v8")
    get(history, 50, 51, 3, eventual=True)
    lost = history.call(1, 0, "put", KEY, (b"v9", 0), 55)
    lost.verdict, lost.returned_us, lost.notes["request_id"] = Verdict.UNKNOWN, 60, b"r"
    get(history, 61, 62, 9)
    put(history, 63, 70, 9, value=b"v9", request_id=b"r")  # its first attempt had happened
    told(history, "delete", 80, 90, Answer("OK", 12, 12))
    get(history, 95, 96, 0)
    told(history, "put", 97, 98, Answer("VERSION_MISMATCH", 0))
    assert check_versions(history, ()) == 1


@pytest.mark.parametrize("timed", [False, True])
def test_what_may_not_be(timed: bool) -> None:
    def refused(*later: Any) -> str:
        history = History()
        put(history, 0, 10, 5, value=b"v5")
        for make, *arguments in later:
            make(history, *arguments)
        with pytest.raises(SafetyViolation) as found:
            check_versions(history, (KEY,) if timed else ())
        return str(found.value)

    assert "has version 4, but 5 was known" in refused((get, 11, 12, 4))
    assert "has version 5, but 5 was known" in refused((lambda history: put(history, 11, 12, 5, value=b"v5"),))
    assert "has the versions 5 and 6" in refused((lambda history: put(history, 3, 12, 6, value=b"v5"),))
    assert "version 5 is of" in refused((lambda history: put(history, 3, 12, 5, value=b"other"),))
    history = History()
    put(history, 0, 10, 5)
    get(history, 11, 12, 0)
    if timed:
        check_versions(history, (KEY,))
    else:
        with pytest.raises(SafetyViolation, match="found nothing, but version 5"):
            check_versions(history, ())
