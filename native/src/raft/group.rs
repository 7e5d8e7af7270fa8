//! One replica: the Raft core over its store, and what the host remembers beside it.

use super::mix;
use super::options::Options;
use super::out::{Out, Payload, Reason, RoleChange};
use super::pending::Pending;
use super::reads::Reads;
use super::store::{sorted, Store};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType};
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use slog::{o, Logger};
use std::collections::BTreeMap;

const COMMITTED_BYTES_PER_READY: u64 = 16 << 20;

pub struct Group {
    pub id: u64,
    pub replica: u64,
    pub node: RawNode<Store>,
    /// Last index handed out (or covered by the state machine at open).
    pub delivered: u64,
    /// Entries up to here are in the state machine already: only their membership changes are replayed.
    pub applied_at_open: u64,
    pub pending: Pending,
    pub reads: Reads,
    /// The highest index that an answered read waits for.
    pub read_index: u64,
    pub dirty: bool,
    /// The commit index moved and is not in the log yet; it rides in the next frame.
    pub commit_unsaved: bool,
    /// As a leader: the highest commit index that was sent with anything.
    pub told_commit: u64,
    /// It is among those whose commit index is to be told.
    pub untold: bool,
    /// The term in which it beats together with the other groups that are led here.
    in_step: u64,
    pub seen: Option<(u8, u64, u64)>,
    rolls: u64,
    rolled_for: (u64, u8),
    /// Ticks since a snapshot was sent, by receiver.
    snapshot_ages: BTreeMap<u64, u64>,
    /// The last wish for a snapshot told to the application: (index, replica, tick).
    pub wished: Option<(u64, u64, u64)>,
}

pub fn role_number(role: StateRole) -> u8 {
    match role {
        StateRole::Follower => 0,
        StateRole::Candidate => 1,
        StateRole::Leader => 2,
        StateRole::PreCandidate => 3,
    }
}

impl Group {
    /// `applied`: the durable applied index of the state machine. The recovered commit index may lag behind it,
    /// since a commit index alone is never synced.
    pub fn open(id: u64, mut store: Store, applied: u64, options: &Options) -> Result<Group, String> {
        let (base, last) = (store.base.index, store.last());
        if applied > last {
            return Err(format!(
                "group {id} has applied {applied}, but its log ends at {last}: the log lost entries"
            ));
        }
        // A birth replica's state at index 1 follows from its creation; anything later must come from somewhere.
        if applied < base && base > 1 && store.installed.is_none() {
            return Err(format!(
                "group {id} has applied {applied}, but its log begins after {base}: state is missing"
            ));
        }
        if applied >= base {
            store.installed = None;
        }
        store.hard.commit = store.hard.commit.max(applied).max(base);
        store.hard.term = store.hard.term.max(store.base.term);
        let replica = store.replica;
        let config = Config {
            id: replica,
            election_tick: options.election_ticks,
            heartbeat_tick: options.heartbeat_ticks,
            applied: base,
            max_size_per_msg: options.message_bytes_max,
            max_inflight_msgs: options.inflight_messages_max,
            check_quorum: options.check_quorum,
            pre_vote: options.pre_vote,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: options.uncommitted_bytes_max,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_READY,
            batch_append: true,
            // The next entries bring it along; what nothing brings is told by `Host::tell_if_due`.
            skip_bcast_commit: options.apply_delay_ms > 0,
            ..Default::default()
        };
        // The core's log goes nowhere: what matters of it are the panics' texts, which the host reports.
        let logger = Logger::root(slog::Discard, o!());
        let node = RawNode::new(&config, store, &logger).map_err(|error| format!("group {id}: {error}"))?;
        let mut group = Group {
            id,
            replica,
            node,
            delivered: base,
            applied_at_open: applied,
            pending: Pending::default(),
            reads: Reads::default(),
            read_index: 0,
            dirty: false,
            commit_unsaved: false,
            told_commit: 0,
            untold: false,
            in_step: 0,
            seen: None,
            rolls: 0,
            rolled_for: (u64::MAX, 0),
            snapshot_ages: BTreeMap::new(),
            wished: None,
        };
        group.roll_election_timeout(options);
        Ok(group)
    }

    pub fn store(&self) -> &Store {
        self.node.store()
    }

    pub fn leader(&self) -> u64 {
        self.node.raft.leader_id
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The host's `tick`-th. True: something changed but a count. All leaders of a host beat at the same ticks, so that
    /// what they say travels in one frame to each node: a new one begins to count with the next beat of the others.
    pub fn tick(&mut self, tick: u64, options: &Options) -> bool {
        let beat = options.heartbeat_ticks as u64;
        let patient = options.in_step && options.election_ticks > 2 * options.heartbeat_ticks;
        if patient && self.is_leader() && self.in_step != self.node.raft.term {
            if tick % beat != 0 {
                return false;
            }
            self.in_step = self.node.raft.term;
        }
        self.node.tick()
    }

    /// The core draws election timeouts from the system's randomness whenever it resets. They are set again
    /// after every step, from the seed, so that a run in manual mode can be repeated.
    pub fn roll_election_timeout(&mut self, options: &Options) {
        let raft = &mut self.node.raft;
        let key = (raft.term, role_number(raft.state));
        if key != self.rolled_for {
            self.rolled_for = key;
            self.rolls += 1;
        }
        let draw = mix(options.seed ^ mix(self.replica ^ mix(self.id ^ mix(self.rolls))));
        let spread = options.election_ticks as u64;
        raft.set_randomized_election_timeout(options.election_ticks + (draw % spread) as usize);
    }

    /// Send what the core has to say, and remember what commit index it tells.
    pub fn send(&mut self, messages: Vec<Message>, options: &Options, out: &mut Out) {
        if self.is_leader() {
            let told = messages.iter().filter(|sent| sent.get_msg_type() == MessageType::MsgAppend);
            self.told_commit = told.map(|sent| sent.commit).max().unwrap_or(0).max(self.told_commit);
        }
        out.send(options.node_num, self.id, messages, options.message_bytes_max as usize);
    }

    /// Entries are committed, and its followers may not know.
    pub fn has_untold_commit(&self) -> bool {
        self.is_leader() && self.node.raft.raft_log.committed > self.told_commit
    }

    pub fn tell_commit(&mut self) {
        self.untold = false;
        if self.has_untold_commit() {
            // A follower that takes nothing now hears it with the next heartbeat.
            self.told_commit = self.node.raft.raft_log.committed;
            self.node.raft.bcast_append();
        }
    }

    pub fn note_role(&mut self, out: &mut Out) {
        let raft = &self.node.raft;
        let now = (role_number(raft.state), raft.term, raft.leader_id);
        if self.seen == Some(now) {
            return;
        }
        if self.seen.is_some_and(|(_, term, leader)| (term, leader) != (now.1, now.2)) {
            for read in self.reads.drop_all() {
                out.drop_one(self.id, read, Reason::NoLeader, now.2);
            }
        }
        self.seen = Some(now);
        out.roles.push(RoleChange { group: self.id, role: now.0, term: now.1, leader: now.2 });
    }

    /// Turn a committed entry into what the application applies; membership changes take effect here.
    pub fn deliver(&mut self, entry: Entry, out: &mut Out) -> Result<(), String> {
        let (group, index, term) = (self.id, entry.index, entry.term);
        if index != self.delivered + 1 {
            return Err(format!("group {group}: entry {index} delivered after {}", self.delivered));
        }
        let payload = match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => Payload::Empty,
            EntryType::EntryNormal => Payload::Normal(entry.data.clone()),
            kind => Payload::Conf(self.change_conf(kind, &entry)?),
        };
        self.delivered = index;
        let request = self.pending.committed(index, term, |lost| out.drop_one(group, lost, Reason::Lost, 0));
        if index > self.applied_at_open {
            if self.is_leader() || index <= self.read_index {
                out.want(group);
            }
            out.apply(super::out::Applied { group, index, term, request, payload });
        }
        Ok(())
    }

    fn change_conf(&mut self, kind: EntryType, entry: &Entry) -> Result<ConfState, String> {
        // Only the second form is ever proposed; the empty one, which leaves a joint membership, too.
        let mut change = ConfChangeV2::default();
        if kind != EntryType::EntryConfChangeV2 || change.merge_from_bytes(&entry.data).is_err() {
            return Err(format!(
                "group {}: the membership change at {} cannot be read",
                self.id, entry.index
            ));
        }
        let conf = self.node.apply_conf_change(&change).map_err(|error| {
            format!("group {}: the membership change at {} cannot be applied: {error}", self.id, entry.index)
        })?;
        let conf = sorted(conf);
        self.node.mut_store().conf_applied(entry.index, conf.clone());
        Ok(conf)
    }

    /// Tell the application which snapshot is needed, at most once per election timeout while nothing changes.
    pub fn note_wish(&mut self, tick: u64, options: &Options, out: &mut Out) {
        let Some((index, to)) = self.node.store().wanted.take() else { return };
        let again = options.election_ticks as u64;
        if let Some((at, replica, since)) = self.wished {
            if (at, replica) == (index, to) && tick < since + again {
                return;
            }
        }
        self.wished = Some((index, to, tick));
        out.snapshots_wanted.push((self.id, index, to));
    }

    /// The core waits for ever for the fate of a snapshot it sent: a lost one is given up after a while. True: now.
    pub fn age_snapshots(&mut self, timeout_ticks: u64) -> bool {
        if !self.is_leader() {
            self.snapshot_ages.clear();
            return false;
        }
        let mut given_up = false;
        let sent: Vec<u64> = self
            .node
            .raft
            .prs()
            .iter()
            .filter(|(_, progress)| progress.state == ProgressState::Snapshot)
            .map(|(replica, _)| *replica)
            .collect();
        self.snapshot_ages.retain(|replica, _| sent.contains(replica));
        for replica in sent {
            let age = self.snapshot_ages.entry(replica).or_default();
            *age += 1;
            if *age > timeout_ticks {
                self.snapshot_ages.remove(&replica);
                self.node.report_snapshot(replica, SnapshotStatus::Failure);
                given_up = true;
            }
        }
        given_up
    }

    /// The snapshot is still travelling: count from anew.
    pub fn snapshot_progress(&mut self, replica: u64) {
        self.snapshot_ages.insert(replica, 0);
    }
}
