//! A gRPC server on HTTP/2 that hands Python batches: everything that arrived in one turn of the I/O thread, at once.
//!
//! `server` is the whole; `listener` takes connections, `connection` drives one, `calls` holds every call of the
//! server and drives it through `reader` and `writer`; `inbox` is what Python polls. `codec` and `headers` are pure
//! functions over bytes. Nothing here runs a task per call: a call is a state machine that its stream, its timer or
//! Python moves on, always on the I/O thread.
//!
//! What holds: every call handed to Python is answered by it or named as ended, never neither. Whatever a client does,
//! the memory it can make the server hold is bounded by `limits`, and what it does not read or does not send to its
//! end is given up after `stall_ms`.

pub mod authority;
pub mod body;
pub mod call;
pub mod calls;
pub mod codec;
pub mod connection;
pub mod deframer;
pub mod fair;
pub mod frames;
pub mod headers;
pub mod inbox;
pub mod limits;
pub mod listener;
pub mod reader;
pub mod server;
pub mod share;
pub mod socket;
pub mod stats;
pub mod status;
pub mod wire;
pub mod writer;
