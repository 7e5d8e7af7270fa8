//! The native half of Flotta: the Raft host of a process (every group over one durable log), and its I/O thread.
//!
//! `raft` is the host and knows nothing of Python; `py` binds it. `io` is the thread of sockets, `peer` and `eventfd`
//! are what everything on it shares. Invariants are stated where they are kept:
//! durability in `raft::log`, recovery in `raft::recover`, outcomes in `raft::pending`, the round in `raft::host`.

pub mod eventfd;
pub mod io;
pub mod link;
pub mod peer;
pub mod raft;

#[cfg(feature = "python")]
mod py;
