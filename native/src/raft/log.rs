//! The one durable log of all groups: a frame per round, a sync per frame.
//!
//! Invariants:
//! - A frame is written only when the one before it is durable, so at most one frame is ever unsynced, and
//!   recovery can tell a torn tail from corruption. There is no write without a sync in the same flush: what
//!   alone would need none (a commit index, a compaction) waits and rides in the next frame.
//! - The first frame of a segment begins with a checkpoint: the state of every group and every tombstone. So all
//!   that pins an older segment are live entries, and a segment is removed only after a sync that covered the
//!   checkpoint and every record by which its entries died.
//! - Cold groups do not pin the log: at each rotation some of the oldest live entries are rewritten to the tail.
//! - A failed write or sync is the end: nothing is retried.

use super::error::{Fatal, OpenError};
use super::failpoints::{self as points, Failpoints};
use super::files::{Files, LogFile};
use super::frame;
use super::live::{Change, LiveIndex};
use super::options::Options;
use super::record::{entry_bytes, Writer};
use super::recover::{recover, Active, Recovered};
use super::segment::{self, Header};
use super::store::Store;
use super::sync_times::SyncTimes;
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// The first segment is small, each next one four times as big up to the configured size.
const FIRST_SEGMENT_BYTES: u64 = 4 << 20;
const GROWTH: u64 = 4;
/// Up to this many segments nobody minds what they hold: young entries mostly die by themselves.
const SEGMENTS_SPARED: usize = 2;
/// At most this part of a segment is rewritten at one rotation.
const REWRITE_SHARE: u64 = 4;
const WIPE_BYTES: usize = 1 << 20;

#[derive(Debug, Default, Clone, Copy)]
pub struct LogStats {
    pub frames: u64,
    pub syncs: u64,
    pub bytes: u64,
    pub segments: u64,
    pub rotations: u64,
    pub removed: u64,
    pub rewritten_entries: u64,
}

/// What a checkpoint is made of, as it stands with the records of the frame being built.
pub trait Checkpoint {
    fn write(&self, writer: &mut Writer<'_>);
    fn store(&self, group: u64) -> Option<&Store>;
    /// The bytes of all entries that are still needed.
    fn live_bytes(&self) -> u64;
}

type Spare = JoinHandle<io::Result<(Header, Box<dyn LogFile>)>>;

pub struct Log {
    files: Arc<dyn Files>,
    failpoints: Failpoints,
    segment_bytes: u64,
    background: bool,
    salt: u64,
    header: Header,
    file: Box<dyn LogFile>,
    offset: u64,
    next_sequence: u64,
    /// Nothing is in the active segment yet, so the next frame needs a checkpoint.
    fresh: bool,
    /// Bytes written, by segment.
    segments: BTreeMap<u64, u64>,
    live: LiveIndex,
    /// Room for a frame header, then the records of the next frame.
    buffer: Vec<u8>,
    changes: Vec<Change>,
    spare: Option<Spare>,
    stats: LogStats,
    sync_times: Arc<SyncTimes>,
}

/// What the log held when it was opened.
pub struct Opened {
    pub log: Log,
    pub groups: BTreeMap<u64, super::recover::Replayed>,
    pub tombstones: BTreeMap<u64, BTreeSet<u64>>,
    pub node_num: Option<u32>,
    /// Greater than in any earlier life of this directory once the first frame is synced.
    pub incarnation: u64,
}

impl Log {
    pub fn open(
        files: Arc<dyn Files>,
        options: &Options,
        salt: u64,
        failpoints: Failpoints,
    ) -> Result<Opened, OpenError> {
        for name in files.list()?.iter().filter(|name| segment::is_leftover(name)) {
            files.remove(name)?;
        }
        let found = recover(&*files)?;
        for number in &found.unused {
            files.remove(&segment::name(*number))?;
        }
        files.sync_dir()?;
        let salt = super::mix(salt ^ super::mix(found.incarnation ^ found.next_sequence));
        let (header, file, offset) = match found.active {
            Some(active) => (active.header, clean_tail(&*files, active)?, active.offset),
            None => {
                let capacity = options.segment_bytes.min(FIRST_SEGMENT_BYTES);
                let header = Header { number: 1, salt: super::mix(salt ^ 1), capacity };
                (header, segment::create(&*files, header)?, segment::HEADER_BYTES as u64)
            }
        };
        let Recovered {
            groups, tombstones, node_num, incarnation, live, mut segments, next_sequence, ..
        } = found;
        segments.insert(header.number, offset);
        let log = Log {
            files,
            failpoints,
            segment_bytes: options.segment_bytes,
            background: options.background,
            salt,
            header,
            file,
            offset,
            next_sequence,
            fresh: offset == segment::HEADER_BYTES as u64,
            segments,
            live,
            buffer: vec![0; frame::HEADER_BYTES],
            changes: Vec::new(),
            spare: None,
            stats: LogStats::default(),
            sync_times: Arc::default(),
        };
        Ok(Opened { log, groups, tombstones, node_num, incarnation: incarnation + 1 })
    }

    pub fn stats(&self) -> LogStats {
        LogStats { segments: self.segments.len() as u64, ..self.stats }
    }

    pub fn sync_times(&self) -> &Arc<SyncTimes> {
        &self.sync_times
    }

    pub fn writer(&mut self) -> Writer<'_> {
        Writer(&mut self.buffer)
    }

    pub fn note(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub fn append(&mut self, group: u64, entries: &[Entry]) {
        if let (Some(first), Some(last)) = (entries.first(), entries.last()) {
            self.writer().append(group, entries);
            self.note(Change::Appended { group, first: first.index, last: last.index });
        }
    }

    /// True when records wait for the next frame.
    pub fn has_records(&self) -> bool {
        self.buffer.len() > frame::HEADER_BYTES
    }

    /// Groups whose live entries keep the oldest segment from being removed, when the log has grown past what
    /// is spared: (group, last index held there).
    pub fn pinning(&self) -> Vec<(u64, u64)> {
        match self.segments.keys().next().copied() {
            Some(oldest) if self.segments.len() > SEGMENTS_SPARED => {
                self.live.in_segment(oldest).into_iter().map(|(group, _, last)| (group, last)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Write what was gathered as one frame and make it durable. Returns whether a new segment was begun.
    pub fn flush(&mut self, source: &dyn Checkpoint) -> Result<bool, Fatal> {
        if !self.has_records() {
            return Ok(false);
        }
        self.failpoints.pass(points::BEFORE_APPEND)?;
        let needed = frame::frame_bytes(self.buffer.len() - frame::HEADER_BYTES) as u64;
        let rotate = !self.fresh && self.offset + needed > self.header.capacity;
        if rotate {
            self.rotate()?;
        }
        if self.fresh {
            self.put_checkpoint_first(source);
        }
        self.write_frame()?;
        for change in std::mem::take(&mut self.changes) {
            self.live.apply(change, self.header.number);
        }
        self.remove_dead_segments()?;
        self.prepare_spare();
        Ok(rotate)
    }

    fn write_frame(&mut self) -> Result<(), Fatal> {
        if self.buffer.len() - frame::HEADER_BYTES > u32::MAX as usize {
            return Err(Fatal::Broken(format!("a log frame of {} bytes", self.buffer.len())));
        }
        frame::seal(&mut self.buffer, self.next_sequence, self.header.salt);
        let (files, number) = (&self.files, self.header.number);
        let failed = |what: &str, error: io::Error| {
            Fatal::disk(&format!("{what} {}", files.describe(&segment::name(number))), &error)
        };
        self.file.write_at(self.offset, &self.buffer).map_err(|error| failed("writing", error))?;
        self.failpoints.pass(points::AFTER_APPEND)?;
        self.failpoints.pass(points::BEFORE_SYNC)?;
        self.sync_times.begin();
        self.file.sync().map_err(|error| failed("syncing", error))?;
        self.sync_times.end();
        self.failpoints.pass(points::AFTER_SYNC)?;
        self.stats.syncs += 1;
        self.stats.frames += 1;
        self.stats.bytes += self.buffer.len() as u64;
        self.offset += self.buffer.len() as u64;
        self.segments.insert(self.header.number, self.offset);
        self.next_sequence += 1;
        self.fresh = false;
        self.buffer.truncate(frame::HEADER_BYTES);
        Ok(())
    }

    /// Go on in a new segment. Everything in the old one is durable already.
    fn rotate(&mut self) -> Result<(), Fatal> {
        self.failpoints.pass(points::BEFORE_ROTATE)?;
        let next = self.next_header();
        let made = match self.spare.take() {
            Some(spare) => spare.join().unwrap_or_else(|_| Err(io::Error::other("preparing it panicked"))),
            None => segment::create(&*self.files, next).map(|file| (next, file)),
        };
        let (header, file) = made.map_err(|error| {
            Fatal::disk(&format!("making {}", self.files.describe(&segment::name(next.number))), &error)
        })?;
        self.header = header;
        self.file = file;
        self.offset = segment::HEADER_BYTES as u64;
        self.fresh = true;
        self.segments.insert(header.number, 0);
        self.stats.rotations += 1;
        self.failpoints.pass(points::AFTER_ROTATE)
    }

    fn next_header(&self) -> Header {
        let number = self.header.number + 1;
        let capacity = (self.header.capacity * GROWTH).min(self.segment_bytes);
        Header { number, salt: super::mix(self.salt ^ number), capacity }
    }

    /// Checkpoint and rewritten entries go before the records of the round, in the same frame. The states are
    /// those after the round's records; replaying the records on top of them changes nothing but adds the
    /// round's entries.
    fn put_checkpoint_first(&mut self, source: &dyn Checkpoint) {
        let round = self.buffer.split_off(frame::HEADER_BYTES);
        source.write(&mut Writer(&mut self.buffer));
        let spared = SEGMENTS_SPARED as u64 * self.header.capacity;
        // A log full of needed entries is as big as it has to be; one full of dead ones is pinned by a few.
        if self.segments.values().sum::<u64>() > 2 * source.live_bytes() + spared {
            self.rewrite_oldest(source);
        }
        self.buffer.extend_from_slice(&round);
    }

    fn rewrite_oldest(&mut self, source: &dyn Checkpoint) {
        let mut budget = (self.header.capacity / REWRITE_SHARE) as i64;
        let mut moved = Vec::new();
        let candidates: Vec<u64> =
            self.segments.keys().copied().filter(|number| *number != self.header.number).collect();
        'segments: for oldest in candidates {
            for (group, first, last) in self.live.in_segment(oldest) {
                let Some(store) = source.store(group) else { continue };
                let mut chosen: Vec<&Entry> = Vec::new();
                for entry in store.range(first, last) {
                    if budget <= 0 {
                        break;
                    }
                    budget -= entry_bytes(entry) as i64;
                    chosen.push(entry);
                }
                if let (Some(first), Some(last)) = (chosen.first(), chosen.last()) {
                    moved.push(Change::Rewritten { group, first: first.index, last: last.index });
                    self.stats.rewritten_entries += chosen.len() as u64;
                    Writer(&mut self.buffer).rewrite(group, chosen.into_iter());
                }
                if budget <= 0 {
                    break 'segments;
                }
            }
        }
        self.changes.splice(0..0, moved);
    }

    fn remove_dead_segments(&mut self) -> Result<(), Fatal> {
        let keep = self.live.oldest().unwrap_or(u64::MAX).min(self.header.number);
        while let Some(oldest) = self.segments.keys().next().copied().filter(|oldest| *oldest < keep) {
            self.failpoints.pass(points::BEFORE_SEGMENT_REMOVE)?;
            let name = segment::name(oldest);
            // Oldest first, each durably: what is left after a crash has no hole.
            self.files
                .remove(&name)
                .and_then(|()| self.files.sync_dir())
                .map_err(|error| Fatal::disk(&format!("removing {}", self.files.describe(&name)), &error))?;
            self.segments.remove(&oldest);
            self.stats.removed += 1;
        }
        Ok(())
    }

    fn prepare_spare(&mut self) {
        if self.background && self.spare.is_none() && self.offset > self.header.capacity / 2 {
            let (files, header) = (self.files.clone(), self.next_header());
            let make = move || segment::create(&*files, header).map(|file| (header, file));
            // Without a thread the segment is simply made at the rotation.
            self.spare = std::thread::Builder::new().name("flotta-log".into()).spawn(make).ok();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            let _ = spare.join();
        }
    }
}

/// Wipe what a torn frame left, and sync: bytes that were only in the page cache when the process died count as
/// read, so they must be durable before anybody relies on them.
fn clean_tail(files: &dyn Files, active: Active) -> io::Result<Box<dyn LogFile>> {
    let file = files.open(&segment::name(active.header.number))?;
    let zeros = vec![0u8; WIPE_BYTES.min(active.dirty_until.saturating_sub(active.offset) as usize)];
    let mut offset = active.offset;
    while offset < active.dirty_until {
        let length = zeros.len().min((active.dirty_until - offset) as usize);
        file.write_at(offset, &zeros[..length])?;
        offset += length as u64;
    }
    file.sync()?;
    Ok(file)
}
