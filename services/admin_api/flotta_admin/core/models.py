"""The JSON of the admin API: KvDB's names and types, snake_case, nulls written out.

Answers have exactly KvDB's fields. Requests refuse fields that nobody knows; the fields of a node that a caller
cannot set are accepted and ignored, so that what was read can be sent back.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from flotta_runtime.settings import check_address, check_id
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from flotta_admin.core.manifest import REPLICAS_MAX, SHARDS_MAX

INT32_MAX = 2**31 - 1
ID_CHARS_MAX = 128
PATH_CHARS_MAX = 1024

NodeStatusName = Literal["ALIVE", "SUSPECT", "DEAD", "NODE_STATUS_UNSPECIFIED"]
ConfigStateName = Literal["STABLE", "MOVING", "CONFIG_STATE_UNSPECIFIED"]
CountOfShards = Annotated[StrictInt, Field(ge=1, le=INT32_MAX)]


class Answer(BaseModel):
    """Base of what is sent."""

    model_config = ConfigDict(frozen=True)


class Request(BaseModel):
    """Base of what is received: a field that does not exist is an error, and no type is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(Answer):
    """A storage node."""

    node_id: str = Field(description="The node's name.")
    address: str = Field(description="host:port of its gRPC port.")
    zone: str = Field(description="Failure zone; empty when none was given.")
    rack: str = Field(description="Rack; always empty, kept for KvDB's clients.")
    status: NodeStatusName = Field(description="ALIVE, SUSPECT or DEAD, from its heartbeats or set by an operator.")
    last_heartbeat_ms: int = Field(description="When it was last heard of, in ms since the epoch; 0 if never.")
    capacity_hints: dict[str, str] = Field(description="Free-form hints; empty, kept for KvDB's clients.")


class KeyRange(Answer):
    """Informational bounds of a shard in the hash space; routing goes by key hash modulo the shard count."""

    start_key: str = Field(description="First hash, 4 bytes big-endian, base64.")
    end_key: str = Field(description="Hash after the last, 4 bytes big-endian, base64.")


class Shard(Answer):
    """A shard: one replicated group."""

    shard_id: str = Field(description="The shard's name, shard-<index>.")
    epoch: int = Field(description="Raised by one with every change of the replicas.")
    replicas: list[str] = Field(description="Ids of the nodes that hold a replica.")
    leader: str = Field(description="Id of the node that leads; empty while there is none.")
    config_state: ConfigStateName = Field(description="STABLE, or MOVING while replicas are being changed.")
    key_range: KeyRange | None = Field(description="Informational; null when the coordinator names none.")


class Partitioning(Answer):
    """How the keyspace is divided."""

    num_shards: int = Field(description="Number of shards; 0 before shard-init.")
    replication_factor: int = Field(description="Replicas per shard as asked for; 0 before shard-init.")


class ShardMapSnapshot(Answer):
    """The whole map at one version."""

    map_version: int = Field(description="Version of the map; only grows.")
    nodes: dict[str, Node] = Field(description="Nodes by id.")
    shards: dict[str, Shard] = Field(description="Shards by id.")
    partitioning: Partitioning = Field(description="Shard count and replication factor.")


class MapVersion(Answer):
    """The version of the map alone."""

    map_version: int = Field(description="Version of the map; only grows.")


class PartitioningStrings(Answer):
    """As `Partitioning`, with the numbers as strings, as KvDB has it in its summary."""

    num_shards: str = Field(description="Number of shards, as a string.")
    replication_factor: str = Field(description="Replicas per shard, as a string.")


class ClusterSummary(Answer):
    """The cluster at a glance."""

    map_version: int = Field(description="Version of the map; only grows.")
    total_nodes: int = Field(description="Registered nodes.")
    alive_nodes: int = Field(description="Nodes that are ALIVE.")
    suspect_nodes: int = Field(description="Nodes that are SUSPECT: heartbeats are late.")
    dead_nodes: int = Field(description="Nodes that are DEAD.")
    total_shards: int = Field(description="Shards.")
    stable_shards: int = Field(description="Shards that are STABLE.")
    moving_shards: int = Field(description="Shards that are MOVING.")
    replication_factor: int = Field(description="Replicas per shard as asked for; 0 before shard-init.")
    partitioning_config: PartitioningStrings = Field(description="How the keyspace is divided, as strings.")
    nodes: list[Node] = Field(description="The nodes, by id.")
    shards: list[Shard] = Field(description="The shards, by index.")


class ClusterConfig(Answer):
    """The settings of the cluster."""

    map_version: int = Field(description="Version of the map; only grows.")
    num_shards: int = Field(description="Number of shards; 0 before shard-init.")
    replication_factor: int = Field(description="Replicas per shard as asked for; 0 before shard-init.")


class ShardInitRequest(Request):
    """Creates the shards, once. Repeating it with the same numbers changes nothing."""

    num_shards: CountOfShards = Field(default=8, description="How many shards to create.")
    replication_factor: CountOfShards = Field(default=2, description="How many replicas each shard gets.")


class ShardInitAnswer(Answer):
    """The shards are there."""

    success: bool = Field(description="Always true; a refusal is an error status.")
    num_shards: int = Field(description="As asked for.")
    replication_factor: int = Field(description="As asked for.")


class RegisterNodeRequest(Request):
    """Registers a node, or changes its address or zone."""

    node_id: StrictStr = Field(description="The node's name: letters, digits, '.', '_' or '-'.")
    address: StrictStr = Field(description="host:port of its gRPC port.")
    zone: StrictStr | None = Field(default="", max_length=ID_CHARS_MAX, description="Failure zone; may be left out.")
    rack: Any = Field(default=None, description="Accepted and ignored.")
    status: Any = Field(default=None, description="Accepted and ignored; heartbeats decide.")
    last_heartbeat_ms: Any = Field(default=None, description="Accepted and ignored.")
    capacity_hints: Any = Field(default=None, description="Accepted and ignored.")

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        for name, check in (("node_id", check_id), ("address", check_address)):
            try:
                check(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return self


class NodeHealth(Answer):
    """What a node answered to a ping just now."""

    status: Literal["UP", "DOWN"] = Field(description="UP if it answered.")
    message: str = Field(description="Its answer, or why there was none.")
    timestamp_ms: int = Field(description="When it was asked, in ms since the epoch.")


class Decision(Answer):
    """Something the coordinator decided, and why."""

    number: int = Field(description="Grows by one with every decision.")
    time_ms: int = Field(description="When, in ms since the epoch.")
    map_version: int = Field(description="Version of the map that the decision made.")
    kind: str = Field(description="What kind of decision: node-dead, shard-leader, shard-move, …")
    subject: str = Field(description="The node or shard it is about.")
    reason: str = Field(description="Why, in one sentence.")


class Decisions(Answer):
    """Decisions, oldest first."""

    decisions: list[Decision] = Field(description="The decisions asked for, oldest first.")


class Explanation(Answer):
    """Why a shard is as it is."""

    shard_id: str = Field(description="The shard.")
    health: str = Field(
        description="CREATING, QUORUM_LOST, MOVING, DEGRADED (a replica is not ALIVE), TOO_FEW or TOO_MANY replicas, "
        "or HEALTHY."
    )
    now: list[str] = Field(description="How it is, in sentences.")
    next: list[str] = Field(description="What is about to be done with it, and what is waited for, in sentences.")


class Operation(Answer):
    """Long work that an operator asked for."""

    id: int = Field(description="Its number.")
    operation: str = Field(
        description="drain, decommission, replication-factor, shard-count, rebalance, move, placement, leadership, "
        "recover, backup, restore or compaction."
    )
    subject: str = Field(description="The node, table, shard or directory it is about.")
    text: str = Field(description="What was asked for.")
    status: str = Field(description="RUNNING, DONE, FAILED or CANCELLED.")
    begun_ms: int = Field(description="When it began, in ms since the epoch.")
    ended_ms: int | None = Field(description="When it ended; null while it is RUNNING.")
    steps_total: int = Field(
        description="Replicas to go, shards to change or copy, or what nodes have above their share."
    )
    steps_done: int = Field(description="How many of them are done.")
    outcome: str | None = Field(description="How it ended, in a sentence; null while it is RUNNING.")


class Operations(Answer):
    """Long work, newest first."""

    operations: list[Operation] = Field(description="Under way, and the newest that ended.")


class Order(Answer):
    """What an order has begun."""

    message: str = Field(description="What happens now, in a sentence.")
    map_version: int = Field(description="Version of the map with the order in it.")
    operation: Operation | None = Field(description="The work it began or is part of; null when it was done at once.")


class RecoverRequest(Request):
    """Lets a shard that lost its quorum for good go on from one replica, without what only the others had."""

    dry_run: StrictBool = Field(default=False, description="Only say what would be done, and what may be lost.")
    confirm: StrictStr = Field(
        default="",
        max_length=ID_CHARS_MAX,
        description="The shard's id once more: acknowledged writes may be lost. Not needed for a dry run.",
    )


class Survivor(Answer):
    """A replica that answered."""

    node_id: str = Field(description="The node that has it.")
    last_index: int = Field(description="Where its log ends.")
    applied_index: int = Field(description="What of it is applied.")


class Recovery(Order):
    """From which replica a shard goes on, or would."""

    dry_run: bool = Field(description="True: nothing was done.")
    shard_id: str = Field(description="The shard.")
    node_id: str = Field(description="The node whose replica goes on.")
    last_index: int = Field(description="Where that replica's log ends; what was written beyond it is lost.")
    survivors: list[Survivor] = Field(description="All replicas that answered.")


class CheckedReplica(Answer):
    """What a replica holds."""

    node_id: str = Field(description="The node that has it.")
    applied_index: int = Field(description="Up to where it has applied the shard's log.")
    keys: int = Field(description="How many keys it holds.")
    sha256: str = Field(description="Over all its rows; empty where there was no answer.")
    wrong: str = Field(description="Why there was no answer; empty where there was one.")


class CheckedShard(Answer):
    """Whether the replicas of a shard hold the same."""

    shard_id: str = Field(description="The shard.")
    state: str = Field(
        description="AGREE, DIFFER, SILENT (a replica did not answer) or BUSY (written to all the while)."
    )
    text: str = Field(description="The same in a sentence.")
    replicas: list[CheckedReplica] = Field(description="Its replicas, by node.")


class Check(Answer):
    """The whole cluster, looked at."""

    map_version: int = Field(description="Version of the map that was looked at.")
    problems: list[str] = Field(description="What is wrong, a sentence each; empty: nothing.")
    shards: list[CheckedShard] = Field(description="The shards, by index.")


class ReplicationFactorRequest(Request):
    """How many replicas each shard should have."""

    replication_factor: CountOfShards = Field(description="From 1 to 16.")


class ShardCountRequest(Request):
    """How many shards a table should have."""

    num_shards: CountOfShards = Field(description="From 1 to 4096.")


class ConfigRequest(Request):
    """What the configuration should be. What is left out stays as it is."""

    num_shards: CountOfShards | None = Field(default=None, description="How many there are to be, from 1 to 4096.")
    replication_factor: CountOfShards | None = Field(default=None, description="Replicas per shard, from 1 to 16.")
    map_version: Any = Field(default=None, description="Accepted and ignored, so that what was read can be sent back.")


class BackupRequest(Request):
    """Where a backup goes."""

    directory: StrictStr = Field(
        min_length=1, max_length=PATH_CHARS_MAX, description="A new directory; its place is below backup_dir."
    )


class RestoreRequest(Request):
    """Which backup, into how many shards."""

    directory: StrictStr = Field(
        min_length=1, max_length=PATH_CHARS_MAX, description="The directory of a backup; its place is below backup_dir."
    )
    num_shards: StrictInt | None = Field(
        default=None, ge=1, le=SHARDS_MAX, description="How many shards there are to be; as many as there were if null."
    )
    replication_factor: StrictInt | None = Field(
        default=None, ge=1, le=REPLICAS_MAX, description="How many replicas each is to have; as many as before if null."
    )


class TriggerRequest(Request):
    """KvDB's order for work on the cluster."""

    operation: StrictStr | None = Field(
        default=None, description="REBALANCE or COMPACT, in any case; where the path says it, free."
    )
    parameters: dict[StrictStr, StrictStr] | None = Field(default=None, description="Accepted and ignored.")
    target_shards: list[StrictStr] | None = Field(
        default=None, description="Shards to compact, none for all; a rebalance takes none."
    )
    target_nodes: list[StrictStr] | None = Field(
        default=None, description="Nodes to compact on, none for all; a rebalance takes none."
    )


class MoveRequest(Request):
    """Which replica goes where."""

    from_node_id: StrictStr = Field(max_length=ID_CHARS_MAX, description="The node that has it.")
    to_node_id: StrictStr = Field(max_length=ID_CHARS_MAX, description="The node that gets it.")


class ActuatorHealth(Answer):
    """Whether this service can do its work."""

    status: Literal["UP", "DOWN"] = Field(description="UP if a coordinator leader answers.")


class AppInfo(Answer):
    """What runs here."""

    name: str = Field(description="The name of the service.")
    version: str = Field(description="The version of Flotta.")


class ActuatorInfo(Answer):
    """About this service."""

    app: AppInfo = Field(description="Name and version of this service.")


class MetricNames(Answer):
    """The metrics that can be asked for."""

    names: list[str] = Field(description="Names for /admin/actuator/metrics/{name}.")


class Measurement(Answer):
    """One number of a metric."""

    statistic: str = Field(description="What it is: VALUE, COUNT or TOTAL.")
    value: float = Field(description="The number, summed over all tags.")


class MetricTag(Answer):
    """One label of a metric."""

    tag: str = Field(description="The label's name.")
    values: list[str] = Field(description="The values it has.")


class MetricDetail(Answer):
    """One metric. KvDB's clients expect these names in camelCase."""

    name: str = Field(description="The metric's name.")
    description: str = Field(description="What it counts.")
    baseUnit: str | None = Field(description="Its unit, when it has one.")
    measurements: list[Measurement] = Field(description="Its numbers.")
    availableTags: list[MetricTag] = Field(description="Its labels.")


class ErrorBody(Answer):
    """Every error but 401 and 403."""

    error: str = Field(description="What kind of error, in capitals: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, …")
    message: str = Field(description="One sentence that names the field and the limit.")
    code: str = Field(description="The HTTP status, as a string.")
    timestamp_ms: int = Field(description="When, in ms since the epoch.")
    shard_id: str | None = Field(default=None, description="The shard it is about, if any.")
    leader_hint: str | None = Field(default=None, description="host:port of the leader, if the error names one.")
    new_node_hint: str | None = Field(
        default=None, description="host:port of the shard's node, if the error names one."
    )


class GuardBody(Answer):
    """The error of 401 and 403."""

    error: Literal["invalid_api_key", "ip_not_allowed"] = Field(description="Which check refused.")
    path: str = Field(description="The path that was asked for.")
