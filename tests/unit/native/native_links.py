"""One end of links, driven by hand: wait for an event with a deadline, keep what came meanwhile. And Raft hosts that
are joined by links."""

import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import flotta_native as native
from native_cluster import GROUP, replica

PATIENCE_S = 60.0
PATIENCE_MS = int(PATIENCE_S * 1000)
FRAME = struct.Struct("<IB")
DATA, PING, PONG, BYE = 4, 6, 7, 8


def framed(kind: int, body: bytes = b"") -> bytes:
    return FRAME.pack(len(body), kind) + body


def hello(purpose: str = "test", opaque: bytes = b"") -> bytes:
    return b"FLOTTA/1\n" + framed(1, bytes([len(purpose)]) + purpose.encode() + opaque)


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
        link = self.client.hub.connect(self.address, "test", b"", timeout_ms=PATIENCE_MS)
        served = self.server.of(native.LINK_HELLO)[1]
        self.server.hub.accept(served, b"")
        self.client.of(native.LINK_UP, link)
        return link, served


class HalfOpen:
    """A server by hand that accepts a link, and then says what the test wants."""

    def __init__(self, client: End) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            self.link = client.hub.connect(f"127.0.0.1:{port}", "test", b"", timeout_ms=PATIENCE_MS)
            self.socket, _ = listener.accept()
        self.socket.settimeout(PATIENCE_S)
        assert self.read(len(hello())) == hello()
        self.socket.sendall(framed(2))
        client.of(native.LINK_UP, self.link)

    def read(self, count: int) -> bytes:
        read = b""
        while len(read) < count:
            more = self.socket.recv(count - len(read))
            assert more, "closed"
            read += more
        return read


class Member:
    """A Raft host whose frames travel over links, as a process would have it: bound on demand, connected again."""

    def __init__(
        self, number: int, root: Path, addresses: dict[int, str], apply_delay_ms: int, unsent_bytes_max: int
    ) -> None:
        self.number = number
        self.addresses = addresses
        self.hub = native.LinkHub(unsent_bytes_max=unsent_bytes_max)
        # Patient, for a busy machine: the first leader is made by hand.
        self.host = native.RaftHost(
            number,
            str(root / f"node-{number}"),
            applied={},
            tick_ms=10,
            election_ticks=100,
            apply_delay_ms=apply_delay_ms,
        )
        self.hub.attach_raft(self.host)
        addresses[number] = f"127.0.0.1:{self.hub.listen('127.0.0.1:0')}"
        self.to: dict[int, int] = {}
        self.bound: dict[int, int] = {}
        self.downs: list[str] = []
        self.polled_frames = 0
        self.applied: list[bytes] = []
        self.applied_term = 0
        self.answered: list[int] = []
        self.reads: list[tuple[int, int, int]] = []
        self.events: list[tuple[int, str, int, str]] = []
        self.leads = False

    def fds(self) -> list[int]:
        return [self.hub.notify_fd(), self.host.notify_fd()]

    def turn(self) -> None:
        for kind, link, data in self.hub.poll():
            self.link_event(kind, link, data)
        batch = self.host.poll()
        for node, _ in batch.messages:
            self.polled_frames += 1
            self.connect(node)
        for _, _, self.applied_term, request, kind, payload in batch.applies:
            if kind == native.APPLY_NORMAL and isinstance(payload, bytes):
                self.applied.append(payload)
            if request:
                self.answered.append(request)
        for _, role, _, _ in batch.roles:
            self.leads = role == native.ROLE_LEADER
        self.reads += batch.reads
        self.events += batch.events

    def connect(self, node: int) -> None:
        if node not in self.to and node in self.addresses:
            hello = b"%d" % self.number
            self.to[node] = self.hub.connect(self.addresses[node], "raft", hello, timeout_ms=PATIENCE_MS)

    def link_event(self, kind: int, link: int, data: object) -> None:
        if kind == native.LINK_HELLO:
            assert isinstance(data, tuple)
            self.hub.accept_raft(link, b"", int(data[1]))
        elif kind == native.LINK_UP:
            node = next(node for node, known in self.to.items() if known == link)
            self.hub.bind_raft(link, node)
            self.bound[node] = link
        elif kind == native.LINK_DOWN:
            self.downs.append(str(data))
            self.to = {node: known for node, known in self.to.items() if known != link}
            self.bound = {node: known for node, known in self.bound.items() if known != link}


class Members:
    """Some of them, driven by one thread."""

    def __init__(self, root: Path, *, apply_delay_ms: int = 0, unsent_bytes_max: int = 64 << 20) -> None:
        self.root, self.apply_delay_ms, self.unsent_bytes_max = root, apply_delay_ms, unsent_bytes_max
        self.addresses: dict[int, str] = {}
        self.up: dict[int, Member] = {}
        replicas = [replica(number) for number in (1, 2, 3)]
        for number in (1, 2, 3):
            self.start(number, replicas)

    def start(self, number: int, voters: list[int]) -> Member:
        member = Member(number, self.root, self.addresses, self.apply_delay_ms, self.unsent_bytes_max)
        if not member.host.groups():
            member.host.create_group(GROUP, replica(number), voters)
        member.host.start()
        self.up[number] = member
        return member

    def stop(self, number: int) -> None:
        member = self.up.pop(number)
        member.host.stop()

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, "it never came to that"
            select.select([fd for member in self.up.values() for fd in member.fds()], [], [], 0.05)
            for member in self.up.values():
                member.turn()

    def leader(self) -> Member:
        self.until(lambda: any(member.leads for member in self.up.values()))
        return next(member for member in self.up.values() if member.leads)

    def settle(self) -> Member:
        """Everybody is bound to everybody, and has applied the first entry of the leader that is returned."""
        for member in self.up.values():
            for other in self.up.keys() - {member.number}:
                member.connect(other)
        self.until(lambda: all(len(member.bound) == len(self.up) - 1 for member in self.up.values()))
        self.up[1].host.campaign(GROUP)
        leader = self.leader()
        term = leader.host.status()[0].term
        self.until(lambda: all(member.applied_term >= term for member in self.up.values()))
        return leader

    def close(self) -> None:
        for number in list(self.up):
            self.stop(number)
