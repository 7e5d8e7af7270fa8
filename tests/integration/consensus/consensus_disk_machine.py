"""A state machine on plain files, with the durability of a real one: what was not flushed is gone after `crash`.

Its state is the list of payloads and the members; a flush writes the whole state to a file durably. A payload that
begins with `reject` gets the result "rejected" and changes nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flotta_consensus.api import Entry, EntryKind, Members
from flotta_consensus.durable import make_directory, replace_file


class DiskSource:
    def __init__(self, index: int, data: bytes) -> None:
        self.index = index
        self._data = data

    def chunks(self, bytes_max: int) -> Iterator[bytes]:
        for start in range(0, len(self._data), bytes_max):
            yield self._data[start : start + bytes_max]

    def close(self) -> None:
        self._data = b""


class DiskSink:
    def __init__(self, machine: DiskMachine) -> None:
        self._machine = machine
        self._parts: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._parts.append(chunk)

    def commit(self, index: int, term: int, members: Members) -> None:
        self._machine.load(b"".join(self._parts))
        if (self._machine.index, self._machine.term) != (index, term):
            raise ValueError(f"snapshot at {self._machine.index}/{self._machine.term}, not {index}/{term}")
        if self._machine.current != members:
            raise ValueError(f"snapshot has {self._machine.current}, not {members}")
        self._machine.flush()()

    def abort(self) -> None:
        self._parts = []


class DiskMachine:
    """Open it on a directory; an empty one needs `birth` or stays empty (a learner's)."""

    def __init__(self, directory: Path, birth: Sequence[int] = ()) -> None:
        self._directory = directory
        self._file = directory / "state.json"
        self.index = self.durable = self.term = 0
        self.current = Members()
        self.rows: list[str] = []
        make_directory(directory)
        if self._file.exists():
            self.load(self._file.read_bytes())
        else:
            if birth:
                self.index, self.term, self.current = 1, 1, Members(voters=tuple(birth))
            self.flush()()
        self.durable = self.index

    def load(self, data: bytes) -> None:
        row = json.loads(data)
        self.index, self.term, self.rows = row["index"], row["term"], row["rows"]
        self.current = Members(*(tuple(each) for each in row["members"]))

    def dump(self) -> bytes:
        members = [self.current.voters, self.current.learners, self.current.outgoing]
        return json.dumps({"index": self.index, "term": self.term, "rows": self.rows, "members": members}).encode()

    def applied_index(self) -> int:
        return self.index

    def durable_index(self) -> int:
        return self.durable

    def members(self) -> Members:
        return self.current

    def apply_many(self, entries: Sequence[Entry]) -> list[Any]:
        results: list[Any] = []
        for entry in entries:
            if entry.index != self.index + 1 or self.index == 0:
                raise RuntimeError(f"entry {entry.index} came at {self.index}")
            self.index, self.term = entry.index, entry.term
            if entry.kind is EntryKind.NORMAL and entry.payload.startswith(b"reject"):
                results.append("rejected")
            elif entry.kind is EntryKind.NORMAL:
                self.rows.append(entry.payload.decode("latin-1"))
                results.append(len(self.rows))
            else:
                results.append(None)
            if entry.members is not None:
                self.current = entry.members
        return results

    def flush(self) -> Callable[[], int]:
        index, data = self.index, self.dump()

        def run() -> int:
            replace_file(self._file, data)
            self.durable = max(self.durable, index)
            return index

        return run

    def snapshot(self) -> DiskSource:
        return DiskSource(self.index, self.dump())

    def restore(self) -> DiskSink:
        return DiskSink(self)

    def destroy(self) -> None:
        shutil.rmtree(self._directory)
