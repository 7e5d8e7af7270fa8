//! A cluster of hosts in manual mode on simulated disks, with a network that does as it is told.
#![allow(dead_code)] // every test file uses its own part

use flotta_native::raft::error::{Fatal, OpenError};
use flotta_native::raft::failpoints::Failpoints;
use flotta_native::raft::guard::Change;
use flotta_native::raft::host::{Host, Status};
use flotta_native::raft::mix;
use flotta_native::raft::options::Options;
use flotta_native::raft::out::{Applied, Dropped, Event, Payload, SnapshotMessage};
use flotta_native::raft::runner::guarded;
use flotta_native::raft::simdisk::SimDisk;
use flotta_native::raft::wire::Outbound;
use raft::eraftpb::{Message, MessageType};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const GROUP: u64 = 9;
pub const DIR: &str = "raft";

pub fn replica(node: u32) -> u64 {
    u64::from(node) << 32 | 1
}

pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, odds: u64) -> bool {
        self.below(odds) == 0
    }
}

pub fn options(node: u32) -> Options {
    Options { node_num: node, seed: 42, segment_bytes: 16 << 10, ..Options::default() }
}

pub fn open(disk: &SimDisk, options: Options, applied: &[(u64, u64)]) -> Result<Host, OpenError> {
    let applied = applied.iter().copied().collect();
    Host::open(options, Arc::new(disk.dir(DIR)), &applied, Failpoints::default())
}

/// A lone node that leads its group.
pub fn lone(disk: &SimDisk, applied: &[(u64, u64)]) -> Host {
    let mut host = open(disk, options(1), applied).unwrap();
    if host.group_ids().is_empty() {
        host.create_group(GROUP, replica(1), &[replica(1)]).unwrap().unwrap();
    }
    host.drive(&mut |_| ()).unwrap();
    host.campaign(GROUP);
    host.drive(&mut |_| ()).unwrap();
    host
}

pub fn put(host: &mut Host, group: u64, request: u64, payload: &[u8]) -> Result<(), Fatal> {
    host.propose(vec![(group, request, payload.to_vec().into())]);
    host.drive(&mut |_| ()).map(|_| ())
}

pub fn only(host: &Host) -> Status {
    host.status(Some(&[GROUP])).remove(0)
}

/// What a node knows of the world outside its disk: the state machine's history, which the test keeps.
#[derive(Default)]
pub struct Node {
    pub host: Option<Host>,
    pub disk: SimDisk,
    pub applies: Vec<Applied>,
    pub dropped: Vec<Dropped>,
    pub events: Vec<Event>,
    pub reads: Vec<(u64, u64, u64)>,
    pub snapshots_wanted: Vec<(u64, u64, u64)>,
    pub snapshots_sent: Vec<SnapshotMessage>,
    pub compactions_wanted: Vec<(u64, u64)>,
    /// Applied index of the state machine, by group.
    pub applied: BTreeMap<u64, u64>,
}

pub struct Cluster {
    pub nodes: BTreeMap<u32, Node>,
    /// (from, to, frame) on their way.
    pub wire: Vec<(u32, u32, Vec<u8>)>,
    /// Pairs that cannot talk.
    pub cut: Vec<(u32, u32)>,
    pub tune: fn(&mut Options),
    pub deliver_snapshots: bool,
}

impl Cluster {
    /// Nodes 1..=count, group `GROUP` born on `voters`.
    pub fn new(count: u32, voters: &[u32], tune: fn(&mut Options)) -> Cluster {
        let nodes = (1..=count)
            .map(|node| (node, Node { disk: SimDisk::new(u64::from(node)), ..Default::default() }))
            .collect();
        let mut cluster = Cluster { nodes, wire: Vec::new(), cut: Vec::new(), tune, deliver_snapshots: true };
        let birth: Vec<u64> = voters.iter().map(|node| replica(*node)).collect();
        for node in 1..=count {
            cluster.start(node).unwrap();
            if voters.contains(&node) {
                cluster.host(node).create_group(GROUP, replica(node), &birth).unwrap().unwrap();
            }
        }
        cluster.settle();
        cluster
    }

    pub fn host(&mut self, node: u32) -> &mut Host {
        self.nodes.get_mut(&node).unwrap().host.as_mut().unwrap()
    }

    pub fn node(&mut self, node: u32) -> &mut Node {
        self.nodes.get_mut(&node).unwrap()
    }

    pub fn start(&mut self, node: u32) -> Result<(), OpenError> {
        let mut options = options(node);
        (self.tune)(&mut options);
        let state = self.node(node);
        let applied: Vec<_> = state.applied.iter().map(|(group, index)| (*group, *index)).collect();
        state.host = Some(open(&state.disk, options, &applied)?);
        Ok(())
    }

    /// kill -9: the disk keeps what the kernel has.
    pub fn kill(&mut self, node: u32) {
        self.node(node).host = None;
    }

    pub fn status(&mut self, node: u32) -> Status {
        only(self.host(node))
    }

    pub fn up(&self) -> Vec<u32> {
        self.nodes.iter().filter(|(_, node)| node.host.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn leader(&mut self) -> Option<u32> {
        let status = |node: &Node| node.host.as_ref()?.status(Some(&[GROUP])).pop();
        let leaders = self.nodes.iter().filter_map(|(id, node)| Some((*id, status(node)?)));
        leaders.filter(|(_, status)| status.role == 2).max_by_key(|(_, status)| status.term).map(|(id, _)| id)
    }

    /// Take what a host says: frames onto the wire, the rest into the node's history. False: it died.
    pub fn pump(&mut self, node: u32) -> Result<(), Fatal> {
        let state = self.nodes.get_mut(&node).unwrap();
        let Some(host) = state.host.as_mut() else { return Ok(()) };
        let mut early = flotta_native::raft::out::Out::default();
        let driven = guarded(|| host.drive(&mut |out| early.absorb(out, 1 << 20)));
        if driven.is_ok() {
            early.absorb(host.out(), 1 << 20);
        }
        let mut out = early;
        for (to, frame) in out.messages.take() {
            self.wire.push((node, to, frame));
        }
        for applied in &out.applies {
            state.applied.insert(applied.group, applied.index);
        }
        state.applies.append(&mut out.applies);
        state.dropped.append(&mut out.dropped);
        state.events.append(&mut out.events);
        state.reads.append(&mut out.reads);
        state.snapshots_wanted.append(&mut out.snapshots_wanted);
        state.compactions_wanted.append(&mut out.compactions_wanted);
        for sent in out.snapshot_messages {
            if self.deliver_snapshots {
                self.wire.push((node, sent.node_num, sent.frame.clone()));
            }
            state.snapshots_sent.push(sent);
        }
        driven.map(|_| ())
    }

    /// Deliver everything until nothing moves, with snapshots built on demand.
    pub fn settle(&mut self) {
        for _ in 0..200 {
            for node in self.up() {
                self.pump(node).unwrap();
                self.build_snapshots(node);
            }
            if self.wire.is_empty() {
                return;
            }
            for (from, to, frame) in std::mem::take(&mut self.wire) {
                if !self.cut.contains(&(from, to)) && self.up().contains(&to) {
                    self.host(to).step(&frame.into());
                }
            }
        }
        panic!("the cluster does not come to rest");
    }

    pub fn build_snapshots(&mut self, node: u32) {
        for (group, minimum, _) in std::mem::take(&mut self.node(node).snapshots_wanted) {
            let index = self.node(node).applied.get(&group).copied().unwrap_or(1);
            if index >= minimum {
                self.host(node).snapshot_ready(group, index, format!("state at {index}").into_bytes().into());
            }
        }
    }

    pub fn tick(&mut self, ticks: u32) {
        for _ in 0..ticks {
            for node in self.up() {
                self.host(node).tick();
            }
            self.settle();
        }
    }

    /// Tick until somebody leads.
    pub fn elect(&mut self) -> u32 {
        for _ in 0..200 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            self.tick(1);
        }
        panic!("nobody was elected");
    }

    pub fn put(&mut self, node: u32, request: u64, payload: &[u8]) {
        self.host(node).propose(vec![(GROUP, request, payload.to_vec().into())]);
        self.settle();
    }

    pub fn change(&mut self, node: u32, request: u64, changes: &[Change]) {
        self.host(node).change_membership(GROUP, request, changes);
        self.settle();
    }

    /// The requests a node saw committed as its own.
    pub fn committed(&mut self, node: u32) -> Vec<u64> {
        self.node(node).applies.iter().map(|applied| applied.request).filter(|request| *request > 0).collect()
    }

    pub fn values(&mut self, node: u32) -> Vec<Vec<u8>> {
        let applies = &self.node(node).applies;
        applies
            .iter()
            .filter_map(|applied| match &applied.payload {
                Payload::Normal(bytes) => Some(bytes.to_vec()),
                _ => None,
            })
            .collect()
    }
}

pub fn trio() -> (Cluster, u32) {
    trio_with(|_| ())
}

pub fn trio_with(tune: fn(&mut Options)) -> (Cluster, u32) {
    let mut cluster = Cluster::new(3, &[1, 2, 3], tune);
    let leader = cluster.elect();
    cluster.settle();
    (cluster, leader)
}

pub fn others(leader: u32) -> [u32; 2] {
    let mut others = (1..=3).filter(|node| *node != leader);
    [others.next().unwrap(), others.next().unwrap()]
}

pub fn message(kind: MessageType, from: u64, to: u64, term: u64) -> Message {
    let mut message = Message { from, to, term, ..Default::default() };
    message.set_msg_type(kind);
    message
}

pub fn frame(from: u32, message: &Message) -> bytes::Bytes {
    Outbound::single(from, GROUP, message).into()
}
