"""The coordinator's messages as the admin API's JSON models. Pure; order is always the same for the same state."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable

from flotta_proto.flotta import cluster_pb2, operator_pb2
from flotta_proto.kvdb import coordinator_pb2

from flotta_admin.core import models

_DIGITS = re.compile(r"([0-9]{1,18})")


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sorts shard-2 before shard-10; a total order over any texts."""
    parts = (part for part in _DIGITS.split(text) if part)
    return tuple((0, int(part), "") if _DIGITS.fullmatch(part) else (1, 0, part) for part in parts), text


def node(record: coordinator_pb2.NodeRecord) -> models.Node:
    return models.Node.model_validate(
        {
            "node_id": record.node_id,
            "address": record.address,
            "zone": record.zone,
            "rack": record.rack,
            "status": _name(coordinator_pb2.NodeStatus, record.status),
            "last_heartbeat_ms": record.last_heartbeat_ms,
            "capacity_hints": dict(record.capacity_hints),
        }
    )


def shard(record: coordinator_pb2.ShardRecord) -> models.Shard:
    return models.Shard.model_validate(
        {
            "shard_id": record.shard_id,
            "epoch": record.epoch,
            "replicas": list(record.replicas),
            "leader": record.leader,
            "config_state": _name(coordinator_pb2.ShardConfigState, record.config_state),
            "key_range": _key_range(record.key_range) if record.HasField("key_range") else None,
        }
    )


def nodes(state: coordinator_pb2.ClusterState) -> list[models.Node]:
    """All nodes, by id."""
    return [node(state.nodes[node_id]) for node_id in _ordered(state.nodes)]


def shards(state: coordinator_pb2.ClusterState) -> list[models.Shard]:
    """All shards, by index."""
    return [shard(state.shards[shard_id]) for shard_id in _ordered(state.shards)]


def snapshot(state: coordinator_pb2.ClusterState) -> models.ShardMapSnapshot:
    return models.ShardMapSnapshot(
        map_version=state.map_version,
        nodes={found.node_id: found for found in nodes(state)},
        shards={found.shard_id: found for found in shards(state)},
        partitioning=models.Partitioning(
            num_shards=state.partitioning.num_shards, replication_factor=state.partitioning.replication_factor
        ),
    )


def config(state: coordinator_pb2.ClusterState) -> models.ClusterConfig:
    return models.ClusterConfig(
        map_version=state.map_version,
        num_shards=state.partitioning.num_shards,
        replication_factor=state.partitioning.replication_factor,
    )


def summary(state: coordinator_pb2.ClusterState) -> models.ClusterSummary:
    all_nodes, all_shards = nodes(state), shards(state)
    statuses = [found.status for found in all_nodes]
    states = [found.config_state for found in all_shards]
    return models.ClusterSummary(
        map_version=state.map_version,
        total_nodes=len(all_nodes),
        alive_nodes=statuses.count("ALIVE"),
        suspect_nodes=statuses.count("SUSPECT"),
        dead_nodes=statuses.count("DEAD"),
        total_shards=len(all_shards),
        stable_shards=states.count("STABLE"),
        moving_shards=states.count("MOVING"),
        replication_factor=state.partitioning.replication_factor,
        partitioning_config=models.PartitioningStrings(
            num_shards=str(state.partitioning.num_shards),
            replication_factor=str(state.partitioning.replication_factor),
        ),
        nodes=all_nodes,
        shards=all_shards,
    )


def decisions(found: Iterable[cluster_pb2.Decision]) -> models.Decisions:
    return models.Decisions(
        decisions=[
            models.Decision(
                number=decision.number,
                time_ms=decision.time_ms,
                map_version=decision.map_version,
                kind=decision.kind,
                subject=decision.subject,
                reason=decision.reason,
            )
            for decision in found
        ]
    )


def explanation(found: cluster_pb2.ExplainShardResponse) -> models.Explanation:
    return models.Explanation(shard_id=found.shard_id, health=found.health, now=list(found.now), next=list(found.next))


def operation(job: operator_pb2.Job) -> models.Operation:
    return models.Operation(
        id=job.number,
        operation=job.kind,
        subject=job.subject,
        text=job.text,
        status=job.status,
        begun_ms=job.begun_ms,
        ended_ms=job.ended_ms or None,
        steps_total=max(job.steps, job.left),
        steps_done=max(job.steps, job.left) - job.left,
        outcome=job.outcome or None,
    )


def order(reply: operator_pb2.OrderResponse) -> models.Order:
    return models.Order(
        message=reply.message,
        map_version=reply.map_version,
        operation=operation(reply.job) if reply.HasField("job") else None,
    )


def node_status(text: str) -> coordinator_pb2.NodeStatus.ValueType | None:
    """The status an operator may set by name, or None."""
    return {
        "ALIVE": coordinator_pb2.ALIVE,
        "SUSPECT": coordinator_pb2.SUSPECT,
        "DEAD": coordinator_pb2.DEAD,
    }.get(text)


def _ordered(ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=natural_key)


def _key_range(found: coordinator_pb2.KeyRange) -> models.KeyRange:
    return models.KeyRange(
        start_key=base64.b64encode(found.start_key).decode(), end_key=base64.b64encode(found.end_key).decode()
    )


def _name(enum: object, number: int) -> str:
    """The enum's name of a number; a number from a newer coordinator reads as unspecified."""
    names: dict[int, str] = {value: key for key, value in enum.items()}  # type: ignore[attr-defined]
    return names.get(number, names[0])
