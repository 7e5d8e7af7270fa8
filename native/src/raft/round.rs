//! One round: what is ready in any group, one frame and one sync for all of them, then what may follow.
//!
//! Order matters and is this: a leader's appends may leave before its own sync; votes, acknowledgements and
//! everything else of a follower only after it; committed entries are delivered after `advance_append`, and
//! membership changes among them take effect there, before `advance_apply`.

use super::error::Fatal;
use super::failpoints as points;
use super::group::Group;
use super::host::Host;
use super::live::Change;
use super::out::{Applied, Out, Payload};
use super::record::{Base, Hard};
use super::store::sorted;
use raft::eraftpb::{Entry, HardState, Message, Snapshot};
use raft::Ready;
use std::time::{Duration, Instant};

/// A group between its ready and its advance.
struct Turn {
    group: u64,
    ready: Ready,
    committed: Vec<Entry>,
    after_sync: Vec<Message>,
    installed: Option<Applied>,
}

fn hard_of(state: &HardState) -> Hard {
    Hard { term: state.term, vote: state.vote, commit: state.commit }
}

impl Host {
    /// Rounds until nothing is ready, or until nobody fetches what was produced. Returns their number.
    pub fn drive(&mut self, publish: &mut dyn FnMut(&mut Out)) -> Result<u64, Fatal> {
        let mut rounds = 0;
        while self.backlog_bytes + self.out.bytes() <= self.options.outbox_bytes_max && self.round(publish)? {
            rounds += 1;
        }
        Ok(rounds)
    }

    /// True when anything was done. `publish` is called with what may leave before the sync.
    pub(super) fn round(&mut self, publish: &mut dyn FnMut(&mut Out)) -> Result<bool, Fatal> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() && !self.must_flush {
            return Ok(false);
        }
        let mut sync = std::mem::take(&mut self.must_flush);
        let mut turns = Vec::with_capacity(dirty.len());
        for id in dirty {
            if let Some(turn) = self.collect(id, &mut sync) {
                turns.push(turn);
            }
        }
        if !self.out.messages.is_empty() {
            self.failpoints.pass(points::BEFORE_SEND)?;
            publish(&mut self.out);
        }
        if sync {
            self.flush()?;
            if turns.iter().any(|turn| turn.installed.is_some()) {
                self.failpoints.pass(points::AFTER_SNAPSHOT_RECORD)?;
            }
        }
        for (group, name, number) in std::mem::take(&mut self.after_sync) {
            self.out.event(group, name, number, "");
        }
        let worked = sync || !turns.is_empty();
        for turn in turns {
            self.advance(turn)?;
        }
        Ok(worked)
    }

    /// Take what a group has ready: into the log's frame, into its store, and out what may leave at once.
    fn collect(&mut self, id: u64, sync: &mut bool) -> Option<Turn> {
        // Named twice when a group was removed and created again since: one ready at a time.
        let group = self.groups.get_mut(&id).filter(|group| group.dirty)?;
        group.dirty = false;
        group.note_role(&mut self.out);
        group.note_wish(self.ticks, &self.options, &mut self.out);
        if !group.node.has_ready() {
            return None;
        }
        let mut ready = group.node.ready();
        for state in ready.take_read_states() {
            for read in group.reads.answered(group.replica, self.incarnation, &state.request_ctx) {
                self.out.reads.push((id, read, state.index));
                group.read_index = group.read_index.max(state.index);
            }
        }
        group.send(ready.take_messages(), &self.options, &mut self.out);
        let mut installed = None;
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            installed = Some(install(group, snapshot, &mut self.out));
            let store = group.node.store();
            self.log.writer().snapshot(id, &store.base, store.installed.as_deref().unwrap_or_default());
            self.log.note(Change::Cleared { group: id });
        }
        group.node.mut_store().append(ready.entries());
        self.log.append(id, ready.entries());
        if let Some(state) = ready.hs() {
            group.node.mut_store().hard = hard_of(state);
            if ready.must_sync() {
                self.log.writer().hard(id, hard_of(state));
            } else if !group.commit_unsaved {
                group.commit_unsaved = true;
                self.commits_unsaved.push(id);
            }
        }
        *sync |= ready.must_sync();
        let committed = ready.take_committed_entries();
        let after_sync = ready.take_persisted_messages();
        Some(Turn { group: id, ready, committed, after_sync, installed })
    }

    /// The group's frame is durable: send what waited for it, and deliver.
    fn advance(&mut self, turn: Turn) -> Result<(), Fatal> {
        let Turn { group: id, ready, mut committed, after_sync, installed } = turn;
        // Removed by a command between two rounds at the earliest, never inside one.
        let Some(group) = self.groups.get_mut(&id) else { return Ok(()) };
        if !after_sync.is_empty() {
            self.failpoints.pass(points::BEFORE_SEND)?;
        }
        group.send(after_sync, &self.options, &mut self.out);
        let mut light = group.node.advance_append(ready);
        group.send(light.take_messages(), &self.options, &mut self.out);
        committed.extend(light.take_committed_entries());
        if let Some(commit) = light.commit_index() {
            group.node.mut_store().hard.commit = commit;
            if !group.commit_unsaved {
                group.commit_unsaved = true;
                self.commits_unsaved.push(id);
            }
        }
        if installed.is_some() || !committed.is_empty() {
            self.failpoints.pass(points::BEFORE_DELIVER)?;
        }
        if let Some(applied) = installed {
            self.out.apply(applied);
        }
        for entry in committed {
            group.deliver(entry, &mut self.out).map_err(Fatal::Broken)?;
        }
        let last = group.node.raft.raft_log.last_index();
        group.node.advance_apply();
        if group.is_leader() && group.node.raft.raft_log.last_index() > last {
            // The core appended the entry that leaves a joint membership, and does not send it by itself.
            group.node.raft.bcast_append();
        }
        if group.is_leader() && !group.node.raft.promotable() {
            // It took over inside a joint membership that it was leaving. The core would lead on without taking
            // proposals; instead tell the others what is committed, and make room for an election among them.
            let term = group.node.raft.term;
            group.node.raft.bcast_append();
            group.node.raft.become_follower(term, raft::INVALID_ID);
        }
        if !group.untold && group.has_untold_commit() {
            group.untold = true;
            self.untold.push(id);
        }
        self.touch(id);
        Ok(())
    }

    /// When some group's followers, who may not know what is committed, are to be told at the latest.
    pub fn tell_at(&self) -> Option<Instant> {
        self.tell_at
    }

    /// News that nothing has brought them yet may wait for it from now on.
    pub fn hold_news(&mut self, now: impl FnOnce() -> Instant) {
        if !self.untold.is_empty() {
            let delay = Duration::from_millis(self.options.apply_delay_ms);
            self.tell_at.get_or_insert_with(|| now() + delay);
        }
    }

    /// Tell them, if it is time.
    pub fn tell_if_due(&mut self, now: Instant) {
        if self.tell_at.is_none_or(|at| now < at) {
            return;
        }
        self.tell_at = None;
        for id in std::mem::take(&mut self.untold) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.tell_commit();
                self.touch(id);
            }
        }
    }
}

fn install(group: &mut Group, snapshot: Snapshot, out: &mut Out) -> Applied {
    let metadata = snapshot.get_metadata();
    let conf = sorted(metadata.get_conf_state().clone());
    let base = Base { index: metadata.index, term: metadata.term, conf: conf.clone() };
    let (index, term) = (base.index, base.term);
    group.node.mut_store().install(base, snapshot.data.clone());
    group.delivered = index;
    for request in group.pending.jumped_over(index) {
        out.event(group.id, "outcome_unknown", request, "a snapshot covers the proposal's index");
    }
    Applied { group: group.id, index, term, request: 0, payload: Payload::Snapshot(conf, snapshot.data) }
}
