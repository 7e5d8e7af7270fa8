"""The storage node's metrics. Hot paths count once per batch, on children bound here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flotta_proto.flotta.storage_pb2 import Reply
from flotta_proto.kvdb.gateway_pb2 import Status
from flotta_runtime.metrics import BATCH_BUCKETS, Metrics

from flotta_storage.budget import Budget
from flotta_storage.compaction import Compactor
from flotta_storage.health import HealthMonitor
from flotta_storage.leader_duties import LeaderDuties
from flotta_storage.replica_table import ReplicaTable
from flotta_storage.stamping import Stamps

_OK = Status.OK


class Telemetry:
    """Implements the batch handler's `Observer`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._batch_size = metrics.loop_histogram(
            "flotta_storage_batch_operations", "Operations per batch handed to the node.", buckets=BATCH_BUCKETS
        )
        answered = metrics.loop_counter("flotta_storage_operations_total", "Operations answered, by code.", ("code",))
        self._answered = {number: answered.labels(name) for name, number in Status.Code.items()}
        self._ok = self._answered[_OK]

    def batch(self, operations: int) -> None:
        self._batch_size.observe(operations)

    def answered(self, replies: Sequence[Reply]) -> None:
        codes = [reply.code for reply in replies]
        if codes.count(_OK) == len(codes):
            self._ok.value += len(codes)
            return
        for code, count in Counter(codes).items():
            self._answered[code].value += count

    def watch(self, budget: Budget, replicas: ReplicaTable, stamps: Stamps) -> None:
        """Numbers read when scraped."""
        gauge = self._metrics.gauge
        gauge("flotta_storage_operations_in_work", "Operations admitted and not yet answered.").set_function(
            lambda: budget.operations
        )
        gauge("flotta_storage_bytes_in_work", "Bytes of those operations and of unsent answers.").set_function(
            lambda: budget.bytes
        )
        gauge(
            "flotta_storage_clock_out_of_bounds", "1 while the clock differs from most peers and no time is stamped."
        ).set_function(lambda: int(bool(stamps.problem)))
        gauge("flotta_storage_replicas", "Replicas on this node.").set_function(lambda: len(replicas))

    def watch_host(self, health: HealthMonitor, duties: LeaderDuties, compactor: Compactor) -> None:
        gauge = self._metrics.gauge
        gauge("flotta_storage_shards_led", "Shards whose leader is on this node.").set_function(lambda: health.led)
        gauge("flotta_storage_apply_lag_entries", "Committed and not yet applied, the worst replica.").set_function(
            lambda: health.lag_entries
        )
        gauge("flotta_storage_log_bytes", "Bytes of live Raft log entries.").set_function(lambda: health.log_bytes)
        gauge("flotta_storage_rows_expired", "Rows swept by this node as a leader.").set_function(lambda: duties.swept)
        gauge("flotta_storage_compactions_waiting", "Replicas that an operator wants compacted.").set_function(
            lambda: compactor.waiting
        )
        gauge("flotta_storage_compactions", "Replicas compacted on an operator's order.").set_function(
            lambda: compactor.done
        )
        gauge("flotta_storage_leader_transfers", "Leaderships handed over by this node.").set_function(
            lambda: duties.transfers
        )
