"""`GroupHost.run` ends its threads whatever happens to its task, and `close` always comes back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from consensus_cluster import STEP_MS, Cluster, Process, until


async def test_a_second_cancellation_does_not_leave_close_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, 1, Cluster(tmp_path))
    await process.start()
    host, running = process.host, process._running
    assert running is not None
    stop_threads, reached, release = host._stop_threads, threading.Event(), threading.Event()
    stopped = threading.Event()

    def slow_stop() -> None:
        reached.set()
        release.wait(STEP_MS / 1000)
        stop_threads()
        stopped.set()

    monkeypatch.setattr(host, "_stop_threads", slow_stop)
    await asyncio.sleep(0)  # run begins
    running.cancel()
    await until(reached.is_set, "the threads are being stopped")
    for _ in range(2):
        running.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not running.done(), "it does not end while its threads still work"
    release.set()
    async with asyncio.timeout(STEP_MS / 1000):
        await host.close()
        assert stopped.is_set()
        with pytest.raises(asyncio.CancelledError):
            await process.ended()
