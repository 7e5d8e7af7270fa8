"""Connections of the simulated cluster: reliable and in order over a network that is neither, until they break.

A lost message is sent again until it is given up, as TCP does; then the sender's end breaks, and the other one when its
own pings go unanswered. A process that dies resets its connections; a machine that loses its power says nothing, and
its peers find out by themselves. Invariants: an end's messages arrive in order, once, or not at all; an end is told of
its end once, and hears nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from flotta_consensus.sim.clock import US_PER_MS
from flotta_consensus.sim.loop import SimLoop
from flotta_consensus.sim.world import World

RESEND_US = 150 * US_PER_MS
GIVE_UP_US = 2_500 * US_PER_MS
UNANSWERED_US = 4_000 * US_PER_MS
"""Pings of an idle connection take so long to find out that nobody is there."""
REFUSED = "refused"
SILENT = "silent"
RESET = "reset"


class Endpoint(Protocol):
    """A process that can be connected to. `loop` is None while it is dead."""

    number: int
    loop: SimLoop | None
    ends: dict[End, None]
    powered: bool

    def accept(self, end: End, greeting: Any) -> None:
        """Somebody has connected; runs in the process."""


class End:
    """One side of a connection. `on_message` and `on_end` run as callbacks of the process's loop."""

    def __init__(self, wires: Wires, owner: Endpoint, far: int) -> None:
        self._wires = wires
        self.owner = owner
        self.far = far
        self.peer: End | None = None
        self.open = True
        self.on_message: Callable[[Any], None] = lambda message: None
        self.on_end: Callable[[str], None] = lambda reason: None
        self._loop = owner.loop
        self._sent = 0
        self._taken = 0
        self._early: dict[int, Callable[[], None]] = {}
        owner.ends[self] = None

    def send(self, message: Any) -> None:
        """Dropped once the connection has ended."""
        if self.open and self.peer is not None:
            peer, number = self.peer, self._sent
            self._sent += 1
            self._wires.carry(self, peer, lambda: peer.arrived(number, lambda: peer.on_message(message)))

    def close(self) -> None:
        """Say goodbye; what was sent before it still arrives."""
        if self.open:
            self._leave()
            if self.peer is not None:
                peer, number = self.peer, self._sent
                self._wires.carry(self, peer, lambda: peer.arrived(number, lambda: peer.broken("closed")), closed=True)

    def arrived(self, number: int, action: Callable[[], None]) -> None:
        """From the wire, in any order and more than once."""
        if not self.open or number < self._taken:
            return
        self._early[number] = action
        while self._taken in self._early:
            self._soon(self._early.pop(self._taken))
            self._taken += 1

    def broken(self, reason: str) -> None:
        """The connection is gone; tell whoever uses it."""
        if self.open:
            self._leave()
            if self._loop is not None and not self._loop.killed:
                self._loop.call_soon(self.on_end, reason)

    def given_up(self) -> None:
        """Nobody acknowledged what was sent; the other side notices later."""
        self.broken(SILENT)
        if self.peer is not None:
            self._wires.world.scheduler.after(UNANSWERED_US, lambda: self.peer and self.peer.broken(SILENT))

    def abandoned(self, *, silently: bool) -> None:
        """The process is dead."""
        self._leave()
        peer = self.peer
        if peer is None:
            return
        if silently:
            self._wires.world.scheduler.after(UNANSWERED_US, lambda: peer.broken(SILENT))
        else:
            self._wires.carry(self, peer, lambda: peer.broken(RESET), closed=True)

    def _leave(self) -> None:
        self.open = False
        self.owner.ends.pop(self, None)

    def _soon(self, action: Callable[[], None]) -> None:
        def run() -> None:
            if self.open:
                action()

        if self._loop is not None:
            self._loop.call_soon(run)


class Wires:
    """Makes connections and carries their messages. `endpoints` is who is reached at which address."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.endpoints: dict[str, Endpoint] = {}

    def connect(self, owner: Endpoint, address: str, greeting: Any) -> End:
        """An end that is used at once; that nobody is there is told like any other end."""
        target = self.endpoints.get(address)
        end = End(self, owner, target.number if target is not None else 0)
        if target is None:
            self.world.scheduler.after(GIVE_UP_US, lambda: end.broken(SILENT))
            return end
        other = target

        def arrive() -> None:
            if other.loop is None:
                if other.powered:
                    self.carry_back(other.number, end)
                else:
                    self.world.scheduler.after(GIVE_UP_US, lambda: end.broken(SILENT))
                return
            if end.peer is None and end.open:
                accepted = End(self, other, owner.number)
                accepted.peer, end.peer = end, accepted
                other.loop.call_soon(other.accept, accepted, greeting)

        self._attempt(end, owner.number, other.number, arrive, self.world.scheduler.now_us, closed=False)
        return end

    def carry(self, sender: End, receiver: End, deliver: Callable[[], None], *, closed: bool = False) -> None:
        """`closed`: the sender's end is over, and this is its last word."""
        began_us = self.world.scheduler.now_us
        self._attempt(sender, sender.owner.number, receiver.owner.number, deliver, began_us, closed=closed)

    def carry_back(self, number: int, end: End) -> None:
        """A process that is not there refuses, if its machine is there."""
        self.world.network.send(number, end.owner.number, lambda: end.broken(REFUSED), faithful=True)

    def _attempt(
        self, end: End, source: int, target: int, deliver: Callable[[], None], began_us: int, *, closed: bool
    ) -> None:
        scheduler = self.world.scheduler

        def again() -> None:
            if not end.open and not closed:
                return
            if scheduler.now_us - began_us < GIVE_UP_US:
                scheduler.after(RESEND_US, lambda: self._attempt(end, source, target, deliver, began_us, closed=closed))
            elif closed:
                peer = end.peer
                scheduler.after(UNANSWERED_US, lambda: peer and peer.broken(SILENT))
            else:
                end.given_up()

        if (end.open or closed) and not self.world.network.send(source, target, deliver, faithful=True, lost=again):
            again()
