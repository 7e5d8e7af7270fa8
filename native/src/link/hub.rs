//! All links of a process: their numbers, their events, and the two wake-ups that cross threads.
//!
//! Callers on other threads change a link and name it in `kicked`; one wake of the I/O thread serves all links of a
//! call. Events go the other way: the eventfd is written by a task of its own, after everything that was ready in
//! this turn of the I/O thread, and once until somebody polls. So batches grow with load, and nothing waits alone.

use super::endpoint::Link;
use super::options::Options;
use super::raft::RaftLinks;
use crate::eventfd::EventFd;
use crate::peer::Peer;
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub enum What {
    Hello {
        purpose: String,
        hello: Bytes,
    },
    Up(Bytes),
    Refused(String),
    Frame(Bytes),
    /// Always the last of a link.
    Down(String),
}

pub struct Event {
    pub link: Arc<Link>,
    pub what: What,
}

#[derive(Default)]
struct Outbox {
    events: Vec<Event>,
    /// The application knows that there is something.
    told: bool,
}

#[derive(Default)]
struct Links {
    by_number: HashMap<u64, Arc<Link>>,
    last_number: u64,
    listeners: Vec<AbortHandle>,
    closed: bool,
}

/// Since the hub was made.
#[derive(Default)]
pub struct Counters {
    pub frames_in: AtomicU64,
    pub frames_out: AtomicU64,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    /// Data frames that were not taken.
    pub not_taken: AtomicU64,
    pub raft_frames_in: AtomicU64,
    pub raft_frames_out: AtomicU64,
    /// Pushed out by newer ones, or given to a link on its way down.
    pub raft_frames_lost: AtomicU64,
    /// Connections turned away: too many, or no proper hello.
    pub turned_away: AtomicU64,
    /// Times the application was woken.
    pub wakes: AtomicU64,
}

impl Counters {
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

pub struct Hub {
    pub options: Options,
    pub counters: Counters,
    pub raft: RaftLinks,
    links: Mutex<Links>,
    outbox: Mutex<Outbox>,
    event: EventFd,
    kicked: Mutex<Vec<Arc<Link>>>,
    attention: Notify,
    closed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub fn new(options: Options) -> io::Result<Arc<Hub>> {
        let hub = Arc::new(Hub {
            options,
            counters: Counters::default(),
            raft: RaftLinks::default(),
            links: Mutex::default(),
            outbox: Mutex::default(),
            event: EventFd::new()?,
            kicked: Mutex::default(),
            attention: Notify::new(),
            closed: AtomicBool::new(false),
        });
        crate::io::handle().spawn(tend(hub.clone()));
        Ok(hub)
    }

    pub fn notify_fd(&self) -> RawFd {
        self.event.fd()
    }

    /// None: there are too many already, or the hub is closed.
    pub fn add(&self, peer: Peer) -> Option<Arc<Link>> {
        let mut links = lock(&self.links);
        if links.closed || links.by_number.len() >= self.options.connections_max {
            return None;
        }
        links.last_number += 1;
        let link = Arc::new(Link::new(links.last_number, peer));
        links.by_number.insert(link.number, link.clone());
        Some(link)
    }

    /// A number for a link that could not even begin.
    pub fn spare_link(&self, peer: Peer) -> Arc<Link> {
        let mut links = lock(&self.links);
        links.last_number += 1;
        Arc::new(Link::new(links.last_number, peer))
    }

    /// A listener of its own, which ends with the hub.
    pub fn own(&self, listener: AbortHandle) {
        let mut links = lock(&self.links);
        if links.closed {
            listener.abort();
        }
        links.listeners.push(listener);
    }

    pub fn remove(&self, link: &Link) {
        lock(&self.links).by_number.remove(&link.number);
    }

    pub fn link(&self, number: u64) -> Option<Arc<Link>> {
        lock(&self.links).by_number.get(&number).cloned()
    }

    pub fn links(&self) -> usize {
        lock(&self.links).by_number.len()
    }

    /// Take frames for any links, each whole or not at all. Returns the links of those that were not taken.
    pub fn send_many(&self, frames: &[(u64, &[u8])]) -> Vec<u64> {
        let mut not_taken = Vec::new();
        let mut touched: Vec<Arc<Link>> = Vec::new();
        for (number, body) in frames {
            if touched.last().is_none_or(|last| last.number != *number) {
                let Some(link) = self.link(*number) else {
                    not_taken.push(*number);
                    continue;
                };
                touched.push(link);
            }
            let taken = body.len() <= self.options.frame_bytes_max
                && touched.last().is_some_and(|link| link.send(body, self.options.unsent_bytes_max));
            if !taken {
                not_taken.push(*number);
            }
        }
        Counters::add(&self.counters.not_taken, not_taken.len() as u64);
        Counters::add(&self.counters.frames_out, (frames.len() - not_taken.len()) as u64);
        self.kick(touched);
        not_taken
    }

    /// Have the tasks of these links look again: one wake of the I/O thread for all of them.
    pub fn kick(&self, links: impl IntoIterator<Item = Arc<Link>>) {
        let mut kicked = lock(&self.kicked);
        let idle = kicked.is_empty();
        kicked.extend(links);
        if idle && !kicked.is_empty() {
            drop(kicked);
            self.attention.notify_one();
        }
    }

    /// Called on the I/O thread.
    pub fn publish(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut outbox = lock(&self.outbox);
        if self.is_shut_down() {
            return events.clear();
        }
        outbox.events.append(events);
        if !outbox.told {
            drop(outbox);
            self.attention.notify_one();
        }
    }

    /// What happened since the last call, in order.
    pub fn poll(&self) -> Vec<Event> {
        self.event.clear();
        let events = {
            let mut outbox = lock(&self.outbox);
            outbox.told = false;
            std::mem::take(&mut outbox.events)
        };
        let max = self.options.unread_bytes_max;
        let resumed = events.iter().filter_map(|event| match &event.what {
            What::Frame(body) if event.link.note_polled(body.len(), max) => Some(event.link.clone()),
            _ => None,
        });
        self.kick(resumed.collect::<Vec<_>>());
        events
    }

    /// Answer a HELLO; what is late or answered already is left as it is.
    pub fn accept(&self, number: u64, greeting: &[u8]) {
        self.kick(self.link(number).filter(|link| link.accept(greeting)));
    }

    pub fn refuse(&self, number: u64, reason: &str) {
        self.kick(self.link(number).filter(|link| link.refuse(super::wire::short(reason))));
    }

    pub fn close(&self, number: u64, reason: &str) {
        self.kick(self.link(number).filter(|link| link.close(super::wire::short(reason))));
    }

    /// End everything at once; nothing is told any more.
    pub fn shut_down(&self) {
        self.raft.detach(self, "the process is ending");
        let links: Vec<Arc<Link>> = {
            let mut links = lock(&self.links);
            links.closed = true;
            links.listeners.drain(..).for_each(|listener| listener.abort());
            links.by_number.values().cloned().collect()
        };
        let mut outbox = lock(&self.outbox);
        self.closed.store(true, Ordering::SeqCst);
        *outbox = Outbox::default();
        drop(outbox);
        for link in &links {
            link.abort("the process is ending");
        }
        self.kick(links);
        self.attention.notify_one();
    }

    pub fn is_shut_down(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn tell(&self) {
        let mut outbox = lock(&self.outbox);
        if !outbox.events.is_empty() && !outbox.told {
            outbox.told = true;
            self.event.notify();
            Counters::add(&self.counters.wakes, 1);
        }
    }
}

/// The hub's own task: passes wake-ups on. Links that it wakes run after it, and it runs after those that woke it.
async fn tend(hub: Arc<Hub>) {
    while !(hub.is_shut_down() && hub.links() == 0) {
        hub.attention.notified().await;
        let kicked = std::mem::take(&mut *lock(&hub.kicked));
        for link in kicked {
            link.wake();
        }
        hub.tell();
    }
}
