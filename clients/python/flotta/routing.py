"""What a smart client does with an outcome: answer, or send again, to whom and when. A pure decision.

Invariants:
- A write whose outcome is in doubt is sent again only if it carries a request id, by which the shard recognises it.
- Once an attempt of a write is in doubt, no later failure turns the answer into "it did not happen".
- Reads may always be repeated.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import cast

from flotta_proto.flotta.storage_pb2 import DELETE, GET, PUT, Operation, Reply
from flotta_proto.kvdb import gateway_pb2 as pb
from flotta_proto.kvdb.gateway_pb2 import Status

from flotta.messages import Request, Response, repeatable
from flotta.shard_map import Route

VALUE_BYTES_MAX = 16 * 1024 * 1024
_CERTAINLY_NOT = (Status.UNAVAILABLE, Status.NOT_LEADER, Status.SHARD_MOVED)
_RESPONSES: dict[type[Request], type[Response]] = {
    pb.GetRequest: pb.GetResponse,
    pb.PutRequest: pb.PutResponse,
    pb.DeleteRequest: pb.DeleteResponse,
}


@dataclass(frozen=True, slots=True)
class NotSent:
    """Certain: no byte of it left. `out_of_time`: because there was hardly any, which says nothing of the node."""

    reason: str
    out_of_time: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """It was sent, and no answer came."""

    reason: str


Outcome = Reply | NotSent | Lost


class Step(enum.Enum):
    """What to do next."""

    ANSWER = "answer"
    AT_ONCE = "at once"  # to `Item.hint`
    LATER = "later"  # after a pause, by the newest map


@dataclass(slots=True)
class Item:
    """One request on its way."""

    request: Request
    operation: Operation
    hint: str = ""  # whom to ask next, instead of whom the map names
    tried: set[str] = field(default_factory=set)  # addresses asked since the last pause
    in_doubt: bool = False
    told: bool = False  # `last` is what an attempt came to
    last: Status = field(default_factory=lambda: Status(code=Status.UNAVAILABLE, message="no shard map in time"))
    response: Response | None = None

    @property
    def key(self) -> bytes:
        return self.request.key

    @property
    def write(self) -> bool:
        return not isinstance(self.request, pb.GetRequest)

    @property
    def safe(self) -> bool:
        """Whether it may be sent again when nobody knows what became of it."""
        return repeatable(self.request)

    def answer(self, status: Status) -> Step:
        """Let `status` be the answer, unless that would deny what may have happened."""
        if self.in_doubt and status.code in (*_CERTAINLY_NOT, Status.RATE_LIMITED):
            message = f"an earlier attempt may have happened; the last one failed: {status.message}"
            status = Status(code=Status.TIMEOUT, message=message, shard_id=status.shard_id)
        self.response = _RESPONSES[type(self.request)](status=status)
        return Step.ANSWER

    def out_of_time(self) -> None:
        """Answer with what is known."""
        self.answer(self.last)

    def keep_session(self, route: Route) -> None:
        """A session's revision says nothing once there is another number of shards: the read is STRONG then."""
        if self.operation.session_revision and not self.write:
            said = cast("pb.ReadOptions", self.request.options).session_shard_count
            if said not in (0, route.shard_count):
                operation = self.operation
                operation.consistency, operation.read_mode = pb.STRONG, pb.READ_MODE_UNSPECIFIED
                operation.session_revision = 0

    def addressed(self, route: Route, choice: float) -> str:
        """Who is to be asked; `choice`, a random number in [0, 1), picks the replica of a weak read."""
        replicas = route.replicas
        if self.hint:
            return self.hint
        if self.operation.consistency == pb.EVENTUAL and replicas:
            untried = [address for address in replicas if address not in self.tried] or list(replicas)
            return untried[int(choice * len(untried))]
        return route.leader or (replicas[int(choice * len(replicas))] if replicas else "")


def item_of(request: Request) -> Item:
    """A request as an item that is on its way, answered at once if it can never be carried out."""
    options = request.options
    operation = Operation(key=request.key)
    if isinstance(request, pb.GetRequest):
        read = request.options
        operation.kind = GET
        operation.consistency, operation.read_mode = read.consistency, read.read_mode
        operation.max_staleness_ms, operation.session_revision = read.max_staleness_ms, read.session_revision
        operation.head_only = request.head_only
        return Item(request, operation)
    write = cast("pb.WriteOptions", options)
    operation.kind = PUT if isinstance(request, pb.PutRequest) else DELETE
    operation.ttl_ms, operation.if_version_equals = write.ttl_ms, write.if_version_equals
    operation.if_not_exists = write.if_not_exists
    if write.require_idempotency:
        operation.request_id = request.ctx.request_id
    item = Item(request, operation)
    if isinstance(request, pb.PutRequest):
        operation.value = request.value
        if len(request.value) > VALUE_BYTES_MAX:
            message = f"value is {len(request.value)} bytes long; the limit is {VALUE_BYTES_MAX}"
            item.answer(Status(code=Status.PAYLOAD_TOO_LARGE, message=message))
    return item


def settle(item: Item, address: str, outcome: Outcome, route: Route) -> Step:
    """The next step after what came of asking `address`."""
    item.hint = ""
    item.tried.add(address)
    if isinstance(outcome, NotSent):
        if not (outcome.out_of_time and item.told):
            message = f"{address}: {outcome.reason}"
            item.last, item.told = Status(code=Status.UNAVAILABLE, message=message, shard_id=route.shard_id), True
        return _elsewhere(item, route)
    if isinstance(outcome, Lost):
        outcome = Reply(code=Status.TIMEOUT, message=f"{address}: {outcome.reason}", shard_id=route.shard_id)
    code = outcome.code
    status = Status(
        code=code,
        message=outcome.message,
        leader_hint=outcome.leader_hint,
        shard_id=outcome.shard_id or route.shard_id,
        retry_after_ms=outcome.retry_after_ms,
    )
    item.last, item.told = status, True
    if code == Status.TIMEOUT:
        item.in_doubt = item.in_doubt or item.write
        return _later(item) if item.safe else item.answer(status)
    if code == Status.NOT_LEADER and outcome.leader_hint and outcome.leader_hint not in item.tried:
        item.hint = outcome.leader_hint
        return Step.AT_ONCE
    if code == Status.UNAVAILABLE and not item.write:
        return _elsewhere(item, route)
    if code in _CERTAINLY_NOT:
        step = _later(item)
        item.hint = outcome.new_node_hint
        return step
    if code != Status.OK:
        item.in_doubt = item.in_doubt or (item.write and code == Status.INTERNAL)
        return item.answer(status)
    item.response = _done(item, outcome, status)
    item.response.shard_count = route.shard_count
    return Step.ANSWER


def _elsewhere(item: Item, route: Route) -> Step:
    """Another replica serves it, or knows who does."""
    for address in route.replicas:
        if address not in item.tried:
            item.hint = address
            return Step.AT_ONCE
    return _later(item)


def _later(item: Item) -> Step:
    item.tried.clear()
    return Step.LATER


def _done(item: Item, reply: Reply, status: Status) -> Response:
    if isinstance(item.request, pb.PutRequest):
        return pb.PutResponse(status=status, version=reply.version, revision=reply.revision)
    if isinstance(item.request, pb.DeleteRequest):
        return pb.DeleteResponse(status=status, version=reply.version, revision=reply.revision)
    return pb.GetResponse(
        status=status,
        kv=pb.KeyValue(
            key=item.key,
            value=reply.value,
            version=reply.version,
            create_time_ms=reply.create_time_ms,
            update_time_ms=reply.update_time_ms,
            expire_time_ms=reply.expire_time_ms,
        ),
        revision=reply.revision,
        guarantee=cast("pb.ServedGuarantee.ValueType", reply.guarantee),
    )
