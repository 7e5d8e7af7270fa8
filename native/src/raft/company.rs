//! What followers apply, kept back for a little while so that more of it is applied at once.
//!
//! A replica's turn of applying costs much the same whatever it carries, and nobody waits for a follower's. Whatever
//! somebody does wait for takes along what its own group has here, and nothing of others: a node leads some groups and
//! follows the others, and would else apply crumbs of these whenever it applies anything.
//!
//! Invariants: the entries of one group leave in their order, before anything newer of the same group; none is kept
//! beyond the delay, and no more of them than the bounds say.

use super::clock::Clock;
use super::out::{Applied, Out};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Beyond these nothing is kept back.
const ENTRIES_MAX: usize = 4096;
const BYTES_MAX: u64 = 1 << 20;

pub struct Company {
    /// Zero: nothing is kept back.
    delay: Duration,
    by_group: BTreeMap<u64, Vec<Applied>>,
    entries: usize,
    bytes: u64,
    due_at: Option<Instant>,
}

impl Company {
    pub fn new(delay: Duration) -> Company {
        Company { delay, by_group: BTreeMap::new(), entries: 0, bytes: 0, due_at: None }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When all of it is to leave at the latest.
    pub fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// Take out of `out` what may wait, and put into it what waits no longer.
    pub fn keep_back(&mut self, out: &mut Out, clock: &Clock) {
        if self.delay.is_zero() || (out.applies.is_empty() && self.entries == 0) {
            return;
        }
        let wanted = out.wanted_groups();
        let fresh = out.take_applies();
        for group in &wanted {
            for applied in self.by_group.remove(group).into_iter().flatten() {
                self.entries -= 1;
                self.bytes -= applied.bytes();
                out.apply(applied);
            }
        }
        for applied in fresh {
            if wanted.contains(&applied.group) {
                out.apply(applied);
            } else {
                self.entries += 1;
                self.bytes += applied.bytes();
                self.by_group.entry(applied.group).or_default().push(applied);
            }
        }
        if self.entries > ENTRIES_MAX || self.bytes > BYTES_MAX {
            self.release(out);
        } else if self.entries == 0 {
            self.due_at = None;
        } else {
            self.due_at.get_or_insert_with(|| clock.now() + self.delay);
        }
    }

    /// Put all of it into `out`.
    pub fn release(&mut self, out: &mut Out) {
        for applied in std::mem::take(&mut self.by_group).into_values().flatten() {
            out.apply(applied);
        }
        (self.entries, self.bytes, self.due_at) = (0, 0, None);
    }
}
