//! What Python polls: calls that arrived, what happened on streams, calls that ended before their answer.
//!
//! Filled on the I/O thread, taken by Python. The eventfd is written once when a turn of the I/O thread is over, and
//! not again before somebody looked. A unary call that ends before Python saw it is never shown.
//!
//! Python takes no more calls at once than it can serve in a short turn. What is above that waits here, by connection:
//! so the calls of a flood wait for each other, and those of a quiet client for one turn.

use super::connection::Conn;
use super::fair::Fair;
use super::headers::Metadata;
use crate::eventfd::EventFd;
use bytes::Bytes;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const CALLS_PER_TURN: usize = 512;
const BYTES_PER_TURN: usize = 4 << 20;
/// Worth a line in the log.
const BACKLOG_CALLS: usize = 4 * CALLS_PER_TURN;

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

/// What Python takes at once.
pub struct Batch {
    pub unary: Vec<Unary>,
    pub streams: Vec<StreamEvent>,
    /// Unary calls.
    pub ended: Vec<u64>,
}

#[derive(Default)]
pub struct Held {
    waiting: Fair<Unary>,
    pub streams: Vec<StreamEvent>,
    /// Unary calls.
    pub ended: Vec<u64>,
}

fn may_go(unary: &Unary, waiting: usize) -> bool {
    unary.conn.share.has_turn(waiting)
}

impl Held {
    pub fn push(&mut self, unary: Unary) {
        let (lane, bytes) = (unary.conn.number, unary.message.len());
        self.waiting.push(lane, unary, bytes);
    }

    fn has_news(&self) -> bool {
        !self.streams.is_empty() || !self.ended.is_empty() || self.waiting.is_ready(may_go)
    }

    /// Calls that ended before they were shown are nobody's business.
    fn settle(&mut self) {
        if self.ended.is_empty() || self.waiting.is_empty() {
            return;
        }
        let ended: HashSet<u64> = self.ended.iter().copied().collect();
        let mut unseen = HashSet::new();
        self.waiting.retain(|unary| !ended.contains(&unary.call) || !unseen.insert(unary.call));
        self.ended.retain(|call| !unseen.contains(call));
    }

    fn tell_of_backlog(&self) {
        if self.waiting.len() > BACKLOG_CALLS {
            if let Some(unary) = self.waiting.longest() {
                unary.conn.server.notices.note("calls_wait", &unary.conn.peer.address);
            }
        }
    }
}

pub struct Inbox {
    held: Mutex<Held>,
    signalled: AtomicBool,
    pub event: EventFd,
}

impl Inbox {
    pub fn new() -> io::Result<Inbox> {
        Ok(Inbox { held: Mutex::default(), signalled: AtomicBool::new(false), event: EventFd::new()? })
    }

    pub fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that are whole and not shown yet.
    pub fn waiting_calls(&self) -> usize {
        self.lock().waiting.len()
    }

    fn signal(&self) {
        if !self.signalled.swap(true, SeqCst) {
            self.event.notify();
        }
    }

    /// End of a turn: make Python look, if there is something and it was not told yet.
    pub fn flush(&self) {
        if self.lock().has_news() {
            self.signal();
        }
    }

    /// Everything but calls, and of these what fits a turn of Python's; it is made to look again for the others.
    pub fn take(&self) -> Batch {
        self.event.clear();
        // Before the batch is taken: whatever comes later is signalled anew.
        self.signalled.store(false, SeqCst);
        let mut held = self.lock();
        held.settle();
        let unary = held.waiting.take(CALLS_PER_TURN, BYTES_PER_TURN, may_go);
        let streams_capacity = held.streams.len();
        let streams = std::mem::replace(&mut held.streams, Vec::with_capacity(streams_capacity));
        let ended = std::mem::take(&mut held.ended);
        held.tell_of_backlog();
        let more = held.has_news();
        drop(held);
        if more {
            self.signal();
        }
        Batch { unary, streams, ended }
    }
}
