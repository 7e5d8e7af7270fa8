//! The bounds of a server, and the counters that hold them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Options {
    /// Of one message, packed or not.
    pub message_bytes_max: usize,
    pub metadata_bytes_max: usize,
    /// In flight, on all connections.
    pub calls_max: u64,
    /// Of requests in work, on all connections.
    pub request_bytes_max: u64,
    /// Of replies that were not written yet, on all connections.
    pub reply_bytes_max: u64,
    pub connections_max: u64,
    pub streams_per_connection_max: u32,
    /// What one connection may reset in a second.
    pub resets_per_second_max: u32,
    /// Frames without data that one connection may send in a second, beyond those that belong to its calls.
    pub idle_frames_per_second_max: u32,
    pub keepalive: Duration,
    pub keepalive_timeout: Duration,
    /// How long half a message or an unread reply may stand still.
    pub stall: Duration,
    /// How much of a stream is taken before its handler consumed it, and how much is queued before it must wait.
    pub stream_window_bytes: usize,
    /// Smaller replies are not compressed.
    pub compress_bytes_min: usize,
}

impl Options {
    /// Err: which option is wrong.
    pub fn check(&self) -> Result<(), String> {
        let counts = [
            ("message_bytes_max", self.message_bytes_max as u64, 1, u64::from(u32::MAX) - 5),
            ("metadata_bytes_max", self.metadata_bytes_max as u64, 1_024, 16 << 20),
            ("calls_max", self.calls_max, 1, 1 << 31),
            ("request_bytes_max", self.request_bytes_max, 1, u64::MAX),
            ("reply_bytes_max", self.reply_bytes_max, 1, u64::MAX),
            ("connections_max", self.connections_max, 1, u64::MAX),
            ("streams_per_connection_max", self.streams_per_connection_max.into(), 1, 1 << 30),
            ("resets_per_second_max", self.resets_per_second_max.into(), 1, 1 << 30),
            ("idle_frames_per_second_max", self.idle_frames_per_second_max.into(), 1, 1 << 30),
            ("keepalive_ms", self.keepalive.as_millis() as u64, 1, 1 << 40),
            ("keepalive_timeout_ms", self.keepalive_timeout.as_millis() as u64, 1, 1 << 40),
            ("stall_ms", self.stall.as_millis() as u64, 1, 1 << 40),
            ("stream_window_bytes", self.stream_window_bytes as u64, 65_535, (1 << 30) - 1),
        ];
        for (name, value, least, most) in counts {
            if !(least..=most).contains(&value) {
                return Err(format!("{name} is {value}, it must be from {least} to {most}"));
            }
        }
        Ok(())
    }

    /// The flow-control window of a whole connection.
    pub fn connection_window_bytes(&self) -> u32 {
        (4 * self.stream_window_bytes).clamp(8 << 20, (1 << 31) - 1) as u32
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            message_bytes_max: 17 << 20,
            metadata_bytes_max: 64 << 10,
            calls_max: 20_000,
            request_bytes_max: 256 << 20,
            reply_bytes_max: 256 << 20,
            connections_max: 10_000,
            streams_per_connection_max: 1_000,
            resets_per_second_max: 5_000,
            idle_frames_per_second_max: 20_000,
            keepalive: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            stall: Duration::from_secs(20),
            stream_window_bytes: 1 << 20,
            compress_bytes_min: 1_024,
        }
    }
}

/// Something that is used up to a cap, and how often the cap refused.
#[derive(Debug)]
pub struct Room {
    used: AtomicU64,
    max: u64,
    refused: AtomicU64,
}

impl Room {
    pub fn new(max: u64) -> Room {
        Room { used: AtomicU64::new(0), max, refused: AtomicU64::new(0) }
    }

    pub fn try_take(&self, amount: u64) -> bool {
        if self.used.fetch_add(amount, Relaxed) + amount <= self.max {
            return true;
        }
        self.used.fetch_sub(amount, Relaxed);
        self.refuse();
        false
    }

    /// Take it whether or not there is room.
    pub fn take(&self, amount: u64) {
        self.used.fetch_add(amount, Relaxed);
    }

    pub fn give_back(&self, amount: u64) {
        self.used.fetch_sub(amount, Relaxed);
    }

    pub fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.used() >= self.max
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }
}

/// How often something happened in the running second.
#[derive(Debug, Default)]
pub struct Rate {
    second: u64,
    count: u32,
}

impl Rate {
    /// Count one; the number of them in its second.
    pub fn count(&mut self, now_ms: u64) -> u32 {
        self.add(now_ms, 1)
    }

    pub fn add(&mut self, now_ms: u64, amount: u32) -> u32 {
        let second = now_ms / 1_000;
        if second != self.second {
            *self = Rate { second, count: 0 };
        }
        self.count = self.count.saturating_add(amount);
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_refused_beyond_its_cap_and_comes_back() {
        let room = Room::new(10);
        assert!(room.try_take(7));
        assert!(!room.try_take(4));
        assert!(room.try_take(3));
        assert!(room.is_full());
        room.give_back(7);
        assert!(room.try_take(4));
        assert_eq!((room.used(), room.refused()), (7, 1));
        room.take(100);
        assert_eq!(room.used(), 107);
    }

    #[test]
    fn a_rate_begins_anew_each_second() {
        let mut rate = Rate::default();
        assert_eq!([5_000, 5_500, 5_999].map(|ms| rate.count(ms)), [1, 2, 3]);
        assert_eq!([6_000, 6_001].map(|ms| rate.count(ms)), [1, 2]);
    }

    #[test]
    fn options_are_checked_by_name() {
        assert_eq!(Options::default().check(), Ok(()));
        let wrong = Options { stream_window_bytes: 1, ..Options::default() }.check().unwrap_err();
        assert!(wrong.starts_with("stream_window_bytes is 1"), "{wrong}");
    }
}
