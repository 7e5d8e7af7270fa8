"""What a session has seen: of each shard, the greatest revision it wrote or read.

Invariants:
- A read is asked of any replica only with the mark of its key's shard; a shard without one is read STRONG, and the
  answer becomes its mark. So what is not known costs a stronger read, and never an older answer.
- Which shard a key belongs to follows from the number of shards. Marks are of one number: when another is heard of, all
  of them go. The gateway compares the number with its own, too, and serves STRONG where they differ.
- A mark that its shard has not reached, or a write of unknown outcome, takes the mark away.
"""

from __future__ import annotations

import threading

from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import Status

from flotta.messages import Request, Response
from flotta.shard_map import key_hash


class SessionMarks:
    """See the module. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards = 0
        self._revisions: dict[int, int] = {}  # by the shard's place among all

    def ask(self, request: pb.GetRequest) -> None:
        """Let a weak read see what the session has seen."""
        options = request.options
        if options.consistency == pb.STRONG:
            return
        with self._lock:
            revision = self._revisions.get(key_hash(request.key) % self._shards, 0) if self._shards else 0
            if revision:
                options.read_mode = pb.READ_YOUR_WRITES
                options.session_revision, options.session_shard_count = revision, self._shards
            else:
                make_strong(request)

    def saw(self, request: Request, response: Response) -> None:
        """Remember an answer."""
        code, count, revision = response.status.code, response.shard_count, response.revision
        if code == Status.TIMEOUT and not isinstance(request, pb.GetRequest):
            self.forget(request.key)
        if code != Status.OK or not count or not revision:
            return
        index = key_hash(request.key) % count
        if response.status.shard_id != f"shard-{index}":
            return  # the number of shards changed between the routing and the answer
        with self._lock:
            if count != self._shards:
                self._shards = count
                self._revisions.clear()
            self._revisions[index] = max(revision, self._revisions.get(index, 0))

    def forget(self, key: bytes) -> None:
        """Read this key's shard STRONG the next time."""
        with self._lock:
            if self._shards:
                self._revisions.pop(key_hash(key) % self._shards, None)

    def refused(self, request: Request, response: Response) -> bool:
        """Whether a mark was none that its shard has reached; the request is a STRONG one then, to be sent again."""
        if not isinstance(request, pb.GetRequest) or request.options.read_mode != pb.READ_YOUR_WRITES:
            return False
        if response.status.code != Status.PRECONDITION_FAILED:
            return False
        self.forget(request.key)
        make_strong(request)
        return True


def make_strong(request: pb.GetRequest) -> None:
    """Whatever it asked for."""
    head_only, key = request.head_only, request.key
    request.Clear()
    request.key, request.head_only = key, head_only
    request.options.consistency = pb.STRONG
