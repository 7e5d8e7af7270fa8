//! The host's options, checked once: every complaint names the option.

use super::error::OpenError;

#[derive(Debug, Clone)]
pub struct Options {
    pub node_num: u32,
    pub seed: u64,
    pub tick_ms: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub pre_vote: bool,
    pub check_quorum: bool,
    pub segment_bytes: u64,
    pub entry_bytes_max: u64,
    pub message_bytes_max: u64,
    pub inflight_messages_max: usize,
    pub uncommitted_bytes_max: u64,
    pub inbox_bytes_max: u64,
    pub outbox_bytes_max: u64,
    pub snapshot_timeout_ticks: u64,
    /// How long what a follower applies may wait for company before the application gets it, and how long a leader's
    /// followers may not know of a commit that no entries tell them of; 0: not at all.
    pub apply_delay_ms: u64,
    /// The leaders of a host beat together.
    pub in_step: bool,
    /// Prepare the next segment on a thread of its own (threaded mode); manual mode does it in place.
    pub background: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            node_num: 1,
            seed: 0,
            tick_ms: 100,
            election_ticks: 10,
            heartbeat_ticks: 2,
            pre_vote: true,
            check_quorum: true,
            segment_bytes: 64 << 20,
            entry_bytes_max: 32 << 20,
            message_bytes_max: 1 << 20,
            inflight_messages_max: 256,
            uncommitted_bytes_max: 64 << 20,
            inbox_bytes_max: 256 << 20,
            outbox_bytes_max: 256 << 20,
            snapshot_timeout_ticks: 600,
            apply_delay_ms: 0,
            in_step: false,
            background: false,
        }
    }
}

impl Options {
    pub fn check(&self) -> Result<(), OpenError> {
        let bounds: [(&str, u64, u64, u64); 13] = [
            ("node_num", u64::from(self.node_num), 1, u64::from(u32::MAX)),
            ("tick_ms", self.tick_ms, 1, 60_000),
            ("heartbeat_ticks", self.heartbeat_ticks as u64, 1, 1000),
            ("election_ticks", self.election_ticks as u64, self.heartbeat_ticks as u64 + 1, 10_000),
            ("segment_bytes", self.segment_bytes, 4096, 1 << 30),
            ("entry_bytes_max", self.entry_bytes_max, 1, 512 << 20),
            ("message_bytes_max", self.message_bytes_max, 1, 512 << 20),
            ("inflight_messages_max", self.inflight_messages_max as u64, 1, 1 << 20),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max, self.message_bytes_max, 1 << 30),
            // The frame of one round holds at most what one inbox held, and a frame's length is 32 bits.
            ("inbox_bytes_max", self.inbox_bytes_max, 1024, 1 << 30),
            ("outbox_bytes_max", self.outbox_bytes_max, 1024, 1 << 34),
            ("snapshot_timeout_ticks", self.snapshot_timeout_ticks, 1, u64::MAX),
            ("apply_delay_ms", self.apply_delay_ms, 0, 1000),
        ];
        for (name, value, low, high) in bounds {
            if value < low || value > high {
                return Err(OpenError::Invalid(format!("{name} is {value}, it must be in {low}..={high}")));
            }
        }
        Ok(())
    }
}
