"""What the client needs of its surroundings, in asyncio. `flotta._sync.primitives` is the same with threads; the two
are written by hand, and everything that is built on them exists once."""

from __future__ import annotations

import asyncio

import grpc.aio
from flotta_runtime.tls import Tls, open_channel

from flotta.channel_options import CHANNEL_OPTIONS

Channel = grpc.aio.Channel
sleep = asyncio.sleep


def connect(tls: Tls | None, address: str) -> Channel:
    """A channel; it connects when it is used."""
    return open_channel(tls, address, CHANNEL_OPTIONS)
