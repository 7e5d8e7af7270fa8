"""RocksDB itself: killed processes, damaged files, two owners of one directory."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from embedded_harness import rows_of
from flotta_embedded.rocks import RocksEngine
from flotta_embedded.rocks_views import disk_error

KILLED = """
import os, signal, sys
from flotta_embedded.rocks import RocksEngine
engine = RocksEngine(sys.argv[1])
engine.create("s")
for number in range(100):
    engine.write("s", [(b"%03d" % number, b"v" * 50)], ())
    if number == 60:
        engine.flush("s")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_leaves_the_last_flush_and_nothing_torn(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "db")], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    engine = RocksEngine(tmp_path / "db")
    assert [key for key, _ in engine.view("s").scan(b"", None)] == [b"%03d" % number for number in range(61)]
    engine.close()


def test_a_memtable_that_fills_up_is_flushed_on_a_batch_boundary(tmp_path: Path) -> None:
    script = KILLED.replace("b'v' * 50", "b'v'").replace("number == 60", "False").replace("range(100)", "range(8000)")
    script = script.replace(
        '[(b"%03d" % number, b"v" * 50)]', '[(b"a%06d" % number, b"v" * 5000), (b"z", b"%06d" % number)]'
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "db")], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    engine = RocksEngine(tmp_path / "db")
    view = engine.view("s")
    last = view.get(b"z")
    assert last is not None, "40 MB were written, and there are at most four memtables of 8 MB"
    assert [key for key, _ in view.scan(b"a", b"b")] == [b"a%06d" % number for number in range(int(last) + 1)]
    engine.close()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    script = "import sys; from flotta_embedded.rocks import RocksEngine; RocksEngine(sys.argv[1])"
    second = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "db")], capture_output=True, text=True, check=False, timeout=60
    )
    assert second.returncode == 1
    assert "OSError" in second.stderr and "LOCK" in second.stderr
    engine.close()


def test_damage_in_a_table_file_is_an_os_error_never_a_shorter_scan(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    engine.write("s", [(b"%05d" % number, os.urandom(200)) for number in range(5000)], ())
    engine.flush("s")
    engine.close()
    (table,) = (tmp_path / "db").glob("*.sst")
    content = bytearray(table.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 32] = bytes(32)
    table.write_bytes(content)
    engine = RocksEngine(tmp_path / "db")
    view = engine.view("s")
    frozen = engine.freeze("s")
    keys = [b"%05d" % number for number in range(5000)]
    for read in (
        lambda: rows_of(view),
        lambda: list(view.scan(b"", None, reverse=True)),
        lambda: rows_of(frozen),
        lambda: view.multi_get(keys),
        lambda: frozen.multi_get(keys),
        lambda: [view.get(key) for key in keys],
    ):
        with pytest.raises(OSError, match="Corruption"):
            read()
    frozen.close()
    engine.close()


@pytest.mark.parametrize("content", [None, b"", b'{"raw_mo'])
def test_a_torn_rocksdict_config_does_not_matter(tmp_path: Path, content: bytes | None) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    engine.write("s", [(b"\x00", b"v")], ())
    engine.flush("s")
    engine.close()
    config = tmp_path / "db" / "rocksdict-config.json"
    config.unlink()
    if content is not None:
        config.write_bytes(content)
    engine = RocksEngine(tmp_path / "db")
    assert rows_of(engine.view("s")) == [(b"\x00", b"v")]
    engine.close()


def test_the_write_ahead_log_stays_empty(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    engine.write("s", [(b"k", b"v" * 10_000)], ())
    assert [log.stat().st_size for log in (tmp_path / "db").glob("*.log")] == [0]
    engine.close()


DISK_FAILS = """
import os, resource, sys
from flotta_embedded.rocks import RocksEngine
engine = RocksEngine(sys.argv[1])
engine.create("s")
engine.write("s", [(b"before", b"v")], ())
engine.flush("s")
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
engine.write("s", [(b"after%d" % number, os.urandom(500)) for number in range(2000)], ())
for attempt in range(2):
    try:
        engine.flush("s")
    except OSError as error:
        print(f"attempt {attempt}: {error.errno} {error.strerror}", flush=True)
assert engine.bytes_unflushed("s") > 500_000
os._exit(7)
"""


def test_a_flush_that_the_disk_refuses_is_an_os_error_and_leaves_the_flushed_state(tmp_path: Path) -> None:
    failed = subprocess.run(
        [sys.executable, "-c", DISK_FAILS, str(tmp_path / "db")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert failed.returncode == 7, failed.stderr
    assert failed.stdout.count("RocksDB failed while flushing space s") == 2
    engine = RocksEngine(tmp_path / "db")
    assert rows_of(engine.view("s")) == [(b"before", b"v")]
    engine.close()


def test_errors_of_the_disk_carry_their_number() -> None:
    full = disk_error(Exception("IO error: No space left on device: While appending to file"), "flushing")
    assert (full.errno, "flushing" in str(full)) == (errno.ENOSPC, True)
    assert disk_error(Exception("Corruption: bad block"), "reading").errno == errno.EIO


def test_statistics_count_table_bytes(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    engine.write("s", [(b"%d" % number, os.urandom(100)) for number in range(1000)], ())
    before = engine.statistics()
    engine.flush("s")
    after = engine.statistics()
    assert before["table_bytes"] == 0
    assert after["table_bytes"] >= 100_000
    assert before["memtable_bytes"] > after["memtable_bytes"]
    assert after["background_errors"] == 0
    engine.close()


def test_a_compaction_gives_room_back(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    rows = [(b"%06d" % number, os.urandom(1_000)) for number in range(2_000)]
    engine.write("s", rows, [])
    engine.flush("s")
    engine.write("s", [], [key for key, _ in rows])
    engine.flush("s")
    full = engine.statistics()["table_bytes"]
    assert full > 2_000_000
    engine.compact("s")
    assert engine.statistics()["table_bytes"] < full / 10
    engine.close()


def test_closing_waits_for_a_compaction_under_way(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "db")
    engine.create("s")
    for _ in range(4):
        engine.write("s", [(os.urandom(8), os.urandom(1_000)) for _ in range(2_000)], [])
        engine.flush("s")
    told: list[str] = []

    def compact_on() -> None:
        try:
            while True:
                engine.compact("s")
                told.append("compacted")
        except ValueError as error:
            told.append(str(error))
        except KeyError:
            told.append("the engine is closed")

    thread = threading.Thread(target=compact_on)
    thread.start()
    while not told:
        thread.join(0.001)
    engine.close()
    thread.join(60)
    assert told[-1] == "the engine is closed"
    again = RocksEngine(tmp_path / "db")
    assert sum(1 for _ in again.view("s").scan(b"", None)) == 8_000
    again.close()
