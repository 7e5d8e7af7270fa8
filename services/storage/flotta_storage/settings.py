"""The storage node's settings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from flotta_runtime.settings import (
    Address,
    AddressList,
    DurationMs,
    ListenAddress,
    NodeId,
    SizeBytes,
    TracedSettings,
    env,
    join_address,
    split_address,
)
from pydantic import Field, model_validator

from flotta_storage.core.limits import VALUE_BYTES_MAX_DEFAULT

_WILDCARDS = ("0.0.0.0", "::", "")


class StorageSettings(TracedSettings):
    """Settings of a storage node. Everything it keeps lies under `data_dir`."""

    service: ClassVar[str] = "storage"

    node_id: NodeId = Field(
        default="node-1",
        description="Name of this node, the one it is registered under.",
        json_schema_extra=env("STORAGE_NODE_ID"),
    )
    listen: ListenAddress = Field(default="0.0.0.0:8001", description="host:port of the node's gRPC services.")
    advertise: Address | None = Field(
        default=None,
        description="host:port under which others reach this node; unset: `listen`, with localhost for a wildcard.",
    )
    coordinators: AddressList = Field(
        default=("localhost:9001", "localhost:9002", "localhost:9003"),
        description="host:port of the coordinators; any one that answers is enough.",
        json_schema_extra=env("KVDB_COORDINATOR_GRPC_ADDRESS"),
    )
    data_dir: Path = Field(
        default=Path("data/node-1"), description="Directory of this node alone: its identity, Raft log and rows."
    )
    zone: str = Field(default="local", max_length=128, description="Failure zone of this node, for placement.")
    value_bytes_max: SizeBytes = Field(
        default=VALUE_BYTES_MAX_DEFAULT,
        le=VALUE_BYTES_MAX_DEFAULT,
        description="Longest value a write may carry; the same on all nodes of a cluster.",
    )
    operations_max: int = Field(
        default=20_000, ge=1, description="Operations in work at once; above that they are answered RATE_LIMITED."
    )
    operation_bytes_max: SizeBytes = Field(
        default=256 << 20, description="Bytes of operations in work and of answers not yet sent; above: RATE_LIMITED."
    )
    operation_timeout_ms: DurationMs = Field(
        default=5_000, description="Time an operation may take when its sender sets no deadline."
    )
    operation_timeout_max_ms: DurationMs = Field(
        default=60_000, description="Longest time an operation may take, whatever deadline its sender sets."
    )
    heartbeat_ms: DurationMs = Field(default=500, description="How often this node tells the coordinator it is alive.")
    report_ms: DurationMs = Field(
        default=5_000, description="How often an unchanged shard report is sent again; changed ones go at once."
    )
    map_poll_ms: DurationMs = Field(
        default=1_000, description="How often the shard map is fetched while no watch is open."
    )
    map_idle_ms: DurationMs = Field(
        default=45_000, description="A map watch that is silent for this long is opened anew."
    )
    duties_ms: DurationMs = Field(
        default=200, description="How often a shard leader looks for moves to carry on and rows to expire."
    )
    catch_up_entries: int = Field(
        default=256, ge=1, description="A new replica this close to the leader's log may become a voter."
    )
    clock_skew_max_ms: DurationMs = Field(
        default=500,
        description="A node whose wall clock is further than this from most peers' stamps no time into the log.",
    )
    tick_ms: DurationMs = Field(default=50, description="Length of a Raft tick; a heartbeat is two ticks.")
    election_ticks: int = Field(
        default=10, ge=5, le=1_000, description="Ticks without a leader after which a replica stands for election."
    )
    apply_delay_ms: int = Field(
        default=20,
        ge=0,
        le=1_000,
        description="Followers hear of a commit with the next entries, or so much later, and entries may wait as long "
        "for more. EVENTUAL reads there may be twice as much older; nothing else waits.",
    )

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        self.check_tls_both_ways()
        return self

    def advertised(self, port: int) -> str:
        """Where others reach this node, given the port its server got."""
        if self.advertise is not None:
            return self.advertise
        host, _ = split_address(self.listen)
        return join_address("localhost" if host in _WILDCARDS else host, port)
