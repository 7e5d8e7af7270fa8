"""A LinkHub without a network: what was asked of it is recorded, what happens is the test's to say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import flotta_native


class FakeHub:
    """Stands in for `flotta_native.LinkHub`."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: list[tuple[int, int, Any]] = []
        self._number = 100
        self.connects: list[tuple[int, str, str, bytes]] = []
        self.sends: list[list[tuple[int, bytes]]] = []  # one list for each call
        self.accepted: dict[int, bytes] = {}
        self.refused: dict[int, str] = {}
        self.closed: dict[int, str] = {}
        self.full: set[int] = set()  # links that take nothing
        self.unsent: dict[int, int] = {}
        self.raft: list[tuple[str, Any]] = []
        self.clocks: list[tuple[int, int, int]] = []

    def release(self) -> None:
        os.close(self._event)

    # What happens

    def _tell(self, kind: int, link: int, data: Any) -> None:
        self._events.append((kind, link, data))
        os.eventfd_write(self._event, 1)

    def hello(self, link: int, purpose: str, hello: bytes) -> None:
        peer = SimpleNamespace(address="ipv4:127.0.0.1:5", tls_common_name=None, tls_sans=[])
        self._tell(flotta_native.LINK_HELLO, link, (purpose, hello, peer))

    def up(self, link: int, greeting: bytes = b"") -> None:
        self._tell(flotta_native.LINK_UP, link, greeting)

    def frame(self, link: int, data: bytes) -> None:
        self._tell(flotta_native.LINK_FRAME, link, data)

    def refusal(self, link: int, reason: str) -> None:
        self._tell(flotta_native.LINK_REFUSED, link, reason)
        self.down(link, "the peer refused")

    def down(self, link: int, reason: str) -> None:
        self._tell(flotta_native.LINK_DOWN, link, reason)

    def sent(self, link: int) -> list[bytes]:
        """All frames a link took."""
        return [frame for call in self.sends for number, frame in call if number == link]

    # What is asked

    def notify_fd(self) -> int:
        return self._event

    def poll(self) -> list[tuple[int, int, Any]]:
        events, self._events = self._events, []
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            assert not events
        return events

    def connect(self, address: str, purpose: str, hello: bytes, *, timeout_ms: int, tls: object = None) -> int:
        self._number += 1
        self.connects.append((self._number, address, purpose, hello))
        return self._number

    def accept(self, link: int, greeting: bytes) -> None:
        self.accepted[link] = greeting

    def refuse(self, link: int, reason: str) -> None:
        self.refused[link] = reason

    def send_many(self, frames: Sequence[tuple[int, bytes]]) -> list[int]:
        self.sends.append([(link, frame) for link, frame in frames if link not in self.full])
        return [link for link, _ in frames if link in self.full]

    def unsent_bytes(self, link: int) -> int:
        return self.unsent.get(link, 0)

    def close(self, link: int, reason: str) -> None:
        self.closed.setdefault(link, reason)

    def attach_raft(self, host: object) -> None:
        self.raft.append(("attach", host))

    def detach_raft(self) -> None:
        self.raft.append(("detach", None))

    def bind_raft(self, link: int, node_num: int) -> None:
        self.raft.append(("bind", (link, node_num)))

    def accept_raft(self, link: int, greeting: bytes, node_num: int) -> None:
        self.accepted[link] = greeting
        self.raft.append(("accept", (link, node_num)))

    def peer_clocks(self) -> list[tuple[int, int, int]]:
        return self.clocks
