//! The sixteen traps of driving raft 0.7.0, each as a test named after what would go wrong.

mod common;

use common::*;
use flotta_native::raft::clock::Clock;
use flotta_native::raft::guard::Change;
use flotta_native::raft::out::{Payload, Reason};
use flotta_native::raft::runner::{guarded, Runner};
use flotta_native::raft::simdisk::SimDisk;
use raft::eraftpb::{Entry, MessageType};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn trap_1_and_2_a_panic_ends_the_host_with_its_reason_and_nobody_hangs() {
    let disk = SimDisk::new(1);
    let host = lone(&disk, &[]);
    let runner = Runner::new(host, Clock::System).unwrap();
    runner.start().unwrap();
    let broken = runner.ask(|_| -> Result<(), _> { panic!("the core said no") }).unwrap_err();
    assert!(broken.to_string().contains("the core said no"), "{broken}");
    for _ in 0..2 {
        assert!(runner.mailbox().poll().err().unwrap().to_string().contains("the core said no"));
        assert!(runner.ask(|host| Ok(host.group_ids())).is_err());
    }
    assert!(runner.stop(Duration::from_secs(5)));
}

#[test]
fn trap_1_a_broken_invariant_of_the_core_is_told_with_its_text() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    let mut heartbeat = message(MessageType::MsgHeartbeat, replica(leader), replica(follower), 2);
    heartbeat.term = cluster.status(follower).term;
    heartbeat.commit = 99;
    let host = cluster.host(follower);
    let broken = guarded(|| {
        host.step(&frame(leader, &heartbeat));
        Ok(())
    });
    assert!(broken.unwrap_err().to_string().contains("out of range"));
}

#[test]
fn trap_3_election_timeouts_follow_the_seed() {
    static SEED: AtomicU64 = AtomicU64::new(0);
    let run = |seed: u64| {
        SEED.store(seed, Ordering::SeqCst);
        let mut cluster = Cluster::new(3, &[1, 2, 3], |options| options.seed = SEED.load(Ordering::SeqCst));
        let leader = cluster.elect();
        (leader, cluster.host(leader).status(None)[0].term)
    };
    assert_eq!(run(5), run(5));
    assert!((1..20).map(run).collect::<std::collections::BTreeSet<_>>().len() > 1);
}

#[test]
fn trap_4_entries_travel_together() {
    let (mut cluster, leader) = trio();
    let payloads = (1..=500).map(|request| (GROUP, request, vec![1; 100].into())).collect();
    cluster.host(leader).propose(payloads);
    cluster.pump(leader).unwrap();
    assert_eq!(cluster.wire.len(), 2, "one frame for each follower");
}

#[test]
fn trap_5_proposals_are_not_forwarded_and_forwarded_ones_are_refused() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    cluster.host(follower).propose(vec![(GROUP, 7, "no".into())]);
    cluster.pump(follower).unwrap();
    let dropped = cluster.node(follower).dropped.remove(0);
    assert_eq!((dropped.request, dropped.reason, dropped.leader), (7, Reason::NotLeader, replica(leader)));
    assert!(cluster.wire.is_empty());
    let mut forwarded = message(MessageType::MsgPropose, replica(follower), replica(leader), 0);
    forwarded.set_entries(vec![Entry { data: "sneaked in".into(), ..Default::default() }].into());
    cluster.host(leader).step(&frame(follower, &forwarded));
    cluster.settle();
    assert!(cluster.node(leader).events.iter().any(|event| event.name == "bad_message"));
    assert!(cluster.values(leader).is_empty());
}

#[test]
fn trap_6_a_second_pending_membership_change_is_refused_aloud() {
    let (mut cluster, leader) = trio();
    cluster.host(leader).change_membership(GROUP, 1, &[Change::Learner(replica(4))]);
    cluster.host(leader).change_membership(GROUP, 2, &[Change::Learner(replica(5))]);
    cluster.settle();
    let dropped = cluster.node(leader).dropped.remove(0);
    assert_eq!((dropped.request, dropped.reason), (2, Reason::ConfPending));
    assert_eq!(cluster.status(leader).membership.learners, vec![replica(4)]);
    assert_eq!(cluster.committed(leader), vec![1]);
}

#[test]
fn trap_7_a_joiner_gets_a_snapshot_that_names_it_and_a_stale_one_is_refused() {
    let mut cluster = Cluster::new(4, &[1, 2, 3], |_| ());
    let leader = cluster.elect();
    cluster.put(leader, 1, b"before");
    cluster.host(leader).create_group(99, replica(leader), &[]).unwrap().unwrap();
    cluster.host(4).create_group(GROUP, replica(4), &[]).unwrap().unwrap();
    cluster.settle();
    let old = cluster.node(leader).applied[&GROUP];
    cluster.change(leader, 2, &[Change::Learner(replica(4))]);
    cluster.host(leader).snapshot_ready(GROUP, old, "too old".into());
    cluster.tick(5);
    let stale =
        cluster.node(leader).events.iter().find(|event| event.name == "snapshot_stale").cloned().unwrap();
    assert_eq!(stale.number, old + 1);
    let Payload::Snapshot(conf, _) = &cluster.node(4).applies[0].payload else { panic!("no snapshot") };
    assert_eq!(conf.learners, vec![replica(4)]);
    cluster.put(leader, 3, b"after");
    assert_eq!(cluster.values(4), vec![b"after".to_vec()]);
}

#[test]
fn trap_8_a_lost_snapshot_is_given_up_and_sent_again() {
    let mut cluster = Cluster::new(4, &[1, 2, 3], |options| options.snapshot_timeout_ticks = 20);
    let leader = cluster.elect();
    cluster.host(4).create_group(GROUP, replica(4), &[]).unwrap().unwrap();
    cluster.deliver_snapshots = false;
    cluster.change(leader, 1, &[Change::Learner(replica(4))]);
    cluster.tick(10);
    assert_eq!(cluster.node(leader).snapshots_sent.len(), 1);
    assert!(cluster.status(leader).pending_snapshot.contains_key(&replica(4)));
    cluster.host(leader).snapshot_progress(GROUP, replica(4));
    cluster.tick(15);
    assert_eq!(cluster.node(leader).snapshots_sent.len(), 1, "it is still on its way");
    cluster.deliver_snapshots = true;
    cluster.tick(15);
    assert_eq!(cluster.node(leader).snapshots_sent.len(), 2);
    assert_eq!(cluster.status(leader).matched[&replica(4)], cluster.status(leader).last_index);
}

#[test]
fn trap_9_a_leader_cannot_remove_or_demote_itself() {
    let (mut cluster, leader) = trio();
    let [other, third] = others(leader);
    for (request, change) in [(1, Change::Remove(replica(leader))), (2, Change::Learner(replica(leader)))] {
        cluster.change(leader, request, &[change]);
        let dropped = cluster.node(leader).dropped.pop().unwrap();
        assert_eq!((dropped.request, dropped.reason), (request, Reason::Invalid));
    }
    cluster.host(leader).transfer_leader(GROUP, replica(other));
    cluster.settle();
    assert_eq!(cluster.leader(), Some(other));
    cluster.change(other, 3, &[Change::Remove(replica(leader))]);
    assert_eq!(cluster.status(other).membership.voters.len(), 2);
    cluster.put(other, 4, b"still working");
    assert_eq!(cluster.values(third), vec![b"still working".to_vec()]);
}

#[test]
fn trap_10_a_read_before_the_terms_first_commit_or_without_a_leader_is_dropped_aloud() {
    let (mut cluster, leader) = trio();
    cluster.put(leader, 1, b"x");
    let index = cluster.status(leader).committed;
    let [follower, third] = others(leader);
    cluster.host(follower).read_index(vec![(GROUP, 50), (GROUP, 51)]);
    cluster.settle();
    assert_eq!(cluster.node(follower).reads, vec![(GROUP, 50, index), (GROUP, 51, index)]);
    // A new leader whose first entry nobody has acknowledged.
    cluster.cut = vec![(leader, follower), (follower, leader), (leader, third), (third, leader)];
    cluster.host(leader).read_index(vec![(GROUP, 60)]);
    cluster.tick(40);
    assert!(cluster
        .node(leader)
        .dropped
        .iter()
        .any(|drop| (drop.request, drop.reason) == (60, Reason::NoLeader)));
    assert_ne!(cluster.leader(), Some(leader));
    cluster.host(leader).read_index(vec![(GROUP, 61)]);
    cluster.settle();
    assert!(cluster
        .node(leader)
        .dropped
        .iter()
        .any(|drop| (drop.request, drop.reason) == (61, Reason::NoLeader)));
    assert!(cluster.node(leader).reads.is_empty());
}

#[test]
fn trap_10_a_new_leader_answers_no_read_before_it_committed_in_its_term() {
    let (mut cluster, leader) = trio();
    cluster.kill(leader);
    let rest = others(leader);
    let mut elected = None;
    for _ in 0..60 {
        for node in rest {
            cluster.host(node).tick();
            cluster.pump(node).unwrap();
        }
        elected = rest.into_iter().find(|node| cluster.status(*node).role == 2);
        if elected.is_some() {
            break;
        }
        for (_, to, bytes) in std::mem::take(&mut cluster.wire).into_iter().filter(|(_, to, _)| *to != leader)
        {
            cluster.host(to).step(&bytes.into());
        }
    }
    // It leads, and its first entry has not left the wire yet.
    let elected = elected.unwrap();
    cluster.host(elected).read_index(vec![(GROUP, 70)]);
    cluster.pump(elected).unwrap();
    assert!(cluster
        .node(elected)
        .dropped
        .iter()
        .any(|drop| (drop.request, drop.reason) == (70, Reason::NoLeader)));
}

#[test]
fn trap_11_the_commit_index_after_a_restart_is_at_least_what_was_applied() {
    let (mut cluster, leader) = trio();
    for request in 1..=5 {
        cluster.put(leader, request, b"x");
    }
    for node in 1..=3 {
        let applied = cluster.node(node).applied[&GROUP];
        cluster.kill(node);
        cluster.node(node).disk.crash();
        cluster.start(node).unwrap();
        let status = cluster.status(node);
        assert_eq!((status.committed >= applied, status.delivered), (true, applied));
    }
    cluster.elect();
    let before = cluster.node(leader).applies.len();
    cluster.tick(20);
    let applies = &cluster.node(leader).applies[before..];
    assert!(applies.iter().all(|applied| applied.payload == Payload::Empty), "{applies:?}");
}

#[test]
fn trap_12_the_term_of_the_truncated_index_answers_and_a_first_write_is_index_3() {
    let disk = SimDisk::new(1);
    let mut host = lone(&disk, &[]);
    put(&mut host, GROUP, 1, b"first").unwrap();
    let out = host.take_out();
    let first = out.applies.iter().find(|applied| applied.request == 1).unwrap();
    assert_eq!(first.index, 3);
    host.compact(GROUP, 3).unwrap();
    put(&mut host, GROUP, 2, b"second").unwrap();
    assert_eq!(only(&host).last_index, 4);
}

#[test]
fn trap_13_nothing_of_a_follower_leaves_before_it_is_durable() {
    let (mut cluster, leader) = trio();
    let follower = others(leader)[0];
    cluster.host(leader).propose(vec![(GROUP, 1, "x".into())]);
    cluster.pump(leader).unwrap();
    let frames: Vec<_> = std::mem::take(&mut cluster.wire);
    for (_, _, bytes) in frames.into_iter().filter(|(_, to, _)| *to == follower) {
        cluster.host(follower).step(&bytes.into());
    }
    cluster.node(follower).disk.fail_sync_after(0);
    assert!(cluster.pump(follower).is_err());
    assert!(cluster.wire.is_empty(), "it acknowledged what it may have lost");
}

#[test]
fn trap_13_a_leaders_appends_leave_before_its_own_sync_but_its_commit_waits_for_a_quorum() {
    let (mut cluster, leader) = trio();
    cluster.host(leader).propose(vec![(GROUP, 1, "x".into())]);
    cluster.node(leader).disk.fail_sync_after(0);
    assert!(cluster.pump(leader).is_err());
    assert_eq!(cluster.wire.len(), 2);
    assert!(cluster.committed(leader).is_empty());
}

#[test]
fn trap_14_and_15_compaction_rides_along_and_segments_go_only_after_it_is_durable() {
    let disk = SimDisk::new(1);
    let mut host = lone(&disk, &[]);
    for request in 1..=200 {
        put(&mut host, GROUP, request, &[1; 900]).unwrap();
    }
    let before = host.log_stats();
    assert!(before.segments > 5);
    host.compact(GROUP, 190).unwrap();
    assert_eq!(host.log_stats().segments, before.segments, "nothing goes before the record is durable");
    assert_eq!(disk.unsynced_bytes(), 0);
    put(&mut host, GROUP, 201, b"carrier").unwrap();
    assert!(host.log_stats().segments < before.segments);
}

#[test]
fn trap_16_is_held_by_the_recovery_tests_and_a_segment_of_zeros_is_fresh() {
    let disk = SimDisk::new(1);
    let mut content = disk.content("nothing").unwrap_or_default();
    let header = flotta_native::raft::segment::Header { number: 1, salt: 3, capacity: 16 << 10 };
    content.extend(header.encode());
    content.resize(16 << 10, 0);
    disk.put_file("raft/0000000000000001.log", content);
    let mut host = lone(&disk, &[]);
    put(&mut host, GROUP, 1, b"x").unwrap();
    assert_eq!(only(&host).last_index, 3);
}
