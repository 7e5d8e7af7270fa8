"""How much a storage node takes on at once, in operations and in bytes, over all its streams.

Invariants: what is taken is given back exactly once; answers count until their transport has sent them, so a client
that does not read its answers slows itself down and not the node.
"""

from __future__ import annotations


class Budget:
    def __init__(self, operations_max: int, bytes_max: int) -> None:
        self.operations_max = operations_max
        self.bytes_max = bytes_max
        self.operations = 0
        self.bytes = 0

    def take(self, size: int) -> bool:
        """Room for one more operation of this size? One always fits when nothing is in work."""
        if self.operations >= self.operations_max or (self.bytes and self.bytes + size > self.bytes_max):
            return False
        self.operations += 1
        self.bytes += size
        return True

    def take_of_half(self, size: int) -> bool:
        """The same for what is to give way to everything else: only while less than half of the bytes are taken."""
        return not (self.bytes and self.bytes + size > self.bytes_max // 2) and self.take(size)

    def give_back(self, operations: int, size: int) -> None:
        self.operations -= operations
        self.bytes -= size

    def hold(self, size: int) -> None:
        """An answer waits to be sent. Never refused: its operation was admitted."""
        self.bytes += size

    def sent(self, size: int) -> None:
        self.bytes -= size

    @property
    def full(self) -> bool:
        return self.bytes > self.bytes_max
