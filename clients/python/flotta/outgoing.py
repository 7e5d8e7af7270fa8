"""Operations that wait to be written to a stream, put together into frames.

Invariants: no more than `UNSENT_BYTES_MAX` wait; what is refused is refused as a whole. Any thread may add; one takes.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from flotta_proto.flotta.storage_pb2 import Operation, OperationFrame

UNSENT_BYTES_MAX = 64 << 20
FRAME_BYTES_MAX = 1 << 20  # of what is put together; a larger operation goes alone


class Outgoing:
    """See the module."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Operation, int]] = deque()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, operations: Sequence[Operation]) -> bool:
        """False: too much waits already, and none of them was taken."""
        sized = [(operation, operation.ByteSize()) for operation in operations]
        size = sum(size for _, size in sized)
        with self._lock:
            if self._bytes and self._bytes + size > UNSENT_BYTES_MAX:
                return False
            self._waiting.extend(sized)
            self._bytes += size
        return True

    def take(self) -> OperationFrame | None:
        """The next frame, if anything waits."""
        frame, total = OperationFrame(), 0
        with self._lock:
            while self._waiting and (not total or total + self._waiting[0][1] <= FRAME_BYTES_MAX):
                operation, size = self._waiting.popleft()
                frame.operations.append(operation)
                total += size
            self._bytes -= total
        return frame if total else None
