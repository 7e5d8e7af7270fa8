//! The native half of Flotta: the Raft host of a process (every group over one durable log), and its I/O thread.
//!
//! `raft` is the host, `rpc` the gRPC server; neither knows of Python, `py` binds them. `io` is the thread of sockets,
//! `peer`, `eventfd`, `times`, `tls` and `x509` are what everything on it shares. `kv` has the loops that are run for every
//! key of a batch. Invariants are stated where they are kept:
//! durability in `raft::log`, recovery in `raft::recover`, outcomes in `raft::pending`, the round in `raft::host`; the
//! bounds of the server in `rpc::limits`, the life of a call in `rpc::call`.

pub mod eventfd;
pub mod hash;
pub mod io;
pub mod kv;
pub mod link;
pub mod peer;
pub mod raft;
pub mod rpc;
pub mod times;
pub mod tls;
pub mod x509;

#[cfg(feature = "python")]
mod py;
