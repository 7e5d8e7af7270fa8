"""Both engines behind one crash: what the embedded tests run against."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flotta_consensus.api import Entry, EntryKind, Members
from flotta_embedded.api import Command, Engine, Overlay, View
from flotta_embedded.codec import encode_command
from flotta_embedded.dedup import CONFLICT, DedupRun, Duplicate, fingerprint, row_key
from flotta_embedded.errors import CommandError
from flotta_embedded.registry import Registry
from flotta_embedded.rocks import RocksEngine
from flotta_embedded.simulated import SimEngine
from flotta_embedded.txn import Txn

KINDS = ("sim", "rocks")


class Crashable:
    """An engine that can lose power: `crash` leaves what was flushed, and returns the next process's engine."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        self._lives = 0
        self.engine: Engine = SimEngine(1) if kind == "sim" else RocksEngine(self._path())

    def _path(self) -> Path:
        return self._directory / f"life-{self._lives}"

    def crash(self) -> Engine:
        if isinstance(self.engine, SimEngine):
            self.engine.crash()
            return self.engine
        # Nothing of an unflushed write is in the files (no RocksDB log), so a copy of them is what a crash leaves.
        old, before = self.engine, self._path()
        self._lives += 1
        while not _copied_at_one_moment(before, self._path()):
            shutil.rmtree(self._path(), ignore_errors=True)
        old.close()
        shutil.rmtree(before)
        self.engine = RocksEngine(self._path())
        return self.engine

    def close(self) -> None:
        self.engine.close()


def _copied_at_one_moment(source: Path, target: Path) -> bool:
    """False if a compaction in the background changed the files meanwhile."""

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in source.iterdir() if not path.name.startswith("LO")}

    try:
        before = files()
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("LO*"))
        return files() == before
    except (FileNotFoundError, shutil.Error):
        return False


def rows_of(view: View) -> list[tuple[bytes, bytes]]:
    return list(view.scan(b"", None))


# --- a registry with every sort of command ------------------------------------------------------------------------

_PUT = struct.Struct(">HI")
WINDOW_MS = 50
KEPT = (b"d0", b"depoch")  # rows that machines keep in memory


def put_args(key: bytes, value: bytes, request_id: bytes = b"") -> bytes:
    return _PUT.pack(len(key), len(value)) + key + value + request_id


def _split_put(args: bytes) -> tuple[bytes, bytes, bytes]:
    key_length, value_length = _PUT.unpack_from(args)
    value_at = _PUT.size + key_length
    end = value_at + value_length
    return args[_PUT.size : value_at], args[value_at:end], args[end:]


def _put_many(overlay: Overlay, commands: Sequence[Command]) -> list[Any]:
    """A put that answers with the version before; with a request id it happens once."""
    split = [_split_put(command.args) for command in commands]
    dedup = DedupRun(overlay, WINDOW_MS, last_ms=commands[-1].now_ms, commands=len(commands))
    overlay.multi_get([b"d" + key for key, _, _ in split])
    results: list[Any] = []
    for command, (key, value, request_id) in zip(commands, split, strict=True):
        if request_id:
            row, mark = row_key(b"t", key, request_id), fingerprint(key, value)
            seen = dedup.lookup(row, mark, command.now_ms)
            if isinstance(seen, Duplicate):
                results.append(("duplicate", int.from_bytes(seen.outcome, "big")))
                continue
            if seen is CONFLICT:
                results.append("conflict")
                continue
            dedup.record(row, mark, command.revision.to_bytes(8, "big"), command.now_ms)
        before = overlay.get(b"d" + key)
        overlay.put(b"d" + key, command.revision.to_bytes(8, "big") + value)
        results.append((command.revision, None if before is None else int.from_bytes(before[:8], "big")))
    return results


def make_registry() -> Registry:
    registry = Registry()
    registry.vector("put")(_put_many)
    for key in KEPT:
        registry.keep_row(key)

    @registry.command("add")
    def add(txn: Txn, key: bytes, amount: int = 1) -> int:
        total = int(txn.table("sums").get(key) or b"0") + amount
        txn.table("sums").put(key, str(total).encode())
        txn.table("log").put(txn.index.to_bytes(8, "big"), key)
        if total > 20:
            raise CommandError("TOO_BIG", f"{total} is over 20", {"at": txn.now_ms})
        return total

    @registry.command("wipe")
    def wipe(txn: Txn, prefix: bytes, most: int) -> list[bytes]:
        gone = []
        for key, _ in txn.scan(prefix=prefix, limit=most):
            txn.delete(key)
            gone.append(key)
        return gone

    @registry.on_members
    def remember(overlay: Overlay, index: int, before: Members, after: Members) -> None:
        if before.voters != after.voters:
            overlay.put(b"depoch", index.to_bytes(8, "big"))

    return registry


def command(index: int, name: str, args: bytes, *, stamp_ms: int = 0, term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.NORMAL, encode_command(name, 1, stamp_ms, args))


def put(index: int, key: bytes, value: bytes, *, stamp_ms: int = 0, request_id: bytes = b"") -> Entry:
    return command(index, "put", put_args(key, value, request_id), stamp_ms=stamp_ms)


def conf(index: int, *voters: int, term: int = 1) -> Entry:
    return Entry(index, term, EntryKind.CONF, b"", Members(voters))


def empty(index: int, term: int) -> Entry:
    return Entry(index, term, EntryKind.EMPTY, b"")
