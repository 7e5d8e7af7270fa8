//! What is checked before a message or a change reaches the Raft core, which trusts its input and panics.
//!
//! Known gaps of raft 0.7.0 that are closed from outside:
//! - A stale rejection can move `next_index` down to or below `matched` (fixed upstream in #557): a rejection at
//!   or below `matched` is dropped here. A follower that really lost entries it acknowledged must not be helped
//!   back silently anyway.
//! - Followers forward proposals and leader transfers: both are refused at the host, and from the wire.
//! - Any replica grants votes, a blank one too: it may not, before a snapshot told it its membership. (A learner
//!   that has a membership may: it can have been promoted without knowing yet, and its vote is durable.)
//! - `campaign` does not look whether the replica may be a leader, and an empty membership wins at once.
//! - A term of 0 marks a local message and would skip every check of terms.
//! - Forwarded reads are indexed without looking at their number.
//! - A change to a joint membership, or a second pending one, silently becomes an empty entry; a change that
//!   cannot be applied is found out only when it is committed; a leader that removes itself stays leader and
//!   drops proposals. All are refused before they are proposed.
//! - The entry that leaves a joint membership is appended but not sent: the round sends it (`round`).
//!
//! Not reachable from here: a heartbeat whose commit index lies beyond a follower's log panics. It means that
//! the follower lost what it had acknowledged, so the end of the host is the right answer.

use super::node_of;
use super::store::Store;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message, MessageType};
use raft::{Changer, RawNode, StateRole};

/// Why a message must not be stepped.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It makes no sense: an event, since somebody is broken.
    Bad(&'static str),
    /// It is for another replica of the group.
    WrongReplica,
    /// It is fine, and of no use now.
    Ignored,
}

pub fn admit(from_node: u32, message: &Message, node: &RawNode<Store>) -> Result<(), Refusal> {
    use MessageType::*;
    let kind = message.get_msg_type();
    if node_of(message.from) != from_node {
        return Err(Refusal::Bad("the sender is not a replica of the sending node"));
    }
    if message.to != node.raft.id {
        return Err(Refusal::WrongReplica);
    }
    let known = matches!(
        kind,
        MsgAppend
            | MsgAppendResponse
            | MsgRequestVote
            | MsgRequestVoteResponse
            | MsgSnapshot
            | MsgHeartbeat
            | MsgHeartbeatResponse
            | MsgTimeoutNow
            | MsgReadIndex
            | MsgReadIndexResp
            | MsgRequestPreVote
            | MsgRequestPreVoteResponse
    );
    if !known {
        return Err(Refusal::Bad("a kind of message that never travels"));
    }
    if (kind == MsgReadIndex) != (message.term == 0) {
        return Err(Refusal::Bad("the term does not fit the kind of message"));
    }
    match kind {
        MsgReadIndex | MsgReadIndexResp if message.entries.len() != 1 => {
            Err(Refusal::Bad("a read without its context"))
        }
        // Somebody else's forwarded read must not be forwarded again: its leader changed, it asks anew.
        MsgReadIndex if node.raft.state != StateRole::Leader => Err(Refusal::Ignored),
        MsgAppend => admit_entries(message),
        MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            if metadata.index == 0 || metadata.term == 0 || metadata.get_conf_state().voters.is_empty() {
                return Err(Refusal::Bad("a snapshot without index, term or members"));
            }
            Ok(())
        }
        MsgRequestVote | MsgRequestPreVote if node.store().is_blank() => Err(Refusal::Ignored),
        MsgAppendResponse => admit_append_response(message, node),
        _ => Ok(()),
    }
}

fn admit_entries(message: &Message) -> Result<(), Refusal> {
    let mut term = message.log_term;
    for (at, entry) in message.entries.iter().enumerate() {
        if entry.index != message.index + 1 + at as u64 || entry.term < term || entry.term > message.term {
            return Err(Refusal::Bad("entries that do not follow each other"));
        }
        term = entry.term;
    }
    Ok(())
}

fn admit_append_response(message: &Message, node: &RawNode<Store>) -> Result<(), Refusal> {
    let raft = &node.raft;
    if raft.state != StateRole::Leader || message.term != raft.term {
        return Ok(());
    }
    let Some(progress) = raft.prs().get(message.from) else { return Ok(()) };
    if message.reject {
        if message.index <= progress.matched && message.request_snapshot == 0 {
            return Err(Refusal::Ignored);
        }
    } else if message.index > raft.raft_log.last_index() {
        return Err(Refusal::Bad("an acknowledgement of entries that do not exist"));
    }
    Ok(())
}

/// One change of `change_membership`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Voter(u64),
    Learner(u64),
    Remove(u64),
}

pub fn conf_change(changes: &[Change]) -> ConfChangeV2 {
    let singles = changes.iter().map(|change| {
        let (kind, replica) = match *change {
            Change::Voter(replica) => (ConfChangeType::AddNode, replica),
            Change::Learner(replica) => (ConfChangeType::AddLearnerNode, replica),
            Change::Remove(replica) => (ConfChangeType::RemoveNode, replica),
        };
        let mut single = ConfChangeSingle { node_id: replica, ..Default::default() };
        single.set_change_type(kind);
        single
    });
    let mut change = ConfChangeV2::default();
    change.set_changes(singles.collect::<Vec<_>>().into());
    change
}

/// Whether the core would apply the change, asked without changing anything.
pub fn would_apply(node: &RawNode<Store>, change: &ConfChangeV2) -> Result<(), String> {
    let own = node.raft.id;
    for single in change.changes.iter() {
        if single.node_id == own && single.get_change_type() != ConfChangeType::AddNode {
            return Err("a leader must hand over before it leaves or becomes a learner".to_owned());
        }
    }
    let mut changer = Changer::new(node.raft.prs());
    let tried = match change.enter_joint() {
        Some(auto_leave) => changer.enter_joint(auto_leave, &change.changes),
        None => changer.simple(&change.changes),
    };
    tried.map(|_| ()).map_err(|error| error.to_string())
}
