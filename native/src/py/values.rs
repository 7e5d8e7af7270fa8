//! Values the host answers with.

use crate::raft::host::Status;
use crate::raft::log;
use pyo3::prelude::*;
use raft::eraftpb::ConfState;
use std::collections::BTreeMap;

#[pyclass(frozen, eq, get_all, module = "flotta_native")]
#[derive(Clone, PartialEq, Eq)]
pub struct Membership {
    voters: Vec<u64>,
    learners: Vec<u64>,
    voters_outgoing: Vec<u64>,
}

impl From<&ConfState> for Membership {
    fn from(conf: &ConfState) -> Self {
        // What becomes a learner on leaving a joint membership is a voter until then.
        Membership {
            voters: conf.voters.clone(),
            learners: conf.learners.clone(),
            voters_outgoing: conf.voters_outgoing.clone(),
        }
    }
}

#[pymethods]
impl Membership {
    #[new]
    #[pyo3(signature = (voters=vec![], learners=vec![], voters_outgoing=vec![]))]
    fn new(voters: Vec<u64>, learners: Vec<u64>, voters_outgoing: Vec<u64>) -> Self {
        Membership { voters, learners, voters_outgoing }
    }

    fn __repr__(&self) -> String {
        format!(
            "Membership(voters={:?}, learners={:?}, voters_outgoing={:?})",
            self.voters, self.learners, self.voters_outgoing
        )
    }
}

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct GroupStatus {
    group: u64,
    replica: u64,
    role: u8,
    term: u64,
    vote: u64,
    leader: u64,
    committed: u64,
    delivered: u64,
    first_index: u64,
    last_index: u64,
    last_term: u64,
    log_bytes: u64,
    membership: Py<Membership>,
    matched: BTreeMap<u64, u64>,
    pending_snapshot: BTreeMap<u64, u64>,
    recent_active: BTreeMap<u64, bool>,
}

impl GroupStatus {
    pub fn new(py: Python<'_>, status: Status) -> PyResult<Self> {
        Ok(GroupStatus {
            group: status.group,
            replica: status.replica,
            role: status.role,
            term: status.term,
            vote: status.vote,
            leader: status.leader,
            committed: status.committed,
            delivered: status.delivered,
            first_index: status.first_index,
            last_index: status.last_index,
            last_term: status.last_term,
            log_bytes: status.log_bytes,
            membership: Py::new(py, Membership::from(&status.membership))?,
            matched: status.matched,
            pending_snapshot: status.pending_snapshot,
            recent_active: status.recent_active,
        })
    }
}

#[pymethods]
impl GroupStatus {
    fn __repr__(&self) -> String {
        format!(
            "GroupStatus(group={}, replica={}, role={}, term={}, leader={}, committed={}, delivered={}, log={}..={})",
            self.group,
            self.replica,
            self.role,
            self.term,
            self.leader,
            self.committed,
            self.delivered,
            self.first_index,
            self.last_index
        )
    }
}

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct LogStats {
    frames: u64,
    syncs: u64,
    bytes: u64,
    segments: u64,
    rotations: u64,
    removed: u64,
    rewritten_entries: u64,
    wakes: u64,
}

impl LogStats {
    pub fn new(stats: log::LogStats, wakes: u64) -> Self {
        LogStats {
            frames: stats.frames,
            syncs: stats.syncs,
            bytes: stats.bytes,
            segments: stats.segments,
            rotations: stats.rotations,
            removed: stats.removed,
            rewritten_entries: stats.rewritten_entries,
            wakes,
        }
    }
}
