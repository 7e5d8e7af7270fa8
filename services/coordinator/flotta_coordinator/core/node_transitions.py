"""Commands about nodes: registration, hello, what the failure detector saw, the operator's override."""

from __future__ import annotations

from dataclasses import replace

from flotta_coordinator.core import checks
from flotta_coordinator.core.commands import HelloNode, NodeObservation, ObserveNodes, RegisterNode, SetNodeStatus
from flotta_coordinator.core.draft import Draft
from flotta_coordinator.core.results import Applied, Refused, RejectCode
from flotta_coordinator.core.state import RETURNS_MAX, Node, NodeStatus


def register_node(draft: Draft, command: RegisterNode) -> Applied:
    """Upsert. As in KvDB the node counts as ALIVE from here, with a full timeout to prove it; an operator's
    override ends. An empty zone leaves the known one."""
    _check_whereabouts(command.node_id, command.address, command.zone)
    _check_not_removed(draft, command.node_id)
    known = draft.base.nodes.get(command.node_id)
    if known is None:
        _check_room(draft)
        draft.put_node(Node(command.node_id, command.address, command.zone, NodeStatus.ALIVE))
        draft.decide("node-registered", command.node_id, f"{command.node_id} was registered at {command.address}")
        return draft.finish("Node registered successfully")
    node = _moved(draft, known, command.address, command.zone)
    if node.status is not NodeStatus.ALIVE:
        draft.decide("node-alive", node.node_id, f"{node.node_id} was {node.status.name} and was registered again")
    draft.put_node(replace(node, status=NodeStatus.ALIVE, status_pinned=False))
    return draft.finish("Node registered successfully")


def hello_node(draft: Draft, command: HelloNode) -> Applied:
    """Bind a data directory to a node id, once; a repeat answers the same number."""
    _check_whereabouts(command.node_id, command.address, command.zone)
    checks.check_id("store_id", command.store_id, checks.STORE_ID_CHARS_MAX)
    _check_not_removed(draft, command.node_id)
    _check_membership(draft, command)
    known = draft.base.nodes.get(command.node_id)
    if known is None:
        _check_room(draft)
        node = Node(command.node_id, command.address, command.zone, NodeStatus.ALIVE)
    else:
        node = _moved(draft, known, command.address, command.zone)
    if not node.store_id:
        unseen = _welcomed_unseen(draft, command)
        number = command.node_num if unseen else draft.new_node_num()
        node = replace(node, store_id=command.store_id, node_num=number)
        had = "had been welcomed by coordinators that are lost: it" if unseen else f"said hello from {node.address} and"
        draft.decide("node-joined", node.node_id, f"{node.node_id} {had} is node number {number}")
    draft.put_node(node)
    return draft.finish("welcome", node_num=node.node_num)


def observe_nodes(draft: Draft, command: ObserveNodes) -> Applied:
    """Take what the failure detector saw. What no longer fits (unknown, pinned, already so) is passed over."""
    for seen in command.observations:
        node = draft.nodes.get(seen.node_id) or draft.base.nodes.get(seen.node_id)
        if node is None:
            continue
        status = checks.check_status("status", seen.status)
        if status is NodeStatus.ALIVE:
            _heard(draft, node)
        elif not node.status_pinned and status > node.status:
            _silent(draft, node, status, seen)
    return draft.finish("observed")


def set_node_status(draft: Draft, command: SetNodeStatus) -> Applied:
    """SUSPECT and DEAD hold until the operator says otherwise; ALIVE hands the node back to the failure detector."""
    checks.check_id("node_id", command.node_id)
    status = checks.check_status("status", command.status)
    node = draft.node(command.node_id)
    pinned = status is not NodeStatus.ALIVE
    if draft.put_node(replace(node, status=status, status_pinned=pinned)):
        held = "until the operator says otherwise" if pinned else "and heartbeats decide again"
        draft.decide("node-status-set", node.node_id, f"an operator set {node.node_id} to {status.name}, {held}")
        if status is NodeStatus.DEAD:
            _drop_intents(draft, node.node_id)
    return draft.finish("Node status updated")


def _heard(draft: Draft, node: Node) -> None:
    # Only a data directory that said hello can hold replicas.
    placeable = node.placeable or node.node_num != 0
    status = node.status if node.status_pinned else NodeStatus.ALIVE
    if placeable and not node.placeable:
        draft.decide("node-placeable", node.node_id, f"{node.node_id} sent its first heartbeat and may take replicas")
    if status is not node.status:
        draft.decide("node-alive", node.node_id, f"{node.node_id} was {node.status.name} and sent a heartbeat")
        node = replace(node, returns_ms=(*node.returns_ms, draft.now_ms)[-RETURNS_MAX:])
    draft.put_node(replace(node, status=status, placeable=placeable))


def _silent(draft: Draft, node: Node, status: NodeStatus, seen: NodeObservation) -> None:
    draft.put_node(replace(node, status=status))
    silence = f"no heartbeat for {seen.silent_ms} ms, the limit is {seen.limit_ms} ms"
    if status is NodeStatus.SUSPECT:
        draft.decide("node-suspect", node.node_id, f"{node.node_id} is SUSPECT: {silence}")
        return
    leads, holds, stuck = _losses(draft, node.node_id)
    held = f"it led {leads} and held {holds} shards, " if holds else "it held no shard"
    if holds:
        held += f"{stuck} of which cannot commit until more of their nodes are back" if stuck else "all keep a quorum"
    draft.decide("node-dead", node.node_id, f"{node.node_id} is DEAD: {silence}; {held}")
    _drop_intents(draft, node.node_id)


def _losses(draft: Draft, node_id: str) -> tuple[int, int, int]:
    """How many shards the node led and held, and how many of these have lost their quorum."""
    leads = holds = stuck = 0
    for shard in draft.base.shards.values():
        leads += shard.leader == node_id
        if shard.member_on(node_id) is None:
            continue
        holds += 1
        living = sum(draft.node(member.node_id).status is not NodeStatus.DEAD for member in shard.members)
        stuck += living <= len(shard.members) // 2
    return leads, holds, stuck


def _drop_intents(draft: Draft, node_id: str) -> None:
    for shard in draft.base.shards.values():
        if shard.target_leader == node_id:
            draft.put_shard(replace(shard, target_leader=""))
            draft.decide(
                "shard-leader-dropped",
                shard.shard_id,
                f"{node_id} is DEAD, so {shard.shard_id} no longer waits for it to lead",
            )


def _moved(draft: Draft, node: Node, address: str, zone: str) -> Node:
    if address != node.address:
        draft.decide("node-moved", node.node_id, f"{node.node_id} moved from {node.address} to {address}")
    return replace(node, address=address, zone=zone or node.zone)


def _check_whereabouts(node_id: str, address: str, zone: str) -> None:
    checks.check_id("node_id", node_id)
    checks.check_address("address", address)
    checks.check_zone("zone", zone)


def _check_not_removed(draft: Draft, node_id: str) -> None:
    if node_id in draft.base.gone:
        raise Refused(
            RejectCode.FAILED_PRECONDITION,
            "node_id",
            f"node_id: {node_id} was removed from this cluster, and ids are not used again: choose another one",
        )


def _check_room(draft: Draft) -> None:
    if len(draft.base.nodes) >= checks.NODES_MAX:
        raise Refused(
            RejectCode.FAILED_PRECONDITION,
            "node_id",
            f"node_id: the cluster already has {checks.NODES_MAX} nodes, the most it can hold",
        )


def _welcomed_unseen(draft: Draft, command: HelloNode) -> bool:
    """Was it welcomed by coordinators that were then lost for good, with a number that nobody else has?"""
    number = command.node_num
    mine = any(numbers.first <= number <= numbers.last for numbers in draft.base.roster.unseen)
    return bool(command.cluster_id) and mine and draft.base.node_by_num(number) is None


def _check_membership(draft: Draft, command: HelloNode) -> None:
    """A data directory belongs to one cluster and one node id, for good."""
    base = draft.base

    def refuse(field: str, message: str) -> Refused:
        return Refused(RejectCode.FAILED_PRECONDITION, field, message)

    if command.cluster_id and command.cluster_id != base.cluster_id:
        raise refuse(
            "cluster_id",
            f"the data directory of {command.node_id} belongs to cluster {command.cluster_id}, "
            f"this is cluster {base.cluster_id}",
        )
    known = base.nodes.get(command.node_id)
    if known is not None and known.store_id and known.store_id != command.store_id:
        raise refuse(
            "store_id",
            f"{command.node_id} is known with another data directory (store {known.store_id}, "
            f"here {command.store_id}): start it with that directory, or give this one a new node id",
        )
    owner = base.node_by_store(command.store_id)
    if owner is not None and owner.node_id != command.node_id:
        raise refuse(
            "store_id", f"the data directory of {command.node_id} (store {command.store_id}) belongs to {owner.node_id}"
        )
    if command.cluster_id and owner is None and not _welcomed_unseen(draft, command):
        raise refuse(
            "store_id",
            f"the data directory of {command.node_id} says that it is part of this cluster, "
            f"but store {command.store_id} was never welcomed",
        )
