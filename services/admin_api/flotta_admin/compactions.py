"""The order to compact, handed to the nodes that hold what is meant, and followed as an operation to its end.

Nodes are asked beside one another, and queue the work; from then on they are asked how much of it is left. A DEAD node
is given the order only when it is named: it has nothing to serve from. Called off, what waits on the nodes is let be.
The operation ends as failed if a node does not answer for long, or this service stops: the nodes go on all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Final

from flotta_proto.flotta import operator_pb2 as pb
from flotta_proto.flotta import storage_pb2
from flotta_proto.kvdb.coordinator_pb2 import DEAD, ClusterState
from flotta_runtime.errors import FlottaError, NotFound, PreconditionFailed, Unavailable
from flotta_runtime.logging import get_logger

from flotta_admin.coordinator import Coordinators
from flotta_admin.copying.job import Job, JobEnded
from flotta_admin.http_errors import check_accepted
from flotta_admin.probe import NodeOrders

LOOK_EVERY_S: Final = 1.0
SILENCES_MAX: Final = 60  # looks in a row at which a node did not answer
STOPPED: Final = "the admin service that followed it was stopped; the nodes go on"
STOP_S: Final = 5.0


class Compactions:
    """`close()` when done."""

    def __init__(self, coordinators: Coordinators, orders: NodeOrders) -> None:
        self._coordinators = coordinators
        self._orders = orders
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by operation
        self._log = get_logger("admin.compactions")

    async def order(self, shard_ids: Collection[str], node_ids: Collection[str]) -> tuple[int, int]:
        """How many replicas are now to be compacted, and the operation. Unavailable when a node did not take the order:
        others may have, and repeating it does no harm."""
        state = await self._coordinators.state()
        asked, shards = _nodes(state, shard_ids, node_ids), sorted(shard_ids)
        addresses = {node_id: state.nodes[node_id].address for node_id in asked}
        counts, failed = await self._ask(addresses, shards, storage_pb2.CompactRequest.ORDER)
        if failed:
            raise Unavailable(
                f"{len(failed)} of {len(asked)} nodes did not take the order, repeat it later: {'; '.join(failed[:3])}"
            )
        if not counts:
            return 0, 0
        reply: pb.OrderResponse = await self._coordinators.order(
            "BeginCompaction", pb.BeginCompactionRequest(steps=counts)
        )
        check_accepted(reply)
        number = reply.job.number
        if number not in self._tasks and reply.job.left == reply.job.steps == counts:  # not one that is under way
            task = asyncio.create_task(self._follow(number, counts, addresses, shards), name=f"operation {number}")
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        return counts, number

    async def close(self) -> None:
        """What is followed ends as failed, and the coordinators are told if they can be reached soon."""
        tasks = list(self._tasks.values())
        for _ in range(2 if tasks else 0):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=STOP_S)

    async def _follow(self, number: int, steps: int, addresses: dict[str, str], shards: Sequence[str]) -> None:
        job = Job(self._coordinators, number)
        job.steps = steps
        try:
            why = await job.while_wanted(self._until_done(job, addresses, shards))
            await job.end(why or f"{steps} replicas are compacted", failed=bool(why))
        except JobEnded:
            found = await self._coordinators.jobs(pb.ListJobsRequest(number=number))
            if [one.status for one in found.jobs] == ["CANCELLED"]:
                await self._ask(addresses, shards, storage_pb2.CompactRequest.DROP)
        except asyncio.CancelledError:
            await self._end(job, STOPPED)
            raise
        except FlottaError as error:
            self._log.info("a compaction is followed no more", operation=number, reason=error.message)

    async def _end(self, job: Job, why: str) -> None:
        try:
            await job.end(why, failed=True)
        except (JobEnded, FlottaError) as error:
            self._log.info("the end could not be told", operation=job.number, reason=str(error))

    async def _until_done(self, job: Job, addresses: dict[str, str], shards: Sequence[str]) -> str:
        """Why it is given up; empty once nothing is left."""
        silences = 0
        while True:
            left, failed = await self._ask(addresses, shards, storage_pb2.CompactRequest.ASK)
            silences = silences + 1 if failed else 0
            if not failed:
                job.done = job.steps - min(left, job.steps)
                if not left:
                    return ""
            if silences >= SILENCES_MAX:
                return f"how far it is cannot be asked: {'; '.join(failed[:3])}"
            await asyncio.sleep(LOOK_EVERY_S)

    async def _ask(
        self, addresses: dict[str, str], shards: Sequence[str], what: storage_pb2.CompactRequest.What.ValueType
    ) -> tuple[int, list[str]]:
        """The sum of the answers, and who gave none."""
        answers = await asyncio.gather(*(self._orders.compact(address, shards, what) for address in addresses.values()))
        failed = [f"{node_id}: {why}" for node_id, (_, why) in zip(addresses, answers, strict=True) if why]
        return sum(count for count, _ in answers), failed


def _nodes(state: ClusterState, shard_ids: Collection[str], node_ids: Collection[str]) -> list[str]:
    """Whom to ask."""
    if not state.shards:
        raise PreconditionFailed("there are no shards yet; send POST /admin/config/shard-init first")
    for shard_id in shard_ids:
        if shard_id not in state.shards:
            raise NotFound(f"target_shards: shard not found: {shard_id[:64]}")
    for node_id in node_ids:
        if node_id not in state.nodes:
            raise NotFound(f"target_nodes: node not found: {node_id[:64]}")
    chosen = set(node_ids) or {node_id for node_id, node in state.nodes.items() if node.status != DEAD}
    if shard_ids:
        chosen &= {node_id for shard_id in shard_ids for node_id in state.shards[shard_id].replicas}
    return sorted(chosen)
