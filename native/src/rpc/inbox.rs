//! What Python polls: calls that arrived, what happened on streams, calls that ended before their answer.
//!
//! Filled on the I/O thread, taken by Python. The eventfd is written once when a turn of the I/O thread is over, and
//! not again before somebody looked. A unary call that ends before Python saw it is never shown.

use super::connection::Conn;
use super::headers::Metadata;
use crate::eventfd::EventFd;
use bytes::Bytes;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub struct Unary {
    pub call: u64,
    pub method: u32,
    pub message: Bytes,
    pub metadata: Option<Metadata>,
    pub deadline: Option<Instant>,
    pub conn: Arc<Conn>,
}

pub struct Opening {
    pub metadata: Option<Metadata>,
    pub deadline: Option<Instant>,
    pub conn: Arc<Conn>,
}

pub enum What {
    Open(Box<Opening>),
    Message(Bytes),
    HalfClose,
    /// The last of its call.
    Cancelled,
    Drained,
}

pub struct StreamEvent {
    pub call: u64,
    pub method: u32,
    pub what: What,
}

#[derive(Default)]
pub struct Batch {
    pub unary: Vec<Unary>,
    pub streams: Vec<StreamEvent>,
    /// Unary calls.
    pub ended: Vec<u64>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.unary.is_empty() && self.streams.is_empty() && self.ended.is_empty()
    }

    /// Calls that came and ended within the batch are nobody's business.
    fn settle(&mut self) {
        if self.ended.is_empty() || self.unary.is_empty() {
            return;
        }
        let ended: HashSet<u64> = self.ended.iter().copied().collect();
        let mut unseen = HashSet::new();
        self.unary.retain(|unary| !ended.contains(&unary.call) || !unseen.insert(unary.call));
        self.ended.retain(|call| !unseen.contains(call));
    }
}

pub struct Inbox {
    batch: Mutex<Batch>,
    signalled: AtomicBool,
    pub event: EventFd,
}

impl Inbox {
    pub fn new() -> io::Result<Inbox> {
        Ok(Inbox { batch: Mutex::default(), signalled: AtomicBool::new(false), event: EventFd::new()? })
    }

    pub fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// End of a turn: make Python look, if there is something and it was not told yet.
    pub fn flush(&self) {
        if !self.lock().is_empty() && !self.signalled.swap(true, SeqCst) {
            self.event.notify();
        }
    }

    pub fn take(&self) -> Batch {
        self.event.clear();
        // Before the batch is taken: whatever comes later is signalled anew.
        self.signalled.store(false, SeqCst);
        let mut batch = {
            let mut held = self.lock();
            let room = Batch {
                unary: Vec::with_capacity(held.unary.len()),
                streams: Vec::with_capacity(held.streams.len()),
                ended: Vec::new(),
            };
            std::mem::replace(&mut *held, room)
        };
        batch.settle();
        batch
    }
}
