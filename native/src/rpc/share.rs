//! What one connection has of the server: its calls at work, and bytes of replies that it has not taken.
//!
//! Its next call may go to Python only while what it has, and what its calls at work can be expected to become, is not
//! so much that others would wait behind it. So a client that does not read, or that asks for far more than it can be
//! sent, has its calls wait here, where they cost little.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Of replies, unwritten and expected.
const AHEAD_BYTES: u64 = 8 << 20;
/// At work before it is known what a connection asks for; with each reply two more.
const FIRST_CALLS: u64 = 32;

#[derive(Debug, Default)]
pub struct Share {
    unwritten_bytes: AtomicU64,
    /// Unary calls that Python has or may have next.
    calls: AtomicU64,
    replies: AtomicU64,
    /// Of the latest replies, in the mean.
    reply_bytes: AtomicU64,
}

impl Share {
    pub fn unwritten_bytes(&self) -> u64 {
        self.unwritten_bytes.load(Relaxed)
    }

    pub fn add_unwritten(&self, bytes: usize) {
        self.unwritten_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// True: there is room for its calls again.
    pub fn give_back_unwritten(&self, bytes: usize) -> bool {
        let before = self.unwritten_bytes.fetch_sub(bytes as u64, Relaxed);
        before > AHEAD_BYTES && before - bytes as u64 <= AHEAD_BYTES
    }

    pub fn begin_call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    pub fn end_call(&self) {
        self.calls.fetch_sub(1, Relaxed);
    }

    /// A call has ended with a reply.
    pub fn end_with(&self, reply_bytes: usize) {
        self.end_call();
        self.replies.fetch_add(1, Relaxed);
        let mean = self.reply_bytes.load(Relaxed);
        self.reply_bytes.store(mean - mean / 8 + reply_bytes as u64 / 8, Relaxed);
    }

    /// May the next of its calls go, while so many wait? Each end of a call makes somebody look again.
    pub fn has_turn(&self, waiting_calls: usize) -> bool {
        let at_work = self.calls.load(Relaxed).saturating_sub(waiting_calls as u64);
        if at_work >= FIRST_CALLS + 2 * self.replies.load(Relaxed) {
            return false;
        }
        let expected_bytes = at_work * self.reply_bytes.load(Relaxed);
        self.unwritten_bytes() + expected_bytes <= AHEAD_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins calls while it may; how many.
    fn begun(share: &Share) -> u64 {
        let mut calls = 0;
        share.begin_call();
        while share.has_turn(1) && calls < 100_000 {
            calls += 1;
            share.begin_call();
        }
        share.end_call();
        calls
    }

    #[test]
    fn small_replies_bound_nothing_once_there_are_some() {
        let share = Share::default();
        assert_eq!(begun(&share), FIRST_CALLS);
        (0..FIRST_CALLS).for_each(|_| share.end_with(100));
        assert_eq!(begun(&share), 3 * FIRST_CALLS);
        (0..50_000).for_each(|_| {
            share.begin_call();
            share.end_with(100);
        });
        assert!(begun(&share) > 50_000);
    }

    #[test]
    fn big_replies_bound_the_calls_at_work_and_one_always_goes() {
        let share = Share::default();
        (0..1_000).for_each(|_| {
            share.begin_call();
            share.end_with(1 << 20);
        });
        assert!((7..=10).contains(&begun(&share)));
        let huge = Share::default();
        (0..1_000).for_each(|_| {
            huge.begin_call();
            huge.end_with(64 << 20);
        });
        assert_eq!(begun(&huge), 1);
    }

    #[test]
    fn who_does_not_read_has_no_turn_until_it_does() {
        let share = Share::default();
        share.add_unwritten(12 << 20);
        assert_eq!(begun(&share), 0);
        assert!(!share.give_back_unwritten(1 << 20));
        assert!(share.give_back_unwritten(4 << 20));
        assert!(!share.give_back_unwritten(4 << 20));
        assert!(begun(&share) > 0);
    }
}
