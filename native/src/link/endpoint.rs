//! One end of a link: what the threads that use it share with the task that carries it.
//!
//! The phase only moves forward. Frames are taken only while it is `Up`, and whoever takes one holds the lock, so
//! nothing is taken after the end was told.

use super::queue::Queue;
use super::wire::Kind;
use crate::peer::Peer;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// What a frame that waits to be polled costs beside its bytes: many empty ones must not be free.
const EVENT_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Ours, not accepted yet; or a peer's, that has not said hello.
    New,
    /// A peer's, that waits for our answer.
    Asked,
    Up,
    /// What was taken is still written, nothing else happens.
    Closing,
    Down,
}

/// What a link is for, beside data frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Plain,
    /// Ours, that carries the host's frames to a node.
    RaftTo(u32),
    /// A peer's, whose Raft frames come from this node and go to the host.
    RaftFrom(u32),
}

impl Role {
    fn begins_in(self) -> Phase {
        match self {
            Role::Plain => Phase::New,
            Role::RaftTo(_) => Phase::Up,
            Role::RaftFrom(_) => Phase::Asked,
        }
    }
}

pub struct State {
    pub phase: Phase,
    pub role: Role,
    pub queue: Queue,
    /// Why it was closed from here.
    pub reason: String,
    /// A refusal has said everything; any other end is told with BYE.
    pub bye_due: bool,
    /// Not even what was taken is written any more.
    pub abort: bool,
    /// A frame was not taken since less than half the bound was unsent: nothing is read meanwhile, or somebody who
    /// asks and never reads the answers would fill the memory.
    pub full: bool,
    waker: Option<Waker>,
}

pub struct Link {
    pub number: u64,
    pub peer: Peer,
    state: Mutex<State>,
    unread_bytes: AtomicUsize,
    /// The task does not read, because too much is unread.
    paused: AtomicBool,
}

impl Link {
    pub fn new(number: u64, peer: Peer) -> Link {
        let state = State {
            phase: Phase::New,
            role: Role::Plain,
            queue: Queue::default(),
            reason: String::new(),
            bye_due: false,
            abort: false,
            full: false,
            waker: None,
        };
        Link {
            number,
            peer,
            state: Mutex::new(state),
            unread_bytes: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Make the task look again.
    pub fn wake(&self) {
        let waker = self.lock().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// False: it does not take it.
    pub fn send(&self, body: &[u8], unsent_bytes_max: usize) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Up {
            return false;
        }
        let taken = state.queue.put_data(body, unsent_bytes_max);
        state.full |= !taken;
        taken
    }

    /// False: it has another one, or it is not the time for it.
    pub fn take_role(&self, role: Role) -> bool {
        let mut state = self.lock();
        if state.phase != role.begins_in() || (state.role != Role::Plain && state.role != role) {
            return false;
        }
        state.role = role;
        true
    }

    /// Returns how many frames were lost: these, if it is not up any more, or older ones, pushed out.
    pub fn send_raft(&self, frames: Vec<Bytes>, unsent_bytes_max: usize) -> u64 {
        let mut state = self.lock();
        if state.phase != Phase::Up {
            return frames.len() as u64;
        }
        frames.into_iter().map(|frame| state.queue.put_raft(frame, unsent_bytes_max)).sum()
    }

    /// Answer a HELLO. False: there is none to answer any more.
    pub fn accept(&self, greeting: &[u8]) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Asked {
            return false;
        }
        state.queue.put_control(Kind::Accept, greeting);
        state.phase = Phase::Up;
        true
    }

    pub fn refuse(&self, reason: &str) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Asked {
            return false;
        }
        state.queue.put_control(Kind::Refuse, reason.as_bytes());
        state.reason = format!("refused: {reason}");
        state.phase = Phase::Closing;
        true
    }

    /// The first reason stands.
    pub fn close(&self, reason: &str) -> bool {
        let mut state = self.lock();
        if state.phase >= Phase::Closing {
            return false;
        }
        state.bye_due = true;
        state.reason = reason.to_owned();
        state.phase = Phase::Closing;
        true
    }

    pub fn abort(&self, reason: &str) {
        self.close(reason);
        self.lock().abort = true;
    }

    pub fn unsent_bytes(&self) -> usize {
        self.lock().queue.unsent_bytes()
    }

    /// Count a frame that goes to the application.
    pub fn note_unread(&self, frame_bytes: usize) {
        self.unread_bytes.fetch_add(frame_bytes + EVENT_BYTES, Ordering::SeqCst);
    }

    /// A frame was polled. True: the task may read on and does not know it yet.
    pub fn note_polled(&self, frame_bytes: usize, unread_bytes_max: usize) -> bool {
        let before = self.unread_bytes.fetch_sub(frame_bytes + EVENT_BYTES, Ordering::SeqCst);
        let now = before - frame_bytes - EVENT_BYTES;
        now <= unread_bytes_max / 2 && self.paused.swap(false, Ordering::SeqCst)
    }

    /// Whether the task must not read now. If so it is woken when it may again.
    pub fn pause_if_unread(&self, unread_bytes_max: usize) -> bool {
        if self.unread_bytes.load(Ordering::SeqCst) <= unread_bytes_max {
            return self.paused.load(Ordering::SeqCst);
        }
        self.paused.store(true, Ordering::SeqCst);
        // It may have been polled between the two lines: then nobody would wake the task.
        if self.unread_bytes.load(Ordering::SeqCst) <= unread_bytes_max / 2 {
            self.paused.store(false, Ordering::SeqCst);
        }
        self.paused.load(Ordering::SeqCst)
    }
}

impl State {
    pub fn watch(&mut self, cx: &Context<'_>) {
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// The task is over: nothing waits any more. Returns what the link was for.
    pub fn finish(&mut self) -> Role {
        self.phase = Phase::Down;
        self.queue = Queue::default();
        self.waker = None;
        self.role
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_lags_pauses_the_task_until_half_is_read() {
        let link = Link::new(1, Peer::default());
        for _ in 0..3 {
            link.note_unread(1000);
        }
        assert!(!link.pause_if_unread(4000));
        link.note_unread(1000);
        assert!(link.pause_if_unread(4000));
        assert!(!link.note_polled(1000, 4000));
        assert!(link.pause_if_unread(4000), "a little is not enough to go on");
        assert!(!link.note_polled(1000, 4000));
        assert!(link.note_polled(1000, 4000));
        assert!(!link.pause_if_unread(4000));
        assert!(!link.note_polled(1000, 4000), "it knows");
    }

    #[test]
    fn frames_are_taken_only_while_it_is_up_and_the_first_end_counts() {
        let link = Link::new(1, Peer::default());
        assert!(!link.send(b"x", 100));
        assert!(!link.accept(b""), "nobody asked");
        link.lock().phase = Phase::Asked;
        assert!(link.accept(b"") && !link.refuse("late"));
        assert!(link.send(b"x", 100));
        assert!(link.close("first") && !link.close("second"));
        assert!(!link.send(b"x", 100));
        assert_eq!(link.lock().reason, "first");
        assert!(link.unsent_bytes() > 0, "what was taken is still to be written");
    }
}
