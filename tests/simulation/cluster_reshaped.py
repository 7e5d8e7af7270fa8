"""What clients of a cluster must have seen whose shards grew together: by versions alone, no log is read.

Shards that grow together have no log that goes on in another, so histories are not held to a model of the logs here,
as they are of clusters whose shards only divide (`cluster_world.py`). Versions are enough to say most of it: they grow
with every write of a key, wherever it is.

Checked of each key: what was known of it when a write or a STRONG read began is older than what was written, and no
newer than what was read; a row that was known is not missed unless somebody deleted it; a version is of one value, and
a value has one version, so nothing was done twice. Rows with a time are left out where they are missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from flotta_consensus.sim.checkers import SafetyViolation
from flotta_consensus.sim.history import Operation, Verdict

Known = list[tuple[int, int]]
"""(when it was known, version), of what was written and read."""


def check_versions(operations: Iterable[Operation], timed: Collection[bytes]) -> int:
    """How many keys were looked at."""
    by_key: dict[bytes, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_key[operation.key].append(operation)
    for key, ours in by_key.items():
        _check_values(key, ours)
        _check_order(key, ours, timed=key in timed)
    return len(by_key)


def _is_write(operation: Operation) -> bool:
    return operation.kind != "get"


def _version(operation: Operation) -> int:
    """Of the row that an operation wrote or found; 0: it did neither."""
    if operation.verdict is not Verdict.OK or operation.result is None:
        return 0
    if _is_write(operation):
        return int(operation.result.version) if operation.result.kind == "OK" else 0
    return int(operation.result[1])


def _check_values(key: bytes, operations: Iterable[Operation]) -> None:
    versions: dict[bytes, int] = {}
    values: dict[int, bytes] = {}
    for operation in operations:
        version = _version(operation)
        if not version or operation.kind == "delete":
            continue
        value = operation.args[0] if _is_write(operation) else operation.result[0]
        if versions.setdefault(value, version) != version:
            raise SafetyViolation(f"{key!r}: {value[:40]!r} has the versions {versions[value]} and {version}")
        if values.setdefault(version, value) != value:
            raise SafetyViolation(f"{key!r}: version {version} is of {values[version][:40]!r} and {value[:40]!r}")


def _check_order(key: bytes, operations: list[Operation], *, timed: bool) -> None:
    """EVENTUAL reads promise nothing of this. A write that was repeated may have happened from its first attempt on."""
    firm = [one for one in operations if one.verdict is Verdict.OK and not one.notes.get("eventual")]
    known = [(one.returned_us or 0, _version(one)) for one in firm if _version(one)]
    first_called: dict[bytes, int] = {}
    for operation in operations:
        if request_id := operation.notes.get("request_id"):
            first_called.setdefault(request_id, operation.called_us)
    deletes = [one for one in operations if one.kind == "delete" and one.verdict is not Verdict.REJECTED]
    for operation in firm:
        request_id = operation.notes.get("request_id", b"")
        began_us = first_called.get(request_id, operation.called_us)
        newest = max((version for known_us, version in known if known_us < began_us), default=0)
        version = _version(operation)
        told = f"{key!r}: operation {operation.number}, a {operation.kind}"
        if version and (version <= newest if _is_write(operation) else version < newest):
            raise SafetyViolation(f"{told}, has version {version}, but {newest} was known before")
        missed = newest and operation.kind == "get" and operation.result is None and not timed
        if missed and not any(_may_explain(one, operation, newest) for one in deletes):
            raise SafetyViolation(f"{told}, found nothing, but version {newest} was known before")


def _may_explain(delete: Operation, read: Operation, version: int) -> bool:
    """May this delete be why the row of that version was not there?"""
    if delete.called_us >= (read.returned_us or 0):
        return False
    return delete.verdict is not Verdict.OK or _version(delete) >= version
