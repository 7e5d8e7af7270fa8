"""The connections of a client, one for each address, kept for all calls.

Invariant: TLS files that are replaced are used for new connections; calls that run keep the one they have.
"""

from __future__ import annotations

import logging
import time

from flotta_runtime.tls import Tls, TlsError

from flotta._async.primitives import Channel, connect

TLS_LOOK_S = 1.0

_LOG = logging.getLogger("flotta")


class AsyncChannels:
    """See the module."""

    def __init__(self, tls: Tls | None) -> None:
        self.tls = tls
        self._opened: dict[str, Channel] = {}
        self._looked_s = time.monotonic()

    def to(self, address: str) -> Channel:
        """The connection to an address; it connects when it is used."""
        if self.tls is not None:
            self._follow_files(self.tls)
        channel = self._opened.get(address)
        if channel is None:
            channel = self._opened.setdefault(address, connect(self.tls, address))
        return channel

    async def close(self) -> None:
        """Close them; calls that are waiting are cancelled."""
        opened, self._opened = self._opened, {}
        for channel in opened.values():
            await channel.close()

    def _follow_files(self, tls: Tls) -> None:
        """Once a second at most, while there are calls."""
        now_s = time.monotonic()
        if now_s - self._looked_s < TLS_LOOK_S:
            return
        self._looked_s = now_s
        try:
            if tls.refresh():
                self._opened.clear()
        except TlsError as error:
            _LOG.error("the replaced TLS files cannot be used; the old ones stay in force: %s", error)
