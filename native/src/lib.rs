//! The native half of Flotta: one Raft host per process, holding every group of it over one durable log.
//!
//! `raft` is the host and knows nothing of Python; `py` binds it. Invariants are stated where they are kept:
//! durability in `raft::log`, recovery in `raft::recover`, outcomes in `raft::pending`, the round in `raft::host`.

pub mod raft;

#[cfg(feature = "python")]
mod py;
