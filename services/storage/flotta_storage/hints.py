"""Where else an operation should go: addresses out of the shard map, for the answers that redirect."""

from __future__ import annotations

from flotta_consensus.api import node_of

from flotta_storage.map_model import MapModel


class Hints:
    """All of them are empty when nothing is known; none ever names this node."""

    def __init__(self, model: MapModel, node_id: str) -> None:
        self._model = model
        self._node_id = node_id

    def leader(self, shard_id: str, leader_replica: int) -> str:
        """The leader by Raft's own word if it has one, else by the map's."""
        if leader_replica:
            node_id = self._model.view.numbers.get(node_of(leader_replica), "")
        else:
            shard = self._model.shard(shard_id)
            node_id = shard.leader if shard is not None else ""
        return self._model.address(node_id) if node_id != self._node_id else ""

    def home(self, shard_id: str, key: bytes) -> str:
        """The shard, or that of its children which owns the key, or the one that has taken it over."""
        home = self._model.home_of(key)
        shard, child = self._model.shard(shard_id), self._model.shard(home)
        if child is None or not key:
            return shard_id
        return home if child.parent == shard_id or shard is None else shard_id

    def new_node(self, shard_id: str) -> str:
        """A node that should have the shard: its leader, else any of its members."""
        shard = self._model.shard(shard_id)
        if shard is None:
            return ""
        for node_id in (shard.leader, *shard.members.values()):
            if node_id and node_id != self._node_id and self._model.address(node_id):
                return self._model.address(node_id)
        return ""
