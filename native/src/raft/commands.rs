//! What the application and the network may ask of a host. Each command changes groups at once; what follows
//! from it leaves in the next round. A refused command changes nothing and says so in `Out`.

use super::error::Fatal;
use super::failpoints as points;
use super::group::Group;
use super::guard::{self, Change, Refusal};
use super::host::{birth, Host};
use super::live;
use super::node_of;
use super::out::Reason;
use super::record::{Base, Hard};
use super::store::Store;
use super::wire;
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};
use std::collections::{BTreeMap, BTreeSet};

/// A proposal: group, request id, payload.
pub type Proposal = (u64, u64, Bytes);

impl Host {
    pub fn tick(&mut self) {
        self.ticks += 1;
        let oldest = self.ticks.saturating_sub(2 * self.options.election_ticks as u64);
        for id in self.group_ids() {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            // Most ticks of most groups change nothing but a count.
            let mut changed = group.tick(self.ticks, &self.options);
            changed |= group.age_snapshots(self.options.snapshot_timeout_ticks);
            for read in group.reads.drop_older(oldest) {
                self.out.drop_one(id, read, Reason::NoLeader, group.leader());
            }
            if changed {
                self.touch(id);
            }
        }
    }

    pub fn propose(&mut self, proposals: Vec<Proposal>) {
        let mut by_group: BTreeMap<u64, Vec<(u64, Bytes)>> = BTreeMap::new();
        for (group, request, payload) in proposals {
            by_group.entry(group).or_default().push((request, payload));
        }
        for (id, proposals) in by_group {
            let Some(group) = self.groups.get_mut(&id) else {
                for (request, _) in proposals {
                    self.out.drop_one(id, request, Reason::UnknownGroup, 0);
                }
                continue;
            };
            let dropped = propose_to(group, proposals, self.options.uncommitted_bytes_max as usize);
            for (request, reason) in dropped {
                self.out.drop_one(id, request, reason, group.leader());
            }
            self.touch(id);
        }
    }

    pub fn read_index(&mut self, reads: Vec<(u64, u64)>) {
        let mut by_group: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (group, read) in reads {
            by_group.entry(group).or_default().push(read);
        }
        for (id, reads) in by_group {
            let Some(group) = self.groups.get_mut(&id) else {
                for read in reads {
                    self.out.drop_one(id, read, Reason::UnknownGroup, 0);
                }
                continue;
            };
            // The core drops these without a word.
            if group.leader() == 0 || (group.is_leader() && !group.node.raft.commit_to_current_term()) {
                for read in reads {
                    self.out.drop_one(id, read, Reason::NoLeader, group.leader());
                }
                continue;
            }
            let context = group.reads.ask(group.replica, self.incarnation, self.ticks, reads);
            group.node.read_index(context);
            self.touch(id);
        }
    }

    pub fn step(&mut self, frame: &Bytes) {
        match wire::decode(frame, self.options.node_num) {
            Err(text) => self.out.event_once(0, "bad_frame", 0, || text),
            Ok(inbound) => {
                for (id, message) in inbound.messages {
                    self.step_one(inbound.from_node, id, message);
                }
            }
        }
    }

    fn step_one(&mut self, from_node: u32, id: u64, message: Message) {
        let (from, to) = (message.from, message.to);
        let Some(group) = self.groups.get_mut(&id) else {
            self.out.event_once(id, "unknown_group", from, || format!("a message to replica {to}"));
            return;
        };
        match guard::admit(from_node, &message, &group.node) {
            Err(Refusal::Ignored) => return,
            Err(Refusal::WrongReplica) => {
                self.out.event_once(id, "wrong_replica", from, || format!("a message to replica {to}"));
                return;
            }
            Err(Refusal::Bad(what)) => {
                self.out.event_once(id, "bad_message", from, || what.to_owned());
                return;
            }
            Ok(()) => {}
        }
        let snapshot = (message.get_msg_type() == MessageType::MsgSnapshot)
            .then(|| message.get_snapshot().get_metadata().index);
        // An error means: not a member (any more) of what this group is. Nothing changed.
        let stepped = group.node.step(message);
        if let Some(index) = snapshot {
            if group.node.snap().is_none_or(|taken| taken.get_metadata().index != index) {
                self.out.event(id, "snapshot_ignored", index, format!("{stepped:?}"));
            }
        }
        self.touch(id);
    }

    pub fn campaign(&mut self, id: u64) {
        if let Some(group) = self.groups.get_mut(&id) {
            // An error of the core here would be a broken invariant and panics by itself.
            if !group.node.raft.promotable() || group.node.campaign().is_err() {
                self.out.event(id, "campaign_refused", 0, "the replica is not a voter");
            }
            self.touch(id);
        }
    }

    pub fn transfer_leader(&mut self, id: u64, to: u64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let conf = group.store().conf().1;
        if !group.is_leader() {
            self.out.event(id, "transfer_refused", to, "this replica is not the leader");
        } else if !conf.voters.contains(&to) {
            self.out.event(id, "transfer_refused", to, "the receiver is not a voter");
        } else {
            group.node.transfer_leader(to);
            self.touch(id);
        }
    }

    pub fn change_membership(&mut self, id: u64, request: u64, changes: &[Change]) {
        let Some(group) = self.groups.get_mut(&id) else {
            return self.out.drop_one(id, request, Reason::UnknownGroup, 0);
        };
        let leader = group.leader();
        let raft = &group.node.raft;
        if !group.is_leader() || raft.lead_transferee.is_some() {
            return self.out.drop_one(id, request, Reason::NotLeader, leader);
        }
        if raft.has_pending_conf() || !group.store().conf().1.voters_outgoing.is_empty() {
            return self.out.drop_one(id, request, Reason::ConfPending, leader);
        }
        let change = guard::conf_change(changes);
        if let Err(text) = guard::would_apply(&group.node, &change) {
            self.out.event(id, "membership_refused", request, text);
            return self.out.drop_one(id, request, Reason::Invalid, leader);
        }
        if group.node.propose_conf_change(Vec::new(), change).is_err() {
            return self.out.drop_one(id, request, Reason::Overloaded, leader);
        }
        let (index, term) = (group.node.raft.raft_log.last_index(), group.node.raft.term);
        let kept = group.node.raft.raft_log.unstable_entries().last().map(Entry::get_entry_type);
        if kept == Some(EntryType::EntryNormal) {
            // Replaced by an empty entry after all.
            self.out.drop_one(id, request, Reason::ConfPending, leader);
        } else {
            group.pending.proposed(index, term, request);
        }
        self.touch(id);
    }

    pub fn create_group(
        &mut self,
        id: u64,
        replica: u64,
        voters: &[u64],
    ) -> Result<Result<(), String>, Fatal> {
        if let Err(text) = self.may_create(id, replica, voters) {
            return Ok(Err(text));
        }
        self.failpoints.pass(points::BEFORE_CREATE_RECORD)?;
        let (base, hard) = if voters.is_empty() { (Base::default(), Hard::default()) } else { birth(voters) };
        self.log.writer().state(id, replica, &base, hard, None);
        self.must_flush = true;
        let applied = base.index;
        let store = Store::new(replica, base, hard, Vec::new(), None);
        self.add(id, store, applied).map_err(Fatal::Broken)?;
        self.after_sync.push((id, "created", replica));
        Ok(Ok(()))
    }

    fn may_create(&self, id: u64, replica: u64, voters: &[u64]) -> Result<(), String> {
        let own = self.options.node_num;
        if id == 0 {
            return Err("group must not be 0".to_owned());
        }
        if node_of(replica) != own {
            return Err(format!(
                "replica {replica} belongs to node {}, this is node {own}",
                node_of(replica)
            ));
        }
        if let Some(group) = self.groups.get(&id) {
            return Err(format!("group {id} exists, with replica {}", group.replica));
        }
        if self.tombstones.get(&id).is_some_and(|gone| gone.contains(&replica)) {
            return Err(format!("replica {replica} of group {id} was removed for good"));
        }
        if !voters.is_empty() && !voters.contains(&replica) {
            return Err(format!("voters lacks the replica {replica} itself"));
        }
        let nodes: BTreeSet<u32> = voters.iter().map(|voter| node_of(*voter)).collect();
        if nodes.len() < voters.len() || nodes.contains(&0) {
            return Err("voters must be replicas of different nodes".to_owned());
        }
        Ok(())
    }

    pub fn remove_group(&mut self, id: u64) -> Result<(), Fatal> {
        let Some(replica) = self.groups.get(&id).map(|group| group.replica) else {
            self.out.event(id, "unknown_group", 0, "to be removed");
            return Ok(());
        };
        // What waits for the next frame may be about this group, a compaction say. It goes into a frame before the
        // removal: a frame that begins a segment begins with the states after it, and a record of a group that is
        // gone by then would read as one that comes before the group's creation.
        if self.log.has_records() {
            self.flush()?;
        }
        self.failpoints.pass(points::BEFORE_REMOVE_RECORD)?;
        if let Some(mut group) = self.groups.remove(&id) {
            for read in group.reads.drop_all() {
                self.out.drop_one(id, read, Reason::UnknownGroup, 0);
            }
            for request in group.pending.jumped_over(u64::MAX) {
                self.out.event(id, "outcome_unknown", request, "the group was removed here");
            }
        }
        self.tombstones.entry(id).or_default().insert(replica);
        self.log.writer().remove(id, replica);
        self.log.note(live::Change::Cleared { group: id });
        self.must_flush = true;
        self.after_sync.push((id, "removed", replica));
        Ok(())
    }

    pub fn compact(&mut self, id: u64, index: u64) -> Result<(), Fatal> {
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        let index = index.min(group.delivered);
        let store = group.node.mut_store();
        let covers_install = store.installed.is_some() && index >= store.base.index;
        if !store.compact(index) && !covers_install {
            return Ok(());
        }
        self.failpoints.pass(points::BEFORE_COMPACT_RECORD)?;
        store.installed = None;
        self.log.writer().compact(id, &store.base);
        self.log.note(live::Change::Compacted { group: id, index: store.base.index });
        Ok(())
    }

    pub fn snapshot_ready(&mut self, id: u64, index: u64, manifest: Bytes) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let delivered = group.delivered;
        let store = group.node.mut_store();
        let since = store.conf().0.max(store.base.index);
        if index < since || index > delivered {
            let text = format!("a snapshot at {index}, useful are {since}..={delivered}");
            return self.out.event(id, "snapshot_stale", since, text);
        }
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = index;
        snapshot.mut_metadata().term = store.entry(index).map_or(store.base.term, |entry| entry.term);
        *snapshot.mut_metadata().mut_conf_state() = store.conf().1.clone();
        snapshot.data = manifest;
        store.outgoing = Some(snapshot);
        if let Some((_, to, _)) = group.wished.take() {
            if group.is_leader() && group.node.raft.prs().get(to).is_some() {
                group.node.raft.send_append(to);
            }
        }
        self.touch(id);
    }

    pub fn report_snapshot(&mut self, id: u64, to: u64, ok: bool) {
        if let Some(group) = self.groups.get_mut(&id) {
            let fate = if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
            group.node.report_snapshot(to, fate);
            self.touch(id);
        }
    }

    pub fn snapshot_progress(&mut self, id: u64, to: u64) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.snapshot_progress(to);
        }
    }

    pub fn report_unreachable(&mut self, node_num: u32) {
        for id in self.group_ids() {
            let Some(group) = self.groups.get_mut(&id).filter(|group| group.is_leader()) else { continue };
            let there: Vec<u64> = group
                .node
                .raft
                .prs()
                .iter()
                .filter(|(replica, progress)| {
                    node_of(**replica) == node_num && progress.state == ProgressState::Replicate
                })
                .map(|(replica, _)| *replica)
                .collect();
            for replica in there {
                group.node.report_unreachable(replica);
            }
            self.touch(id);
        }
    }

    pub fn set_priority(&mut self, id: u64, priority: i64) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.node.set_priority(priority);
        }
    }
}

/// Propose as many as the group's uncommitted bytes allow; the core would refuse all or nothing.
fn propose_to(group: &mut Group, proposals: Vec<(u64, Bytes)>, uncommitted_max: usize) -> Vec<(u64, Reason)> {
    if !group.is_leader() || group.node.raft.lead_transferee.is_some() {
        return proposals.into_iter().map(|(request, _)| (request, Reason::NotLeader)).collect();
    }
    let mut room = uncommitted_max.saturating_sub(group.node.raft.uncommitted_size());
    let mut dropped = Vec::new();
    let mut requests = Vec::with_capacity(proposals.len());
    let mut entries = Vec::with_capacity(proposals.len());
    let empty = group.node.raft.uncommitted_size() == 0;
    for (request, payload) in proposals {
        // One entry is always allowed, however big, or it could never be proposed.
        if payload.len() > room && !(empty && entries.is_empty()) {
            dropped.push((request, Reason::Overloaded));
            continue;
        }
        room = room.saturating_sub(payload.len());
        requests.push(request);
        entries.push(Entry { data: payload, ..Default::default() });
    }
    if entries.is_empty() {
        return dropped;
    }
    let mut message = Message { from: group.replica, ..Default::default() };
    message.set_msg_type(MessageType::MsgPropose);
    message.set_entries(entries.into());
    if group.node.raft.step(message).is_err() {
        dropped.extend(requests.into_iter().map(|request| (request, Reason::Overloaded)));
        return dropped;
    }
    let (last, term) = (group.node.raft.raft_log.last_index(), group.node.raft.term);
    let first = last + 1 - requests.len() as u64;
    for (index, request) in (first..).zip(requests) {
        group.pending.proposed(index, term, request);
    }
    dropped
}
