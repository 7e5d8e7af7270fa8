//! What a log says after it was cut, damaged, or left behind by a crash.

mod common;

use common::*;
use flotta_native::raft::error::{Fatal, OpenError};
use flotta_native::raft::simdisk::SimDisk;

const SEGMENT: &str = "raft/0000000000000001.log";

/// A disk with a few small frames, and where the frame of each put begins and ends.
fn small_log() -> (Vec<u8>, Vec<(usize, usize)>) {
    let disk = SimDisk::new(1);
    let mut host = lone(&disk, &[]);
    let mut frames = Vec::new();
    for request in 1..=4 {
        let before = host.log_stats().bytes;
        put(&mut host, GROUP, request, format!("value {request}").as_bytes()).unwrap();
        frames.push((before, host.log_stats().bytes));
    }
    let content = disk.content(SEGMENT).unwrap();
    let frames = frames.iter().map(|(from, to)| (*from as usize + 64, *to as usize + 64)).collect();
    (content, frames)
}

fn reopen(content: Vec<u8>) -> Result<(SimDisk, flotta_native::raft::host::Host), OpenError> {
    let disk = SimDisk::new(2);
    disk.put_file(SEGMENT, content);
    open(&disk, options(1), &[]).map(|host| (disk, host))
}

/// Index 1 is the birth, 2 the leader's empty entry; puts follow.
fn last_after(frames: &[(usize, usize)], cut: usize) -> u64 {
    2 + frames.iter().filter(|(_, end)| cut >= *end).count() as u64
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off_and_the_log_goes_on() {
    let (content, frames) = small_log();
    let end = frames.last().unwrap().1;
    for cut in frames[1].0..=end {
        for (how, rest) in [("cut", None), ("zeros", Some(0u8)), ("garbage", Some(0xa5))] {
            let mut torn = content[..cut].to_vec();
            if let Some(fill) = rest {
                torn.resize(content.len().min(cut + 700), fill);
            }
            let (disk, host) = reopen(torn).unwrap_or_else(|error| panic!("{how} at {cut}: {error}"));
            // A frame that lost nothing but zeros at its end may be whole, where zeros follow.
            let zeros = content[cut..].iter().take_while(|byte| **byte == 0).count();
            let (low, high) = (last_after(&frames, cut), last_after(&frames, (cut + zeros).min(end)));
            let last = only(&host).last_index;
            assert!(last == low || last == high, "{how} at {cut}: {last}, not {low} or {high}");
            drop(host);
            let mut host = lone(&disk, &[]);
            put(&mut host, GROUP, 77, b"after").unwrap();
            drop(host);
            let host = lone(&disk, &[(GROUP, last)]);
            assert!(host.entries(GROUP, last + 1, last + 9).iter().any(|entry| &entry.data[..] == b"after"));
        }
    }
}

#[test]
fn a_damaged_byte_before_the_last_frame_stops_the_start_and_names_the_place() {
    let (content, frames) = small_log();
    for at in frames[0].0..frames[2].1 {
        let mut bad = content.clone();
        bad[at] ^= 0x10;
        match reopen(bad) {
            Err(OpenError::Corruption(text)) => {
                let frame = frames.iter().find(|(from, to)| (*from..*to).contains(&at)).unwrap().0;
                assert!(text.contains(SEGMENT) && text.contains(&format!("offset {frame}:")), "{at}: {text}");
            }
            Err(other) => panic!("byte {at}: {other}"),
            // The padding between frames is no part of any.
            Ok((_, host)) => assert_eq!(only(&host).last_index, 6, "byte {at} was lost silently"),
        }
    }
}

#[test]
fn damage_to_the_last_frame_cannot_be_told_from_a_torn_write() {
    let (mut content, frames) = small_log();
    content[frames[3].0 + 20] ^= 1;
    let (_, host) = reopen(content).unwrap();
    assert_eq!(only(&host).last_index, 5);
}

#[test]
fn a_log_of_zeros_of_any_length_after_its_frames_is_an_end() {
    let (content, frames) = small_log();
    let end = frames.last().unwrap().1;
    for zeros in (0..200).chain([511, 512, 513, 4096]) {
        let mut padded = content[..end].to_vec();
        padded.resize(end + zeros, 0);
        let (_, host) = reopen(padded).unwrap();
        assert_eq!(only(&host).last_index, 6, "{zeros} zeros");
    }
    let (disk, host) = reopen(content[..64].to_vec()).unwrap();
    assert_eq!(host.group_ids(), Vec::<u64>::new());
    drop(host);
    assert_eq!(open(&disk, options(1), &[]).unwrap().group_ids(), Vec::<u64>::new());
}

/// A log of several segments, each of which begins with a checkpoint.
fn many_segments() -> (SimDisk, u64) {
    let disk = SimDisk::new(3);
    let mut host = lone(&disk, &[]);
    for request in 1..=60 {
        put(&mut host, GROUP, request, &[request as u8; 900]).unwrap();
    }
    assert!(host.log_stats().segments >= 3, "{:?}", host.log_stats());
    (disk, only(&host).last_index)
}

#[test]
fn a_missing_or_headless_segment_is_corruption() {
    let (disk, _) = many_segments();
    let names: Vec<String> = disk.files().into_keys().collect();
    for (at, gone) in names.iter().enumerate() {
        let left = SimDisk::new(4);
        for name in names.iter().filter(|name| *name != gone) {
            left.put_file(name, disk.content(name).unwrap());
        }
        match open(&left, options(1), &[]) {
            Err(OpenError::Corruption(text)) => assert!(text.contains("raft/"), "{text}"),
            Ok(host) if at + 1 == names.len() => {
                // Without its last segment the log is a shorter one: only `applied` can tell.
                drop(host);
                assert!(matches!(open(&left, options(1), &[(GROUP, 62)]), Err(OpenError::Invalid(_))));
            }
            other => panic!("without {gone}: {:?}", other.err().map(|error| error.to_string())),
        }
    }
    disk.flip_bit(&names[1], 3);
    assert!(
        matches!(open(&disk, options(1), &[]), Err(OpenError::Corruption(text)) if text.contains(&names[1]))
    );
}

#[test]
fn damage_at_the_end_of_a_full_segment_is_corruption_too() {
    let (disk, _) = many_segments();
    let first = disk.content(SEGMENT).unwrap();
    let end = first.iter().rposition(|byte| *byte != 0).unwrap();
    disk.flip_bit(SEGMENT, end as u64 - 10);
    let text = open(&disk, options(1), &[]).err().unwrap().to_string();
    assert!(text.contains(SEGMENT) && text.contains("frames follow"), "{text}");
}

#[test]
fn a_prepared_but_unused_segment_is_no_hole() {
    let (disk, last) = many_segments();
    let names: Vec<String> = disk.files().into_keys().collect();
    let number = names.len() as u64 + 1;
    let header = flotta_native::raft::segment::Header { number, salt: 5, capacity: 16 << 10 };
    let mut content = header.encode().to_vec();
    content.resize(16 << 10, 0);
    disk.put_file(&format!("raft/{}", flotta_native::raft::segment::name(number)), content);
    disk.put_file("raft/00000000000000ff.log.new", vec![1, 2, 3]);
    let mut host = lone(&disk, &[(GROUP, last)]);
    for request in 1..=30 {
        put(&mut host, GROUP, request, &[7; 900]).unwrap();
    }
    assert!(!disk.files().contains_key("raft/00000000000000ff.log.new"));
    let last = only(&host).last_index;
    drop(host);
    assert_eq!(only(&lone(&disk, &[(GROUP, last)])).delivered, last + 1);
}

#[test]
fn a_failed_sync_or_a_full_disk_ends_the_host_and_loses_nothing_acknowledged() {
    for full in [false, true] {
        let disk = SimDisk::new(5);
        let mut host = lone(&disk, &[]);
        for request in 1..=10 {
            put(&mut host, GROUP, request, b"safe").unwrap();
        }
        if full {
            disk.fill_up_after(40);
        } else {
            disk.fail_sync_after(0);
        }
        let died = put(&mut host, GROUP, 11, b"perhaps").unwrap_err();
        assert!(matches!(&died, Fatal::Disk(text) if text.contains("0000000000000001.log")), "{died}");
        drop(host);
        disk.crash();
        let host = lone(&disk, &[]);
        let kept = host.entries(GROUP, 0, 99).iter().filter(|entry| &entry.data[..] == b"safe").count();
        assert_eq!(kept, 10);
    }
}

#[test]
fn only_its_own_directory_opens() {
    let disk = SimDisk::new(6);
    let mut host = lone(&disk, &[]);
    put(&mut host, GROUP, 1, b"x").unwrap();
    drop(host);
    let refused = |applied: &[(u64, u64)], node: u32| match open(&disk, options(node), applied) {
        Err(OpenError::Invalid(text)) => text,
        other => panic!("{:?}", other.err().map(|error| error.to_string())),
    };
    assert!(refused(&[], 2).contains("node_num is 2"));
    assert!(refused(&[(GROUP, 4)], 1).contains("the log lost entries"));
    assert!(refused(&[(77, 5)], 1).contains("the log does not know it"));
    assert!(open(&disk, options(1), &[(GROUP, 3), (77, 1)]).is_ok());
}

#[test]
fn nothing_is_ever_written_without_being_synced() {
    let disk = SimDisk::new(7);
    let mut host = lone(&disk, &[]);
    for request in 1..=50 {
        put(&mut host, GROUP, request, b"value").unwrap();
        assert_eq!(disk.unsynced_bytes(), 0);
        if request % 10 == 0 {
            host.compact(GROUP, request).unwrap();
        }
    }
    let before = host.log_stats().syncs;
    host.tick();
    host.drive(&mut |_| ()).unwrap();
    assert_eq!(host.log_stats().syncs, before, "a commit index alone needs no sync");
    host.close().unwrap();
    drop(host);
    // An orderly end saves the commit index as well: it needs nobody else to be known again.
    let host = open(&disk, options(1), &[(GROUP, 50)]).unwrap();
    assert_eq!(only(&host).committed, 52);
}

/// Leaves a written, unsynced frame of that many payload bytes, as kill -9 does.
fn killed_before_its_sync(payload_bytes: usize) -> SimDisk {
    let disk = SimDisk::new(payload_bytes as u64);
    let mut host = lone(&disk, &[]);
    host.failpoints.arm("raft.before_sync", 1).unwrap();
    assert!(put(&mut host, GROUP, 1, &vec![1; payload_bytes]).is_err());
    assert!(disk.unsynced_bytes() > 0);
    disk
}

#[test]
fn what_a_killed_process_left_in_the_page_cache_is_durable_once_it_was_read() {
    // Also where the segment is so full that the next life begins in a new one.
    let mut rotated = 0;
    for payload_bytes in [20].into_iter().chain((15_900..16_300).step_by(8)) {
        let disk = killed_before_its_sync(payload_bytes);
        let host = open(&disk, options(1), &[]).unwrap();
        assert_eq!(only(&host).last_index, 3);
        rotated += host.log_stats().rotations;
        drop(host);
        for _ in 0..3 {
            disk.crash();
            assert_eq!(only(&open(&disk, options(1), &[]).unwrap()).last_index, 3, "{payload_bytes}");
        }
    }
    assert!(rotated > 0, "no segment was full");
}
