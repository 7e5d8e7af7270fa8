//! Which segments still hold live entries of which group: what garbage collection and rewriting go by.
//!
//! A group's live entries are `runs`: from a run's first index to the next run's, entries lie in one segment.
//! Runs are ordered by index; their segments need not be, since rewriting moves old entries to the tail.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    segment: u64,
}

#[derive(Debug, Default, Clone)]
struct Runs {
    runs: Vec<Run>,
    last: u64,
}

/// A change to the live entries, noted when its record is written and carried out when its frame has a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Appended { group: u64, first: u64, last: u64 },
    Rewritten { group: u64, first: u64, last: u64 },
    Compacted { group: u64, index: u64 },
    Cleared { group: u64 },
}

#[derive(Debug, Default)]
pub struct LiveIndex {
    groups: BTreeMap<u64, Runs>,
}

impl LiveIndex {
    pub fn apply(&mut self, change: Change, segment: u64) {
        match change {
            Change::Appended { group, first, last } => {
                let runs = self.groups.entry(group).or_default();
                runs.runs.retain(|run| run.first < first);
                if runs.runs.last().is_none_or(|run| run.segment != segment) {
                    runs.runs.push(Run { first, segment });
                }
                runs.last = last;
            }
            Change::Rewritten { group, first, last } => self.rewritten(group, first, last, segment),
            Change::Compacted { group, index } => {
                if let Some(runs) = self.groups.get_mut(&group) {
                    if index >= runs.last {
                        self.groups.remove(&group);
                    } else {
                        let covered = runs.runs.iter().take_while(|run| run.first <= index + 1).count();
                        runs.runs.drain(..covered.saturating_sub(1));
                    }
                }
            }
            Change::Cleared { group } => {
                self.groups.remove(&group);
            }
        }
    }

    fn rewritten(&mut self, group: u64, first: u64, last: u64, segment: u64) {
        let runs = self.groups.entry(group).or_default();
        let after = runs.runs.iter().rev().find(|run| run.first <= last + 1).map(|run| run.segment);
        let mut rebuilt: Vec<Run> = runs.runs.iter().filter(|run| run.first < first).copied().collect();
        rebuilt.push(Run { first, segment });
        if let Some(after) = after.filter(|_| last < runs.last) {
            rebuilt.push(Run { first: last + 1, segment: after });
        }
        rebuilt.extend(runs.runs.iter().filter(|run| run.first > last + 1));
        rebuilt.dedup_by(|next, run| next.segment == run.segment);
        runs.runs = rebuilt;
        runs.last = runs.last.max(last);
    }

    /// The oldest segment that holds a live entry.
    pub fn oldest(&self) -> Option<u64> {
        self.groups.values().flat_map(|runs| &runs.runs).map(|run| run.segment).min()
    }

    /// (group, first, last) of the live entries in one segment.
    pub fn in_segment(&self, segment: u64) -> Vec<(u64, u64, u64)> {
        let mut found = Vec::new();
        for (group, runs) in &self.groups {
            for (at, run) in runs.runs.iter().enumerate().filter(|(_, run)| run.segment == segment) {
                let last = runs.runs.get(at + 1).map_or(runs.last, |next| next.first - 1);
                found.push((*group, run.first, last));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_compactions_and_overwrites_move_the_oldest_segment() {
        let mut live = LiveIndex::default();
        live.apply(Change::Appended { group: 1, first: 2, last: 10 }, 1);
        live.apply(Change::Appended { group: 1, first: 11, last: 20 }, 2);
        assert_eq!(live.oldest(), Some(1));
        live.apply(Change::Compacted { group: 1, index: 9 }, 2);
        assert_eq!(live.oldest(), Some(1));
        live.apply(Change::Compacted { group: 1, index: 10 }, 2);
        assert_eq!(live.oldest(), Some(2));
        live.apply(Change::Appended { group: 1, first: 11, last: 11 }, 3);
        assert_eq!(live.oldest(), Some(3));
        live.apply(Change::Compacted { group: 1, index: 11 }, 3);
        assert_eq!(live.oldest(), None);
    }

    #[test]
    fn rewriting_moves_a_part_and_keeps_the_rest_where_it_is() {
        let mut live = LiveIndex::default();
        live.apply(Change::Appended { group: 1, first: 2, last: 10 }, 1);
        live.apply(Change::Appended { group: 1, first: 11, last: 20 }, 2);
        live.apply(Change::Rewritten { group: 1, first: 2, last: 5 }, 3);
        assert_eq!(live.in_segment(1), vec![(1, 6, 10)]);
        assert_eq!(live.in_segment(2), vec![(1, 11, 20)]);
        live.apply(Change::Rewritten { group: 1, first: 6, last: 10 }, 3);
        assert_eq!(live.in_segment(1), vec![]);
        assert_eq!(live.in_segment(3), vec![(1, 2, 10)]);
        live.apply(Change::Cleared { group: 1 }, 3);
        assert_eq!(live.oldest(), None);
    }
}
