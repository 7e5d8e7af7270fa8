"""Manual hosts: elections, outcomes, restarts, snapshots, membership, reads, removal, bad input."""

import flotta_native as native
import pytest
from native_cluster import GROUP, Cluster, replica


def test_three_hosts_elect_replicate_and_answer() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    cluster.propose(leader, (11, b"one"), (12, b"t\0wo\n"))
    for number in cluster.nodes:
        assert cluster.values(number) == [b"one", b"t\0wo\n"]
        own = [item[3] for item in cluster.nodes[number].applies if item[3]]
        assert own == ([11, 12] if number == leader else [])
    first = cluster.nodes[leader].applies[0]
    assert first[1:] == (2, cluster.status(leader).term, 0, native.APPLY_EMPTY, b"")


def test_a_follower_refuses_proposals_with_a_hint() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    follower = leader % 3 + 1
    cluster.propose(follower, (5, b"no"))
    cluster.host(follower).propose_many([(404, 6, b"no")])
    cluster.settle()
    assert cluster.nodes[follower].dropped == [
        (GROUP, 5, native.DROP_NOT_LEADER, replica(leader)),
        (404, 6, native.DROP_UNKNOWN_GROUP, 0),
    ]


def test_a_power_cut_of_everybody_loses_nothing_acknowledged() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    for request in range(1, 30):
        cluster.propose(leader, (request, b"value %d" % request))
    for number in cluster.nodes:
        cluster.kill(number, power_cut=True)
        cluster.nodes[number].applied.clear()
        cluster.nodes[number].applies.clear()
    for number in cluster.nodes:
        cluster.start(number)
    cluster.elect()
    cluster.tick(3)
    for number in cluster.nodes:
        assert cluster.values(number) == [b"value %d" % request for request in range(1, 30)]
        assert {item[3] for item in cluster.nodes[number].applies} == {0}, "another incarnation's requests"


def test_a_new_member_gets_a_snapshot_and_survives_a_crash_before_it_is_installed() -> None:
    cluster = Cluster(4, voters=3)
    leader = cluster.elect()
    cluster.propose(leader, *((request, b"x" * 100) for request in range(1, 50)))
    cluster.host(leader).compact(GROUP, 40)
    cluster.host(4).create_group(GROUP, replica(4), [])
    cluster.host(leader).change_membership(GROUP, 100, [("learner", replica(4))])
    cluster.tick(5)
    index, term, manifest = cluster.nodes[leader].snapshots[0]
    kind, payload = cluster.nodes[4].applies[0][4:]
    assert kind == native.APPLY_SNAPSHOT
    assert isinstance(payload, tuple)
    members, received = payload
    assert (members.learners, received) == ([replica(4)], manifest)
    assert members == cluster.status(leader).membership

    cluster.kill(4, power_cut=True)
    cluster.nodes[4].applied.clear()  # the state machine never got it
    cluster.start(4)
    pending = cluster.host(4).pending_install(GROUP)
    assert pending == (index, term, members, manifest)
    cluster.nodes[4].applied[GROUP] = index
    cluster.host(4).compact(GROUP, index)
    assert cluster.host(4).pending_install(GROUP) is None
    cluster.propose(leader, (101, b"after"))
    assert cluster.values(4)[-1] == b"after"


def test_membership_changes_one_at_a_time_or_jointly_and_leaders_hand_over() -> None:
    cluster = Cluster(4, voters=3)
    leader = cluster.elect()
    cluster.host(4).create_group(GROUP, replica(4), [])
    cluster.host(leader).change_membership(GROUP, 1, [("learner", replica(4))])
    cluster.tick(5)
    leaving = leader % 3 + 1
    host = cluster.host(leader)
    host.change_membership(GROUP, 2, [("remove", replica(leader))])
    host.change_membership(GROUP, 3, [("voter", replica(4)), ("remove", replica(leaving))])
    host.change_membership(GROUP, 4, [("learner", replica(77 << 1))])
    cluster.tick(3)
    reasons = {item[1]: item[2] for item in cluster.nodes[leader].dropped}
    assert reasons == {2: native.DROP_INVALID, 4: native.DROP_CONF_PENDING}
    staying = sorted({replica(1), replica(2), replica(3), replica(4)} - {replica(leaving)})
    assert cluster.status(leader).membership == native.Membership(staying)
    conf = [item for item in cluster.nodes[leader].applies if item[4] == native.APPLY_CONF]
    assert [item[3] for item in conf] == [1, 3, 0]
    joint = conf[1][5]
    assert isinstance(joint, native.Membership)
    assert joint.voters_outgoing == [replica(1), replica(2), replica(3)]
    host.transfer_leader(GROUP, replica(4))
    cluster.settle()
    assert cluster.leader() == 4


def test_reads_wait_for_a_quorum_and_are_dropped_without_one() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    cluster.propose(leader, (1, b"x"))
    follower = leader % 3 + 1
    cluster.host(follower).read_index_many([(GROUP, 21), (GROUP, 22), (404, 23)])
    cluster.settle()
    committed = cluster.status(leader).committed
    assert cluster.nodes[follower].reads == [(GROUP, 21, committed), (GROUP, 22, committed)]
    assert cluster.nodes[follower].dropped == [(404, 23, native.DROP_UNKNOWN_GROUP, 0)]
    cluster.cut = {leader}
    cluster.host(leader).read_index_many([(GROUP, 24)])
    cluster.tick(30)
    assert cluster.nodes[leader].reads == []
    assert cluster.nodes[leader].dropped == [(GROUP, 24, native.DROP_NO_LEADER, 0)]


def test_a_removed_replica_leaves_a_tombstone() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    gone = leader % 3 + 1
    cluster.host(leader).change_membership(GROUP, 1, [("remove", replica(gone))])
    cluster.settle()
    cluster.host(gone).remove_group(GROUP)
    cluster.settle()
    assert (GROUP, "removed", replica(gone), "") in cluster.nodes[gone].events
    cluster.kill(gone, power_cut=True)
    cluster.start(gone)
    host = cluster.host(gone)
    assert (host.groups(), host.tombstones()) == ([], {GROUP: [replica(gone)]})
    with pytest.raises(ValueError, match="removed for good"):
        host.create_group(GROUP, replica(gone), [])


def test_a_failpoint_kills_the_simulated_process_and_what_left_before_stays() -> None:
    cluster = Cluster(3)
    leader = cluster.elect()
    host = cluster.host(leader)
    host.arm_failpoint("raft.before_sync", 1)
    host.propose_many([(GROUP, 1, b"sent early")])
    with pytest.raises(native.FailpointReached, match=r"raft\.before_sync"):
        host.drive()
    with pytest.raises(native.HostFailed, match=r"raft\.before_sync"):
        host.poll()
    left = host.salvage()
    assert {to for to, _ in left.messages} == {1, 2, 3} - {leader}
    assert not left.applies
    cluster.kill(leader, power_cut=True)
    with pytest.raises(ValueError, match="unknown failpoint"):
        cluster.host(leader % 3 + 1).arm_failpoint("raft.nowhere")


def test_a_failed_sync_ends_the_host() -> None:
    cluster = Cluster(1)
    cluster.host(1).campaign(GROUP)
    cluster.settle()
    disk = cluster.nodes[1].disk
    disk.fail_sync_after(0)
    cluster.host(1).propose_many([(GROUP, 1, b"x")])
    with pytest.raises(native.HostFailed, match="simulated sync failure"):
        cluster.host(1).drive()
    for _ in range(2):
        with pytest.raises(native.HostFailed, match="simulated sync failure"):
            cluster.host(1).poll()
    disk.reset_faults()
    cluster.kill(1, power_cut=True)
    cluster.start(1)
    assert cluster.status(1).last_index in (2, 3)


def test_corruption_names_the_file() -> None:
    cluster = Cluster(1)
    cluster.host(1).campaign(GROUP)
    cluster.settle()
    for request in range(1, 5):
        cluster.propose(1, (request, b"x" * 50))
    cluster.kill(1, power_cut=True)
    (path,) = cluster.nodes[1].disk.files()
    cluster.nodes[1].disk.flip_bit(path, 90)
    with pytest.raises(native.LogCorruption, match=rf"{path} at offset 64"):
        cluster.start(1)


def test_bad_input_names_itself_and_changes_nothing() -> None:
    cluster = Cluster(1)
    host = cluster.host(1)
    host.campaign(GROUP)
    cluster.settle()
    before = cluster.status(1).last_index
    with pytest.raises(ValueError, match="request_id"):
        host.propose_many([(GROUP, 1, b"fine"), (GROUP, 0, b"x")])
    with pytest.raises(ValueError, match="payload of request 2"):
        host.propose_many([(GROUP, 1, b"fine"), (GROUP, 2, b"")])
    with pytest.raises(ValueError, match="exists"):
        host.create_group(GROUP, replica(1), [])
    with pytest.raises(ValueError, match="belongs to node 2"):
        host.create_group(10, replica(2), [])
    with pytest.raises(ValueError, match="voters lacks"):
        host.create_group(10, replica(1), [replica(2)])
    with pytest.raises(ValueError, match="different nodes"):
        host.create_group(10, replica(1), [replica(1), 1 << 32 | 2])
    with pytest.raises(ValueError, match="twice"):
        host.change_membership(GROUP, 5, [("voter", replica(2)), ("learner", replica(2))])
    with pytest.raises(ValueError, match="no kind of change"):
        host.change_membership(GROUP, 5, [("witness", replica(2))])  # type: ignore[list-item]
    cluster.settle()
    assert (cluster.status(1).last_index, host.groups()) == (before, [GROUP])


@pytest.mark.parametrize(
    ("option", "value"),
    [("tick_ms", 0), ("election_ticks", 2), ("segment_bytes", 100), ("inbox_bytes_max", 1), ("mode", "automatic")],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        native.RaftHost(1, "raft", applied={}, disk=native.SimDisk(1), **{option: value})  # type: ignore[arg-type]


def test_the_same_seed_makes_the_same_history() -> None:
    def history() -> list[tuple[int, bytes]]:
        cluster = Cluster(3)
        leader = cluster.elect()
        cluster.host(leader).propose_many([(GROUP, request, b"x") for request in range(1, 9)])
        cluster.host(leader).drive()
        return cluster.host(leader).poll().messages

    assert history() == history()


def test_what_is_kept_back_leaves_when_the_hand_set_clock_says_so() -> None:
    cluster = Cluster(3, apply_delay_ms=20)
    leader = cluster.elect()
    follower = leader % 3 + 1

    def pass_until_nothing_is_due() -> None:
        while due := [at for number in cluster.nodes if (at := cluster.host(number).due_us()) is not None]:
            cluster.now_us = min(due)
            cluster.settle()

    pass_until_nothing_is_due()
    began_us = cluster.now_us
    cluster.propose(leader, (1, b"x"))
    committed = cluster.status(leader).committed
    assert (cluster.values(leader), cluster.host(leader).due_us()) == ([b"x"], began_us + 20_000)
    cluster.now_us += 19_999
    cluster.settle()
    assert cluster.status(follower).committed == committed - 1, "the news waits for more entries"
    cluster.now_us += 1
    cluster.settle()
    assert (cluster.status(follower).committed, cluster.values(follower)) == (committed, [])
    assert (cluster.host(leader).due_us(), cluster.host(follower).due_us()) == (None, began_us + 40_000)
    pass_until_nothing_is_due()
    assert (cluster.now_us, cluster.values(follower)) == (began_us + 40_000, [b"x"])
