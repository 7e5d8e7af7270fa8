"""Faults that a test turns on and off: a disk that can fill up, damage in a Raft log, cut connections.

Everything needs root, and everything is taken away again at the end of its block, whatever happens in it.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from process_cluster import ProcessCluster

SEGMENT_HEADER_BYTES = 64
FRAME_HEADER_BYTES = 16
_cuts = itertools.count(1)


def sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def small_disk(mount: Path, megabytes: int) -> Iterator[None]:
    """A disk of its own for one folder; `resize` makes it bigger. End the processes that use it before."""
    mount.mkdir(parents=True, exist_ok=True)
    sh("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(mount))
    try:
        yield
    finally:
        sh("umount", "--lazy", str(mount))


def fill(mount: Path) -> Path:
    """Take what is left of a disk, to the last page."""
    filler = mount / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


def resize(mount: Path, megabytes: int) -> None:
    sh("mount", "-o", f"remount,size={megabytes}m", str(mount))


def frames(segment: Path) -> list[tuple[int, int]]:
    """(offset, end) of every frame of a Raft log segment, up to the zeros after the last one."""
    content, found, offset = segment.read_bytes(), [], SEGMENT_HEADER_BYTES
    while offset + FRAME_HEADER_BYTES <= len(content):
        (length,) = struct.unpack_from("<I", content, offset)
        if length == 0:
            break
        end = offset + (FRAME_HEADER_BYTES + length + 7) // 8 * 8
        found.append((offset, end))
        offset = end
    return found


def last_segment(data_dir: Path) -> Path:
    """The segment that is written to: the last one that holds a frame (one after it may be prepared)."""
    return [path for path in sorted((data_dir / "raft").glob("*.log")) if frames(path)][-1]


def overwrite(path: Path, offset: int, content: bytes) -> bytes:
    """Put bytes into a file, durably; returns what was there."""
    with path.open("r+b") as file:
        file.seek(offset)
        before = file.read(len(content))
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return before


# Only the storage node gets the library: under it, time.sleep of the script that starts the node fails.
PRELOAD = """\
import os, sys
if "flotta_storage" in sys.orig_argv and "LD_PRELOAD" not in os.environ:
    os.environ["LD_PRELOAD"] = os.environ["TEST_PRELOAD"]
    os.execv(sys.executable, sys.orig_argv)
"""


class WallClock:
    """The wall clock of one storage node, which can be set; its monotonic clock goes on. Needs Debian's faketime."""

    def __init__(self, folder: Path) -> None:
        self._file, self._customize = folder / "wall-clock", folder / "customize"
        self._customize.mkdir()
        (self._customize / "sitecustomize.py").write_text(PRELOAD)
        self.set("+0")

    def variables(self) -> dict[str, str]:
        """What the process is started with."""
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "PYTHONPATH": str(self._customize),
            "TEST_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """`+1d`, `-2h`: how far it is from the true time, from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(offset + "\n")
        new.replace(self._file)


class Cut:
    """Connections that one set of members opened to others, as dead as if the cable was out: nothing is answered.

    Members are told apart by their group ids (the cluster must be `separable`). Both directions of a connection are
    dropped from its opener's next packet on; connections the other way stay up unless they are cut as well.
    """

    def __init__(self, cluster: ProcessCluster) -> None:
        number = next(_cuts)
        self._cluster = cluster
        self._chain = f"FLOTTA-CUT-{os.getpid()}-{number}"
        self._mark = hex(0xF1_0000 + number)

    def dial(self, openers: Sequence[str], to: Sequence[str]) -> None:
        for opener, other in itertools.product(openers, to):
            sent = ("-p", "tcp", "--dport", str(self._cluster.port(other)))
            owner = ("-m", "owner", "--gid-owner", str(self._cluster.group_id(opener)))
            self._iptables("-I", self._chain, *sent, *owner, "-j", "CONNMARK", "--set-mark", self._mark)

    def dropped(self) -> int:
        """Packets that were lost by the cut so far."""
        rows = [line.split() for line in self._iptables("-nvxL", self._chain).splitlines()]
        return sum(int(row[0]) for row in rows if len(row) > 2 and row[2] == "DROP")

    def make(self) -> None:
        self._iptables("-N", self._chain)
        self._iptables("-A", self._chain, "-m", "connmark", "--mark", self._mark, "-j", "DROP")
        self._iptables("-I", "OUTPUT", "-o", "lo", "-j", self._chain)

    def heal(self) -> None:
        for step in (("-D", "OUTPUT", "-o", "lo", "-j", self._chain), ("-F", self._chain), ("-X", self._chain)):
            self._iptables(*step)

    @staticmethod
    def _iptables(*words: str) -> str:
        return sh("iptables", "-w", "10", *words)


@contextmanager
def cut(cluster: ProcessCluster, *pairs: tuple[Sequence[str], Sequence[str]]) -> Iterator[Cut]:
    """For every (openers, others): what the openers send to the others is lost, on old and new connections."""
    made = Cut(cluster)
    made.make()
    try:
        for openers, others in pairs:
            made.dial(openers, others)
        yield made
    finally:
        made.heal()
