//! Links: framed, multiplexed connections between the processes of a cluster.
//!
//! `wire` says what travels, `queue` what waits to, `endpoint` is what threads share of one link, `connection` its
//! task on the I/O thread over the buffers of `pipe`, `dial` how connections are made, `hub` all links of a process
//! with their events, and `raft` what goes past the application. A link that dies says so at once and for good; whoever
//! made it decides whether to make another.

pub mod connection;
pub mod dial;
pub mod endpoint;
pub mod hub;
pub mod options;
pub mod pipe;
pub mod queue;
pub mod raft;
pub mod wire;

pub use dial::serve;
