//! A replica of a group that lost its quorum for good becomes the only voter of what is left of it.
//!
//! It goes on under a new replica id: nobody who still has the old membership ever meets it, and the old id is a
//! tombstone. Everything in its log counts as committed from here on, whoever else had it; membership changes that it
//! had not applied do not, since they may name voters that are gone. One frame holds the whole change, so after a
//! crash it has happened or it has not.

use super::error::Fatal;
use super::failpoints as points;
use super::guard::{self, Change};
use super::host::Host;
use super::live;
use super::node_of;
use super::out::Reason;
use super::record::{Base, Hard};
use super::store::Store;
use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType};

impl Host {
    /// `from` becomes `replica`, in a term above its own and above `term_min`. Behind its log come the membership
    /// of one voter and then the payloads, all of it committed. Refused with the reason, or done once `seized` is
    /// told.
    pub fn seize_group(
        &mut self,
        id: u64,
        from: u64,
        replica: u64,
        term_min: u64,
        payloads: Vec<Bytes>,
    ) -> Result<Result<(), String>, Fatal> {
        if let Err(text) = self.may_seize(id, from, replica) {
            return Ok(Err(text));
        }
        // As in a removal: no record may come to lie behind the states of a new segment that it knows nothing of.
        if self.log.has_records() {
            self.flush()?;
        }
        self.failpoints.pass(points::BEFORE_CREATE_RECORD)?;
        let Some(mut old) = self.groups.remove(&id) else { return Ok(Ok(())) };
        for read in old.reads.drop_all() {
            self.out.drop_one(id, read, Reason::NoLeader, 0);
        }
        for request in old.pending.jumped_over(u64::MAX) {
            self.out.event(id, "outcome_unknown", request, "the group was seized here");
        }
        let store = old.store();
        let term = store.hard.term.max(old.node.raft.term).max(term_min) + 1;
        let conf = ConfState { voters: vec![replica], ..Default::default() };
        let base = Base { conf, ..store.base.clone() };
        let entries = inherited(store, replica, term, payloads).map_err(Fatal::Broken)?;
        let commit = base.index + entries.len() as u64;
        let hard = Hard { term, vote: 0, commit };
        self.tombstones.entry(id).or_default().insert(from);
        self.log.writer().remove(id, from);
        self.log.note(live::Change::Cleared { group: id });
        // What the state machine may lack it may lack afterwards, too.
        let installed = store.installed.clone();
        self.log.writer().state(id, replica, &base, hard, installed.as_deref());
        self.log.append(id, &entries);
        self.must_flush = true;
        self.after_sync.push((id, "seized", replica));
        self.add(id, Store::new(replica, base, hard, entries, None), old.delivered).map_err(Fatal::Broken)?;
        if let Some(group) = self.groups.get_mut(&id) {
            group.node.mut_store().installed = installed;
        }
        Ok(Ok(()))
    }

    fn may_seize(&self, id: u64, from: u64, replica: u64) -> Result<(), String> {
        let own = self.options.node_num;
        let Some(group) = self.groups.get(&id) else { return Err(format!("there is no group {id} here")) };
        if group.replica != from {
            return Err(format!("group {id} has replica {} here, not {from}", group.replica));
        }
        if node_of(replica) != own || replica == from {
            return Err(format!("replica {replica} is not a new one of node {own}"));
        }
        if self.tombstones.get(&id).is_some_and(|gone| gone.contains(&replica)) {
            return Err(format!("replica {replica} of group {id} was removed for good"));
        }
        if group.store().is_blank() {
            return Err(format!("replica {from} of group {id} was never told anything"));
        }
        Ok(())
    }
}

/// The log as the new replica has it: what was there, its unapplied membership changes emptied, and the new end.
fn inherited(store: &Store, replica: u64, term: u64, payloads: Vec<Bytes>) -> Result<Vec<Entry>, String> {
    let mut entries: Vec<Entry> = store.range(store.base.index + 1, store.last()).cloned().collect();
    for entry in &mut entries {
        if entry.get_entry_type() != EntryType::EntryNormal {
            entry.set_entry_type(EntryType::EntryNormal);
            entry.data = Bytes::new();
        }
    }
    let change = guard::conf_change(&[Change::Voter(replica)]);
    let data = change.write_to_bytes().map_err(|error| error.to_string())?;
    let mut next = store.last() + 1;
    let mut push = |kind: EntryType, data: Bytes| {
        let mut entry = Entry { index: next, term, data, ..Default::default() };
        entry.set_entry_type(kind);
        entries.push(entry);
        next += 1;
    };
    push(EntryType::EntryConfChangeV2, data.into());
    for payload in payloads {
        push(EntryType::EntryNormal, payload);
    }
    Ok(entries)
}
