//! What a host's thread shares with everybody else: an inbox, an outbox, and an eventfd that says when to look.
//!
//! Both boxes are bounded. Python is woken for what it is needed for, and once until it polls: messages that a
//! carrier takes never wake it, and what a follower applies may wait a little for company, since nobody waits for
//! it (`company`). Whatever ends the host is kept as the reason and makes the eventfd readable; nobody waits in vain.

use super::clock::Clock;
use super::commands::Proposal;
use super::company::Company;
use super::error::Fatal;
use super::host::Host;
use super::options::Options;
use super::out::{Out, Reason};
use super::wire::Outbound;
use crate::eventfd::EventFd;
use bytes::Bytes;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub type Task = Box<dyn FnOnce(&mut Host) -> Result<(), Fatal> + Send>;

pub enum Command {
    Propose(Vec<Proposal>),
    Step(Vec<Bytes>),
    /// The node took nothing, or was cut off.
    Unreachable(u32),
    /// Anything else, in its turn.
    Task(Task),
}

/// Brings messages to other hosts without Python in between.
pub trait Carrier: Send + Sync {
    /// Take the frames for the nodes it has a way to; the others stay. Called by whoever drives the host, before and
    /// after the sync of a round, as messages may leave.
    fn carry(&self, messages: &mut Outbound);
    /// There will be no more, and nobody to receive.
    fn host_ended(&self, reason: &Fatal);
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    bytes: u64,
    stop: bool,
    /// A full outbox was emptied: rounds can go on.
    resume: bool,
}

struct Outbox {
    out: Out,
    company: Company,
    /// The eventfd was written since the last poll.
    told: bool,
}

impl Outbox {
    fn bytes(&self) -> u64 {
        self.out.bytes() + self.company.bytes()
    }

    /// All that is to leave now; with `all`, what waits for company too.
    fn take(&mut self, all: bool, clock: &Clock) -> Out {
        let mut out = std::mem::take(&mut self.out);
        if all || self.company.due_at().is_some_and(|at| clock.now() >= at) {
            self.company.release(&mut out);
        }
        self.told = false;
        out
    }
}

pub struct Mailbox {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    outbox: Mutex<Outbox>,
    reason: Mutex<Option<Fatal>>,
    carrier: Mutex<Option<Arc<dyn Carrier>>>,
    /// Tells what waits for company when to go.
    clock: Clock,
    event: EventFd,
    wakes: AtomicU64,
    frame_bytes_max: usize,
    inbox_bytes_max: u64,
    outbox_bytes_max: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    pub fn new(options: &Options, clock: Clock) -> io::Result<Mailbox> {
        Ok(Mailbox {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            outbox: Mutex::new(Outbox {
                out: Out::default(),
                company: Company::new(Duration::from_millis(options.apply_delay_ms)),
                told: false,
            }),
            reason: Mutex::default(),
            carrier: Mutex::default(),
            clock,
            event: EventFd::new()?,
            wakes: AtomicU64::new(0),
            frame_bytes_max: options.message_bytes_max as usize,
            inbox_bytes_max: options.inbox_bytes_max,
            outbox_bytes_max: options.outbox_bytes_max,
        })
    }

    pub fn notify_fd(&self) -> RawFd {
        self.event.fd()
    }

    /// Times the eventfd was written.
    pub fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::Relaxed)
    }

    pub fn reason(&self) -> Option<Fatal> {
        lock(&self.reason).clone()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Everything the host says from now on goes past the carrier first. The last one stands.
    pub fn set_carrier(&self, carrier: Option<Arc<dyn Carrier>>) {
        *lock(&self.carrier) = carrier;
    }

    fn carrier(&self) -> Option<Arc<dyn Carrier>> {
        lock(&self.carrier).clone()
    }

    // -- out ------------------------------------------------------------------------------------------------------

    pub fn publish(&self, out: &mut Out) {
        if !out.messages.is_empty() {
            if let Some(carrier) = self.carrier() {
                carrier.carry(&mut out.messages);
            }
        }
        if out.is_empty() {
            return;
        }
        let mut outbox = lock(&self.outbox);
        outbox.company.keep_back(out, &self.clock);
        if !out.is_empty() {
            outbox.out.absorb(out, self.frame_bytes_max);
            self.tell(&mut outbox);
        }
    }

    fn tell(&self, outbox: &mut Outbox) {
        if !outbox.told {
            outbox.told = true;
            self.event.notify();
            self.wakes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tell what has waited long enough. Returns when the rest has.
    fn tell_if_due(&self) -> Option<Instant> {
        let mut outbox = lock(&self.outbox);
        let at = outbox.company.due_at()?;
        if self.clock.now() < at {
            return Some(at);
        }
        self.tell(&mut outbox);
        None
    }

    /// When what waits for company is to leave at the latest.
    pub fn due_at(&self) -> Option<Instant> {
        lock(&self.outbox).company.due_at()
    }

    /// Frames to a node that nobody polled yet.
    pub fn take_messages_to(&self, node_num: u32) -> Vec<Vec<u8>> {
        let taken = lock(&self.outbox).out.messages.take_for(|node| node == node_num);
        taken.into_iter().map(|(_, frame)| frame).collect()
    }

    pub fn backlog_bytes(&self) -> u64 {
        lock(&self.outbox).bytes()
    }

    pub fn salvage(&self) -> Out {
        lock(&self.outbox).take(true, &self.clock)
    }

    /// What happened since the last call.
    pub fn poll(&self) -> Result<Out, Fatal> {
        self.event.clear();
        // A host that stopped in order has its last words; one that broke has none but its reason.
        let reason = self.reason();
        if let Some(reason) = reason.as_ref().filter(|reason| **reason != Fatal::Stopped) {
            return Err(reason.clone());
        }
        let out = lock(&self.outbox).take(reason.is_some(), &self.clock);
        match reason {
            Some(reason) if out.is_empty() => Err(reason),
            _ => {
                if out.bytes() > self.outbox_bytes_max / 2 {
                    lock(&self.inbox).resume = true;
                    self.wake.notify_one();
                }
                Ok(out)
            }
        }
    }

    pub fn fail(&self, reason: Fatal) {
        lock(&self.reason).get_or_insert_with(|| reason.clone());
        self.event.notify();
        self.wake.notify_all();
        if let Some(carrier) = self.carrier() {
            carrier.host_ended(&reason);
        }
    }

    // -- in -------------------------------------------------------------------------------------------------------

    /// Put a command into the inbox, for the thread that drives the host or will.
    pub fn send(&self, command: Command) -> Result<(), Fatal> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        let bytes = match &command {
            Command::Propose(proposals) => {
                proposals.iter().map(|proposal| proposal.2.len() as u64 + 64).sum()
            }
            Command::Step(frames) => frames.iter().map(|frame| frame.len() as u64).sum(),
            Command::Unreachable(_) | Command::Task(_) => 0,
        };
        let mut inbox = lock(&self.inbox);
        if bytes > 0 && inbox.bytes > 0 && inbox.bytes + bytes > self.inbox_bytes_max {
            drop(inbox);
            self.refuse(command);
            return Ok(());
        }
        inbox.bytes += bytes;
        inbox.commands.push(command);
        drop(inbox);
        self.wake.notify_one();
        Ok(())
    }

    fn refuse(&self, command: Command) {
        let mut out = Out::default();
        match command {
            Command::Propose(proposals) => {
                for (group, request, _) in proposals {
                    out.drop_one(group, request, Reason::Overloaded, 0);
                }
            }
            _ => out.event(0, "inbox_full", 0, "a frame was dropped"),
        }
        self.publish(&mut out);
    }

    pub fn stop(&self) {
        lock(&self.inbox).stop = true;
        self.wake.notify_all();
    }

    /// The commands that came in, at the latest when the tick is due. None: stop.
    pub fn wait(&self, until: Instant) -> Option<Vec<Command>> {
        let mut tell_at = self.tell_if_due();
        let mut inbox = lock(&self.inbox);
        loop {
            if inbox.stop {
                return None;
            }
            let now = Instant::now();
            if !inbox.commands.is_empty() || now >= until || std::mem::take(&mut inbox.resume) {
                inbox.bytes = 0;
                return Some(std::mem::take(&mut inbox.commands));
            }
            if tell_at.is_some_and(|at| now >= at) {
                drop(inbox);
                tell_at = self.tell_if_due();
                inbox = lock(&self.inbox);
                continue;
            }
            let wait = tell_at.map_or(until, |at| at.min(until)) - now;
            inbox = self.wake.wait_timeout(inbox, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
