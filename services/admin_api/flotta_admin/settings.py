"""Settings of the admin service."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, ClassVar, Self

from flotta_runtime.settings import (
    AddressList,
    DurationMs,
    ListenAddress,
    StringList,
    TokenSettings,
    env,
    read_secret,
)
from pydantic import AfterValidator, Field, SecretStr, model_validator

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is not an IP network such as 10.0.0.0/8: {error}") from error
    if not values:
        raise ValueError("the list is empty, so nobody could call; name at least one network")
    return values


NetworkList = Annotated[StringList, AfterValidator(_networks)]


class AdminSettings(TokenSettings):
    """The HTTP admin service: registers nodes, creates shards, shows and changes the shard map."""

    service: ClassVar[str] = "admin"

    listen: ListenAddress = Field(default="0.0.0.0:8089", description="host:port of the HTTP admin API.")
    coordinators: AddressList = Field(
        default=("localhost:9001", "localhost:9002", "localhost:9003"),
        description="host:port of the coordinators, comma-separated; any of them is enough to start with.",
        json_schema_extra=env("KVDB_COORDINATOR_GRPC_ADDRESS"),
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="What callers must send in the header X-Admin-Api-Key.",
        json_schema_extra=env("KVDB_ADMIN_SECURITY_API_KEY"),
    )
    api_key_file: Path | None = Field(
        default=None, description="A file holding the API key; read when the key itself is unset or blank."
    )
    allowed_ips: NetworkList = Field(
        default=("127.0.0.1/32", "::1/128", "172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"),
        description="Networks (CIDR, comma-separated) whose sockets may call; headers are not looked at.",
        json_schema_extra=env("KVDB_ADMIN_SECURITY_ALLOWED_IPS"),
    )
    call_timeout_ms: DurationMs = Field(
        default=1_500,
        description="How long one try of a read from a coordinator may take, in ms, before another one is asked.",
    )
    request_timeout_ms: DurationMs = Field(
        default=5_000, description="How long all tries for one HTTP request may take together, in ms."
    )
    ping_timeout_ms: DurationMs = Field(default=1_000, description="How long a node may take to answer a ping, in ms.")
    rate_limit_enabled: bool = Field(
        default=False,
        description="Whether one address may make only so many requests a minute; probes and metrics do not count.",
        json_schema_extra=env("KVDB_ADMIN_SECURITY_RATE_LIMIT_ENABLED"),
    )
    rate_limit_per_minute: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Requests a minute that one address may make, and at once; above that they are answered 429.",
    )
    backup_dir: Path | None = Field(
        default=None,
        description="The directory of this machine under which backups lie; unset: this service makes none.",
    )
    connections_max: int = Field(default=512, ge=8, le=65_536, description="HTTP connections served at once.")

    @model_validator(mode="after")
    def _key_is_there(self) -> Self:
        self.key()
        return self

    def key(self) -> str:
        """The API key, never blank."""
        return read_secret(
            self.api_key, "api_key", "KVDB_ADMIN_SECURITY_API_KEY",
            self.api_key_file, "api_key_file", "FLOTTA_ADMIN_API_KEY_FILE",
        )  # fmt: skip

    def networks(self) -> tuple[Network, ...]:
        """The allowed networks."""
        return tuple(ipaddress.ip_network(value) for value in self.allowed_ips)
