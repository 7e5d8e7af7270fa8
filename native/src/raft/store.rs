//! One group's log as the Raft core sees it: everything after `base` in memory, everything up to it gone.
//!
//! Only what the host has put into the log's next frame is put here. The membership is known as of every index
//! from `base` on, so a compaction or a snapshot can name the one that held there.

use super::record::{entry_bytes, Base, Hard};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

#[derive(Default)]
pub struct Store {
    pub replica: u64,
    pub hard: Hard,
    pub base: Base,
    entries: VecDeque<Entry>,
    entries_bytes: u64,
    /// Memberships by the index from which they held; the first is `base`'s.
    confs: VecDeque<(u64, ConfState)>,
    /// Manifest of the snapshot at `base.index`, until the state machine is known to cover it.
    pub installed: Option<Bytes>,
    /// The snapshot to send to whoever needs one.
    pub outgoing: Option<Snapshot>,
    /// (lowest useful index, replica): the core asked for a snapshot that is not there.
    pub wanted: Cell<Option<(u64, u64)>>,
}

pub fn names(conf: &ConfState, replica: u64) -> bool {
    conf.voters.contains(&replica)
        || conf.learners.contains(&replica)
        || conf.voters_outgoing.contains(&replica)
}

/// Order carries no meaning in a membership, so it is fixed: equal memberships are equal bytes.
pub fn sorted(mut conf: ConfState) -> ConfState {
    for list in [&mut conf.voters, &mut conf.learners, &mut conf.voters_outgoing, &mut conf.learners_next] {
        list.sort_unstable();
    }
    conf
}

impl Store {
    pub fn new(replica: u64, base: Base, hard: Hard, entries: Vec<Entry>, installed: Option<Bytes>) -> Store {
        let mut store = Store { replica, hard, installed, ..Default::default() };
        store.confs.push_back((base.index, base.conf.clone()));
        store.base = base;
        store.append(&entries);
        store
    }

    pub fn last(&self) -> u64 {
        self.base.index + self.entries.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.entries_bytes
    }

    pub fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.base.index + 1)? as usize)
    }

    /// The entries of `first..=last` that exist.
    pub fn range(&self, first: u64, last: u64) -> impl ExactSizeIterator<Item = &Entry> {
        let low = first.saturating_sub(self.base.index + 1).min(self.entries.len() as u64) as usize;
        let high = last.saturating_sub(self.base.index).min(self.entries.len() as u64) as usize;
        self.entries.range(low..high.max(low))
    }

    /// Add entries; an overwritten tail goes away.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.base.index && first.index <= self.last() + 1,
            "entry {} does not follow the log {}..={}",
            first.index,
            self.base.index + 1,
            self.last()
        );
        let keep = (first.index - self.base.index - 1) as usize;
        let cut: u64 = self.entries.drain(keep..).map(|entry| entry_bytes(&entry)).sum();
        self.entries_bytes -= cut;
        self.entries_bytes += entries.iter().map(entry_bytes).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Drop entries up to `index`, which must have been applied. False when they are gone already.
    pub fn compact(&mut self, index: u64) -> bool {
        let Some(term) = self.entry(index).map(|entry| entry.term) else { return false };
        let gone = (index - self.base.index) as usize;
        let cut: u64 = self.entries.drain(..gone).map(|entry| entry_bytes(&entry)).sum();
        self.entries_bytes -= cut;
        while self.confs.get(1).is_some_and(|(since, _)| *since <= index) {
            self.confs.pop_front();
        }
        // The first one left held at `index`: all later ones begin after it.
        let conf = self.confs.front().map_or_else(|| self.base.conf.clone(), |(_, conf)| conf.clone());
        self.base = Base { index, term, conf };
        true
    }

    /// Replace everything by a snapshot.
    pub fn install(&mut self, base: Base, manifest: Bytes) {
        self.entries.clear();
        self.entries_bytes = 0;
        self.confs.clear();
        self.confs.push_back((base.index, base.conf.clone()));
        self.hard.commit = self.hard.commit.max(base.index);
        self.hard.term = self.hard.term.max(base.term);
        self.base = base;
        self.installed = Some(manifest);
        self.outgoing = None;
    }

    /// The newest applied membership and the index from which it holds.
    pub fn conf(&self) -> (u64, &ConfState) {
        match self.confs.back() {
            Some((since, conf)) => (*since, conf),
            None => (self.base.index, &self.base.conf),
        }
    }

    pub fn conf_applied(&mut self, index: u64, conf: ConfState) {
        self.confs.push_back((index, conf));
    }

    /// A replica that has never been told its membership.
    pub fn is_blank(&self) -> bool {
        self.base.index == 0 && self.conf().1.voters.is_empty()
    }
}

impl Storage for Store {
    fn initial_state(&self) -> Result<RaftState> {
        let hard = HardState {
            term: self.hard.term,
            vote: self.hard.vote,
            commit: self.hard.commit,
            ..Default::default()
        };
        Ok(RaftState::new(hard, self.base.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.base.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut found = Vec::new();
        for entry in self.range(low, high - 1) {
            size += entry_bytes(entry) + 16;
            // At least one, however big: otherwise it could never be sent.
            if !found.is_empty() && size > max_size {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    /// Must answer for `base` itself as well, and 0 for an empty log: the core asks for the term before the first.
    fn term(&self, index: u64) -> Result<u64> {
        if index == self.base.index {
            return Ok(self.base.term);
        }
        if index < self.base.index {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.entry(index).map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.base.index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// A snapshot whose membership lacks the receiver is silently ignored by it, and the leader would wait for
    /// ever; one below the log's beginning leaves a gap. Both are refused here and a better one is asked for.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let lowest = request_index.max(self.base.index).max(self.conf().0).max(1);
        if let Some(snapshot) = &self.outgoing {
            let metadata = snapshot.get_metadata();
            let useful = metadata.index >= request_index.max(self.base.index);
            if useful && names(metadata.get_conf_state(), to) {
                return Ok(snapshot.clone());
            }
        }
        self.wanted.set(Some((lowest, to)));
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: b"data".to_vec().into(), ..Default::default() }
    }

    fn store() -> Store {
        let conf = ConfState { voters: vec![1, 2], ..Default::default() };
        let base = Base { index: 1, term: 1, conf };
        Store::new(1, base, Hard::default(), (2..=6).map(|index| entry(index, 2)).collect(), None)
    }

    #[test]
    fn the_term_before_the_first_entry_is_known() {
        let mut store = store();
        assert_eq!(store.term(1), Ok(1));
        assert!(store.compact(4));
        assert_eq!(store.term(4), Ok(2));
        assert_eq!(store.term(3), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(store.term(7), Err(Error::Store(StorageError::Unavailable)));
        assert_eq!(Store::default().term(0), Ok(0));
    }

    #[test]
    fn compaction_keeps_the_membership_that_held_there() {
        let mut store = store();
        store.conf_applied(3, ConfState { voters: vec![1, 2, 3], ..Default::default() });
        store.conf_applied(5, ConfState { voters: vec![1, 3], ..Default::default() });
        assert!(store.compact(4));
        assert_eq!(store.base.conf.voters, vec![1, 2, 3]);
        assert_eq!(store.conf().0, 5);
        assert!(store.compact(6));
        assert_eq!(store.base.conf.voters, vec![1, 3]);
    }

    #[test]
    fn an_overwritten_tail_is_gone_and_sizes_follow() {
        let mut store = store();
        let before = store.bytes();
        store.append(&[entry(4, 3)]);
        assert_eq!((store.last(), store.bytes()), (4, before * 3 / 5));
        assert!(std::panic::catch_unwind(move || store.append(&[entry(9, 3)])).is_err());
    }

    #[test]
    fn a_snapshot_that_does_not_name_its_receiver_is_not_handed_out() {
        let mut store = store();
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = 3;
        snapshot.mut_metadata().mut_conf_state().voters = vec![1, 2];
        store.outgoing = Some(snapshot);
        assert!(store.snapshot(0, 2).is_ok());
        assert!(store.snapshot(0, 3).is_err());
        assert_eq!(store.wanted.take(), Some((1, 3)));
        assert!(store.compact(4));
        assert!(store.snapshot(0, 2).is_err());
    }
}
