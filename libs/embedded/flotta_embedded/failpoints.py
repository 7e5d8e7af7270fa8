"""The named points of engines and machines, for `flotta_consensus.failpoints.from_environment(extra=…)`."""

from __future__ import annotations

FAILPOINTS: tuple[str, ...] = (
    "engine.before_create",
    "engine.after_create",
    "engine.before_drop",
    "engine.after_drop",
    "engine.before_write",
    "engine.after_write",
    "engine.before_flush",
    "engine.in_flush",
    "engine.after_flush",
    "machine.create_created",
    "machine.create_before_flush",
    "machine.create_flushed",
    "machine.apply_before_write",
    "machine.apply_written",
    "machine.restore_created",
    "machine.restore_written",
    "machine.restore_before_flush",
    "machine.restore_flushed",
    "machine.restore_dropped",
)
