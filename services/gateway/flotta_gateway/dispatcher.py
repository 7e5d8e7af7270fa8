"""Takes batches of requests, sends each node one batch of operations, and answers every request once.

It knows no transport: a batch of `Call`s comes in, each with the function that takes its answer. Requests of one
batch are routed in one pass, and those for one node travel together, retries included.

Invariants:
- Every call that was submitted is answered exactly once, at its deadline at the latest, unless it was abandoned.
- An attempt's operation has its own number; a reply to an attempt that was given up is dropped by its link.
- What to do after a failure is decided in `core.retry` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Operation, Reply
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.clock import Clock
from flotta_runtime.errors import FlottaError, KvCode, RateLimited, Unavailable

from flotta_gateway.call import Admission, Call, Links, Maps, Observer, Traces
from flotta_gateway.core import replies, retry, routing
from flotta_gateway.core.deadlines import DeadlineWheel
from flotta_gateway.core.operations import operation_of
from flotta_gateway.core.retry import Failure, Fate
from flotta_gateway.core.shard_map import Route
from flotta_gateway.core.validation import Limits
from flotta_gateway.storage_link import Attempt, Lost, Reason, StorageLink

TICK_MS = 10
OK = Status.OK
WRITES = frozenset((PUT, DELETE))
OVERLOAD_RETRY_AFTER_MS = 100
NO_SHARDS = "the cluster has no shards yet: initialise it with POST /admin/config/shard-init"
_RETRIED = frozenset({KvCode.UNAVAILABLE, KvCode.TIMEOUT, KvCode.NOT_LEADER, KvCode.SHARD_MOVED})


@dataclass(frozen=True, slots=True)
class DispatcherOptions:
    """Bounds and times."""

    calls_max: int = 20_000
    bytes_max: int = 256 * 1024 * 1024
    attempt_ms: int = 1_500  # a repeatable operation is tried elsewhere after this long without an answer


_Batches = dict[StorageLink[Call], list[Attempt[Call]]]


class Dispatcher:
    """See the module. Everything runs on the event loop; nothing here awaits."""

    def __init__(
        self,
        maps: Maps,
        links: Links,
        observer: Observer,
        clock: Clock,
        jitter: Callable[[], float],
        limits: Limits,
        options: DispatcherOptions,
        admission: Admission | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._maps = maps
        self._links = links
        self._observer = observer
        self._clock = clock
        self._jitter = jitter
        self._limits = limits
        self._options = options
        self._admission = admission
        self._traces = traces
        self._wheel: DeadlineWheel[Call] = DeadlineWheel(TICK_MS)
        self._ticker: asyncio.TimerHandle | None = None
        self._parked: dict[Call, None] = {}
        self._ready: list[Call] = []  # parked calls to resume in this turn
        self._bytes = 0
        self._number = 0
        self._spread = 0

    @property
    def calls_open(self) -> int:
        """Calls not yet answered: those that have a deadline in the wheel."""
        return len(self._wheel)

    @property
    def bytes_open(self) -> int:
        """Key and value bytes of the calls not yet answered."""
        return self._bytes

    def submit(self, calls: Sequence[Call]) -> None:
        """Take over a batch."""
        self._observer.batch(len(calls))
        now_ms = self._clock.monotonic_ms()
        batches: _Batches = {}
        current = self._maps.current
        no_shards = self._maps.answered and not current.initialised
        routes = current.routes_of([call.key for call in calls])
        for call, route in zip(calls, routes, strict=True):
            try:
                self._admit(call, no_shards, now_ms)
            except FlottaError as error:
                self._finish(call, replies.failure_response(call.kind, replies.refusal(error)), int(error.kv_code))
                continue
            self._launch(call, route, now_ms, batches)
        self._send(batches, now_ms)
        self._start_ticker()

    def submit_pieces(self, pieces: Sequence[Call]) -> None:
        """Take over calls that have their operation: the pieces of one scan, all of them or none."""
        now_ms = self._clock.monotonic_ms()
        if len(self._wheel) + len(pieces) > self._options.calls_max:
            error = RateLimited("too many requests are open on this gateway", retry_after_ms=OVERLOAD_RETRY_AFTER_MS)
            for piece in pieces:
                self.refuse(piece, replies.refusal(error))
            return
        batches: _Batches = {}
        current = self._maps.current
        for piece in pieces:
            if piece.operation is not None:
                piece.any_replica = routing.any_replica_may_serve(piece.operation)
            self._launch(piece, piece.route_in(current), now_ms, batches)
        self._send(batches, now_ms)
        self._start_ticker()

    def refuse(self, call: Call, failure: Failure) -> None:
        """Answer a call that is not to be begun."""
        self._finish(call, replies.failure_response(call.kind, failure), int(failure.code))

    def abandon(self, call: Call) -> None:
        """The client has gone. What was sent may still happen; nothing more is sent."""
        call.done = None
        self._release(call)

    def map_changed(self) -> None:
        """Resume the parked calls whose route is another one now."""
        current = self._maps.current
        for call in list(self._parked):
            if call.route_in(current) is not call.route:
                self._resume(call)

    def close(self) -> None:
        """Answer what is still open."""
        for call in self._wheel:
            self._expire(call)
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    # What links report

    def replied(self, address: str, answered: Sequence[tuple[Attempt[Call], Reply]]) -> None:
        """Replies of a node, to be answered or resent in one pass."""
        now_ms = self._clock.monotonic_ms()
        batches: _Batches = {}
        succeeded: dict[int, int] = {}
        for attempt, reply in answered:
            call = attempt.owner
            if call.attempt is not attempt:
                continue
            call.attempt = None
            if reply.code != OK:
                self._refused(call, replies.failure_of(reply, address), now_ms, batches)
                continue
            kind, done, call.done = call.kind, call.done, None
            self._release(call)
            if done is not None:
                succeeded[kind] = succeeded.get(kind, 0) + 1
                done(replies.SUCCESS[kind](call.key, reply, call.route.shard_count if call.route else 0))
        for kind, count in succeeded.items():
            self._observer.answered(kind, OK, count)
        self._send(batches, now_ms)

    def lost(self, address: str, lost: Lost[Call]) -> None:
        """Attempts that get no reply."""
        now_ms = self._clock.monotonic_ms()
        batches: _Batches = {}
        self._lost(address, lost, now_ms, batches)
        self._send(batches, now_ms)

    # From here on: one call's way

    def _admit(self, call: Call, no_shards: bool, now_ms: float) -> None:
        """Raise for a call that cannot be taken; count it otherwise."""
        operation = operation_of(call.request, self._limits)
        if self._traces is not None and operation.traceparent:
            self._traces.follow(call, operation)
        if self._admission is not None:
            self._admission.admit(call.request, now_ms)
        size = len(call.key) + len(operation.value)
        options = self._options
        if len(self._wheel) >= options.calls_max or (self._bytes and self._bytes + size > options.bytes_max):
            raise RateLimited("too many requests are open on this gateway", retry_after_ms=OVERLOAD_RETRY_AFTER_MS)
        if no_shards:
            raise Unavailable(NO_SHARDS)
        if call.kind == GET:
            call.any_replica = routing.any_replica_may_serve(operation)
        call.operation = operation
        call.size = size
        self._bytes += size

    def _launch(
        self,
        call: Call,
        route: Route | None,
        now_ms: float,
        batches: _Batches,
        to: str = "",
        foreign_epoch: bool = False,
    ) -> None:
        """Put an attempt into `batches`, for `to` or whoever the map names."""
        operation = call.operation
        if operation is None or call.done is None:
            return
        if operation.session_revision:
            self._keep_session(call, operation, route)
        self._spread += 1
        call.route = route
        address = to
        if route is not None and not to:
            address = routing.next_address(route, call.any_replica, self._spread, call.history.tried)
            if call.any_replica and not call.history.tried and routing.wants_the_quickest(operation):
                address = self._quickest(route, batches)
        if route is None or not address:
            self._maps.refresh_soon()
            self._failed(call, self._nowhere(route), now_ms, batches)
            return
        repeatable = call.kind not in WRITES or bool(operation.request_id)
        expires_ms = min(call.deadline_ms, now_ms + self._options.attempt_ms) if repeatable else call.deadline_ms
        self._number += 1
        operation.call = self._number
        operation.deadline_ms = max(1, int(expires_ms - now_ms))
        head = Operation(shard_id=route.shard_id).SerializeToString() if foreign_epoch else route.operation_head
        attempt = Attempt(self._number, head + operation.SerializeToString(), call)
        link = self._links.link_to(address)
        call.attempt = attempt
        call.link = link
        self._wheel.set(call, expires_ms)
        batch = batches.get(link)
        if batch is None:
            batch = batches[link] = []
        batch.append(attempt)

    def _keep_session(self, call: Call, operation: Operation, route: Route | None) -> None:
        """A session's revision says nothing once the key is found by another number of shards: it may be another
        one's."""
        said = call.request.options.session_shard_count  # type: ignore[union-attr]  # only reads have revisions
        if said and route is not None and said != route.shard_count:
            routing.make_strong(operation)
            call.any_replica = False

    def _quickest(self, route: Route, batches: _Batches) -> str:
        def work(address: str) -> tuple[bool, int]:
            link = self._links.link_to(address)
            return not link.up, link.operations_open + len(batches.get(link, ()))

        return routing.quickest(route, self._spread, work)

    def _send(self, batches: _Batches, now_ms: float) -> None:
        """Hand each link its batch. What a link refuses may make further batches; each pass uses up attempts."""
        while batches:
            link, attempts = batches.popitem()
            refused = link.submit(attempts)
            if refused is not None:
                self._lost(link.address, refused, now_ms, batches)

    def _lost(self, address: str, lost: Lost[Call], now_ms: float, batches: _Batches) -> None:
        for attempt in lost.attempts:
            call = attempt.owner
            if call.attempt is not attempt:
                continue
            call.attempt = None
            if lost.reason is Reason.OVERLOAD:
                failure = Failure(
                    Fate.NOT_SENT,
                    KvCode.RATE_LIMITED,
                    lost.message,
                    address,
                    retry_after_ms=OVERLOAD_RETRY_AFTER_MS,
                )
            else:
                failure = self._no_reply(call, address, lost.reason, lost.message)
            self._failed(call, failure, now_ms, batches)

    def _no_reply(self, call: Call, address: str, reason: Reason, message: str) -> Failure:
        shard_id = call.route.shard_id if call.route else ""
        if reason is Reason.NOT_SENT:
            return Failure(Fate.NOT_SENT, KvCode.UNAVAILABLE, message, address, shard_id)
        if call.kind in WRITES:
            message = f"{message}; the write may have happened"
        return Failure(Fate.LOST, KvCode.TIMEOUT, message, address, shard_id)

    def _nowhere(self, route: Route | None) -> Failure:
        if route is not None:
            return Failure(
                Fate.NOT_SENT, KvCode.UNAVAILABLE, f"no node holds {route.shard_id} yet", shard_id=route.shard_id
            )
        if not self._maps.answered:
            why = "no coordinator has given this gateway a shard map yet"
        elif not self._maps.current.initialised:
            why = NO_SHARDS
        else:
            why = "the shard of this key is not in the shard map"
        return Failure(Fate.NOT_SENT, KvCode.UNAVAILABLE, why)

    def _refused(self, call: Call, failure: Failure, now_ms: float, batches: _Batches) -> None:
        """The node's answer is a failure: tell it, unless another attempt may end better, or one in doubt was made."""
        if failure.code in _RETRIED or call.history.in_doubt:
            self._failed(call, failure, now_ms, batches)
        else:
            self._finish(call, replies.failure_response(call.kind, failure), int(failure.code))

    def _failed(self, call: Call, failure: Failure, now_ms: float, batches: _Batches) -> None:
        """Answer, resend into `batches`, or park."""
        operation = call.operation
        if operation is None or call.done is None:
            return
        decision = retry.decide(
            call.history,
            failure,
            write=call.kind in WRITES,
            deduplicated=bool(operation.request_id),
            alternatives=call.route.candidates() if call.route else (),
            remaining_ms=call.deadline_ms - now_ms,
            jitter=self._jitter(),
        )
        if isinstance(decision, retry.Answer):
            told = decision.failure
            self._finish(call, replies.failure_response(call.kind, told), int(told.code))
            return
        self._observer.resent(int(failure.code))
        call.history = decision.history
        call.last = failure
        if decision.refresh:
            self._maps.refresh_soon()
        if decision.delay_ms == 0:
            self._launch(call, call.route_in(self._maps.current), now_ms, batches, decision.to)
            return
        call.resend = decision
        self._parked[call] = None
        self._wheel.set(call, call.deadline_ms)
        call.timer = asyncio.get_running_loop().call_later(decision.delay_ms / 1000, self._resume, call)

    def _resume(self, call: Call) -> None:
        """A parked call goes on, together with all others that do so in this turn."""
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if self._parked.pop(call, False) is False:
            return
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._launch_ready)
        self._ready.append(call)

    def _launch_ready(self) -> None:
        ready, self._ready = self._ready, []
        now_ms = self._clock.monotonic_ms()
        current = self._maps.current
        batches: _Batches = {}
        for call in ready:
            resend, call.resend = call.resend, None
            to = ""
            moved = False
            route = call.route_in(current)
            if resend is not None and route is call.route:
                to = resend.hint
                moved = bool(to) and call.last is not None and call.last.code == KvCode.SHARD_MOVED
            self._launch(call, route, now_ms, batches, to, moved)
        self._send(batches, now_ms)

    # Time

    def _start_ticker(self) -> None:
        if self._ticker is None and len(self._wheel):
            self._ticker = asyncio.get_running_loop().call_later(TICK_MS / 1000, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now_ms = self._clock.monotonic_ms()
        batches: _Batches = {}
        for call in self._wheel.due(now_ms):
            if now_ms >= call.deadline_ms:
                self._expire(call)
                continue
            # The attempt's own time is up; the operation is one that may be repeated.
            address = call.link.address if call.link else ""
            sent = self._give_up_attempt(call)
            reason = Reason.LOST if sent else Reason.NOT_SENT
            message = f"storage node {address} did not answer in time"
            self._failed(call, self._no_reply(call, address, reason, message), now_ms, batches)
        self._send(batches, now_ms)
        self._start_ticker()

    def _expire(self, call: Call) -> None:
        sent = self._give_up_attempt(call)
        failure = retry.out_of_time(call.history, call.last, write=call.kind in WRITES, sent=sent)
        self._finish(call, replies.failure_response(call.kind, failure), int(failure.code))

    def _give_up_attempt(self, call: Call) -> bool:
        """Stop waiting for the running attempt, if there is one; returns whether it was sent."""
        attempt, call.attempt = call.attempt, None
        return attempt is not None and call.link is not None and call.link.forget(attempt)

    def _finish(self, call: Call, response: bytes, code: int) -> None:
        done, call.done = call.done, None
        self._release(call)
        if done is not None:
            self._observer.answered(call.kind, code, 1)
            done(response)

    def _release(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        if call.attempt is not None:
            self._give_up_attempt(call)
        self._wheel.discard(call)
        self._parked.pop(call, None)
        self._bytes -= call.size
        call.size = 0
        call.operation = None
