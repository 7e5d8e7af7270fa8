"""Batch services on the native server: who takes which call, and which calls are open.

A call is counted when its batch is taken and again when the turn that answers it ends; calls that were taken together
and are answered together are counted together.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flotta_runtime import auth, fatal, status
from flotta_runtime.batches import BatchCall, BatchService, Metadata, RpcPeer
from flotta_runtime.call_metrics import CallMetrics, MethodCounts
from flotta_runtime.errors import FlottaError
from flotta_runtime.handlers import tell_unexpected
from flotta_runtime.native_answers import CODE_NAMES, CODE_NUMBERS, Answer, Answers

Unary = tuple[int, int, bytes, Metadata | None, float | None, RpcPeer]
"""A unary call as the native server gives it; the fields of a `BatchCall`."""

_REFUSED = (CODE_NUMBERS["UNAUTHENTICATED"], auth.REFUSAL, None, None)


class _Taken:
    """Calls of one method that were taken in one turn."""

    __slots__ = ("began", "counts", "service")

    def __init__(self, service: int, counts: MethodCounts, began: float) -> None:
        self.service = service
        self.counts = counts
        self.began = began


class _Route:
    """One method of a batch service."""

    __slots__ = ("counts", "guarded", "method", "path", "service", "taken")

    def __init__(self, service: int, method: int, path: str, counts: MethodCounts) -> None:
        self.service = service
        self.method = method
        self.path = path
        self.guarded = auth.is_protected(path)
        self.counts = counts
        self.taken = _Taken(service, counts, 0.0)


class Batches:
    """All batch services of a port; their methods have the first numbers. Implements `batches.Replier`."""

    def __init__(
        self,
        services: Sequence[BatchService],
        token: auth.TokenCheck,
        metrics: CallMetrics | None,
        on_fatal: fatal.OnFatal,
    ) -> None:
        self._services = tuple(services)
        self._token = token
        self._on_fatal = on_fatal
        self._answers: Answers
        self._open: dict[int, _Taken] = {}
        self._routes = [
            _Route(number, method, path, metrics.method("unary", path) if metrics else MethodCounts("unary", path))
            for number, service in enumerate(services)
            for method, path in enumerate(service.paths)
        ]

    @property
    def paths(self) -> list[str]:
        """The methods, in the order of their numbers."""
        return [route.path for route in self._routes]

    @property
    def calls_open(self) -> int:
        """Taken and not yet answered."""
        return len(self._open)

    def attach(self, answers: Answers) -> None:
        """Where answers go; before the first call."""
        self._answers = answers

    def take(self, calls: Sequence[Unary]) -> list[Unary]:
        """Hand over those that are for batch services; the others are returned."""
        routes, opened = self._routes, self._open
        methods = len(routes)
        groups: list[list[BatchCall]] = [[] for _ in self._services]
        others: list[Unary] = []
        began = time.perf_counter()
        for call in calls:
            if call[1] >= methods:
                others.append(call)
                continue
            route = routes[call[1]]
            if route.taken.began != began:
                route.taken = _Taken(route.service, route.counts, began)
            route.counts.started += 1
            opened[call[0]] = route.taken
            if route.guarded and not self._token.accepts(call[3]):
                self._answers.put((call[0], *_REFUSED))
                continue
            groups[route.service].append(BatchCall(call[0], route.method, *call[2:]))
        for service, group in zip(self._services, groups, strict=True):
            if group:
                self._give(service, group)
        return others

    def _give(self, service: BatchService, calls: list[BatchCall]) -> None:
        try:
            service.take(calls, self)
        except BaseException as error:
            text = tell_unexpected(service.paths[calls[0].method], error, self._on_fatal)
            answered = self._answers.waiting()
            for call in calls:
                if call.call not in answered:
                    self._answers.put((call.call, CODE_NUMBERS["INTERNAL"], text, None, None))

    def ended(self, calls: Iterable[int]) -> list[int]:
        """Tell the services which of their calls ended before an answer; those that are not theirs are returned."""
        groups: dict[int, list[int]] = {}
        others: list[int] = []
        for call in calls:
            taken = self._open.pop(call, None)
            if taken is None:
                others.append(call)
                continue
            taken.counts.end_many(1, time.perf_counter() - taken.began, "CANCELLED")
            groups.setdefault(taken.service, []).append(call)
        for number, group in groups.items():
            self._services[number].ended(group)
        return others

    # --- batches.Replier

    def reply(self, call: int, payload: bytes) -> None:
        self._answers.put((call, payload))

    def fail(self, call: int, error: FlottaError) -> None:
        code, trailers = CODE_NUMBERS[error.grpc_code], status.trailers(error)
        self._answers.put((call, code, error.message, None, trailers or None))

    def sent(self, answers: Sequence[Answer]) -> None:
        """These have left: count those that are ours."""
        opened = self._open
        now = time.perf_counter()
        last: _Taken | None = None
        code = "OK"
        calls = 0
        for answer in answers:
            taken = opened.pop(answer[0], None)
            if taken is None:
                continue  # of an ordinary handler, or ended meanwhile
            named = "OK" if len(answer) == 2 else CODE_NAMES.get(answer[1], "UNKNOWN")
            if taken is last and named == code:
                calls += 1
                continue
            if last is not None:
                last.counts.end_many(calls, now - last.began, code)
            last, code, calls = taken, named, 1
        if last is not None:
            last.counts.end_many(calls, now - last.began, code)
