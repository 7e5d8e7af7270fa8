"""What the kernel knows of the machine and of single processes: CPU, memory, open files, threads, open ports.

CPU times are the scheduler's, read from /proc in ticks of 10 ms; a figure per operation needs a run of seconds.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ProcessSample:
    """One process at one moment."""

    rss_bytes: int
    files: int
    threads: int


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def sample(pid: int) -> ProcessSample:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ProcessSample(
        rss_bytes=int(fields[21]) * PAGE_BYTES,
        files=len(os.listdir(f"/proc/{pid}/fd")),
        threads=int(fields[17]),
    )


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def machine_busy_s() -> tuple[float, float]:
    """(CPU seconds that any process used, CPU seconds that the hypervisor gave to others) since boot."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S


def children_cpu_s() -> float:
    """CPU seconds of all ended children that this process waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe() -> dict[str, str | int]:
    """What a reader of the figures must know of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {"cores": os.cpu_count() or 0, "model": model, "kernel": os.uname().release}


def wait_for_port(port: int, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"error: nothing answers on port {port} after {seconds:.0f} s")
        time.sleep(0.05)
