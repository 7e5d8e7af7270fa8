"""Data directories: who they are, that two processes never share one, and who may join a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from flotta_consensus import handshake
from flotta_consensus.durable import replace_file
from flotta_consensus.handshake import Adopt, Found, Wait, join_members
from flotta_consensus.identity import DataDirectory, Identity, IdentityError
from flotta_consensus.peer_identity import Answer


def test_a_store_id_is_made_once_and_kept(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "n", "node-1")
    first = directory.identity
    assert directory.is_new and first.node_id == "node-1" and first.store_id and not first.cluster_id
    directory.adopt("c1", 3)
    directory.adopt("c1", 3)
    directory.close()
    directory.close()
    again = DataDirectory.open(tmp_path / "n", "node-1")
    assert not again.is_new
    assert again.identity == Identity("node-1", first.store_id, "c1", 3)
    with pytest.raises(IdentityError, match="belongs to cluster c1, not to cluster c2"):
        again.adopt("c2", 3)
    with pytest.raises(IdentityError, match="belongs to node number 3, not to 4"):
        again.adopt("c1", 4)
    with pytest.raises(IdentityError, match="not a cluster id"):
        again.adopt("", 3)
    again.close()


def test_another_node_is_refused(tmp_path: Path) -> None:
    DataDirectory.open(tmp_path, "node-1").close()
    with pytest.raises(IdentityError, match="belongs to node node-1, not to node node-2"):
        DataDirectory.open(tmp_path, "node-2")
    DataDirectory.open(tmp_path, "node-1").close()  # the refusal let go of the lock


@pytest.mark.parametrize("node_id", ["", "a b", "x" * 129, "/etc", "-x"])
def test_bad_node_ids_are_refused_and_leave_nothing(tmp_path: Path, node_id: str) -> None:
    with pytest.raises(IdentityError, match="must be 1 to 128"):
        DataDirectory.open(tmp_path / "d", node_id)
    assert not (tmp_path / "d").exists()


def test_two_processes_never_share_a_directory(tmp_path: Path) -> None:
    held = DataDirectory.open(tmp_path, "node-1")
    script = (
        "import sys, pathlib\n"
        "from flotta_consensus.identity import DataDirectory, IdentityError\n"
        "try:\n"
        "    DataDirectory.open(pathlib.Path(sys.argv[1]), 'node-1')\n"
        "except IdentityError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert "is in use by another process (process " in other.stdout
    held.close()
    free = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert free.stdout == ""


def test_files_without_an_identity_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "raft").mkdir()
    with pytest.raises(IdentityError, match="not empty"):
        DataDirectory.open(tmp_path, "node-1")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9}', b'{"format": 1, "node_id": "node-1"}'])
def test_a_damaged_identity_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(IdentityError, match=r"identity\.json"):
        DataDirectory.open(tmp_path, "node-1")


def test_a_missing_log_stops_the_start_once_groups_were_created(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, "node-1")
    directory.adopt("c1", 1)
    directory.require_log(0)
    directory.mark_formed()
    directory.close()
    again = DataDirectory.open(tmp_path, "node-1")
    again.require_log(1)
    with pytest.raises(IdentityError, match="Raft log is gone"):
        again.require_log(0)
    again.close()


def test_peers_are_remembered_durably_and_impostors_refused(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, "node-1")
    assert directory.peers.store_of_node("node-2") == ""
    directory.peers.record(2, "node-2", "store-a")
    directory.close()
    again = DataDirectory.open(tmp_path, "node-1")
    assert again.peers.store_of_node("node-2") == "store-a"
    assert again.peers.check(2, "node-2", "store-a")
    assert not again.peers.check(3, "node-2", "store-b")
    with pytest.raises(IdentityError, match="store store-a, not as node-2 with store store-b"):
        again.peers.record(2, "node-2", "store-b")
    again.peers.record(5, "node-2", "store-b")  # a replaced node: a new number
    assert again.peers.store_of_node("node-2") == "store-b"
    assert again.peers.store_of_node("node-2", 2) == again.peers.store_of_node("node-2", 5) == "store-b"
    assert again.peers.store_of_node("node-2", 7) == ""  # replaced once more, and not met yet
    with pytest.raises(IdentityError, match="introduced itself"):
        again.peers.record(6, "", "store")
    again.close()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    replace_file(path, b"one")
    (tmp_path / "f.new").write_bytes(b"torn")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == '["f"]'


ME = Identity("c-1", "s1")
ORDER = ["c-1", "c-2", "c-3"]


def answer(node_id: str, *, cluster: str = "", known: str = "") -> Answer:
    return Answer(Identity(node_id, f"store-{node_id}", cluster, int(node_id[-1])), known)


def test_an_empty_member_joins_only_when_everybody_answered() -> None:
    assert handshake.decide(ME, ORDER, {"c-2": answer("c-2"), "c-3": None}) == Wait(
        "an empty member joins only when all others answer; waiting for c-3"
    )
    assert handshake.decide(ME, ORDER, {"c-2": answer("c-2"), "c-3": answer("c-3")}) == Found()
    second = Identity("c-2", "s2")
    assert isinstance(handshake.decide(second, ORDER, {"c-1": answer("c-1"), "c-3": answer("c-3")}), Wait)
    founded = {"c-1": answer("c-1", cluster="x"), "c-3": answer("c-3")}
    assert handshake.decide(second, ORDER, founded) == Adopt("x")
    # the founder lost its directory before anybody knew it: it adopts what the others have
    assert handshake.decide(ME, ORDER, {"c-2": answer("c-2", cluster="x"), "c-3": answer("c-3")}) == Adopt("x")
    assert handshake.decide(Identity("c-1", "s1"), ["c-1"], {}) == Found()


def test_a_member_that_lost_its_directory_is_refused_even_while_others_are_silent() -> None:
    with pytest.raises(IdentityError, match="c-2 knows it with store old"):
        handshake.decide(ME, ORDER, {"c-2": answer("c-2", cluster="x", known="old"), "c-3": None})
    assert handshake.decide(ME, ["c-1", "c-2"], {"c-2": answer("c-2", cluster="x", known="s1")}) == Adopt("x")


def test_wrong_addresses_and_mixed_clusters_are_refused() -> None:
    with pytest.raises(IdentityError, match="given for c-2 is answered by c-3"):
        handshake.decide(ME, ORDER, {"c-2": answer("c-3"), "c-3": None})
    with pytest.raises(IdentityError, match="different clusters: c-2 to x, c-3 to y"):
        handshake.decide(ME, ORDER, {"c-2": answer("c-2", cluster="x"), "c-3": answer("c-3", cluster="y")})


async def test_joining_records_the_others_before_the_cluster(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, "c-2")
    rounds = 0
    reports: list[str] = []

    async def probe(address: str, me: Identity) -> Answer | None:
        nonlocal rounds
        rounds += 1
        node_id = address.removeprefix("at-")
        assert me == Identity("c-2", directory.identity.store_id)
        return answer(node_id, cluster="x" if rounds > 4 and node_id == "c-1" else "")

    members = {name: f"at-{name}" for name in ORDER}
    identity = await join_members(directory, members, probe, retry_ms=1, report=reports.append)
    assert (identity.cluster_id, identity.node_num) == ("x", 2)
    assert reports == ["waiting for c-1 to found the cluster"]
    assert directory.peers.store_of_node("c-1") == "store-c-1"
    assert directory.peers.store_of_node("c-3") == "store-c-3"
    directory.close()

    async def nobody(address: str, me: Identity) -> Answer | None:
        raise AssertionError("a member with a past asks nobody")

    again = DataDirectory.open(tmp_path, "c-2")
    assert (await join_members(again, members, nobody)).cluster_id == "x"
    with pytest.raises(IdentityError, match="belongs to node number 2, not to 1"):
        await join_members(again, {"c-2": "x"}, nobody)
    with pytest.raises(IdentityError, match="not among the configured members"):
        await join_members(again, {"c-9": "x"}, nobody)
    again.close()


async def test_a_lone_member_founds_its_cluster(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path, "c-1")

    async def probe(address: str, me: Identity) -> Answer | None:
        raise AssertionError("there is nobody to ask")

    identity = await join_members(directory, {"c-1": "here"}, probe, new_cluster_id=lambda: "made")
    assert (identity.cluster_id, identity.node_num) == ("made", 1)
    directory.close()
