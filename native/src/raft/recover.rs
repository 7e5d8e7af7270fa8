//! Reading the log back: every segment in order, every frame in order, until the end.
//!
//! The log never holds more than one unsynced frame. So what follows the last good frame is either nothing, or
//! the torn remains of one frame: they are cut off. A valid frame after a bad one (later in the same segment,
//! or in a later one) was written only after the bad one was durable: that is corruption, and nobody may guess
//! what was in it. Damage to the very last frame alone cannot be told from a torn write.

use super::error::OpenError;
use super::files::Files;
use super::frame::{self, Parsed};
use super::live::{Change, LiveIndex};
use super::record::{self, Base, Hard, Record};
use super::segment::{self, Header};
use raft::eraftpb::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// A group as the log tells it.
#[derive(Debug, Default)]
pub struct Replayed {
    pub replica: u64,
    pub base: Base,
    pub hard: Hard,
    pub installed: Option<Vec<u8>>,
    /// By index. Holes may exist while replaying: entries of deleted segments that a later record compacts.
    pub entries: BTreeMap<u64, Entry>,
}

/// The segment to go on writing in.
#[derive(Debug, Clone, Copy)]
pub struct Active {
    pub header: Header,
    pub offset: u64,
    /// Bytes of a torn frame between `offset` and here are to be wiped.
    pub dirty_until: u64,
}

#[derive(Default)]
pub struct Recovered {
    pub groups: BTreeMap<u64, Replayed>,
    pub tombstones: BTreeMap<u64, BTreeSet<u64>>,
    pub node_num: Option<u32>,
    pub incarnation: u64,
    pub live: LiveIndex,
    /// Bytes in use, by segment.
    pub segments: BTreeMap<u64, u64>,
    /// Prepared or torn segments after the active one: to be deleted.
    pub unused: Vec<u64>,
    pub active: Option<Active>,
    pub next_sequence: u64,
}

struct Scanned {
    header: Header,
    end: usize,
    length: usize,
    clean: bool,
}

pub fn recover(files: &dyn Files) -> Result<Recovered, OpenError> {
    let mut log = Recovered { next_sequence: 1, ..Default::default() };
    let mut numbers: Vec<u64> = files.list()?.iter().filter_map(|name| segment::number_of(name)).collect();
    numbers.sort_unstable();
    // A segment whose end was not clean; harmless only if nothing follows it.
    let mut torn: Option<(u64, usize)> = None;
    for (at, number) in numbers.iter().copied().enumerate() {
        let name = segment::name(number);
        let content = files.read(&name)?;
        let first = log.active.is_none();
        let Some(begin) = first_sequence(files, &name, number, &content, log.next_sequence, first)? else {
            log.unused.push(number);
            continue;
        };
        if let Some(bad) = torn.or(log.unused.first().map(|number| (*number, segment::HEADER_BYTES))) {
            return Err(corrupt(files, &segment::name(bad.0), bad.1, "frames follow it in a later segment"));
        }
        if at > 0 && numbers[at - 1] + 1 != number {
            return Err(corrupt(files, &segment::name(numbers[at - 1] + 1), 0, "this segment is missing"));
        }
        if !first && begin != log.next_sequence {
            let end = log.active.map_or(0, |active| active.offset as usize);
            return Err(corrupt(files, &segment::name(number - 1), end, "its last frames are missing"));
        }
        log.next_sequence = begin;
        let scanned = scan(files, &name, &content, &mut log)?;
        if !scanned.clean {
            torn = Some((number, scanned.end));
        }
        let dirty = if scanned.clean { scanned.end } else { scanned.length };
        log.segments.insert(number, scanned.end as u64);
        log.active =
            Some(Active { header: scanned.header, offset: scanned.end as u64, dirty_until: dirty as u64 });
    }
    finish(files, &mut log)?;
    Ok(log)
}

/// The sequence number a segment begins with; None when it holds no frame at all.
fn first_sequence(
    files: &dyn Files,
    name: &str,
    number: u64,
    content: &[u8],
    expected: u64,
    first: bool,
) -> Result<Option<u64>, OpenError> {
    let header = Header::decode(content).filter(|header| header.number == number);
    let Some(header) = header else {
        return Err(corrupt(files, name, 0, "the segment's header is damaged"));
    };
    if let Some(sequence) = frame::sequence_at(content, segment::HEADER_BYTES, header.salt) {
        return Ok(Some(sequence));
    }
    let damaged = |what: &str| Err(corrupt(files, name, segment::HEADER_BYTES, what));
    if first && number > 1 {
        return damaged("older segments are gone, so the frame here was durable, and it is damaged");
    }
    match frame::find_later(content, segment::HEADER_BYTES, expected, header.salt) {
        Some(later) => damaged(&format!("the first frame is damaged, a valid one follows at offset {later}")),
        None => Ok(None),
    }
}

fn scan(files: &dyn Files, name: &str, content: &[u8], log: &mut Recovered) -> Result<Scanned, OpenError> {
    let Some(header) = Header::decode(content) else {
        return Err(corrupt(files, name, 0, "the segment's header is damaged"));
    };
    let mut offset = segment::HEADER_BYTES;
    let mut first = true;
    loop {
        match frame::parse(content, offset, log.next_sequence, header.salt) {
            Parsed::Frame { body, next } => {
                let records = record::decode(body)
                    .ok_or_else(|| corrupt(files, name, offset, "the frame's records make no sense"))?;
                if first && !matches!(records.first(), Some(Record::Checkpoint { .. })) {
                    return Err(corrupt(files, name, offset, "the segment does not begin with a checkpoint"));
                }
                for record in records {
                    replay(log, record, header.number).map_err(|what| corrupt(files, name, offset, &what))?;
                }
                log.next_sequence += 1;
                first = false;
                offset = next;
            }
            end @ (Parsed::End | Parsed::Bad) => {
                if let Some(later) = frame::find_later(content, offset, log.next_sequence, header.salt) {
                    let what = format!("the frame here is damaged, a valid one follows at offset {later}");
                    return Err(corrupt(files, name, offset, &what));
                }
                let clean = end == Parsed::End;
                let length = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                return Ok(Scanned { header, end: offset, length, clean });
            }
        }
    }
}

fn replay(log: &mut Recovered, record: Record, segment: u64) -> Result<(), String> {
    match record {
        Record::Checkpoint { node_num, incarnation } | Record::Boot { node_num, incarnation } => {
            log.node_num = Some(node_num);
            log.incarnation = log.incarnation.max(incarnation);
        }
        Record::State { group, replica, base, hard, installed } => {
            let state = log.groups.entry(group).or_default();
            if state.replica != replica {
                *state = Replayed { replica, ..Default::default() };
                log.live.apply(Change::Cleared { group }, segment);
            }
            state.hard = hard;
            state.installed = installed;
            set_base(&mut log.live, group, state, base, segment);
        }
        Record::Hard { group, hard } => known(log, group)?.hard = hard,
        Record::Append { group, entries } => {
            let state = known(log, group)?;
            let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(()) };
            let (first, last) = (first.index, last.index);
            state.entries.split_off(&first);
            state.entries.extend(entries.into_iter().map(|entry| (entry.index, entry)));
            log.live.apply(Change::Appended { group, first, last }, segment);
        }
        Record::Rewrite { group, entries } => {
            let state = known(log, group)?;
            let Some((first, last)) = entries.first().zip(entries.last()) else { return Ok(()) };
            let (first, last) = (first.index, last.index);
            state.entries.extend(entries.into_iter().map(|entry| (entry.index, entry)));
            log.live.apply(Change::Rewritten { group, first, last }, segment);
        }
        Record::Snapshot { group, base, manifest } => {
            let state = known(log, group)?;
            state.entries.clear();
            state.installed = Some(manifest);
            state.hard.term = state.hard.term.max(base.term);
            state.hard.commit = state.hard.commit.max(base.index);
            state.base = base;
            log.live.apply(Change::Cleared { group }, segment);
        }
        Record::Compact { group, base } => {
            let Recovered { groups, live, .. } = log;
            let state = groups.get_mut(&group).ok_or_else(|| unknown(group))?;
            state.installed = None;
            set_base(live, group, state, base, segment);
        }
        Record::Remove { group, replica } => {
            log.groups.remove(&group);
            log.tombstones.entry(group).or_default().insert(replica);
            log.live.apply(Change::Cleared { group }, segment);
        }
        Record::Tombstone { group, replica } => {
            log.tombstones.entry(group).or_default().insert(replica);
        }
    }
    Ok(())
}

fn set_base(live: &mut LiveIndex, group: u64, state: &mut Replayed, base: Base, segment: u64) {
    if base.index >= state.base.index {
        live.apply(Change::Compacted { group, index: base.index }, segment);
        state.entries = state.entries.split_off(&(base.index + 1));
        state.base = base;
    }
}

fn known(log: &mut Recovered, group: u64) -> Result<&mut Replayed, String> {
    log.groups.get_mut(&group).ok_or_else(|| unknown(group))
}

fn unknown(group: u64) -> String {
    format!("a record of group {group} comes before the group's creation")
}

/// What must hold of every group once all is replayed.
fn finish(files: &dyn Files, log: &mut Recovered) -> Result<(), OpenError> {
    let Some(active) = log.active else { return Ok(()) };
    let bad =
        |what: String| corrupt(files, &segment::name(active.header.number), active.offset as usize, &what);
    for (group, state) in &log.groups {
        let mut expected = state.base.index + 1;
        let mut term = state.base.term;
        for (index, entry) in &state.entries {
            if *index != expected {
                return Err(bad(format!("group {group} lacks the entries {expected}..{index}")));
            }
            if entry.term < term {
                return Err(bad(format!("group {group}: terms fall at index {index}")));
            }
            expected += 1;
            term = entry.term;
        }
        if state.hard.commit >= expected {
            return Err(bad(format!(
                "group {group} committed {}, the log ends at {}",
                state.hard.commit,
                expected - 1
            )));
        }
        if term > state.hard.term {
            return Err(bad(format!(
                "group {group} holds entries of term {term} in term {}",
                state.hard.term
            )));
        }
    }
    Ok(())
}

fn corrupt(files: &dyn Files, name: &str, offset: usize, what: &str) -> OpenError {
    OpenError::Corruption(format!("log corrupted in {} at offset {offset}: {what}", files.describe(name)))
}
