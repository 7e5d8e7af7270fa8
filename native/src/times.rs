//! A histogram of durations that any thread may add to and any may read, at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the slots in microseconds; one more slot holds what took longer.
pub const BOUNDS_US: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000,
];

#[derive(Debug, Default)]
pub struct Times {
    slots: [AtomicU64; BOUNDS_US.len() + 1],
    total_ns: AtomicU64,
}

impl Times {
    pub fn add(&self, took: Duration) {
        let took_ns = took.as_nanos() as u64;
        let slot = BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < took_ns);
        self.slots[slot].fetch_add(1, Relaxed);
        self.total_ns.fetch_add(took_ns, Relaxed);
    }

    /// (how many in each slot, nanoseconds of all together)
    pub fn seen(&self) -> (Vec<u64>, u64) {
        (self.slots.iter().map(|slot| slot.load(Relaxed)).collect(), self.total_ns.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_slot_whose_bound_it_does_not_pass() {
        let times = Times::default();
        for took_us in [0, 100, 101, 5_000_000, 5_000_001] {
            times.add(Duration::from_micros(took_us));
        }
        let mut slots = vec![0; BOUNDS_US.len() + 1];
        (slots[0], slots[1], slots[13], slots[14]) = (2, 1, 1, 1);
        assert_eq!(times.seen(), (slots, 10_000_202_000));
    }
}
