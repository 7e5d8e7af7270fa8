"""Who a data directory is: the identity file, the lock, and what is on record about its peers.

A store id is made once per directory and never copied: a node that comes back with an empty directory comes back
as somebody else, and its peers can tell (a voter that forgot its votes would break Raft). Both files are replaced
whole and durably; the lock is held for the life of the object. Every error is one sentence for an operator.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flotta_consensus.api import Failpoints, NoFailpoints
from flotta_consensus.durable import make_directory, replace_file

IDENTITY_FILE = "identity.json"
PEERS_FILE = "peers.json"
LOCK_FILE = "lock"
_FORMAT = 1
_NODE_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")


class IdentityError(Exception):
    """The directory or a peer is not who it should be. The text is one clear sentence."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is. `cluster_id` is empty and `node_num` 0 until it became part of a cluster."""

    node_id: str
    store_id: str
    cluster_id: str = ""
    node_num: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    identity: Identity
    formed: bool  # groups were created: a log must exist from now on


class DataDirectory:
    """An opened, locked data directory. `identity` changes only through `adopt`."""

    def __init__(self, path: Path, lock: int, stored: Stored, *, is_new: bool, failpoints: Failpoints) -> None:
        self.path = path
        self.is_new = is_new  # this start made the identity: nothing was here before
        self._lock = lock
        self._stored = stored
        self._failpoints = failpoints
        self.peers = PeerBook(path / PEERS_FILE)

    @classmethod
    def open(
        cls,
        path: Path,
        node_id: str,
        *,
        new_store_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        failpoints: Failpoints | None = None,
    ) -> DataDirectory:
        """Lock the directory and read its identity, or make one durably if the directory is empty."""
        if not _NODE_ID.match(node_id):
            raise IdentityError(f"node id '{node_id}' must be 1 to 128 letters, digits, '.', '_' or '-'")
        points = failpoints or NoFailpoints()
        try:
            make_directory(path)
        except OSError as error:
            raise IdentityError(f"data directory {path} cannot be used: {error.strerror}") from error
        lock = _take_lock(path)
        try:
            stored = _read_identity(path, node_id)
            is_new = stored is None
            if stored is None:
                _refuse_foreign_files(path)
                stored = Stored(Identity(node_id, new_store_id()), formed=False)
                points.reach("consensus.before_identity_write")
                _write_identity(path, stored)
                points.reach("consensus.after_identity_write")
            return cls(path, lock, stored, is_new=is_new, failpoints=points)
        except BaseException:
            os.close(lock)
            raise

    @property
    def identity(self) -> Identity:
        return self._stored.identity

    @property
    def formed(self) -> bool:
        return self._stored.formed

    @property
    def raft_dir(self) -> Path:
        return self.path / "raft"

    @property
    def snapshots_dir(self) -> Path:
        return self.path / "snapshots"

    @property
    def incoming_dir(self) -> Path:
        return self.path / "incoming"

    def adopt(self, cluster_id: str, node_num: int) -> Identity:
        """Become part of a cluster, durably. Nothing changes if it already is; another cluster is an error."""
        mine = self.identity
        if not cluster_id or not 0 < node_num < 1 << 32:
            raise IdentityError(f"'{cluster_id}' and {node_num} are not a cluster id and a node number")
        if mine.cluster_id and mine.cluster_id != cluster_id:
            raise IdentityError(
                f"data directory {self.path} belongs to cluster {mine.cluster_id}, not to cluster {cluster_id}"
            )
        if mine.node_num and mine.node_num != node_num:
            raise IdentityError(f"data directory {self.path} belongs to node number {mine.node_num}, not to {node_num}")
        adopted = replace(mine, cluster_id=cluster_id, node_num=node_num)
        if adopted != mine:
            self._store(replace(self._stored, identity=adopted))
        return adopted

    def mark_formed(self) -> None:
        """Call once the first group is durable: from now on a missing log stops the start."""
        if not self.formed:
            self._store(replace(self._stored, formed=True))

    def require_log(self, groups: int) -> None:
        """Refuse to start when groups were created here and the log knows none."""
        if self.formed and groups == 0:
            raise IdentityError(
                f"data directory {self.path} took part in cluster {self.identity.cluster_id} but its Raft log is gone; "
                "restore it, or remove the node and add it again with an empty directory"
            )

    def close(self) -> None:
        """Let go of the lock. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _store(self, stored: Stored) -> None:
        self._failpoints.reach("consensus.before_identity_write")
        _write_identity(self.path, stored)
        self._stored = stored
        self._failpoints.reach("consensus.after_identity_write")


@dataclass(frozen=True, slots=True)
class PeerRecord:
    node_id: str
    store_id: str


class PeerBook:
    """Which store each peer was met under, recorded durably before the first message of that peer counts.

    A node number belongs to one store for ever, so a number that comes back with another store is an impostor or a
    node that lost its disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_num: dict[int, PeerRecord] = _read_peers(path) if path.exists() else {}

    def store_of_node(self, node_id: str, node_num: int = 0) -> str:
        """The store id on record for a node id (of its newest node number), or empty. Empty, too, for whoever has a
        newer number than that: it was given the place since, and is not met yet."""
        newest = max((number for number, record in self._by_num.items() if record.node_id == node_id), default=0)
        return self._by_num[newest].store_id if newest and node_num <= newest else ""

    def record_of(self, node_num: int) -> PeerRecord | None:
        return self._by_num.get(node_num)

    def check(self, node_num: int, node_id: str, store_id: str) -> bool:
        """True if exactly this is on record, False if nothing is. IdentityError if something else is."""
        known = self._by_num.get(node_num)
        if known is None:
            return False
        if known != PeerRecord(node_id, store_id):
            raise IdentityError(
                f"node number {node_num} is on record as {known.node_id} with store {known.store_id}, "
                f"not as {node_id} with store {store_id}: a node that lost its data directory must be replaced, "
                "it cannot come back under its old identity"
            )
        return True

    def record(self, node_num: int, node_id: str, store_id: str) -> None:
        """Check, and write down what is new, durably. Blocking for one fsync, once per peer ever."""
        if not 0 < node_num < 1 << 32 or not node_id or not store_id:
            raise IdentityError(f"a peer introduced itself as '{node_id}', number {node_num}, store '{store_id}'")
        if self.check(node_num, node_id, store_id):
            return
        grown = {**self._by_num, node_num: PeerRecord(node_id, store_id)}
        rows = {str(number): asdict(grown[number]) for number in sorted(grown)}
        replace_file(self._path, json.dumps({"format": _FORMAT, "peers": rows}, indent=1).encode())
        self._by_num = grown


def _take_lock(path: Path) -> int:
    lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        by = f" (process {holder})" if holder.isdigit() else ""
        raise IdentityError(f"data directory {path} is in use by another process{by}") from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _refuse_foreign_files(path: Path) -> None:
    ours = {LOCK_FILE, IDENTITY_FILE + ".new", "lost+found"}
    found = sorted(entry.name for entry in path.iterdir() if entry.name not in ours)
    if found:
        raise IdentityError(f"data directory {path} has no {IDENTITY_FILE} but is not empty (it holds '{found[0]}')")


def _read_identity(path: Path, node_id: str) -> Stored | None:
    file = path / IDENTITY_FILE
    if not file.exists():
        return None
    row = _read_json(file)
    try:
        identity = Identity(
            node_id=str(row["node_id"]),
            store_id=str(row["store_id"]),
            cluster_id=str(row["cluster_id"]),
            node_num=int(row["node_num"]),
        )
        stored = Stored(identity, formed=bool(row["formed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise IdentityError(f"{file} is not a valid identity file: {error!r}") from error
    if identity.node_id != node_id:
        raise IdentityError(f"data directory {path} belongs to node {identity.node_id}, not to node {node_id}")
    return stored


def _write_identity(path: Path, stored: Stored) -> None:
    row = {"format": _FORMAT, **asdict(stored.identity), "formed": stored.formed}
    replace_file(path / IDENTITY_FILE, json.dumps(row, indent=1).encode())


def _read_peers(path: Path) -> dict[int, PeerRecord]:
    row = _read_json(path)
    try:
        return {
            int(number): PeerRecord(str(peer["node_id"]), str(peer["store_id"]))
            for number, peer in row["peers"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IdentityError(f"{path} is not a valid record of peers: {error!r}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        row = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise IdentityError(f"{path} cannot be read: {error}") from error
    if not isinstance(row, dict) or row.get("format") != _FORMAT:
        raise IdentityError(f"{path} has a format this version does not know")
    return row
