//! Raft traffic that goes from host to host without the application in between.
//!
//! Frames to a node with a bound link go to that link from whoever drives the host, in order; frames that come in on
//! accepted links go into the host's inbox, a turn of the I/O thread at a time. A link of the one kind carries frames
//! from here, one of the other kind frames to here, and both end with the host. What a peer did not take, for
//! whatever reason, is told to the host as unreachable, so that it probes instead of sending on; not more often than
//! it can matter.

use super::endpoint::{Link, Role};
use super::hub::{Counters, Hub};
use crate::raft::error::Fatal;
use crate::raft::mailbox::{Carrier, Command, Mailbox};
use crate::raft::wire::{self, Outbound};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

const UNREACHABLE_EVERY: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct RaftLinks {
    attached: Mutex<Attached>,
    /// By node: its wall clock in its newest frame, and when that came.
    clocks: Mutex<BTreeMap<u32, (u64, u64)>>,
}

#[derive(Default)]
struct Attached {
    host: Option<Arc<Mailbox>>,
    to_node: HashMap<u32, Arc<Link>>,
    from_node: HashMap<u64, Arc<Link>>,
    unreachable_at: HashMap<u32, Instant>,
}

/// There is no host that takes or sends Raft messages.
#[derive(Debug, PartialEq, Eq)]
pub struct NoHost;

/// What the host holds of the hub.
struct HubCarrier {
    hub: Weak<Hub>,
    host: Weak<Mailbox>,
}

impl Carrier for HubCarrier {
    fn carry(&self, messages: &mut Outbound) {
        if let Some(hub) = self.hub.upgrade() {
            hub.raft.carry(&hub, messages);
        }
    }

    fn host_ended(&self, reason: &Fatal) {
        let Some(hub) = self.hub.upgrade() else { return };
        // By now another one may be attached.
        let mine = |host: &Arc<Mailbox>| std::ptr::eq(Arc::as_ptr(host), self.host.as_ptr());
        if lock(&hub.raft.attached).host.as_ref().is_some_and(mine) {
            hub.raft.detach(&hub, &format!("the Raft host ended: {reason}"));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftLinks {
    /// False: there is another one.
    pub fn attach(&self, hub: &Arc<Hub>, host: Arc<Mailbox>) -> bool {
        let mut attached = lock(&self.attached);
        if attached.host.as_ref().is_some_and(|other| !Arc::ptr_eq(other, &host)) {
            return false;
        }
        let carrier = HubCarrier { hub: Arc::downgrade(hub), host: Arc::downgrade(&host) };
        host.set_carrier(Some(Arc::new(carrier)));
        attached.host = Some(host);
        true
    }

    /// The host's frames come out of its `poll` again, and its links end.
    pub fn detach(&self, hub: &Hub, reason: &str) {
        let Attached { host, to_node, from_node, .. } = std::mem::take(&mut *lock(&self.attached));
        if let Some(host) = host {
            host.set_carrier(None);
        }
        let links: Vec<Arc<Link>> = to_node.into_values().chain(from_node.into_values()).collect();
        for link in &links {
            link.close(super::wire::short(reason));
        }
        hub.kick(links);
    }

    /// From now on frames to the node go to this link, those that nobody polled yet first.
    pub fn bind(&self, hub: &Hub, number: u64, node_num: u32) -> Result<(), NoHost> {
        let mut attached = lock(&self.attached);
        let Some(host) = attached.host.clone() else { return Err(NoHost) };
        // One that is going down, or serves something else, is not bound.
        let link = hub.link(number).filter(|link| link.take_role(Role::RaftTo(node_num)));
        let Some(link) = link else { return Ok(()) };
        let waiting: Vec<Bytes> = host.take_messages_to(node_num).into_iter().map(Bytes::from).collect();
        self.send(hub, &link, waiting);
        let replaced = attached.to_node.insert(node_num, link.clone());
        drop(attached);
        let replaced = replaced.filter(|old| !Arc::ptr_eq(old, &link));
        hub.kick(replaced.filter(|old| old.close("another link took its place")));
        hub.kick([link]);
        Ok(())
    }

    /// Accept an incoming link whose Raft frames, all from this node, go to the host.
    pub fn accept(&self, hub: &Hub, number: u64, greeting: &[u8], node_num: u32) -> Result<(), NoHost> {
        let mut attached = lock(&self.attached);
        if attached.host.is_none() {
            return Err(NoHost);
        }
        let link = hub.link(number).filter(|link| link.take_role(Role::RaftFrom(node_num)));
        if let Some(link) = link.filter(|link| link.accept(greeting)) {
            attached.from_node.insert(number, link.clone());
            drop(attached);
            hub.kick([link]);
        }
        Ok(())
    }

    fn carry(&self, hub: &Hub, messages: &mut Outbound) {
        let mut attached = lock(&self.attached);
        let frames = messages.take_for(|node| attached.to_node.contains_key(&node));
        let mut touched = Vec::new();
        let mut unreachable = Vec::new();
        let mut frames = frames.into_iter().peekable();
        while let Some((node, frame)) = frames.next() {
            let mut together = vec![Bytes::from(frame)];
            while let Some((_, more)) = frames.next_if(|(next, _)| *next == node) {
                together.push(more.into());
            }
            let Some(link) = attached.to_node.get(&node) else { continue };
            if self.send(hub, link, together) {
                unreachable.push(node);
            }
            touched.push(link.clone());
        }
        unreachable.retain(|node| attached.may_tell_unreachable(*node));
        let host = attached.host.clone();
        drop(attached);
        hub.kick(touched);
        tell_unreachable(host, &unreachable);
    }

    /// True when something was lost.
    fn send(&self, hub: &Hub, link: &Link, frames: Vec<Bytes>) -> bool {
        let count = frames.len() as u64;
        let lost = link.send_raft(frames, hub.options.unsent_bytes_max);
        Counters::add(&hub.counters.raft_frames_out, count);
        Counters::add(&hub.counters.raft_frames_lost, lost);
        lost > 0
    }

    /// A link is gone.
    pub fn forget(&self, link: &Arc<Link>, role: Role) {
        let mut attached = lock(&self.attached);
        match role {
            Role::Plain => {}
            Role::RaftFrom(_) => {
                attached.from_node.remove(&link.number);
            }
            Role::RaftTo(node) => {
                if attached.to_node.get(&node).is_some_and(|bound| Arc::ptr_eq(bound, link)) {
                    attached.to_node.remove(&node);
                    let host = attached.host.clone();
                    drop(attached);
                    tell_unreachable(host, &[node]);
                }
            }
        }
    }

    /// Hand what came from a node to the host, or say why not. The newest clock counts.
    pub fn step(&self, node_num: u32, wall_ms: u64, frames: Vec<Bytes>) -> Result<(), String> {
        if frames.iter().any(|frame| wire::sender(frame) != Some(node_num)) {
            return Err(format!(
                "the peer broke the protocol: a Raft frame that is not from node {node_num}"
            ));
        }
        let host = lock(&self.attached).host.clone();
        let Some(host) = host else { return Err("no Raft host is attached".to_owned()) };
        lock(&self.clocks).insert(node_num, (wall_ms, monotonic_ms()));
        host.send(Command::Step(frames)).map_err(|reason| format!("the Raft host ended: {reason}"))
    }

    /// (node, its wall clock, when it was heard), the newest of each.
    pub fn clocks(&self) -> Vec<(u32, u64, u64)> {
        lock(&self.clocks).iter().map(|(node, (wall_ms, heard_ms))| (*node, *wall_ms, *heard_ms)).collect()
    }
}

impl Attached {
    fn may_tell_unreachable(&mut self, node: u32) -> bool {
        let now = Instant::now();
        let told = self.unreachable_at.get(&node);
        if told.is_some_and(|at| now.duration_since(*at) < UNREACHABLE_EVERY) {
            return false;
        }
        self.unreachable_at.insert(node, now);
        true
    }
}

fn tell_unreachable(host: Option<Arc<Mailbox>>, nodes: &[u32]) {
    if let Some(host) = host {
        for node in nodes {
            // A host that ended needs to know nothing any more.
            let _ = host.send(Command::Unreachable(*node));
        }
    }
}

/// The clock of Python's `time.monotonic`.
pub fn monotonic_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills a live local; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
