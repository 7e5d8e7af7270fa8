//! The last replica of a group that lost its quorum for good goes on alone, under a new id, and nobody of before
//! meets it again.

mod common;

use common::*;
use flotta_native::raft::failpoints;
use flotta_native::raft::guard::Change;
use flotta_native::raft::simdisk::SimDisk;

const HEIR: u64 = 3 << 32 | 77;

/// Nodes 1 and 2 are gone; node 3 holds an entry that it never heard was committed.
fn bereaved() -> Cluster {
    let mut cluster = Cluster::new(4, &[1, 2, 3], |_| ());
    cluster.host(1).campaign(GROUP);
    cluster.settle();
    cluster.put(1, 1, b"known");
    cluster.host(1).propose(vec![(GROUP, 2, b"acknowledged".to_vec().into())]);
    cluster.pump(1).unwrap();
    for (from, to, frame) in std::mem::take(&mut cluster.wire) {
        if to == 3 {
            cluster.host(to).step(&frame.into());
            cluster.pump(to).unwrap();
        }
        assert_eq!(from, 1);
    }
    cluster.wire.clear();
    cluster.kill(1);
    cluster.kill(2);
    let status = cluster.status(3);
    assert!(status.committed < status.last_index);
    cluster
}

fn seize(cluster: &mut Cluster, term_min: u64) {
    let payloads = vec![b"first".to_vec().into(), b"second".to_vec().into()];
    cluster.host(3).seize_group(GROUP, replica(3), HEIR, term_min, payloads).unwrap().unwrap();
    cluster.settle();
}

#[test]
fn the_survivor_commits_its_whole_log_and_then_the_payloads() {
    let mut cluster = bereaved();
    let before = cluster.status(3);
    seize(&mut cluster, 50);
    let events: Vec<_> = cluster.node(3).events.iter().map(|event| event.name).collect();
    assert!(events.contains(&"seized"), "{events:?}");
    let values = cluster.values(3);
    assert_eq!(values, [&b"known"[..], b"acknowledged", b"first", b"second"]);
    assert_eq!(cluster.elect(), 3);
    let after = cluster.status(3);
    assert_eq!((after.replica, after.membership.voters.clone()), (HEIR, vec![HEIR]));
    assert!(after.term > 51 && after.last_term == after.term, "{after:?}");
    assert_eq!(after.last_index, before.last_index + 4); // the membership, two payloads, the new leader's own entry
    cluster.put(3, 9, b"new");
    assert!(cluster.committed(3).contains(&9));
    assert_eq!(cluster.host(3).tombstones()[&GROUP], [replica(3)]);
}

#[test]
fn the_old_voters_come_back_and_stay_among_themselves() {
    let mut cluster = bereaved();
    seize(&mut cluster, 0);
    cluster.elect();
    cluster.start(1).unwrap();
    cluster.start(2).unwrap();
    cluster.host(1).campaign(GROUP);
    cluster.tick(30);
    cluster.put(1, 20, b"stale");
    cluster.put(3, 21, b"fresh");
    assert!(cluster.committed(3).contains(&21));
    assert!(!cluster.values(3).contains(&b"stale".to_vec()));
    assert!(
        !cluster.values(1).contains(&b"fresh".to_vec()) && !cluster.values(2).contains(&b"fresh".to_vec())
    );
    assert_eq!(cluster.status(3).membership.voters, [HEIR]);
    let refused = cluster.node(3).events.iter().filter(|event| event.name == "wrong_replica").count();
    assert!(refused > 0);
}

#[test]
fn it_takes_new_members() {
    let mut cluster = bereaved();
    seize(&mut cluster, 0);
    cluster.elect();
    let fresh = 4 << 32 | 78;
    cluster.host(4).create_group(GROUP, fresh, &[]).unwrap().unwrap();
    cluster.settle();
    cluster.change(3, 30, &[Change::Learner(fresh)]);
    cluster.tick(5);
    cluster.change(3, 31, &[Change::Voter(fresh)]);
    cluster.tick(5);
    cluster.put(3, 32, b"two of us");
    assert_eq!(cluster.status(4).membership.voters, [HEIR, fresh]);
    assert!(cluster.values(4).contains(&b"two of us".to_vec()));
}

#[test]
fn a_membership_change_that_it_had_not_applied_is_void() {
    let mut cluster = bereaved();
    // Node 1 comes back for a moment and gets a change no further than into the log of node 3.
    cluster.start(1).unwrap();
    while cluster.elect() != 1 {
        cluster.host(3).transfer_leader(GROUP, replica(1));
        cluster.tick(5);
    }
    cluster.settle();
    cluster.cut.push((3, 1));
    cluster.host(1).change_membership(GROUP, 40, &[Change::Learner(4 << 32 | 5)]);
    cluster.settle();
    cluster.kill(1);
    let before = cluster.status(3);
    assert!(before.last_index > before.committed);
    seize(&mut cluster, 0);
    assert_eq!(cluster.elect(), 3);
    assert_eq!(cluster.status(3).membership.voters, [HEIR]);
    assert!(cluster.status(3).membership.learners.is_empty());
}

#[test]
fn a_power_cut_at_any_point_leaves_the_old_replica_or_the_new_one() {
    let (mut olds, mut news) = (0, 0);
    for name in failpoints::ALL {
        for hits in 1..=3 {
            let mut cluster = bereaved();
            let last = cluster.status(3).last_index;
            cluster.host(3).failpoints.arm(name, hits).unwrap();
            let asked =
                cluster.host(3).seize_group(GROUP, replica(3), HEIR, 0, vec![b"first".to_vec().into()]);
            let died = asked.is_err() || cluster.pump(3).is_err();
            cluster.kill(3);
            cluster.node(3).disk.crash();
            cluster.start(3).unwrap_or_else(|error| panic!("{name}@{hits}: {error}"));
            let status = cluster.status(3);
            if status.replica == replica(3) {
                assert!(died, "{name}@{hits}: the new replica was told, and is gone");
                assert_eq!(status.last_index, last);
                olds += 1;
                cluster.host(3).seize_group(GROUP, replica(3), HEIR, 0, Vec::new()).unwrap().unwrap();
            } else {
                assert_eq!((status.replica, status.last_index), (HEIR, last + 2));
                news += 1;
            }
            cluster.settle();
            assert_eq!(cluster.elect(), 3);
            assert!(cluster.values(3).contains(&b"acknowledged".to_vec()), "{name}@{hits}");
        }
    }
    assert!(olds > 0 && news > 0);
}

#[test]
fn what_cannot_be_seized_is_refused_and_stays_as_it_was() {
    let mut cluster = bereaved();
    let before = cluster.status(3);
    let host = cluster.host(3);
    let mut refused = |group, from, to| {
        let answer = host.seize_group(group, from, to, 0, Vec::new()).unwrap();
        answer.expect_err("it was taken")
    };
    assert!(refused(GROUP + 1, replica(3), HEIR).contains("no group"));
    assert!(refused(GROUP, replica(1), HEIR).contains("has replica"));
    assert!(refused(GROUP, replica(3), replica(3)).contains("not a new one"));
    assert!(refused(GROUP, replica(3), 4 << 32 | 1).contains("not a new one"));
    let after = cluster.status(3);
    assert_eq!(
        (after.replica, after.term, after.last_index),
        (before.replica, before.term, before.last_index)
    );

    let blank = 4 << 32 | 9;
    cluster.host(4).create_group(GROUP, blank, &[]).unwrap().unwrap();
    let text = cluster.host(4).seize_group(GROUP, blank, 4 << 32 | 10, 0, Vec::new()).unwrap().unwrap_err();
    assert!(text.contains("never told"), "{text}");
    seize(&mut cluster, 0);
    let again = cluster.host(3).seize_group(GROUP, HEIR, replica(3), 0, Vec::new()).unwrap().unwrap_err();
    assert!(again.contains("removed for good"), "{again}");
}

#[test]
fn a_lone_voter_whose_log_rotated_can_be_seized_and_found_again() {
    let disk = SimDisk::new(5);
    let mut host = lone(&disk, &[]);
    for request in 1..=200u64 {
        put(&mut host, GROUP, request, &[7; 600]).unwrap();
    }
    let fresh = 1 << 32 | 99;
    host.seize_group(GROUP, replica(1), fresh, 0, vec![b"end".to_vec().into()]).unwrap().unwrap();
    host.drive(&mut |_| ()).unwrap();
    let last = only(&host).last_index;
    drop(host);
    disk.crash();
    let host = open(&disk, options(1), &[]).unwrap();
    assert_eq!((only(&host).replica, only(&host).last_index), (fresh, last));
    assert_eq!(host.entries(GROUP, last, last)[0].data[..], b"end"[..]);
    assert_eq!(host.entries(GROUP, 100, 100)[0].data[..], [7; 600]);
}

#[test]
fn a_snapshot_that_the_state_machine_may_lack_is_not_forgotten() {
    let mut cluster = bereaved();
    cluster.start(1).unwrap();
    let leader = cluster.elect();
    let joined = 4 << 32 | 5;
    cluster.host(4).create_group(GROUP, joined, &[]).unwrap().unwrap();
    cluster.settle();
    cluster.change(leader, 40, &[Change::Learner(joined)]);
    cluster.tick(5);
    cluster.change(leader, 41, &[Change::Voter(joined)]);
    cluster.tick(5);
    assert!(cluster.host(4).pending_install(GROUP).is_some());
    for node in [1, 3] {
        cluster.kill(node);
    }
    let heir = 4 << 32 | 78;
    cluster.host(4).seize_group(GROUP, joined, heir, 0, vec![b"end".to_vec().into()]).unwrap().unwrap();
    cluster.settle();
    assert_eq!(cluster.elect(), 4);
    assert_eq!(cluster.values(4).last().unwrap(), b"end");
    cluster.kill(4);
    cluster.node(4).disk.crash();
    cluster.node(4).applied.insert(GROUP, 0);
    cluster.start(4).unwrap();
    let lacking = cluster.host(4).pending_install(GROUP).unwrap();
    assert_eq!((lacking.conf.voters, lacking.manifest.is_empty()), (vec![heir], false));
}
