"""One end of links, driven by hand: wait for an event with a deadline, keep what came meanwhile."""

import select
import time
from collections.abc import Callable

import flotta_native as native

PATIENCE_S = 30.0

Event = tuple[int, int, object]


class End:
    """A hub and everything that was polled from it and not asked for yet."""

    def __init__(self, hub: native.LinkHub | None = None) -> None:
        self.hub = hub or native.LinkHub()
        self.events: list[Event] = []

    def until(self, wanted: Callable[[Event], bool]) -> Event:
        """The first such event, taken out; those before it stay."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for at, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(at)
            left = deadline - time.monotonic()
            assert left > 0, f"it never came; what came: {[event[:2] for event in self.events]}"
            if select.select([self.hub.notify_fd()], [], [], left)[0]:
                self.events += self.hub.poll()

    def of(self, kind: int, link: int | None = None) -> Event:
        return self.until(lambda event: event[0] == kind and link in (None, event[1]))

    def frames(self, link: int, count: int) -> list[bytes]:
        frames = []
        while len(frames) < count:
            data = self.of(native.LINK_FRAME, link)[2]
            assert isinstance(data, bytes)
            frames.append(data)
        return frames

    def down(self, link: int) -> str:
        """Why it ended; nothing may come of it afterwards."""
        reason = self.of(native.LINK_DOWN, link)[2]
        assert isinstance(reason, str)
        assert not [event for event in self.events + self.hub.poll() if event[1] == link]
        return reason


class Pair:
    """A client and a server with one link between them."""

    def __init__(self, client: native.LinkHub | None = None, server: native.LinkHub | None = None) -> None:
        self.client, self.server = End(client), End(server)
        self.address = f"127.0.0.1:{self.server.hub.listen('127.0.0.1:0')}"
        self.link, self.served = self.connect()

    def connect(self) -> tuple[int, int]:
        link = self.client.hub.connect(self.address, "test", b"", timeout_ms=int(PATIENCE_S * 1000))
        served = self.server.of(native.LINK_HELLO)[1]
        self.server.hub.accept(served, b"")
        self.client.of(native.LINK_UP, link)
        return link, served
