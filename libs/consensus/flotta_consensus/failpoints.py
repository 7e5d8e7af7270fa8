"""Named points where a test can kill, pause or fail the process.

`FLOTTA_FAILPOINTS="consensus.before_flush=abort@3,consensus.after_apply=sleep:200"`: the third pass of the first one
ends the process at once (no cleanup, like kill -9), every pass of the second one sleeps 200 ms. `error` raises
`FailpointError`. `@n` means only the n-th pass. Names that start with `raft.` belong to the native host, which reads
the same variable. A name nobody declared stops the start: a typo must not look like a test that passed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flotta_consensus.api import Failpoints, NoFailpoints

VARIABLE = "FLOTTA_FAILPOINTS"
NATIVE_PREFIX = "raft."

CONSENSUS_FAILPOINTS: tuple[str, ...] = (
    "consensus.before_propose",
    "consensus.before_send",
    "consensus.before_step",
    "consensus.before_apply",
    "consensus.after_apply",
    "consensus.before_flush",
    "consensus.after_flush",
    "consensus.before_compact",
    "consensus.before_snapshot_build",
    "consensus.before_snapshot_sync",
    "consensus.after_snapshot_build",
    "consensus.before_snapshot_send",
    "consensus.before_incoming_sync",
    "consensus.after_incoming_sync",
    "consensus.before_install",
    "consensus.before_install_commit",
    "consensus.after_install_commit",
    "consensus.after_install_delete",
    "consensus.before_destroy",
    "consensus.after_destroy",
    "consensus.before_identity_write",
    "consensus.after_identity_write",
)

_SETTING = re.compile(r"^(?P<name>[a-z0-9_.]+)=(?P<action>abort|error|sleep:(?P<ms>\d+))(?:@(?P<pass>[1-9]\d*))?$")


class FailpointError(RuntimeError):
    """Raised by a failpoint set to `error`."""


@dataclass(slots=True)
class _Armed:
    action: str
    sleep_ms: int
    only_pass: int  # 0: every pass
    passes: int = 0


def _abort() -> None:
    os.abort()


class ArmedFailpoints:
    """Failpoints from a setting text. Cheap when a name is not armed: one dictionary miss."""

    def __init__(self, text: str, declared: Iterable[str], *, abort: Callable[[], None] = _abort) -> None:
        self._abort = abort
        self._armed: dict[str, _Armed] = {}
        known = set(declared)
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            match = _SETTING.match(part)
            if match is None:
                raise ValueError(f"{VARIABLE}: '{part}' is not name=abort|error|sleep:MS with an optional @PASS")
            name = match["name"]
            if name.startswith(NATIVE_PREFIX):
                continue
            if name not in known:
                raise ValueError(f"{VARIABLE}: there is no failpoint '{name}'")
            self._armed[name] = _Armed(match["action"].split(":")[0], int(match["ms"] or 0), int(match["pass"] or 0))

    def reach(self, name: str) -> None:
        armed = self._armed.get(name)
        if armed is None:
            return
        armed.passes += 1
        if armed.only_pass and armed.passes != armed.only_pass:
            return
        if armed.action == "abort":
            self._abort()
        elif armed.action == "error":
            raise FailpointError(f"failpoint {name}, pass {armed.passes}")
        else:
            time.sleep(armed.sleep_ms / 1000)


def from_environment(environ: Mapping[str, str] = os.environ, *, extra: Iterable[str] = ()) -> Failpoints:
    """What the process was told to do; `extra` are the service's own names."""
    text = environ.get(VARIABLE, "")
    if not text:
        return NoFailpoints()
    return ArmedFailpoints(text, (*CONSENSUS_FAILPOINTS, *extra))
