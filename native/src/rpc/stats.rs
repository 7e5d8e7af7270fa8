//! What a server counts, and what of it somebody should hear about: attacks and faults, at most a line a kind.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Only ever grows.
#[derive(Debug, Default)]
pub struct Counters {
    pub accepted_connections: Count,
    pub failed_handshakes: Count,
    pub calls: Count,
    pub resets: Count,
    pub deadlines_exceeded: Count,
    /// Connections ended for resetting too fast.
    pub reset_floods: Count,
    /// Connections ended for frames that carry nothing.
    pub frame_floods: Count,
    pub stalled_requests: Count,
    pub stalled_replies: Count,
    pub keepalive_timeouts: Count,
    pub bytes_in: Count,
    pub bytes_out: Count,
    pub messages_in: Count,
    pub messages_out: Count,
    pub packed_messages_in: Count,
    pub packed_messages_out: Count,
}

/// Something worth a line in the log: how often since it was last told, and who did it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub kind: &'static str,
    pub address: String,
    pub count: u64,
}

/// One notice a kind, whatever happens: a flood is told as a number.
#[derive(Debug, Default)]
pub struct Notices(Mutex<BTreeMap<&'static str, (String, u64)>>);

impl Notices {
    pub fn note(&self, kind: &'static str, address: &str) {
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, count) = notices.entry(kind).or_default();
        *count += 1;
        // The first one is told: under a flood it costs nothing more.
        if *count == 1 {
            address.clone_into(last);
        }
    }

    pub fn take(&self) -> Vec<Notice> {
        let notices = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        notices.into_iter().map(|(kind, (address, count))| Notice { kind, address, count }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_kind_is_one_notice() {
        let notices = Notices::default();
        for _ in 0..1_000 {
            notices.note("resets", "ipv4:10.0.0.1:5");
        }
        notices.note("calls", "ipv4:10.0.0.2:5");
        let told = notices.take();
        assert_eq!(told.len(), 2);
        assert_eq!(told[1], Notice { kind: "resets", address: "ipv4:10.0.0.1:5".to_owned(), count: 1_000 });
        assert_eq!(notices.take(), vec![]);
    }
}
