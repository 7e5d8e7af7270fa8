//! The host: all groups of a process over one log.
//!
//! `commands` changes groups, `round` makes durable and sends what the changes produced; nothing else touches
//! either. A host that met a `Fatal` takes no further part in anything.

use super::error::{Fatal, OpenError};
use super::failpoints::Failpoints;
use super::files::Files;
use super::group::{role_number, Group};
use super::log::{Checkpoint, Log, LogStats, Opened};
use super::options::Options;
use super::out::Out;
use super::record::{Base, Hard, Writer};
use super::recover::Replayed;
use super::store::Store;
use super::sync_times::SyncTimes;
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry};
use raft::ProgressState;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

pub struct Host {
    pub options: Options,
    pub(super) groups: BTreeMap<u64, Group>,
    pub(super) tombstones: BTreeMap<u64, BTreeSet<u64>>,
    pub(super) log: Log,
    pub(super) out: Out,
    /// Groups something happened to since they were last looked at.
    pub(super) dirty: Vec<u64>,
    /// Events that may be told only when the next frame is durable.
    pub(super) after_sync: Vec<(u64, &'static str, u64)>,
    /// Records that must not wait for somebody else's frame.
    pub(super) must_flush: bool,
    pub(super) commits_unsaved: Vec<u64>,
    /// Groups led here whose followers are to be told what is committed.
    pub(super) untold: Vec<u64>,
    /// When they are to be told at the latest.
    pub(super) tell_at: Option<Instant>,
    pub(super) incarnation: u64,
    pub(super) ticks: u64,
    /// Bytes already handed over and not yet fetched (threaded mode).
    pub backlog_bytes: u64,
    pub failpoints: Failpoints,
}

/// The states of all groups, as a new segment begins with them.
pub(super) struct States<'a> {
    pub node_num: u32,
    pub incarnation: u64,
    pub groups: &'a BTreeMap<u64, Group>,
    pub tombstones: &'a BTreeMap<u64, BTreeSet<u64>>,
}

impl Checkpoint for States<'_> {
    fn write(&self, writer: &mut Writer<'_>) {
        writer.checkpoint(self.node_num, self.incarnation);
        for (group, replicas) in self.tombstones {
            for replica in replicas {
                writer.tombstone(*group, *replica);
            }
        }
        for (id, group) in self.groups {
            let store = group.store();
            writer.state(*id, group.replica, &store.base, store.hard, store.installed.as_deref());
        }
    }

    fn store(&self, group: u64) -> Option<&Store> {
        self.groups.get(&group).map(Group::store)
    }

    fn live_bytes(&self) -> u64 {
        self.groups.values().map(|group| group.store().bytes()).sum()
    }
}

#[derive(Debug, Clone, Default)]
pub struct Status {
    pub group: u64,
    pub replica: u64,
    pub role: u8,
    pub term: u64,
    pub vote: u64,
    pub leader: u64,
    pub committed: u64,
    pub delivered: u64,
    pub first_index: u64,
    pub last_index: u64,
    pub last_term: u64,
    pub log_bytes: u64,
    pub membership: ConfState,
    pub matched: BTreeMap<u64, u64>,
    pub pending_snapshot: BTreeMap<u64, u64>,
    pub recent_active: BTreeMap<u64, bool>,
}

/// A snapshot the log accepted and the state machine lacks.
#[derive(Debug, Clone, PartialEq)]
pub struct PendingInstall {
    pub index: u64,
    pub term: u64,
    pub conf: ConfState,
    pub manifest: Bytes,
}

impl Host {
    pub fn open(
        options: Options,
        files: Arc<dyn Files>,
        applied: &BTreeMap<u64, u64>,
        failpoints: Failpoints,
    ) -> Result<Host, OpenError> {
        options.check()?;
        let Opened { log, groups, tombstones, node_num, incarnation } =
            Log::open(files, &options, options.seed, failpoints.clone())?;
        if let Some(other) = node_num.filter(|other| *other != options.node_num) {
            let text = format!("node_num is {}, but this log belongs to node {other}", options.node_num);
            return Err(OpenError::Invalid(text));
        }
        for (group, index) in applied {
            if *index > 1 && !groups.contains_key(group) && !tombstones.contains_key(group) {
                let text =
                    format!("applied: group {group} has applied {index}, but the log does not know it");
                return Err(OpenError::Invalid(text));
            }
        }
        let mut host = Host {
            options,
            groups: BTreeMap::new(),
            tombstones,
            log,
            out: Out::default(),
            dirty: Vec::new(),
            after_sync: Vec::new(),
            must_flush: true,
            commits_unsaved: Vec::new(),
            untold: Vec::new(),
            tell_at: None,
            incarnation,
            ticks: 0,
            backlog_bytes: 0,
            failpoints,
        };
        for (id, replayed) in groups {
            let store = store_of(replayed);
            host.add(id, store, applied.get(&id).copied().unwrap_or(0))
                .map_err(|text| OpenError::Invalid(format!("applied: {text}")))?;
        }
        // The new incarnation is durable before anything can leave the host under it.
        let (node_num, incarnation) = (host.options.node_num, host.incarnation);
        host.log.writer().boot(node_num, incarnation);
        host.flush()?;
        host.must_flush = false;
        // Bring the core's applied index up to the state machine's, replaying membership changes on the way.
        while host.round(&mut |_| ())? {}
        Ok(host)
    }

    pub(super) fn add(&mut self, id: u64, store: Store, applied: u64) -> Result<(), String> {
        let group = Group::open(id, store, applied, &self.options)?;
        self.groups.insert(id, group);
        self.touch(id);
        Ok(())
    }

    /// To be looked at in the next round; every change to a group ends here.
    pub(super) fn touch(&mut self, id: u64) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.roll_election_timeout(&self.options);
            if !group.dirty {
                group.dirty = true;
                self.dirty.push(id);
            }
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), Fatal> {
        for id in std::mem::take(&mut self.commits_unsaved) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.commit_unsaved = false;
                let hard = group.store().hard;
                self.log.writer().hard(id, hard);
            }
        }
        let states = States {
            node_num: self.options.node_num,
            incarnation: self.incarnation,
            groups: &self.groups,
            tombstones: &self.tombstones,
        };
        if self.log.flush(&states)? {
            self.out.compactions_wanted.extend(self.log.pinning());
        }
        Ok(())
    }

    /// The last thing of a life that ends in order: commit indices nobody synced yet.
    pub fn close(&mut self) -> Result<(), Fatal> {
        if self.log.has_records() || !self.commits_unsaved.is_empty() {
            self.flush()?;
        }
        Ok(())
    }

    pub fn out(&mut self) -> &mut Out {
        &mut self.out
    }

    pub fn take_out(&mut self) -> Out {
        std::mem::take(&mut self.out)
    }

    pub fn group_ids(&self) -> Vec<u64> {
        self.groups.keys().copied().collect()
    }

    pub fn tombstones(&self) -> BTreeMap<u64, Vec<u64>> {
        self.tombstones.iter().map(|(group, replicas)| (*group, replicas.iter().copied().collect())).collect()
    }

    pub fn sync_times(&self) -> Arc<SyncTimes> {
        self.log.sync_times().clone()
    }

    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    pub fn status(&self, wanted: Option<&[u64]>) -> Vec<Status> {
        match wanted {
            None => self.groups.values().map(status_of).collect(),
            Some(ids) => ids.iter().filter_map(|id| self.groups.get(id)).map(status_of).collect(),
        }
    }

    pub fn pending_install(&self, group: u64) -> Option<PendingInstall> {
        let store = self.groups.get(&group)?.store();
        let Base { index, term, conf } = store.base.clone();
        store.installed.clone().map(|manifest| PendingInstall { index, term, conf, manifest })
    }

    /// Entries of `low..=high` that are in the log.
    pub fn entries(&self, group: u64, low: u64, high: u64) -> Vec<Entry> {
        self.groups
            .get(&group)
            .map_or_else(Vec::new, |group| group.store().range(low, high).cloned().collect())
    }
}

fn store_of(replayed: Replayed) -> Store {
    let Replayed { replica, base, hard, installed, entries } = replayed;
    Store::new(replica, base, hard, entries.into_values().collect(), installed.map(Bytes::from))
}

/// The state of a replica that is born with its group: index 1, term 1, so that whoever joins later cannot be
/// served from the log and gets a snapshot with its membership.
pub(super) fn birth(voters: &[u64]) -> (Base, Hard) {
    let conf = super::store::sorted(ConfState { voters: voters.to_vec(), ..Default::default() });
    (Base { index: 1, term: 1, conf }, Hard { term: 1, vote: 0, commit: 1 })
}

fn status_of(group: &Group) -> Status {
    let raft = &group.node.raft;
    let store = group.store();
    let mut status = Status {
        group: group.id,
        replica: group.replica,
        role: role_number(raft.state),
        term: raft.term,
        vote: raft.vote,
        leader: raft.leader_id,
        committed: raft.raft_log.committed,
        delivered: group.delivered,
        first_index: store.base.index + 1,
        last_index: raft.raft_log.last_index(),
        last_term: raft.raft_log.last_term(),
        log_bytes: store.bytes(),
        membership: store.conf().1.clone(),
        ..Default::default()
    };
    if group.is_leader() {
        for (replica, progress) in raft.prs().iter() {
            status.matched.insert(*replica, progress.matched);
            status.recent_active.insert(*replica, *replica == group.replica || progress.recent_active);
            if progress.state == ProgressState::Snapshot {
                status.pending_snapshot.insert(*replica, progress.pending_snapshot);
            }
        }
    }
    status
}
