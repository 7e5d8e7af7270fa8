"""The first start: how coordinators with empty directories become one cluster, and who may not join it.

The members are the configured peers, all voters from birth, so an empty directory under a known name would be a
voter that forgot its votes. Therefore a member with an empty directory needs an answer of every other member before
it takes part: one that has met this name with another store refuses it. When all are new, the first in the list
names the cluster; the others take the name over. Who is who is put on record before that, so every member of a
formed cluster can tell an impostor. Later starts need nobody's answer; they only stop when those who do answer say
that this is not the directory they know.

Where the coordinators have been recovered, because most of them were lost for good, or one of them was given up while
the others had a quorum, an empty directory need not ask them all: the leader gives it a number that nobody has had, in
the place that its name has.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
from flotta_consensus.durable import replace_file
from flotta_consensus.identity import DataDirectory, Identity
from flotta_consensus.peer_identity import Answer, to_message
from flotta_proto.flotta import raft_pb2, raft_pb2_grpc, roster_pb2, roster_pb2_grpc
from flotta_runtime.errors import PreconditionFailed, StartupError
from flotta_runtime.logging import get_logger
from flotta_runtime.server import Channel, Dial
from flotta_runtime.status import from_rpc_error

from flotta_coordinator.core.roster_transitions import unless_replaced
from flotta_coordinator.group import Coordinators
from flotta_coordinator.roster import ask

MEMBERS_FILE = "coordinators.json"
_FORMAT = 1
_ASK_TIMEOUT_MS = 2_000
_RECALL_TIMEOUT_MS = 1_000  # a later start is held up by this much at most
_ADMIT_TIMEOUT_MS = 5_000
_ASK_AGAIN_MS = 200
_SAY_EVERY = 25  # rounds without all answers


def check_members(directory: DataDirectory, coordinators: Coordinators) -> None:
    """The coordinators' names and order are those of the first start. Their addresses may change."""
    path = directory.path / MEMBERS_FILE
    names = [name for name, _ in coordinators.members]
    if path.exists():
        known = _read(path)
        if known != names:
            raise StartupError(
                f"data directory {directory.path} belongs to the coordinators {', '.join(known)}, "
                f"but peers says {', '.join(names)}"
            )
        return
    replace_file(path, json.dumps({"format": _FORMAT, "coordinators": names}).encode())


async def join(
    directory: DataDirectory, coordinators: Coordinators, dial: Dial, new_cluster_id: Callable[[], str]
) -> Identity:
    """This member's identity in its cluster, durable. Waits for all others only on the very first start."""
    if directory.identity.cluster_id:
        await _recall(directory.identity, coordinators, dial)
    else:
        await _join_first(directory, coordinators, dial, new_cluster_id)
    known = directory.identity
    return directory.adopt(known.cluster_id, known.node_num or coordinators.node_num)


async def _join_first(
    directory: DataDirectory, coordinators: Coordinators, dial: Dial, new_cluster_id: Callable[[], str]
) -> None:
    while True:
        answers = await _ask_all(directory.identity, coordinators, dial)
        if isinstance(answers, roster_pb2.AdmitCoordinatorResponse):
            directory.adopt(answers.cluster_id, answers.node_num)
            return
        cluster_id = agree(directory.identity, coordinators, answers, new_cluster_id)
        if cluster_id is not None:
            break
        await asyncio.sleep(_ASK_AGAIN_MS / 1000)
    for number, answer in answers.items():
        directory.peers.record(number, answer.identity.node_id, answer.identity.store_id)
    directory.adopt(cluster_id, coordinators.node_num)


async def _recall(mine: Identity, coordinators: Coordinators, dial: Dial) -> None:
    """Stop a start with a directory that is none of this cluster's. Silence is no objection."""
    channels = {number: dial(address) for number, address in _others(coordinators).items()}
    try:
        asked = await asyncio.gather(*(_ask(each, mine, _RECALL_TIMEOUT_MS) for each in channels.values()))
    except Refused:
        return  # the token may be about to change everywhere; the peers refuse the traffic, and say so
    finally:
        for each in channels.values():
            await each.close()
    check_recalled(mine, {number: told for number, told in zip(channels, asked, strict=True) if told is not None})


def check_recalled(mine: Identity, answers: dict[int, Answer]) -> None:
    """StartupError when somebody objects to this directory and nobody knows it."""
    objections = []
    for _, answer in sorted(answers.items()):
        said = answer.identity
        if said.cluster_id not in ("", mine.cluster_id):
            objections.append(
                f"{said.node_id} belongs to cluster {said.cluster_id}, the data directory of {mine.node_id} to "
                f"cluster {mine.cluster_id}"
            )
        elif answer.known_store_id not in ("", mine.store_id):
            objections.append(
                f"{said.node_id} knows {mine.node_id} with another data directory (store {answer.known_store_id}, "
                f"here {mine.store_id})"
            )
        elif said.cluster_id:
            return
    if objections:
        raise StartupError(objections[0])


def agree(
    mine: Identity, coordinators: Coordinators, answers: dict[int, Answer], new_cluster_id: Callable[[], str]
) -> str | None:
    """The cluster's id by the answers of all other members; None while the first member has not named it."""
    for number, answer in sorted(answers.items()):
        said = answer.identity
        if said.node_id != coordinators.name(number):
            raise StartupError(
                f"at {coordinators.address(number)} answers {said.node_id}, "
                f"where peers says {coordinators.name(number)}"
            )
        if said.store_id == mine.store_id:
            raise StartupError(f"{said.node_id} runs with a copy of this data directory (store {mine.store_id})")
        if answer.known_store_id not in ("", mine.store_id):
            raise StartupError(
                f"{said.node_id} knows {mine.node_id} with another data directory (store {answer.known_store_id}); "
                "this one is empty, and a coordinator that lost its directory cannot come back under its old name, "
                f"{unless_replaced(mine.node_id)}"
            )
    named = sorted({answer.identity.cluster_id for answer in answers.values()} - {""})
    if len(named) > 1:
        raise StartupError(f"the peers belong to different clusters: {', '.join(named)}")
    if named:
        return named[0]
    return new_cluster_id() if coordinators.node_num == 1 else None


async def _ask_all(
    mine: Identity, coordinators: Coordinators, dial: Dial
) -> dict[int, Answer] | roster_pb2.AdmitCoordinatorResponse:
    """The answers of every other member; asks until it has them all, or has been admitted."""
    channels = {number: dial(address) for number, address in _others(coordinators).items()}
    log = get_logger("formation")
    rounds = 0
    try:
        while True:
            numbers = list(channels)
            asked = await asyncio.gather(*(_ask(channels[number], mine, _ASK_TIMEOUT_MS) for number in numbers))
            answers = {number: answer for number, answer in zip(numbers, asked, strict=True) if answer is not None}
            is_open = False
            for number, answer in answers.items():
                admitted = await _admission(channels[number], mine) if answer.identity.cluster_id else None
                if isinstance(admitted, roster_pb2.AdmitCoordinatorResponse):
                    return admitted
                is_open = is_open or admitted is not None
            if len(answers) == len(channels) and not is_open:
                return answers
            if rounds % _SAY_EVERY == 0:
                silent = [coordinators.name(number) for number in numbers if number not in answers]
                log.info("first start: waiting for the other coordinators", silent=silent)
            rounds += 1
            await asyncio.sleep(_ASK_AGAIN_MS / 1000)
    finally:
        for each in channels.values():
            await each.close()


def _others(coordinators: Coordinators) -> dict[int, str]:
    """Number → address of the other members."""
    return {
        number: address
        for number, (name, address) in enumerate(coordinators.members, start=1)
        if name != coordinators.node_id
    }


class Later:
    """The place is open, and nobody could give a number for the moment."""


class Refused(StartupError):
    """A peer does not take our token."""


async def _ask(target: Channel, mine: Identity, timeout_ms: int) -> Answer | None:
    request = raft_pb2.IdentifyRequest(**{"from": to_message(mine)})
    try:
        stub = raft_pb2_grpc.RaftTransportStub(target.grpc)
        reply = await stub.Identify(request, timeout=timeout_ms / 1000, metadata=target.metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise Refused(
                f"the coordinator at {target.address} refuses the internal token; all services need the same one"
            ) from error
        return None
    return Answer.of(reply)


async def _admission(target: Channel, mine: Identity) -> roster_pb2.AdmitCoordinatorResponse | Later | None:
    """The number that the coordinators give this directory; None where this name was never given up, as far as that one
    knows. StartupError if they refuse it."""
    said = await ask(target, roster_pb2.CoordinatorIdentity(node_id=mine.node_id, store_id=mine.store_id))
    if not isinstance(said, roster_pb2.RosterSurvey) or not (said.admits or said.identity.generation):
        return None
    request = roster_pb2.AdmitCoordinatorRequest(node_id=mine.node_id, store_id=mine.store_id)
    stub = roster_pb2_grpc.RosterStub(target.grpc)
    try:
        admitted: roster_pb2.AdmitCoordinatorResponse = await stub.Admit(
            request, timeout=_ADMIT_TIMEOUT_MS / 1000, metadata=target.metadata
        )
    except grpc.aio.AioRpcError as error:
        meant = from_rpc_error(error)
        if isinstance(meant, PreconditionFailed):
            raise StartupError(f"the coordinators do not take {mine.node_id} in: {meant.message}") from error
        return Later()
    return admitted


def _read(path: Path) -> list[str]:
    try:
        row = json.loads(path.read_bytes())
        if row["format"] != _FORMAT:
            raise ValueError(f"format {row['format']}")
        return [str(name) for name in row["coordinators"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(f"{path} cannot be read: {error}") from error
