"""Follows the TLS files of a service while it runs."""

from __future__ import annotations

import asyncio

from flotta_runtime.logging import get_logger
from flotta_runtime.tls import Tls, TlsError

LOOK_MS = 1_000


async def follow_files(tls: Tls, look_ms: int = LOOK_MS) -> None:
    """Put replaced certificates in force, and say so; until cancelled."""
    log = get_logger("tls")
    while True:
        await asyncio.sleep(look_ms / 1000)
        try:
            # The reading is worth a thread only when a file has changed, and that is rare: a few stats otherwise.
            replaced = tls.refresh()
        except TlsError as error:
            log.error("the replaced TLS files cannot be used; the old ones stay in force", reason=str(error))
            continue
        if replaced:
            log.info("TLS files replaced; new connections use them")
