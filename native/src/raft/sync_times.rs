//! How long the syncs of the log take, for any thread to read at any time, also while one of them hangs.
//!
//! Invariants: one thread writes (the one that owns the log), any may read; a sync is counted once, when it has ended.

use crate::times::Times;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct SyncTimes {
    pub ended: Times,
    origin: Instant,
    /// When the sync under way began, nanoseconds after the origin; 0 while there is none.
    began_ns: AtomicU64,
}

impl SyncTimes {
    /// A sync begins now; after `end` it is counted. One that fails never ends: the log's owner does.
    pub fn begin(&self) {
        self.began_ns.store(self.now_ns(), Relaxed);
    }

    pub fn end(&self) {
        let began_ns = self.began_ns.swap(0, Relaxed);
        self.ended.add(Duration::from_nanos(self.now_ns() - began_ns));
    }

    /// 0 while there is none.
    pub fn under_way_ns(&self) -> u64 {
        match self.began_ns.load(Relaxed) {
            0 => 0,
            began_ns => self.now_ns().saturating_sub(began_ns),
        }
    }

    fn now_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64 + 1
    }
}

impl Default for SyncTimes {
    fn default() -> Self {
        SyncTimes { ended: Times::default(), origin: Instant::now(), began_ns: AtomicU64::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn a_sync_is_seen_while_it_is_under_way_and_counted_once_it_has_ended() {
        let times = SyncTimes::default();
        let counted = || times.ended.seen().0.iter().sum::<u64>();
        assert_eq!((times.under_way_ns(), counted()), (0, 0));
        times.begin();
        sleep(Duration::from_millis(6));
        assert!(times.under_way_ns() >= 6_000_000);
        assert_eq!(counted(), 0);
        times.end();
        assert_eq!((times.under_way_ns(), counted()), (0, 1));
        assert!(times.ended.seen().1 >= 6_000_000);
    }
}
