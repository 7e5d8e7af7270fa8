"""How many files and sockets this process may hold open, and what share of them a port may take.

A process out of descriptors can open neither a table file nor a segment of its log, and ends; so connections, whose
number others decide, get at most half.
"""

from __future__ import annotations

import resource

ENOUGH = 1 << 20
"""Some libraries walk over all possible descriptors: no more of them than that."""


def raise_soft_limit() -> None:
    """The soft limit is often 1,024, made for programs that use select(2); up to the hard one it is ours to choose."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections_max(wanted: int) -> int:
    """As many connections as wanted, if that leaves half of the descriptors to the files of the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(1, soft // 2))
