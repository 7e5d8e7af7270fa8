//! Outcomes, memberships and foreign messages: what a host answers, refuses and never does.

mod common;

use common::*;
use flotta_native::raft::guard::Change;
use flotta_native::raft::out::Reason;
use flotta_native::raft::simdisk::SimDisk;
use flotta_native::raft::wire::Outbound;
use raft::eraftpb::{Entry, MessageType};

#[test]
fn a_blank_replica_neither_votes_nor_campaigns_nor_answers_for_another() {
    let disk = SimDisk::new(1);
    let mut host = open(&disk, options(4), &[]).unwrap();
    host.create_group(GROUP, replica(4), &[]).unwrap().unwrap();
    host.drive(&mut |_| ()).unwrap();
    host.take_out();
    let mut vote = message(MessageType::MsgRequestVote, replica(1), replica(4), 9);
    vote.index = 50;
    vote.log_term = 8;
    host.step(&frame(1, &vote));
    host.campaign(GROUP);
    for _ in 0..50 {
        host.tick();
    }
    host.drive(&mut |_| ()).unwrap();
    let mut out = host.take_out();
    assert!(out.messages.take().is_empty());
    assert_eq!((only(&host).term, only(&host).vote), (0, 0));
    vote.to = 4 << 32 | 77;
    host.step(&frame(1, &vote));
    let unknown = Outbound::single(1, 12345, &vote);
    host.step(&unknown.into());
    let names: Vec<_> = host.take_out().events.iter().map(|event| event.name).collect();
    assert_eq!(names, ["wrong_replica", "unknown_group"]);
    assert_eq!(host.group_ids(), vec![GROUP]);
}

#[test]
fn a_stale_rejection_cannot_move_next_below_matched() {
    let (mut cluster, leader) = trio();
    for request in 1..=5 {
        cluster.put(leader, request, b"x");
    }
    let follower = others(leader)[0];
    cluster.host(leader).report_unreachable(follower); // probing: the state in which 0.7.0 takes it
    let status = cluster.status(leader);
    let mut rejection =
        message(MessageType::MsgAppendResponse, replica(follower), replica(leader), status.term);
    rejection.reject = true;
    rejection.index = status.matched[&replica(follower)];
    rejection.reject_hint = 1;
    cluster.host(leader).step(&frame(follower, &rejection));
    cluster.settle();
    cluster.put(leader, 6, b"y");
    assert_eq!(cluster.status(leader).matched[&replica(follower)], cluster.status(leader).last_index);
    assert!(cluster.nodes.values().all(|node| node.events.iter().all(|event| event.name == "created")));
}

#[test]
fn a_proposal_is_lost_only_when_another_entry_is_committed_at_its_index() {
    let (mut cluster, leader) = trio();
    let [second, third] = others(leader);
    cluster.cut = vec![(leader, second), (second, leader), (leader, third), (third, leader)];
    cluster.host(leader).propose(vec![(GROUP, 1, "never seen".into())]);
    cluster.tick(40);
    assert_ne!(cluster.leader(), Some(leader));
    assert!(cluster.node(leader).dropped.is_empty(), "stepping down decides nothing");
    cluster.cut.clear();
    let next = cluster.leader().unwrap();
    cluster.put(next, 2, b"kept");
    cluster.tick(5);
    let dropped = cluster.node(leader).dropped.clone();
    assert_eq!(
        dropped.iter().map(|drop| (drop.request, drop.reason)).collect::<Vec<_>>(),
        [(1, Reason::Lost)]
    );
    assert_eq!(cluster.values(leader), vec![b"kept".to_vec()]);
}

#[test]
fn a_proposal_whose_leader_stepped_down_may_still_commit_and_is_answered_then() {
    let (mut cluster, leader) = trio();
    let [second, third] = others(leader);
    cluster.host(leader).propose(vec![(GROUP, 1, "on two of three".into())]);
    cluster.pump(leader).unwrap();
    // Only the second hears of it, and its answer is lost.
    for (_, to, bytes) in std::mem::take(&mut cluster.wire) {
        if to == second {
            cluster.host(second).step(&bytes.into());
            cluster.pump(second).unwrap();
        }
    }
    cluster.wire.clear();
    cluster.cut = vec![(leader, second), (second, leader), (leader, third), (third, leader)];
    cluster.tick(40);
    assert_eq!(cluster.leader(), Some(second), "only it has the entry");
    cluster.cut.clear();
    cluster.tick(5);
    assert_eq!(cluster.committed(leader), vec![1]);
    assert!(cluster.node(leader).dropped.is_empty());
}

#[test]
fn too_many_uncommitted_bytes_are_refused_and_the_rest_goes_through() {
    let mut cluster = Cluster::new(3, &[1, 2, 3], |options| {
        options.uncommitted_bytes_max = 10_000;
        options.message_bytes_max = 5_000;
    });
    let leader = cluster.elect();
    let many = (1..=20).map(|request| (GROUP, request, vec![1; 1000].into())).collect();
    cluster.host(leader).propose(many);
    cluster.settle();
    assert_eq!(cluster.committed(leader), (1..=10).collect::<Vec<_>>());
    assert!(cluster.node(leader).dropped.iter().all(|drop| drop.reason == Reason::Overloaded));
    assert_eq!(cluster.node(leader).dropped.len(), 10);
    cluster.put(leader, 30, &[1; 20_000]);
    assert_eq!(cluster.committed(leader).last(), Some(&30), "one entry is always allowed");
}

#[test]
fn tombstones_outlive_restarts_and_a_removed_replica_never_comes_back() {
    let (mut cluster, leader) = trio();
    let gone = others(leader)[0];
    cluster.change(leader, 1, &[Change::Remove(replica(gone))]);
    cluster.host(gone).remove_group(GROUP).unwrap();
    cluster.settle();
    assert!(cluster.node(gone).events.iter().any(|event| event.name == "removed"));
    cluster.kill(gone);
    cluster.node(gone).disk.crash();
    cluster.start(gone).unwrap();
    assert_eq!(cluster.host(gone).tombstones()[&GROUP], vec![replica(gone)]);
    let refused = cluster.host(gone).create_group(GROUP, replica(gone), &[]).unwrap().unwrap_err();
    assert!(refused.contains("removed for good"), "{refused}");
    let fresh = u64::from(gone) << 32 | 2;
    cluster.host(gone).create_group(GROUP, fresh, &[]).unwrap().unwrap();
    cluster.node(gone).applied.clear();
    cluster.change(leader, 2, &[Change::Voter(fresh)]);
    cluster.tick(5);
    cluster.put(leader, 3, b"back");
    assert_eq!(cluster.values(gone), vec![b"back".to_vec()]);
}

#[test]
fn a_joint_change_is_over_without_waiting_for_a_heartbeat() {
    let (mut cluster, leader) = trio();
    let [second, third] = others(leader);
    cluster.change(leader, 1, &[Change::Learner(replica(second)), Change::Learner(replica(third))]);
    let conf = cluster.status(third).membership;
    assert_eq!((conf.voters, conf.learners), (vec![replica(leader)], vec![replica(second), replica(third)]));
    assert_eq!(cluster.status(leader).committed, 4);
}

#[test]
fn a_joint_change_leaves_by_itself_even_across_a_change_of_leader() {
    let mut cluster = Cluster::new(5, &[1, 2, 3], |_| ());
    let leader = cluster.elect();
    for node in [4, 5] {
        cluster.host(node).create_group(GROUP, replica(node), &[]).unwrap().unwrap();
    }
    cluster.change(leader, 1, &[Change::Learner(replica(4)), Change::Learner(replica(5))]);
    cluster.tick(5);
    let [second, third] = others(leader);
    let swap = [
        Change::Voter(replica(4)),
        Change::Voter(replica(5)),
        Change::Remove(replica(second)),
        Change::Remove(replica(third)),
    ];
    cluster.host(leader).change_membership(GROUP, 2, &swap);
    // The leader appends the joint entry, everybody gets it, and the leader dies before it commits it.
    cluster.pump(leader).unwrap();
    for (_, to, bytes) in std::mem::take(&mut cluster.wire) {
        cluster.host(to).step(&bytes.into());
        cluster.pump(to).unwrap();
    }
    cluster.wire.clear();
    cluster.kill(leader);
    let next = cluster.elect();
    cluster.tick(10);
    let conf = cluster.status(next).membership;
    assert_eq!(conf.voters_outgoing, Vec::<u64>::new());
    let mut expected = vec![replica(leader), replica(4), replica(5)];
    expected.sort_unstable();
    assert_eq!(conf.voters, expected);
}

#[test]
fn frames_from_a_broken_or_foreign_peer_change_nothing() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    let term = cluster.status(leader).term;
    let before = cluster.status(leader).committed;
    let plain = |kind, term| message(kind, replica(follower), replica(leader), term);
    let mut ack = plain(MessageType::MsgAppendResponse, term);
    ack.index = 10_000;
    let mut append = plain(MessageType::MsgAppend, term + 1);
    append.set_entries(vec![Entry { index: 77, term: 1, ..Default::default() }].into());
    let bad = [
        plain(MessageType::MsgHup, 0),
        plain(MessageType::MsgTransferLeader, term),
        plain(MessageType::MsgHeartbeat, 0),
        plain(MessageType::MsgReadIndex, 0),
        plain(MessageType::MsgSnapshot, term + 1),
        ack,
        append,
    ];
    for one in &bad {
        cluster.host(leader).step(&frame(follower, one));
        cluster.settle();
        let events = std::mem::take(&mut cluster.node(leader).events);
        assert!(events.iter().any(|event| event.name == "bad_message"), "{one:?}: {events:?}");
    }
    cluster
        .host(leader)
        .step(&frame(3, &message(MessageType::MsgHeartbeat, 2 << 32 | 1, replica(leader), 50)));
    cluster.host(leader).step(&bytes::Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n"));
    cluster.settle();
    let status = cluster.status(leader);
    assert_eq!((status.role, status.term, status.committed), (2, term, before));
}

#[test]
fn a_group_may_be_removed_and_created_again_before_the_next_round() {
    let disk = SimDisk::new(1);
    let mut host = lone(&disk, &[]);
    put(&mut host, GROUP, 1, b"old life").unwrap();
    host.campaign(GROUP);
    host.remove_group(GROUP).unwrap();
    let fresh = 1 << 32 | 2;
    host.create_group(GROUP, fresh, &[fresh]).unwrap().unwrap();
    host.campaign(GROUP);
    host.drive(&mut |_| ()).unwrap();
    put(&mut host, GROUP, 2, b"new life").unwrap();
    let names: Vec<_> = host.take_out().events.iter().map(|event| (event.name, event.number)).collect();
    assert_eq!(names, [("created", replica(1)), ("removed", replica(1)), ("created", fresh)]);
    drop(host);
    disk.crash();
    let host = open(&disk, options(1), &[]).unwrap();
    assert_eq!((only(&host).replica, only(&host).last_index), (fresh, 3));
    assert_eq!(&host.entries(GROUP, 3, 3)[0].data[..], b"new life");
}
