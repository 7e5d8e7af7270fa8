"""Operations carried out: asked again as long as that is safe and the time lasts, with what a session has seen.

Invariant: what is told of an operation never denies what an earlier attempt of it may have done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from flotta_proto.kvdb import gateway_pb2 as pb

from flotta._async.gateways import AsyncGateways
from flotta._async.leaders import AsyncLeaders
from flotta._async.primitives import sleep
from flotta.errors import FlottaError
from flotta.messages import Request, Response, entry_of, raise_in_doubt, request_of, result_of, version_of
from flotta.models import Delete, Entry, Get, Operation, Put
from flotta.patience import Patience
from flotta.session_marks import SessionMarks, make_strong


class AsyncCalls:
    """What clients and sessions do with a cluster. `marks`: of the session, if it is one."""

    def __init__(
        self,
        cluster: AsyncGateways | AsyncLeaders,
        timeout_ms: int,
        idempotent_writes: bool,
        marks: SessionMarks | None = None,
    ) -> None:
        self.cluster = cluster
        self.timeout_ms = timeout_ms
        self._idempotent_writes = idempotent_writes
        self._marks = marks

    def in_session(self) -> AsyncCalls:
        """The same for a new session."""
        return AsyncCalls(self.cluster, self.timeout_ms, self._idempotent_writes, SessionMarks())

    async def get(self, operation: Get, timeout_ms: int | None) -> Entry | None:
        """What a get found."""
        return entry_of(cast("pb.GetResponse", await self._call(operation, timeout_ms)))

    async def write(self, operation: Put | Delete, timeout_ms: int | None) -> int | None:
        """The version that a write made."""
        return version_of(cast("pb.PutResponse | pb.DeleteResponse", await self._call(operation, timeout_ms)))

    async def batch(
        self, operations: Iterable[Operation], timeout_ms: int | None
    ) -> list[Entry | int | FlottaError | None]:
        """A result for each."""
        requests = self._requests(operations)
        waiting = list(range(len(requests)))
        results: list[Entry | int | FlottaError | None] = [None] * len(requests)
        patience = Patience(self.timeout_ms if timeout_ms is None else timeout_ms)
        while waiting:
            try:
                answers = await self.cluster.call_many([requests[position] for position in waiting], patience)
            except FlottaError as error:
                if len(waiting) == len(requests):
                    raise
                for position in waiting:
                    results[position] = error
                break
            again: list[int] = []
            for position, response in zip(waiting, answers, strict=True):
                results[position] = result_of(response, patience.in_doubt)
                if response.status.code == pb.Status.RATE_LIMITED:
                    patience.longer(response.status.retry_after_ms)
                    again.append(position)
                elif self._to_be_asked_again(requests[position], response):
                    again.append(position)
            if not again or not patience.lasts():
                break
            waiting = again
            await sleep(patience.next_pause_s())
            if not patience.allows_an_attempt():
                break
        return results

    def _requests(self, operations: Iterable[Operation]) -> list[Request]:
        """In a session a get sees the writes before it in its batch, too: its mark is older than they are."""
        requests = [request_of(operation, self._idempotent_writes) for operation in operations]
        if self._marks is not None:
            written: set[bytes] = set()
            for request in requests:
                if not isinstance(request, pb.GetRequest):
                    written.add(request.key)
                elif request.key in written:
                    make_strong(request)
                else:
                    self._marks.ask(request)
        return requests

    async def _call(self, operation: Operation, timeout_ms: int | None) -> Response:
        """What became of it; asked until that is known, as long as that is safe and the time lasts."""
        (request,) = self._requests((operation,))
        patience = Patience(self.timeout_ms if timeout_ms is None else timeout_ms)
        while True:
            response = await self._once(request, patience)
            status = response.status
            if status.code == pb.Status.RATE_LIMITED:
                patience.longer(status.retry_after_ms)
                if patience.lasts():
                    await sleep(patience.next_pause_s())
                    if patience.allows_an_attempt():
                        continue
            elif self._to_be_asked_again(request, response):
                continue
            if patience.in_doubt:
                raise_in_doubt(status)
            return response

    async def _once(self, request: Request, patience: Patience) -> Response:
        try:
            return await self.cluster.call(request, patience)
        except FlottaError:
            if self._marks is not None and not isinstance(request, pb.GetRequest):
                self._marks.forget(request.key)  # it may have been done, at a revision nobody told
            raise

    def _to_be_asked_again(self, request: Request, response: Response) -> bool:
        if self._marks is None:
            return False
        self._marks.saw(request, response)
        return self._marks.refused(request, response)
