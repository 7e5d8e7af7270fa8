"""Settings of a coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from flotta_runtime.settings import DurationMs, GrpcSettings, NodeId, PeerList, env
from pydantic import Field, model_validator

from flotta_coordinator.core.liveness import Timeouts
from flotta_coordinator.core.plan_view import Policy
from flotta_coordinator.group import MEMBER_COUNTS, Coordinators

_ALONE = (("coordinator-1", "localhost:9001"),)


class CoordinatorSettings(GrpcSettings):
    """A coordinator: one of 1, 3 or 5 members that own the shard map together."""

    service: ClassVar[str] = "coordinator"

    node_id: NodeId = Field(
        default="coordinator-1",
        description="Which of the peers this is.",
        json_schema_extra=env("COORDINATOR_NODE_ID"),
    )
    peers: PeerList = Field(
        default=_ALONE,
        description="All coordinators as id=host:port, this one included, in the same order everywhere; 1, 3 or 5. "
        "Ids and order are fixed at the first start.",
    )
    data_dir: Path = Field(
        default=Path("data/coordinator-1"), description="Directory of this coordinator's log and state."
    )
    suspect_after_ms: DurationMs = Field(
        default=3_000, description="A storage node that sent no heartbeat for this long, in ms, is SUSPECT."
    )
    dead_after_ms: DurationMs = Field(
        default=10_000, description="A storage node that sent no heartbeat for this long, in ms, is DEAD."
    )
    liveness_check_ms: DurationMs = Field(
        default=500, description="How often the leader looks for silent nodes, in ms."
    )
    watch_heartbeat_ms: DurationMs = Field(
        default=30_000, description="An idle WatchShardMap stream carries an empty delta this often, in ms."
    )
    watchers_max: int = Field(default=10_000, ge=1, description="WatchShardMap streams at once, at most.")
    commit_timeout_ms: DurationMs = Field(
        default=10_000, description="How long a change may wait for a quorum, in ms, before its outcome is unknown."
    )
    election_timeout_ms: DurationMs = Field(
        default=1_000, description="A follower that heard nothing for this long (up to twice as long), in ms, stands."
    )
    raft_heartbeat_ms: DurationMs = Field(
        default=200, description="How often the leader tells the followers that it leads, in ms."
    )
    recover_after_ms: DurationMs = Field(
        default=60_000,
        description="A storage node that is DEAD for this long, in ms, may be given up by `flotta recover --unsafe`.",
    )

    plan_every_ms: DurationMs = Field(
        default=1_000, description="How often the leader looks for what the cluster needs, in ms."
    )
    replace_after_ms: DurationMs = Field(
        default=300_000,
        description="A storage node that is DEAD for this long, in ms, has its replicas made elsewhere.",
    )
    settle_ms: DurationMs = Field(
        default=30_000,
        description="A storage node gets replicas and leaderships once it has been ALIVE for this long, in ms; doubled "
        "with every return within `flap_window_ms`, up to 64 times.",
    )
    flap_window_ms: DurationMs = Field(
        default=3_600_000, description="Returns of a storage node within this time, in ms, count together."
    )
    moves_max: int = Field(
        default=8, ge=0, le=4_096, description="Shards that the planner moves at once; 0: it moves none."
    )
    moves_per_node_max: int = Field(
        default=2, ge=1, le=4_096, description="Moves at once in which one storage node gets or loses a replica."
    )
    hand_overs_max: int = Field(
        default=4, ge=0, le=4_096, description="Leaderships that change hands at once by the planner's will; 0: none."
    )
    move_stall_ms: DurationMs = Field(
        default=120_000, description="A move or hand-over that came no closer for this long, in ms, is given up."
    )
    move_avoid_ms: DurationMs = Field(
        default=600_000, description="After that the shard goes to other nodes for this long, in ms."
    )
    move_hold_ms: DurationMs = Field(
        default=600_000, description="A shard whose move an operator cancelled is left alone for this long, in ms."
    )

    @model_validator(mode="before")
    @classmethod
    def _listen_on_own_port(cls, values: Any) -> Any:
        """Unless told otherwise, bind all interfaces at the port of this member's own address."""
        if not isinstance(values, dict) or "listen" in values:
            return values
        own = values.get("node_id", "coordinator-1")
        ports = [address.rpartition(":")[2] for name, address in _pairs(values.get("peers", _ALONE)) if name == own]
        # What is wrong with an address is said of the peers, where it stands.
        usable = bool(ports) and ports[0].isdecimal() and int(ports[0]) <= 65_535
        return {**values, "listen": f"0.0.0.0:{ports[0] if usable else 0}"}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [name for name, _ in self.peers]
        if len(names) not in MEMBER_COUNTS:
            raise ValueError(f"peers names {len(names)} coordinators; there must be 1, 3 or 5")
        if self.node_id not in names:
            raise ValueError(f"node_id {self.node_id} is not among the peers ({', '.join(names)})")
        if self.suspect_after_ms >= self.dead_after_ms:
            raise ValueError(
                f"suspect_after_ms {self.suspect_after_ms} must be less than dead_after_ms {self.dead_after_ms}"
            )
        if self.liveness_check_ms * 2 > self.suspect_after_ms:
            raise ValueError(
                f"liveness_check_ms {self.liveness_check_ms} must be at most half of suspect_after_ms "
                f"{self.suspect_after_ms}"
            )
        self.check_tls_both_ways()
        if self.raft_heartbeat_ms * 3 > self.election_timeout_ms:
            raise ValueError(
                f"raft_heartbeat_ms {self.raft_heartbeat_ms} must be at most a third of election_timeout_ms "
                f"{self.election_timeout_ms}"
            )
        return self

    def coordinators(self) -> Coordinators:
        return Coordinators(self.peers, self.node_id)

    def policy(self) -> Policy:
        """How patient and how fast the planner is."""
        return Policy(
            replace_after_ms=self.replace_after_ms,
            settle_ms=self.settle_ms,
            flap_window_ms=self.flap_window_ms,
            moves_max=self.moves_max,
            moves_per_node_max=self.moves_per_node_max,
            hand_overs_max=self.hand_overs_max,
            stall_ms=self.move_stall_ms,
            avoid_ms=self.move_avoid_ms,
            hold_ms=self.move_hold_ms,
        )

    def timeouts(self) -> Timeouts:
        """Half of the first timeout without a check means that this process itself was paused."""
        return Timeouts(self.suspect_after_ms, self.dead_after_ms, max(1, self.suspect_after_ms // 2 + 1))


def _pairs(peers: Any) -> list[tuple[str, str]]:
    """Names and addresses, before they were validated: what cannot be read is left to the validation."""
    if isinstance(peers, str):
        parts = [part.partition("=") for part in peers.split(",")]
        return [(name.strip(), address.strip()) for name, _, address in parts]
    items = peers.items() if isinstance(peers, Mapping) else peers
    if not isinstance(items, str) and all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
        return [(str(name), str(address)) for name, address in items]
    return []
