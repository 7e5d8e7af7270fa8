"""What the client needs of its surroundings, with threads. `flotta._async.primitives` is the same in asyncio; the two
are written by hand, and everything that is built on them exists once."""

from __future__ import annotations

import time

import grpc
from flotta_runtime.tls import Tls, open_blocking_channel

from flotta.channel_options import CHANNEL_OPTIONS

Channel = grpc.Channel
sleep = time.sleep


def connect(tls: Tls | None, address: str) -> Channel:
    """A channel; it connects when it is used."""
    return open_blocking_channel(tls, address, CHANNEL_OPTIONS)
