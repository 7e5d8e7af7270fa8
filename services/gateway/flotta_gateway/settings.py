"""The gateway's settings."""

from __future__ import annotations

from typing import ClassVar

from flotta_runtime.server import MESSAGE_BYTES_MAX
from flotta_runtime.settings import AddressList, DurationMs, ListenAddress, SizeBytes, TracedSettings, env
from pydantic import Field

from flotta_gateway.core.validation import VALUE_BYTES_MAX


class GatewaySettings(TracedSettings):
    """Settings of a gateway. It keeps no data: any number of them serve the same cluster."""

    service: ClassVar[str] = "gateway"

    listen: ListenAddress = Field(default="0.0.0.0:7000", description="host:port of the client API.")
    coordinators: AddressList = Field(
        default=("localhost:9001", "localhost:9002", "localhost:9003"),
        description="host:port of the coordinators; any one that answers is enough.",
        json_schema_extra=env("KVDB_COORDINATOR_GRPC_ADDRESS"),
    )
    value_bytes_max: SizeBytes = Field(
        default=VALUE_BYTES_MAX,
        le=VALUE_BYTES_MAX,
        description="Longest value a Put may carry; longer ones are answered PAYLOAD_TOO_LARGE.",
    )
    deadline_default_ms: DurationMs = Field(
        default=5_000, description="Time a request may take when its client sets no deadline."
    )
    deadline_max_ms: DurationMs = Field(
        default=60_000, description="Longest time a request may take, whatever deadline its client sets."
    )
    attempt_ms: DurationMs = Field(
        default=1_500,
        description="After this long without an answer a read, or a deduplicated write, is sent to a node again.",
    )
    requests_max: int = Field(
        default=20_000, ge=1, description="Requests open at once; above that they are answered RATE_LIMITED."
    )
    request_bytes_max: SizeBytes = Field(
        default=256 * 1024 * 1024, description="Bytes of keys and values in open requests; above that RATE_LIMITED."
    )
    tenant_rate_max: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Requests a second for each ctx.tenant_id, and at once; above that RATE_LIMITED. 0: no limit.",
    )
    principal_rate_max: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Requests a second for each ctx.principal of a tenant, and at once. 0: no limit.",
    )
    batch_items_max: int = Field(
        default=1_000, ge=1, le=10_000, description="Items of one Kv/Batch request; more are INVALID_ARGUMENT."
    )
    batch_bytes_max: SizeBytes = Field(
        default=33 * 1024 * 1024 // 2,
        le=MESSAGE_BYTES_MAX,
        description="Bytes of one Kv/Batch request; more are INVALID_ARGUMENT.",
    )
    scan_rows_max: int = Field(
        default=10_000, ge=1, le=100_000, description="Rows of one page of a Kv/Scan; more are INVALID_ARGUMENT."
    )
    scan_page_bytes_max: SizeBytes = Field(
        default=4 * 1024 * 1024,
        le=8 * 1024 * 1024,
        description="Keys and values of one page of a Kv/Scan; more are INVALID_ARGUMENT. A larger row comes alone.",
    )
    scan_bytes_max: SizeBytes = Field(
        default=256 * 1024 * 1024, description="Memory for all pages that are being made; above that RATE_LIMITED."
    )
    node_operations_max: int = Field(
        default=10_000, ge=1, description="Operations waiting for one storage node; above that RATE_LIMITED."
    )
    node_bytes_max: SizeBytes = Field(
        default=64 * 1024 * 1024, description="Bytes of operations waiting for one storage node."
    )
    keepalive_ms: DurationMs = Field(
        default=2_000,
        description="A storage connection without traffic is pinged this often, and dropped when the ping is not "
        "answered in as long again.",
    )
    connect_timeout_ms: DurationMs = Field(
        default=1_000, description="How long connecting to a storage node may take before it counts as unreachable."
    )
    map_refresh_min_ms: DurationMs = Field(
        default=100, description="Least time between two refreshes of the shard map that requests ask for."
    )
    map_idle_ms: DurationMs = Field(
        default=5_000, description="A map watch silent for this long is checked against another coordinator."
    )
