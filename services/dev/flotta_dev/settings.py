"""Settings of dev mode: few, because everything else is chosen for one machine and one person."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from flotta_runtime.settings import DurationMs, TlsSettings, Transport, env
from pydantic import Field, model_validator


class DevSettings(TlsSettings):
    """The whole system in one process."""

    service: ClassVar[str] = "dev"

    data_dir: Path = Field(default=Path("flotta-data"), description="Where everything is kept between runs.")
    gateway_port: int = Field(
        default=7000, ge=0, le=65_535, description="Loopback port of the gateway; 0 picks a free one."
    )
    admin_port: int = Field(
        default=8089, ge=0, le=65_535, description="Loopback port of the HTTP admin API; 0 picks a free one."
    )
    shards: int = Field(default=8, ge=1, le=1024, description="Shards of a new data directory; later starts keep them.")
    transport: Transport = Field(
        default="native",
        description="What serves the gRPC ports: `native`, or `grpcio`, the reference that is slower.",
        json_schema_extra=env("FLOTTA_TRANSPORT"),
    )
    ready_timeout_ms: DurationMs = Field(
        default=30_000, description="How long the start may take until every shard serves."
    )

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        self.check_tls_both_ways()
        return self
