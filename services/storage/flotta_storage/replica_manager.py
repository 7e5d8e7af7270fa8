"""Makes and removes this node's replicas as `core/replicas.py` decides, in an order that any crash leaves repairable.

Making: record (durable) → state machine (durable) → Raft group (durable) → record says made. Removing: only after the
group's leader said so, or the map that the shard is no more → tombstoned in the log → state destroyed → record replaced
by a tombstone. Taking over: the id to go on under is recorded → the log goes on under it (durable) → the record does.
`recover` finishes whatever a crash interrupted, `review` what takes the rows of a shard that divided. Invariant: a
record is there before its replica and goes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from flotta_consensus.api import Failpoints, Members, Seizure
from flotta_consensus.groups import Groups
from flotta_consensus.identity import DataDirectory
from flotta_embedded.api import Engine
from flotta_embedded.generations import current
from flotta_embedded.machine import Machine
from flotta_embedded.registry import Registry
from flotta_runtime.errors import StartupError
from flotta_runtime.logging import get_logger

from flotta_storage.core import inheritance
from flotta_storage.core.commands import birth_rows
from flotta_storage.core.replicas import (
    AskMembership,
    Complain,
    Create,
    Drop,
    LocalReplica,
    LocalState,
    MapView,
    MembershipAnswer,
    Origin,
    Retire,
    TakeOver,
    decide,
    may_remove,
)
from flotta_storage.core.takeover import takeover_payloads
from flotta_storage.inheriting import Estate, bear_in_thread, space_name
from flotta_storage.map_model import MapModel
from flotta_storage.records import NodeRecords
from flotta_storage.replica_table import Replica, ReplicaTable

REVIEW_MS = 2_000  # how often the map is looked at again although it did not change: questions need repeating

FAILPOINTS = ("storage.taken_over",)

Ask = Callable[[AskMembership, MapView], Awaitable[MembershipAnswer]]


def open_machines(
    engine: Engine, records: NodeRecords, registry: Registry, failpoints: Failpoints
) -> dict[int, Machine]:
    """The state machine of every recorded replica that has one."""
    return {
        group: Machine.open(engine, space_name(group), registry, failpoints=failpoints)
        for group in records.state.replicas
        if current(engine, space_name(group)) is not None
    }


class ReplicaManager:
    """`recover()` once, after the host runs; then `run()` is its task."""

    def __init__(
        self,
        directory: DataDirectory,
        engine: Engine,
        registry: Registry,
        records: NodeRecords,
        host: Groups,
        model: MapModel,
        replicas: ReplicaTable,
        ask: Ask,
        failpoints: Failpoints,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._registry = registry
        self._records = records
        self._host = host
        self._model = model
        self._replicas = replicas
        self._ask = ask
        self._failpoints = failpoints
        self._wake = asyncio.Event()
        self._complaints: set[str] = set()
        self.questions = 0
        self._log = get_logger("storage.replicas", node=records.state.node_id)

    @property
    def state(self) -> LocalState:
        return self._records.state

    def map_changed(self) -> None:
        self._wake.set()

    async def recover(self, machines: Mapping[int, Machine]) -> None:
        """Bring records, machines and log into line after a start."""
        known = set(self._host.groups())
        tombstones = self._host.tombstones()
        for group, record in sorted(self._records.state.replicas.items()):
            if group in known:
                if record.heir and record.replica in tombstones.get(group, []):
                    self._records.mark_taken_over(group)
                elif not record.made:
                    self._records.mark_made(group)
                self._serve(self._records.state.replicas[group], machines[group])
            elif record.replica in tombstones.get(group, []):
                if group in machines:
                    machines[group].destroy()
                self._records.bury(group)
            elif record.made:
                raise StartupError(
                    f"replica {record.replica} of shard {record.shard_id} was made here, but the Raft log does not "
                    "know it: the log was replaced; restore the data directory, or remove the node and add it again"
                )
            elif record.origin is not Origin.SPLIT or group in machines:
                await self._make(record, machines.get(group))

    async def run(self) -> None:
        """Review the map whenever it changes, and now and then."""
        while True:
            self._wake.clear()
            await self.review()
            try:
                async with asyncio.timeout(REVIEW_MS / 1000):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def review(self) -> None:
        """Do now what the newest map asks for."""
        await self._inherit()
        view = self._model.view
        local = self._records.state
        actions = decide(view, local, inheritance.heirs(view, self._parents(), local.node_id))
        creations = [action.replica for action in actions if isinstance(action, Create)]
        if creations:
            self._records.intend(creations, view.version)
            for record in creations:
                await self._make(record, None)
        for action in actions:
            if isinstance(action, Complain):
                self._complain(action)
            elif isinstance(action, TakeOver):
                await self._take_over(action, view.version)
            elif isinstance(action, Retire):
                self._retire(action)
            elif isinstance(action, Drop):
                await self._remove(action.group, view.version)
        questions = [action for action in actions if isinstance(action, AskMembership)]
        self.questions += len(questions)
        for answer in await asyncio.gather(*(self._ask(question, view) for question in questions)):
            if may_remove(answer, self._records.state):
                await self._inherit()  # from rows that are about to go
                await self._remove(answer.group, view.version)

    def _parents(self) -> list[inheritance.Local]:
        return [inheritance.Local(one.group, one.state(), one.division()) for one in self._replicas]

    async def _inherit(self) -> None:
        """Make what is due of shards that divided here."""
        found = inheritance.due(self._parents(), self._records.state)
        for group, records in found.made_of.items():
            parent = self._replicas.of_group(group)
            state, division = (parent.state(), parent.division()) if parent is not None else (None, None)
            if parent is None or state is None or division is None:
                continue
            self._records.intend(records, 0)
            estate = Estate(parent.machine.freeze(), state, division)
            machines = await bear_in_thread(self._engine, estate, records, self._registry, self._failpoints)
            for record, machine in zip(records, machines, strict=True):
                await self._make(record, machine)
        self._records.intend(found.empty, 0)
        for record in found.empty:
            await self._make(record, None)

    async def _take_over(self, action: TakeOver, map_version: int) -> None:
        """ValueError of the host is a "not yet": the next review tries again."""
        group, heir = action.group, action.heir
        record, replica = self._records.state.replicas[group], self._replicas.kept(group)
        state = replica.state() if replica is not None else None
        if replica is None or state is None:
            self._complain(Complain(group, f"{record.shard_id} cannot go on from here: its replica is still empty"))
            return
        self._records.intend_takeover(group, heir.replica, map_version)
        payloads = takeover_payloads(state, heir.epoch_min)
        try:
            await self._host.seize_group(group, Seizure(heir.from_replica, heir.replica, heir.term_min, payloads))
        except ValueError as error:
            self._complain(Complain(group, f"{record.shard_id} cannot go on from here yet: {error}"))
            return
        self._failpoints.reach("storage.taken_over")
        self._records.mark_taken_over(group)
        self._serve(self._records.state.replicas[group], replica.machine)
        self._host.campaign(group)
        self._log.warning("replica goes on alone", shard=record.shard_id, replica=heir.replica, was=heir.from_replica)

    def _retire(self, action: Retire) -> None:
        replica = self._replicas.of_group(action.group)
        if replica is not None and replica.replica == action.replica:
            self._replicas.retire(replica)
            self._log.warning("replica given up: the shard went on without it", shard=replica.shard_id)

    async def _make(self, record: LocalReplica, machine: Machine | None) -> None:
        if machine is None:
            machine = await asyncio.to_thread(self._new_machine, record)
        await self._host.create_group(record.group, record.replica, record.voters, machine)
        self._directory.mark_formed()
        self._records.mark_made(record.group)
        self._serve(record, machine)
        if self._should_lead(record):
            self._host.campaign(record.group)  # the others need not wait for an election timeout
        self._log.info("replica made", shard=record.shard_id, replica=record.replica, origin=record.origin.value)

    def _should_lead(self, record: LocalReplica) -> bool:
        if record.origin is Origin.SPLIT:
            role = self._host.role(record.parent)
            return role is not None and role.is_leader
        shard = self._model.shard(record.shard_id)
        ours = shard is not None and shard.creating and shard.target_leader == self._records.state.node_id
        return record.origin is Origin.BIRTH and ours

    def _new_machine(self, record: LocalReplica) -> Machine:
        space = space_name(record.group)
        if record.origin is Origin.EMPTY:
            return Machine.create_empty(self._engine, space, self._registry, failpoints=self._failpoints)
        return Machine.create(
            self._engine,
            space,
            self._registry,
            members=Members(voters=record.voters),
            revision_base=record.revision_base,
            rows=birth_rows(record.shard_id, record.table, record.shard_index, record.shard_count),
            failpoints=self._failpoints,
        )

    async def _remove(self, group: int, map_version: int) -> None:
        record = self._records.state.replicas[group]
        self._replicas.remove(group)
        await self._host.remove_group(group)
        self._records.bury(group, map_version)
        self._log.info("replica removed", shard=record.shard_id, replica=record.replica)

    def _serve(self, record: LocalReplica, machine: Machine) -> None:
        """Unless the newest map says that the shard went on without this replica."""
        machine.watch_kept(self._wake.set)  # a division is to be seen at once
        replica = Replica(record.shard_id, record.group, record.replica, machine)
        shard = self._model.view.shards.get(record.group)
        if shard is not None and shard.given_up(record.replica):
            self._replicas.retire(replica)
        else:
            self._replicas.add(replica)

    def _complain(self, complaint: Complain) -> None:
        if complaint.reason not in self._complaints:
            self._complaints.add(complaint.reason)
            self._log.error("the map asks for what must not be done", reason=complaint.reason)
