//! The records inside a frame. A frame is all or nothing, so records of one frame take effect together.
//!
//! `State` carries everything of a group but its entries; a checkpoint is one `State` per group and one
//! `Tombstone` per removed replica. `Append` cuts the log off before it adds (an overwritten tail is gone in the
//! same write); `Rewrite` puts live entries where they belong without cutting anything off.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType};

const CHECKPOINT: u8 = 1;
const BOOT: u8 = 2;
const STATE: u8 = 3;
const HARD: u8 = 4;
const APPEND: u8 = 5;
const REWRITE: u8 = 6;
const SNAPSHOT: u8 = 7;
const COMPACT: u8 = 8;
const REMOVE: u8 = 9;
const TOMBSTONE: u8 = 10;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hard {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
}

/// Where a group's log begins: the last index that is gone, its term, and the membership as of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Base {
    pub index: u64,
    pub term: u64,
    pub conf: ConfState,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// First record of every segment.
    Checkpoint {
        node_num: u32,
        incarnation: u64,
    },
    Boot {
        node_num: u32,
        incarnation: u64,
    },
    /// `installed`: the manifest of the snapshot at `base.index`, while the state machine may lack it.
    State {
        group: u64,
        replica: u64,
        base: Base,
        hard: Hard,
        installed: Option<Vec<u8>>,
    },
    Hard {
        group: u64,
        hard: Hard,
    },
    Append {
        group: u64,
        entries: Vec<Entry>,
    },
    Rewrite {
        group: u64,
        entries: Vec<Entry>,
    },
    Snapshot {
        group: u64,
        base: Base,
        manifest: Vec<u8>,
    },
    Compact {
        group: u64,
        base: Base,
    },
    Remove {
        group: u64,
        replica: u64,
    },
    Tombstone {
        group: u64,
        replica: u64,
    },
}

/// Appends records to the frame being built; borrowed parts, so that nothing is copied twice.
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    fn head(&mut self, kind: u8, group: u64) {
        self.0.push(kind);
        self.number(group);
    }

    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn blob(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn base(&mut self, base: &Base) {
        self.number(base.index);
        self.number(base.term);
        let at = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        // Writing into a Vec cannot fail; a membership has no required fields to miss.
        let _ = base.conf.write_to_vec(self.0);
        let length = (self.0.len() - at - 4) as u32;
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn hard_fields(&mut self, hard: Hard) {
        self.number(hard.term);
        self.number(hard.vote);
        self.number(hard.commit);
    }

    pub fn checkpoint(&mut self, node_num: u32, incarnation: u64) {
        self.head(CHECKPOINT, u64::from(node_num));
        self.number(incarnation);
    }

    pub fn boot(&mut self, node_num: u32, incarnation: u64) {
        self.head(BOOT, u64::from(node_num));
        self.number(incarnation);
    }

    pub fn state(&mut self, group: u64, replica: u64, base: &Base, hard: Hard, installed: Option<&[u8]>) {
        self.head(STATE, group);
        self.number(replica);
        self.base(base);
        self.hard_fields(hard);
        self.0.push(u8::from(installed.is_some()));
        self.blob(installed.unwrap_or_default());
    }

    pub fn hard(&mut self, group: u64, hard: Hard) {
        self.head(HARD, group);
        self.hard_fields(hard);
    }

    pub fn append(&mut self, group: u64, entries: &[Entry]) {
        self.head(APPEND, group);
        self.entries(entries.iter());
    }

    pub fn rewrite<'e>(&mut self, group: u64, entries: impl ExactSizeIterator<Item = &'e Entry>) {
        self.head(REWRITE, group);
        self.entries(entries);
    }

    fn entries<'e>(&mut self, entries: impl ExactSizeIterator<Item = &'e Entry>) {
        self.0.extend_from_slice(&(entries.len() as u32).to_le_bytes());
        for (at, entry) in entries.enumerate() {
            if at == 0 {
                self.number(entry.index);
            }
            self.number(entry.term);
            self.0.push(entry.get_entry_type() as u8);
            self.blob(&entry.data);
        }
    }

    pub fn snapshot(&mut self, group: u64, base: &Base, manifest: &[u8]) {
        self.head(SNAPSHOT, group);
        self.base(base);
        self.blob(manifest);
    }

    pub fn compact(&mut self, group: u64, base: &Base) {
        self.head(COMPACT, group);
        self.base(base);
    }

    pub fn remove(&mut self, group: u64, replica: u64) {
        self.head(REMOVE, group);
        self.number(replica);
    }

    pub fn tombstone(&mut self, group: u64, replica: u64) {
        self.head(TOMBSTONE, group);
        self.number(replica);
    }
}

/// The bytes an entry takes in the log.
pub fn entry_bytes(entry: &Entry) -> u64 {
    entry.data.len() as u64 + 13
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn short(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    /// A number that has a next one: of an index or an incarnation, one is always added to.
    fn countable(&mut self) -> Option<u64> {
        self.number().filter(|number| *number < u64::MAX)
    }

    fn blob(&mut self) -> Option<&'a [u8]> {
        let length = self.short()? as usize;
        self.take(length)
    }

    fn base(&mut self) -> Option<Base> {
        let (index, term) = (self.countable()?, self.number()?);
        let mut conf = ConfState::default();
        conf.merge_from_bytes(self.blob()?).ok()?;
        Some(Base { index, term, conf })
    }

    fn hard(&mut self) -> Option<Hard> {
        Some(Hard { term: self.number()?, vote: self.number()?, commit: self.number()? })
    }

    fn entries(&mut self) -> Option<Vec<Entry>> {
        let count = self.short()?;
        let first = if count > 0 { self.number()? } else { 0 };
        let mut entries = Vec::new();
        for at in 0..u64::from(count) {
            let mut entry = Entry {
                index: first.checked_add(at).filter(|index| *index < u64::MAX)?,
                term: self.number()?,
                ..Default::default()
            };
            entry.set_entry_type(match self.byte()? {
                0 => EntryType::EntryNormal,
                1 => EntryType::EntryConfChange,
                2 => EntryType::EntryConfChangeV2,
                _ => return None,
            });
            entry.data = self.blob()?.to_vec().into();
            entries.push(entry);
        }
        Some(entries)
    }

    fn record(&mut self) -> Option<Record> {
        let (kind, group) = (self.byte()?, self.number()?);
        Some(match kind {
            CHECKPOINT => Record::Checkpoint { node_num: group as u32, incarnation: self.countable()? },
            BOOT => Record::Boot { node_num: group as u32, incarnation: self.countable()? },
            STATE => {
                let (replica, base, hard) = (self.number()?, self.base()?, self.hard()?);
                let (present, manifest) = (self.byte()? == 1, self.blob()?.to_vec());
                Record::State { group, replica, base, hard, installed: present.then_some(manifest) }
            }
            HARD => Record::Hard { group, hard: self.hard()? },
            APPEND => Record::Append { group, entries: self.entries()? },
            REWRITE => Record::Rewrite { group, entries: self.entries()? },
            SNAPSHOT => Record::Snapshot { group, base: self.base()?, manifest: self.blob()?.to_vec() },
            COMPACT => Record::Compact { group, base: self.base()? },
            REMOVE => Record::Remove { group, replica: self.number()? },
            TOMBSTONE => Record::Tombstone { group, replica: self.number()? },
            _ => return None,
        })
    }
}

/// All records of a frame's body; None when the body makes no sense.
pub fn decode(body: &[u8]) -> Option<Vec<Record>> {
    let mut reader = Reader { bytes: body };
    let mut records = Vec::new();
    while !reader.bytes.is_empty() {
        records.push(reader.record()?);
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
        Entry { index, term, data: data.to_vec().into(), ..Default::default() }
    }

    fn body() -> Vec<u8> {
        let conf = ConfState { voters: vec![1, 2, 3], learners: vec![9], ..Default::default() };
        let base = Base { index: 5, term: 2, conf };
        let hard = Hard { term: 3, vote: 1, commit: 6 };
        let mut bytes = Vec::new();
        let mut writer = Writer(&mut bytes);
        writer.checkpoint(4, 17);
        writer.state(8, 1, &base, hard, Some(b"manifest"));
        writer.append(8, &[entry(6, 3, b"six"), entry(7, 3, b"")]);
        writer.rewrite(8, [entry(6, 3, b"\0\n")].iter());
        writer.hard(8, hard);
        writer.snapshot(8, &base, b"");
        writer.compact(8, &base);
        writer.remove(8, 1);
        writer.tombstone(8, 1);
        bytes
    }

    #[test]
    fn every_record_reads_back() {
        let records = decode(&body()).unwrap();
        assert_eq!(records.len(), 9);
        assert_eq!(records[0], Record::Checkpoint { node_num: 4, incarnation: 17 });
        let Record::Append { group: 8, entries } = &records[2] else { panic!("{:?}", records[2]) };
        assert_eq!(entries[1].index, 7);
        let Record::State { installed, base, .. } = &records[1] else { panic!("{:?}", records[1]) };
        assert_eq!(installed.as_deref(), Some(&b"manifest"[..]));
        assert_eq!(base.conf.learners, vec![9]);
    }

    #[test]
    fn numbers_that_nothing_can_follow_are_refused() {
        let last = u64::MAX;
        let base = Base { index: last, ..Default::default() };
        type Write<'a> = &'a dyn Fn(&mut Writer<'_>);
        let records: [Write<'_>; 5] = [
            &|writer| writer.boot(1, last),
            &|writer| writer.checkpoint(1, last),
            &|writer| writer.compact(8, &base),
            &|writer| writer.append(8, &[entry(last, 1, b"")]),
            &|writer| writer.append(8, &[entry(last - 1, 1, b""), entry(last, 1, b"")]),
        ];
        for (at, write) in records.iter().enumerate() {
            let mut bytes = Vec::new();
            write(&mut Writer(&mut bytes));
            assert_eq!(decode(&bytes), None, "record {at}");
        }
    }

    #[test]
    fn a_cut_body_is_refused_or_a_shorter_list_but_never_a_crash() {
        let whole = body();
        for length in 0..whole.len() {
            if let Some(records) = decode(&whole[..length]) {
                assert!(records.len() < 9);
            }
        }
    }
}
