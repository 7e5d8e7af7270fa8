//! Rotation, rewriting and collection of segments: what a crash in any of them leaves, and what stays bounded.

mod common;

use common::*;
use flotta_native::raft::failpoints;
use std::collections::BTreeSet;

/// One node that writes, compacts and rotates, killed at the n-th pass of every point with a power cut.
#[test]
fn a_power_cut_at_every_point_of_rotation_and_collection_loses_no_synced_entry() {
    for name in failpoints::ALL {
        let mut deaths = 0;
        for hits in 1..=12 {
            let disk = flotta_native::raft::simdisk::SimDisk::new(hits);
            let mut host = lone(&disk, &[]);
            host.create_group(2, 1 << 32 | 7, &[1 << 32 | 7]).unwrap().unwrap();
            host.drive(&mut |_| ()).unwrap();
            host.failpoints.arm(name, hits).unwrap();
            let (mut safe, mut compacted, mut died) = (0, 0, false);
            for request in 1..=150u64 {
                if put(&mut host, GROUP, request, &request.to_le_bytes().repeat(60)).is_err() {
                    died = true;
                    break;
                }
                safe = request;
                let others = match request % 25 {
                    7 => host.compact(GROUP, request - 5).map(|()| compacted = request - 5),
                    14 => host.remove_group(2),
                    21 => host.create_group(2, 1 << 32 | (100 + request), &[]).map(|_| ()),
                    _ => Ok(()),
                };
                if others.is_err() {
                    died = true;
                    break;
                }
            }
            deaths += u64::from(died);
            drop(host);
            disk.crash();
            let host = open(&disk, options(1), &[(GROUP, compacted)])
                .unwrap_or_else(|e| panic!("{name}@{hits}: {e}"));
            for request in compacted.saturating_sub(2).max(1)..=safe {
                let index = request + 2;
                if index > compacted {
                    let entry = host.entries(GROUP, index, index);
                    let expected = request.to_le_bytes().repeat(60);
                    assert!(
                        entry.len() == 1 && entry[0].data[..] == expected[..],
                        "{name}@{hits}: lost {request}"
                    );
                }
            }
        }
        // A lone node installs no snapshots.
        let reachable = name != failpoints::AFTER_SNAPSHOT_RECORD && name != failpoints::BEFORE_SEND;
        assert_eq!(deaths > 0, reachable, "{name}");
    }
}

#[test]
fn a_cold_group_does_not_pin_the_log_and_keeps_its_entries() {
    let disk = flotta_native::raft::simdisk::SimDisk::new(1);
    let mut host = lone(&disk, &[]);
    let cold = 1 << 32 | 5;
    host.create_group(5, cold, &[cold]).unwrap().unwrap();
    host.campaign(5);
    host.drive(&mut |_| ()).unwrap();
    for request in 1..=5 {
        put(&mut host, 5, request, format!("cold {request}").as_bytes()).unwrap();
    }
    let mut asked = BTreeSet::new();
    for request in 1..=3000u64 {
        put(&mut host, GROUP, request, &[3; 500]).unwrap();
        if request % 20 == 0 {
            host.compact(GROUP, request - 10).unwrap();
        }
        asked.extend(host.take_out().compactions_wanted.into_iter().map(|(group, _)| group));
    }
    let stats = host.log_stats();
    assert!(stats.rotations > 80 && stats.segments < 12, "{stats:?}");
    assert!(stats.rewritten_entries >= 5 && stats.removed > 70, "{stats:?}");
    assert!(asked.contains(&5), "the application is asked to compact the cold group");
    drop(host);
    disk.crash();
    let host = open(&disk, options(1), &[(GROUP, 2990)]).unwrap();
    let cold: Vec<_> = host.entries(5, 3, 7).iter().map(|entry| entry.data.to_vec()).collect();
    assert_eq!(cold, (1..=5).map(|request| format!("cold {request}").into_bytes()).collect::<Vec<_>>());
}

#[test]
fn an_overwritten_tail_stays_gone_after_a_power_cut() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(3, &[1, 2, 3], |_| ());
        let leader = cluster.elect();
        let others: Vec<u32> = (1..=3).filter(|node| *node != leader).collect();
        cluster.cut = others.iter().flat_map(|other| [(leader, *other), (*other, leader)]).collect();
        for request in 1..=10 {
            cluster.host(leader).propose(vec![(GROUP, request, "doomed".into())]);
        }
        cluster.tick(40);
        let next = cluster.leader().unwrap();
        cluster.cut.clear();
        cluster.put(next, 100, b"short");
        cluster.tick(5);
        assert_eq!(cluster.values(leader), vec![b"short".to_vec()]);
        cluster.kill(leader);
        cluster.node(leader).disk = {
            let disk = std::mem::take(&mut cluster.node(leader).disk);
            (0..=seed).for_each(|_| _ = disk.crash());
            disk
        };
        cluster.start(leader).unwrap();
        let entries = cluster.host(leader).entries(GROUP, 0, 99);
        assert!(entries.iter().all(|entry| &entry.data[..] != b"doomed"), "{entries:?}");
    }
}
