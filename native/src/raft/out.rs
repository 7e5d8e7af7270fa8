//! Everything a host has to say since the last poll. Items of one group keep their order.

use super::node_of;
use super::wire::Outbound;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Message};
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NotLeader = 1,
    Overloaded = 2,
    UnknownGroup = 3,
    ConfPending = 4,
    Lost = 5,
    NoLeader = 6,
    Invalid = 7,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    Normal(Bytes),
    Empty,
    Conf(ConfState),
    Snapshot(ConfState, Bytes),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    pub group: u64,
    pub index: u64,
    pub term: u64,
    pub request: u64,
    pub payload: Payload,
}

impl Applied {
    /// What it takes of the outbox.
    pub fn bytes(&self) -> u64 {
        64 + match &self.payload {
            Payload::Normal(bytes) | Payload::Snapshot(_, bytes) => bytes.len() as u64,
            Payload::Empty | Payload::Conf(_) => 0,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    pub group: u64,
    pub role: u8,
    pub term: u64,
    pub leader: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    pub group: u64,
    pub request: u64,
    pub reason: Reason,
    pub leader: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub group: u64,
    pub name: &'static str,
    pub number: u64,
    pub text: String,
}

/// A snapshot message: never in a frame, since its file has to arrive first.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotMessage {
    pub node_num: u32,
    pub group: u64,
    pub to: u64,
    pub from: u64,
    pub index: u64,
    pub term: u64,
    pub manifest: Bytes,
    pub frame: Vec<u8>,
}

#[derive(Default)]
pub struct Out {
    pub messages: Outbound,
    pub snapshot_messages: Vec<SnapshotMessage>,
    pub applies: Vec<Applied>,
    pub roles: Vec<RoleChange>,
    pub reads: Vec<(u64, u64, u64)>,
    pub dropped: Vec<Dropped>,
    pub snapshots_wanted: Vec<(u64, u64, u64)>,
    pub compactions_wanted: Vec<(u64, u64)>,
    pub events: Vec<Event>,
    /// Groups with an entry among `applies` that somebody waits for.
    wanted: BTreeSet<u64>,
    applied_bytes: u64,
    /// Events a peer can cause at will are told once per poll.
    told: BTreeSet<(u64, &'static str, u64)>,
}

impl Out {
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.snapshot_messages.is_empty()
            && self.applies.is_empty()
            && self.roles.is_empty()
            && self.reads.is_empty()
            && self.dropped.is_empty()
            && self.snapshots_wanted.is_empty()
            && self.compactions_wanted.is_empty()
            && self.events.is_empty()
    }

    /// Somebody waits for what this group applies.
    pub fn want(&mut self, group: u64) {
        self.wanted.insert(group);
    }

    /// Groups whose entries must not wait: somebody waits for one, or something else is said of the group, which is
    /// true only of a state that has them.
    pub fn wanted_groups(&self) -> BTreeSet<u64> {
        let roles = self.roles.iter().map(|role| role.group);
        let reads = self.reads.iter().map(|read| read.0);
        let dropped = self.dropped.iter().map(|dropped| dropped.group);
        let snapshots = self.snapshots_wanted.iter().map(|wanted| wanted.0);
        let compactions = self.compactions_wanted.iter().map(|wanted| wanted.0);
        let events = self.events.iter().map(|event| event.group);
        let said = roles.chain(reads).chain(dropped).chain(snapshots).chain(compactions).chain(events);
        self.wanted.iter().copied().chain(said).collect()
    }

    pub fn take_applies(&mut self) -> Vec<Applied> {
        self.applied_bytes = 0;
        std::mem::take(&mut self.applies)
    }

    pub fn bytes(&self) -> u64 {
        self.applied_bytes + self.messages.bytes() + self.dropped.len() as u64 * 32
    }

    pub fn apply(&mut self, applied: Applied) {
        self.applied_bytes += applied.bytes();
        if applied.request != 0 || !matches!(applied.payload, Payload::Normal(_) | Payload::Empty) {
            self.want(applied.group);
        }
        self.applies.push(applied);
    }

    pub fn drop_one(&mut self, group: u64, request: u64, reason: Reason, leader: u64) {
        self.dropped.push(Dropped { group, request, reason, leader });
    }

    pub fn event(&mut self, group: u64, name: &'static str, number: u64, text: impl Into<String>) {
        self.events.push(Event { group, name, number, text: text.into() });
    }

    pub fn event_once(&mut self, group: u64, name: &'static str, number: u64, text: impl FnOnce() -> String) {
        if self.told.len() < 1024 && self.told.insert((group, name, number)) {
            self.event(group, name, number, text());
        }
    }

    pub fn send(&mut self, from_node: u32, group: u64, messages: Vec<Message>, frame_bytes_max: usize) {
        for message in messages {
            if message.get_snapshot().is_empty() {
                self.messages.push(from_node, group, &message, frame_bytes_max);
            } else {
                self.send_snapshot(from_node, group, message);
            }
        }
    }

    fn send_snapshot(&mut self, from_node: u32, group: u64, message: Message) {
        let node_num = node_of(message.to);
        let metadata = message.get_snapshot().get_metadata();
        self.snapshot_messages.push(SnapshotMessage {
            node_num,
            group,
            to: message.to,
            from: message.from,
            index: metadata.index,
            term: metadata.term,
            manifest: message.get_snapshot().data.clone(),
            frame: Outbound::single(from_node, group, &message),
        });
    }

    /// Put what `later` holds behind what is here.
    pub fn absorb(&mut self, later: &mut Out, frame_bytes_max: usize) {
        self.messages.absorb(std::mem::take(&mut later.messages), frame_bytes_max);
        self.snapshot_messages.append(&mut later.snapshot_messages);
        self.applies.append(&mut later.applies);
        self.roles.append(&mut later.roles);
        self.reads.append(&mut later.reads);
        self.dropped.append(&mut later.dropped);
        self.snapshots_wanted.append(&mut later.snapshots_wanted);
        self.compactions_wanted.append(&mut later.compactions_wanted);
        self.events.append(&mut later.events);
        self.applied_bytes += std::mem::take(&mut later.applied_bytes);
        self.wanted.append(&mut later.wanted);
        later.told.clear();
    }
}
