"""The slow work of a simulated process: flushes, and snapshots built, sent, received and installed.

In the order that production keeps: a file is synced before anyone hears of it, a received file is verified and
synced before its message is stepped, a state is switched before its file goes. Each step passes its failpoint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flotta_consensus.core.effects import BuildSnapshot, Effects, Flush, InstallSnapshot, SendSnapshot
from flotta_consensus.core.manifest import Manifest, built_name, incoming_name
from flotta_consensus.sim.checkers import SafetyViolation

if TYPE_CHECKING:
    from flotta_consensus.sim.node import SimNode

Answer = Callable[[bool], None]

CHUNK_BYTES = 1 << 12
SEND_TIMEOUT_MS = 3_000


class SnapshotShipping:
    """Belongs to one process; its files survive it."""

    def __init__(self, process: SimNode) -> None:
        self._process = process
        self._awaited: dict[int, SendSnapshot] = {}
        self._offers = 0

    def crashed(self) -> None:
        self._awaited.clear()

    def opened(self, groups: set[int]) -> None:
        """At a start: files that no pending install needs are of no use."""
        host, files = self._process.host, self._process.files
        needed: set[str] = set()
        for group in sorted(groups):
            pending = host.pending_install(group)
            if pending is not None:
                manifest = Manifest.decode(pending[3])
                needed.add(incoming_name(group, manifest.index, manifest.sha256))
        for name in files.names():
            if name not in needed:
                files.delete(name)

    def carry_out(self, effects: Effects) -> None:
        later = self._process.later
        for build in effects.builds:
            later(1, 40, partial(self._build, build))
        for offer in effects.sends:
            later(1, 10, partial(self._send, offer))
        for install in effects.installs:
            later(1, 40, partial(self._install, install))
        for group, keep_index in effects.superseded:
            keep = built_name(group, keep_index)
            for name in self._process.files.names():
                if name.startswith(f"{group}-") and name.count("-") == 1 and name != keep:
                    self._process.files.delete(name)

    def flush(self, flush: Flush) -> None:
        process = self._process
        process.failpoints.reach("consensus.before_flush")
        index = flush.run()
        process.failpoints.reach("consensus.after_flush")
        process.world.transcript.count("flushes")
        process.driver.flushed(flush.group, index)
        if not process.driver.installing(flush.group):
            self._delete_incoming(flush.group, index)

    def _delete_incoming(self, group: int, up_to_index: int) -> None:
        """Received files whose state, or a newer one, the machine holds durably."""
        for name in self._process.files.names():
            parts = name.split("-")
            if len(parts) == 3 and parts[0] == str(group) and int(parts[1]) <= up_to_index:
                self._process.files.delete(name)

    def _build(self, build: BuildSnapshot) -> None:
        process = self._process
        content = b"".join(build.source.chunks(CHUNK_BYTES))
        build.source.close()
        name = built_name(build.group, build.index)
        try:
            process.files.write(name, content)
        except OSError:  # the disk is full: nothing is lost, the host asks again
            process.world.transcript.count("snapshot_builds_failed")
            process.driver.snapshot_build_failed(build.group)
            return
        process.failpoints.reach("consensus.before_snapshot_sync")
        process.files.sync(name)
        process.failpoints.reach("consensus.after_snapshot_build")
        process.world.transcript.count("snapshots_built")
        process.note(f"built snapshot of group {build.group} at {build.index}, {len(content)} bytes")
        digest = hashlib.sha256(content).digest()
        process.driver.snapshot_built(build.group, Manifest(build.group, build.index, len(content), digest, name))

    def _send(self, offer: SendSnapshot) -> None:
        """Stream the file; the answer may never come, so there is a time limit too."""
        process = self._process
        manifest = Manifest.decode(offer.manifest)
        content = process.files.read(manifest.name)
        if content is None or hashlib.sha256(content).digest() != manifest.sha256:
            process.world.transcript.count("snapshots_gone_before_sending")
            process.driver.snapshot_sent(offer, False, file_lost=content is None)
            return
        target = process.peer(offer.node_num)
        if target is None:
            process.driver.snapshot_sent(offer, False)
            return
        self._offers += 1
        number = self._offers
        self._awaited[number] = offer
        incarnation = process.incarnation

        def answer(ok: bool) -> None:
            def arrive() -> None:
                if process.incarnation == incarnation:
                    process.run(lambda: self._answered(number, ok))

            process.world.network.send(target.number, process.number, arrive)

        # A stream, unlike a frame, is never delivered twice.
        process.world.network.send(
            process.number,
            target.number,
            lambda: target.run(lambda: target.shipping.receive(offer, manifest, content, answer)),
            faithful=True,
        )
        process.later(100, 400, lambda: self._progress(number))
        timeout_ms = SEND_TIMEOUT_MS + process.rng.randrange(500)
        process.later(timeout_ms, timeout_ms + 1, lambda: self._answered(number, False))

    def _progress(self, number: int) -> None:
        offer = self._awaited.get(number)
        if offer is not None:
            self._process.driver.snapshot_progress(offer)

    def _answered(self, number: int, ok: bool) -> None:
        offer = self._awaited.pop(number, None)
        if offer is not None:
            self._process.world.transcript.count("snapshots_sent" if ok else "snapshots_not_sent")
            self._process.driver.snapshot_sent(offer, ok)

    def receive(self, offer: SendSnapshot, manifest: Manifest, content: bytes, answer: Answer) -> None:
        """The receiving side: durable and verified first, then the message."""
        process = self._process
        if not process.takes(offer.node_num):
            answer(False)
            return
        if hashlib.sha256(content).digest() != manifest.sha256:
            raise SafetyViolation(f"{process.name} received a damaged snapshot of group {offer.group}")
        name = incoming_name(offer.group, manifest.index, manifest.sha256)
        try:
            process.files.write(name, content)
        except OSError:
            answer(False)
            return
        process.failpoints.reach("consensus.before_incoming_sync")
        process.files.sync(name)
        process.failpoints.reach("consensus.after_incoming_sync")
        process.driver.receive(offer.message)
        answer(True)

    def _install(self, install: InstallSnapshot) -> None:
        process = self._process
        name = incoming_name(install.group, install.index, install.manifest.sha256)
        content = process.files.read(name)
        if content is None or hashlib.sha256(content).digest() != install.manifest.sha256:
            raise SafetyViolation(
                f"{process.name}: the log accepted snapshot {install.index} of group {install.group}, "
                "and its file is not there whole"
            )
        process.failpoints.reach("consensus.before_install")
        sink = install.machine.restore()
        for start in range(0, len(content), CHUNK_BYTES):
            sink.write(content[start : start + CHUNK_BYTES])
        process.failpoints.reach("consensus.before_install_commit")
        process.driver.install(install.group, sink)
        process.failpoints.reach("consensus.after_install_commit")
        self._delete_incoming(install.group, install.index)
        process.failpoints.reach("consensus.after_install_delete")
        process.world.transcript.count("snapshots_installed")
        process.note(f"installed snapshot of group {install.group} at {install.index}")
