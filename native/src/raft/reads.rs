//! Linearizable reads on their way: one ReadIndex for all reads of a call.
//!
//! The context names the replica, the incarnation of its host and a counter, so it is never used twice: the
//! leader ignores a context it already knows and would answer with an older index. The core forgets reads
//! silently, so they are dropped aloud when the leader changes, and after a while in any case.

use std::collections::BTreeMap;

const CONTEXT_BYTES: usize = 24;

struct Waiting {
    reads: Vec<u64>,
    since_tick: u64,
}

#[derive(Default)]
pub struct Reads {
    counter: u64,
    waiting: BTreeMap<u64, Waiting>,
}

impl Reads {
    /// Remember the reads; returns the context to ask under.
    pub fn ask(&mut self, replica: u64, incarnation: u64, tick: u64, reads: Vec<u64>) -> Vec<u8> {
        self.counter += 1;
        self.waiting.insert(self.counter, Waiting { reads, since_tick: tick });
        [replica, incarnation, self.counter].iter().flat_map(|part| part.to_le_bytes()).collect()
    }

    /// The reads a context answers; empty for foreign, repeated and forgotten ones.
    pub fn answered(&mut self, replica: u64, incarnation: u64, context: &[u8]) -> Vec<u64> {
        let part =
            |at: usize| context.get(at..at + 8).and_then(|part| part.try_into().ok()).map(u64::from_le_bytes);
        if context.len() != CONTEXT_BYTES || part(0) != Some(replica) || part(8) != Some(incarnation) {
            return Vec::new();
        }
        part(16)
            .and_then(|counter| self.waiting.remove(&counter))
            .map_or_else(Vec::new, |waiting| waiting.reads)
    }

    /// All that wait, because whoever was asked is no longer the leader.
    pub fn drop_all(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.waiting).into_values().flat_map(|waiting| waiting.reads).collect()
    }

    /// Those asked before `tick`.
    pub fn drop_older(&mut self, tick: u64) -> Vec<u64> {
        let mut dropped = Vec::new();
        while let Some(first) = self.waiting.first_entry().filter(|first| first.get().since_tick < tick) {
            dropped.extend(first.remove().reads);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_answers_once_and_only_its_own_incarnation() {
        let mut reads = Reads::default();
        let context = reads.ask(7, 1, 0, vec![11, 12]);
        assert_eq!(reads.answered(7, 2, &context), Vec::<u64>::new());
        assert_eq!(reads.answered(8, 1, &context), Vec::<u64>::new());
        assert_eq!(reads.answered(7, 1, &context), vec![11, 12]);
        assert_eq!(reads.answered(7, 1, &context), Vec::<u64>::new());
        assert_ne!(reads.ask(7, 1, 0, vec![13]), context);
    }

    #[test]
    fn forgotten_reads_are_dropped_aloud() {
        let mut reads = Reads::default();
        reads.ask(7, 1, 5, vec![1]);
        reads.ask(7, 1, 9, vec![2]);
        assert_eq!(reads.drop_older(9), vec![1]);
        assert_eq!(reads.drop_all(), vec![2]);
    }
}
