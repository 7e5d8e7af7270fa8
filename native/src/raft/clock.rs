//! The clock that a host's delays go by: the system's, or one that stands still until whoever drives the host by hand
//! sets it. The thread's own tick goes by the system's.
//!
//! Invariant: it never goes back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub enum Clock {
    System,
    ByHand { origin: Instant, passed_us: AtomicU64 },
}

impl Clock {
    pub fn by_hand() -> Clock {
        Clock::ByHand { origin: Instant::now(), passed_us: AtomicU64::new(0) }
    }

    pub fn now(&self) -> Instant {
        match self {
            Clock::System => Instant::now(),
            Clock::ByHand { origin, passed_us } => {
                *origin + Duration::from_micros(passed_us.load(Ordering::Relaxed))
            }
        }
    }

    /// So much time has passed since it was made. Nothing to the system's.
    pub fn set_us(&self, us: u64) {
        if let Clock::ByHand { passed_us, .. } = self {
            passed_us.fetch_max(us, Ordering::Relaxed);
        }
    }

    /// The time that will have passed, by hand, at an instant of this clock.
    pub fn us_at(&self, at: Instant) -> Option<u64> {
        match self {
            Clock::System => None,
            Clock::ByHand { origin, .. } => u64::try_from(at.duration_since(*origin).as_micros()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_it_stands_until_it_is_set_and_never_goes_back() {
        let clock = Clock::by_hand();
        let began = clock.now();
        assert_eq!(clock.now(), began);
        clock.set_us(1_500);
        assert_eq!(clock.now() - began, Duration::from_micros(1_500));
        clock.set_us(20);
        assert_eq!(clock.us_at(clock.now() + Duration::from_millis(5)), Some(6_500));
    }

    #[test]
    fn the_systems_runs_whatever_is_set() {
        let before = Instant::now();
        Clock::System.set_us(3_600_000_000);
        assert!(Clock::System.now() >= before && Clock::System.now() <= Instant::now());
        assert_eq!(Clock::System.us_at(before), None);
    }
}
