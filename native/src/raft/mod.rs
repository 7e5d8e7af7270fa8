//! The Raft host: groups, their shared log, and the round that drives them.

pub mod clock;
pub mod commands;
pub mod company;
pub mod error;
pub mod failpoints;
pub mod files;
pub mod frame;
pub mod group;
pub mod guard;
pub mod host;
pub mod live;
pub mod log;
pub mod mailbox;
pub mod options;
pub mod out;
pub mod pending;
pub mod reads;
pub mod record;
pub mod recover;
pub mod round;
pub mod runner;
pub mod segment;
pub mod seize;
pub mod simdisk;
pub mod store;
pub mod sync_times;
pub mod wire;

/// The node a replica lives on: the upper half of its id.
pub fn node_of(replica: u64) -> u32 {
    (replica >> 32) as u32
}

/// A well-mixed 64-bit function (splitmix64's finaliser): the only source of "randomness" in manual mode.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
