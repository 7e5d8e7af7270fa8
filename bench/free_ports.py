"""Blocks of free ports for clusters of tests and benchmarks, which keep out of each other's way.

A block is claimed for the life of this process, by an abstract Unix socket of its name, before any of it is bound.
"""

from __future__ import annotations

import atexit
import os
import socket

HTTP_OFFSET = 10_000
PORTS = range(12_000, 22_000)  # these and their HTTP twins lie below the ports the system hands out by itself
PORT_BLOCK = 16
_claims: list[socket.socket] = []


def free_base_port(count: int = PORT_BLOCK) -> int:
    """The first of `count` consecutive ports that are free, as are their HTTP twins, claimed for this process."""
    if count > PORT_BLOCK:
        raise ValueError(f"{count} ports; a block has {PORT_BLOCK}")
    blocks = range(PORTS.start, PORTS.stop, PORT_BLOCK)
    first = os.getpid() % len(blocks)
    for base in [*blocks[first:], *blocks[:first]]:
        if _claim(base) and all(_free(port) and _free(port + HTTP_OFFSET) for port in range(base, base + count)):
            return int(base)
    raise RuntimeError(f"no {count} free ports in {PORTS}")


def _claim(base: int) -> bool:
    """No other test process gets this block before it is bound; ends with this process."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0flotta-test-ports-{base}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


@atexit.register
def _let_go() -> None:
    for claim in _claims:
        claim.close()


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
