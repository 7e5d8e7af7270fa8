"""What every test of bad input stands on: doors to each process, and proof that a refused request changed nothing.

Calls are synchronous and carry raw bytes where a test wants them, so nothing of the client library repairs a request.
`changes_nothing` compares maps, decisions, map versions, applied indexes of every coordinator and of every replica.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from flotta_proto.flotta import cluster_pb2, storage_pb2
from flotta_proto.kvdb import coordinator_pb2
from process_cluster import ProcessCluster

COORDINATOR = "/kvdb.coordinator.Coordinator/"
CLUSTER = "/flotta.cluster.v1.Cluster/"
GATEWAY = "/kvdb.gateway.KvGateway/"
KV = "/kvdb.kvstore.KVService/"
SHARDS = "/flotta.storage.v1.Shards/"
RAFT = "/flotta.raft.v1.RaftTransport/"
TOKEN_HEADER = "x-kvdb-internal-token"
MIB = 1 << 20
GARBAGE = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # a tag whose varint never ends
NOT_UTF8 = b"\xff\xfe"
# What a cluster decides by itself when the machine is slow: elections, late heartbeats, the end of an operation that an
# earlier test began.
BY_ITSELF = {
    "node-suspect",
    "node-alive",
    "node-dead",
    "node-flapping",
    "shard-leader",
    "shard-leader-dropped",
    "operation-done",
}
PLANNED = {"shard-leader-wanted", "shard-leader-given-up", "shard-move", "shard-members", "shard-moved"}
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * MIB),
    ("grpc.max_send_message_length", 64 * MIB),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class Answer:
    """What a call came to, whatever the transport said."""

    code: grpc.StatusCode
    details: str
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)


def length_delimited(number: int, content: bytes) -> bytes:
    """One protobuf field as raw bytes, whatever its declared type would allow."""
    size, length = bytearray(), len(content)
    while length > 0x7F:
        size.append(length & 0x7F | 0x80)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2]) + bytes(size) + content


class Door:
    """A gRPC port, called with messages or raw bytes."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self._token = token
        self.channel = grpc.insecure_channel(address, options=_OPTIONS)

    def metadata(self, token: str | None = "") -> tuple[tuple[str, str], ...]:
        chosen = self._token if token == "" else token
        return ((TOKEN_HEADER, chosen),) if chosen else ()

    def raw(
        self,
        method: str,
        body: bytes,
        *,
        token: str | None = "",
        timeout: float = 20,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> Answer:
        """A unary call. `token`: "" the right one, None none, else that one."""
        call = self.channel.unary_unary(method)
        try:
            reply, done = call.with_call(
                body, timeout=timeout, metadata=(*self.metadata(token), *metadata), wait_for_ready=True
            )
        except grpc.RpcError as error:
            return _refused(error)
        return Answer(grpc.StatusCode.OK, "", reply, _texts(done.trailing_metadata()))

    def stream(
        self,
        method: str,
        bodies: Iterable[bytes],
        *,
        token: str | None = "",
        timeout: float = 20,
        replies: int = 1,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> tuple[Answer, list[bytes]]:
        """A bidirectional call; at most `replies` replies are read, then it is cancelled."""
        call = self.channel.stream_stream(method)(
            iter(list(bodies)), timeout=timeout, metadata=(*self.metadata(token), *metadata), wait_for_ready=True
        )
        found: list[bytes] = []
        try:
            for reply in call:
                found.append(reply)
                if len(found) >= replies:
                    break
            else:
                return Answer(grpc.StatusCode.OK, ""), found
        except grpc.RpcError as error:
            return _refused(error), found
        call.cancel()
        return Answer(grpc.StatusCode.OK, "", found[-1]), found

    def ask(self, method: str, request: Any, reply: Any, **more: Any) -> Any:
        """The parsed reply; RuntimeError when the call is refused."""
        answer = self.raw(method, request.SerializeToString(), **more)
        if answer.code is not grpc.StatusCode.OK:
            raise RuntimeError(f"{method} at {self.address}: {answer.code.name} {answer.details}")
        return reply.FromString(answer.body)

    def close(self) -> None:
        self.channel.close()


def _refused(error: Any) -> Answer:
    return Answer(error.code(), error.details() or "", b"", _texts(error.trailing_metadata()))


def _texts(metadata: Any) -> dict[str, str]:
    return {name: value for name, value in metadata or () if isinstance(value, str)}


@dataclass(frozen=True)
class Http:
    """One HTTP port."""

    port: int
    key: str = ""

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, parsed JSON or text, headers). The API key is added unless `headers` sets it."""
        sent = {"Content-Type": "application/json", **({"X-Admin-Api-Key": self.key} if self.key else {})}
        sent.update(headers or {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=body, headers={k: v for k, v in sent.items() if v})
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(content) if is_json and content else content.decode(), found

    def json(self, method: str, path: str, value: Any) -> tuple[int, Any]:
        status, body, _ = self.call(method, path, json.dumps(value).encode())
        return status, body


class Doors:
    """Every port of a running cluster."""

    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster
        secrets = cluster.folder / "data"
        self.token = (secrets / "internal-grpc-token").read_text().strip()
        self.api_key = (secrets / "admin-api-key").read_text().strip()
        ports = range(cluster.coordinator_port, cluster.coordinator_port + cluster.coordinators)
        self.coordinators = [Door(f"127.0.0.1:{port}", self.token) for port in ports]
        self.nodes = [
            Door(f"127.0.0.1:{port}", self.token)
            for port in range(cluster.node_port, cluster.node_port + cluster.nodes)
        ]
        self.gateway = Door(cluster.gateway_address(), None)
        self.admin = Http(cluster.admin_port, self.api_key)

    def leader(self) -> Door:
        return next(door for door in self.coordinators if self._leads(door))

    def follower(self) -> Door:
        return next(door for door in self.coordinators if not self._leads(door))

    @staticmethod
    def _leads(door: Door) -> bool:
        request = coordinator_pb2.GetCoordinatorLeaderRequest()
        return bool(
            door.ask(
                COORDINATOR + "GetCoordinatorLeader", request, coordinator_pb2.GetCoordinatorLeaderResponse
            ).is_leader
        )

    def state(self) -> coordinator_pb2.ClusterState:
        """The map, as the coordinators serve it."""
        request = coordinator_pb2.GetShardMapRequest()
        return self.leader().ask(COORDINATOR + "GetShardMap", request, coordinator_pb2.GetShardMapResponse).state

    def node_of(self, node_id: str) -> Door:
        return self.nodes[int(node_id.rpartition("-")[2]) - 1]

    def close(self) -> None:
        for door in (*self.coordinators, *self.nodes, self.gateway):
            door.close()


# --- what must not change ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trace:
    """Everything a request could have left behind."""

    shard_map: Any
    decisions: list[Any]
    coordinators: list[tuple[str, int, int]]  # (id, map version, applied index)
    terms: list[int]
    replicas: dict[tuple[str, int], tuple[int, int, str]]  # (shard, replica) -> applied index, keys, content


def trace(doors: Doors) -> Trace:
    """The cluster's traces, once all members have applied the same."""
    deadline = time.monotonic() + 60
    while True:
        found = _look(doors)
        same = len({index for _, _, index in found.coordinators}) == 1 and len(set(found.terms)) == 1
        by_shard: dict[str, set[tuple[int, int, str]]] = {}
        for (shard_id, _), row in found.replicas.items():
            by_shard.setdefault(shard_id, set()).add(row)
        if same and all(len(rows) == 1 for rows in by_shard.values()):
            return found
        assert time.monotonic() < deadline, f"the members never became equal: {found}"
        time.sleep(0.05)


def _look(doors: Doors) -> Trace:
    request = cluster_pb2.CoordinatorStatusRequest()
    told = [
        door.ask(CLUSTER + "CoordinatorStatus", request, cluster_pb2.CoordinatorStatusResponse)
        for door in doors.coordinators
    ]
    status, shard_map, _ = doors.admin.call("GET", "/admin/cluster/shard-map")
    assert status == 200, shard_map
    for node in shard_map["nodes"].values():
        del node["last_heartbeat_ms"]
    _, decisions, _ = doors.admin.call("GET", "/admin/decisions?limit=1000")
    replicas = {}
    for door in doors.nodes:
        answer = door.ask(SHARDS + "Digest", storage_pb2.DigestRequest(), storage_pb2.DigestResponse)
        for row in answer.replicas:
            replicas[row.shard_id, row.replica_id] = (row.applied_index, row.keys, row.sha256.hex())
    return Trace(
        shard_map,
        decisions["decisions"],
        [(one.node_id, one.map_version, one.applied_index) for one in told],
        [one.term for one in told],
        replicas,
    )


def changes_nothing(doors: Doors, body: Callable[[], None]) -> None:
    """Run `body`; it must leave no trace. It is run again when the cluster itself moved meanwhile (an election or a
    late heartbeat on a slow machine), because then nothing can be told."""
    for _ in range(5):
        before = trace(doors)
        body()
        after = trace(doors)
        if after == before:
            return
        known = {row["number"] for row in before.decisions}
        new = [row for row in after.decisions if row["number"] not in known]
        moved = after.terms != before.terms or (new and all(_came_by_itself(row) for row in new))
        if not moved:
            break
    assert after.decisions == before.decisions, new
    assert after.shard_map == before.shard_map, _differences(before.shard_map, after.shard_map)
    assert after.coordinators == before.coordinators, "a refused request reached the coordinators' log"
    assert after.replicas == before.replicas, "a refused request reached a shard's log"
    assert after == before


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    """What differs between two JSON values, a line for each place."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in _differences(before.get(key), after.get(key), f"{where}/{key}")]
    return [] if before == after else [f"{where}: {before!r} became {after!r}"]


def _came_by_itself(decision: dict[str, Any]) -> bool:
    """Nobody asked for it: the cluster looks after itself."""
    kind, reason = decision["kind"], decision["reason"]
    return kind in BY_ITSELF or (kind in PLANNED and not reason.startswith("an operator"))


def names(text: str, *words: str) -> None:
    """An error message is a sentence that has these words, and nothing of the machinery."""
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    for leak in ("Traceback", "Exception", "Error:", 'File "', "RuntimeError"):
        assert leak not in text, f"{leak!r} in {text!r}"


def refused(answer: Answer, code: str, *words: str) -> None:
    """The call was refused with this gRPC status and a sentence with these words."""
    assert answer.code.name == code, (answer.code.name, answer.details)
    names(answer.details, *words)
