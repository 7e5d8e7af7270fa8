"""gRPC health that says what /readyz says: for some services of a port NOT_SERVING while the process is not ready.

The whole server ("") stays SERVING: it answers. Start the server with the same services as `waiting`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from flotta_runtime.server import GrpcServer

Readiness = Callable[[], tuple[bool, str]]

CHECK_MS = 100


async def follow_readiness(server: GrpcServer, services: Sequence[str], readiness: Readiness) -> None:
    """Until cancelled."""
    said = False
    while True:
        ready, _ = readiness()
        if ready is not said:
            said = ready
            for service in services:
                await server.set_serving(service, serving=ready)
        await asyncio.sleep(CHECK_MS / 1000)
