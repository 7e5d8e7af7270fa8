//! `RaftHost`: a thread of its own, or driven by hand; the same calls either way.

use super::batch::Batch;
use super::disk::SimDisk;
use super::values::{GroupStatus, LogStats, Membership};
use super::{fatal_error, open_error, APPLY_CONF, APPLY_EMPTY, APPLY_NORMAL};
use crate::raft::clock::Clock;
use crate::raft::commands::Proposal;
use crate::raft::error::Fatal;
use crate::raft::failpoints::Failpoints;
use crate::raft::files::{Files, RealFiles};
use crate::raft::guard::Change;
use crate::raft::host::Host;
use crate::raft::mailbox::Command;
use crate::raft::mix;
use crate::raft::options::Options;
use crate::raft::runner::Runner;
use crate::raft::sync_times::SyncTimes;
use bytes::Bytes;
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMapping};
use raft::eraftpb::EntryType;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[pyclass(frozen, module = "flotta_native")]
pub struct RaftHost {
    pub runner: Runner,
    pub manual: bool,
    entry_bytes_max: u64,
    sync_times: Arc<SyncTimes>,
}

impl RaftHost {
    fn task(
        &self,
        py: Python<'_>,
        run: impl FnOnce(&mut Host) -> Result<(), Fatal> + Send + 'static,
    ) -> PyResult<()> {
        py.detach(|| self.runner.send(Command::Task(Box::new(run)))).map_err(fatal_error)
    }

    fn ask<T: Send + 'static>(
        &self,
        py: Python<'_>,
        run: impl FnOnce(&mut Host) -> Result<T, Fatal> + Send + 'static,
    ) -> PyResult<T> {
        py.detach(|| self.runner.ask(run)).map_err(fatal_error)
    }

    fn manual_only(&self, call: &str) -> PyResult<()> {
        if self.manual {
            return Ok(());
        }
        Err(PyRuntimeError::new_err(format!("{call} is for manual mode")))
    }
}

fn system_seed() -> std::io::Result<u64> {
    let mut bytes = [0u8; 8];
    // SAFETY: fills eight bytes of a live local.
    let filled = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if filled != bytes.len() as isize {
        return Err(std::io::Error::last_os_error());
    }
    Ok(u64::from_le_bytes(bytes))
}

fn applied_map(applied: &Bound<'_, PyMapping>) -> PyResult<BTreeMap<u64, u64>> {
    let mut map = BTreeMap::new();
    for item in applied.items()?.iter() {
        let (group, index) = item.extract()?;
        map.insert(group, index);
    }
    Ok(map)
}

#[pymethods]
impl RaftHost {
    #[new]
    #[pyo3(signature = (
        node_num, dir, *, applied, mode="threaded", disk=None, seed=0, tick_ms=100, election_ticks=10,
        heartbeat_ticks=2, pre_vote=true, check_quorum=true, segment_bytes=64 << 20, entry_bytes_max=32 << 20,
        message_bytes_max=1 << 20, inflight_messages_max=256, uncommitted_bytes_max=64 << 20,
        inbox_bytes_max=256 << 20, outbox_bytes_max=256 << 20, snapshot_timeout_ticks=600,
        apply_delay_ms=0, in_step=None,
    ))]
    #[allow(clippy::too_many_arguments)] // the keyword options of the contract
    fn new(
        py: Python<'_>,
        node_num: u32,
        dir: &str,
        applied: &Bound<'_, PyMapping>,
        mode: &str,
        disk: Option<&Bound<'_, SimDisk>>,
        seed: u64,
        tick_ms: u64,
        election_ticks: usize,
        heartbeat_ticks: usize,
        pre_vote: bool,
        check_quorum: bool,
        segment_bytes: u64,
        entry_bytes_max: u64,
        message_bytes_max: u64,
        inflight_messages_max: usize,
        uncommitted_bytes_max: u64,
        inbox_bytes_max: u64,
        outbox_bytes_max: u64,
        snapshot_timeout_ticks: u64,
        apply_delay_ms: u64,
        in_step: Option<bool>,
    ) -> PyResult<Self> {
        let manual = match mode {
            "manual" => true,
            "threaded" => false,
            _ => {
                return Err(PyValueError::new_err(format!("mode is {mode:?}, it must be threaded or manual")))
            }
        };
        let seed = if manual { seed } else { mix(seed ^ system_seed()?) };
        let options = Options {
            node_num,
            seed,
            tick_ms,
            election_ticks,
            heartbeat_ticks,
            pre_vote,
            check_quorum,
            segment_bytes,
            entry_bytes_max,
            message_bytes_max,
            inflight_messages_max,
            uncommitted_bytes_max,
            inbox_bytes_max,
            outbox_bytes_max,
            snapshot_timeout_ticks,
            apply_delay_ms,
            in_step: in_step.unwrap_or(!manual),
            background: !manual,
        };
        options.check().map_err(open_error)?;
        let applied = applied_map(applied)?;
        let failpoints = match std::env::var("FLOTTA_FAILPOINTS") {
            Ok(text) if !manual => Failpoints::from_text(&text).map_err(PyValueError::new_err)?,
            _ => Failpoints::default(),
        };
        let disk = disk.map(|disk| disk.get().disk.clone());
        let host = py.detach(|| {
            let files: Arc<dyn Files> = match disk {
                Some(disk) => Arc::new(disk.dir(dir)),
                None => Arc::new(RealFiles::new(Path::new(dir))?),
            };
            crate::raft::runner::guarded(|| Ok(Host::open(options, files, &applied, failpoints)))?
        });
        let host = host.map_err(open_error)?;
        let sync_times = host.sync_times();
        let clock = if manual { Clock::by_hand() } else { Clock::System };
        Ok(RaftHost { runner: Runner::new(host, clock)?, manual, entry_bytes_max, sync_times })
    }

    fn notify_fd(&self) -> i32 {
        self.runner.mailbox().notify_fd()
    }

    fn start(&self) -> PyResult<()> {
        if self.manual {
            return Err(PyRuntimeError::new_err("start is for threaded mode"));
        }
        self.runner.start().map_err(PyRuntimeError::new_err)
    }

    #[pyo3(signature = (timeout_ms=10_000))]
    fn stop(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<()> {
        if py.detach(|| self.runner.stop(Duration::from_millis(timeout_ms))) {
            return Ok(());
        }
        Err(PyTimeoutError::new_err(format!("the round did not end within {timeout_ms} ms")))
    }

    fn groups(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.ask(py, |host| Ok(host.group_ids()))
    }

    fn tombstones(&self, py: Python<'_>) -> PyResult<BTreeMap<u64, Vec<u64>>> {
        self.ask(py, |host| Ok(host.tombstones()))
    }

    #[pyo3(signature = (groups=None))]
    fn status(&self, py: Python<'_>, groups: Option<Vec<u64>>) -> PyResult<Vec<GroupStatus>> {
        let statuses = self.ask(py, move |host| Ok(host.status(groups.as_deref())))?;
        statuses.into_iter().map(|status| GroupStatus::new(py, status)).collect()
    }

    #[allow(clippy::type_complexity)] // the tuple of the contract
    fn pending_install(
        &self,
        py: Python<'_>,
        group: u64,
    ) -> PyResult<Option<(u64, u64, Membership, Py<PyBytes>)>> {
        let pending = self.ask(py, move |host| Ok(host.pending_install(group)))?;
        Ok(pending.map(|pending| {
            let manifest = PyBytes::new(py, &pending.manifest).unbind();
            (pending.index, pending.term, Membership::from(&pending.conf), manifest)
        }))
    }

    fn create_group(&self, py: Python<'_>, group: u64, replica: u64, voters: Vec<u64>) -> PyResult<()> {
        self.ask(py, move |host| host.create_group(group, replica, &voters))?.map_err(PyValueError::new_err)
    }

    fn seize_group(
        &self,
        py: Python<'_>,
        group: u64,
        from_replica: u64,
        replica: u64,
        term_min: u64,
        payloads: Vec<Bound<'_, PyBytes>>,
    ) -> PyResult<()> {
        let mut taken = Vec::with_capacity(payloads.len());
        for payload in &payloads {
            let bytes = payload.as_bytes();
            if bytes.is_empty() || bytes.len() as u64 > self.entry_bytes_max {
                let (length, max) = (bytes.len(), self.entry_bytes_max);
                return Err(PyValueError::new_err(format!(
                    "a payload has {length} bytes, it must have 1..={max}"
                )));
            }
            taken.push(Bytes::copy_from_slice(bytes));
        }
        self.ask(py, move |host| host.seize_group(group, from_replica, replica, term_min, taken))?
            .map_err(PyValueError::new_err)
    }

    fn remove_group(&self, py: Python<'_>, group: u64) -> PyResult<()> {
        self.task(py, move |host| host.remove_group(group))
    }

    fn propose_many(&self, py: Python<'_>, proposals: Vec<(u64, u64, Bound<'_, PyBytes>)>) -> PyResult<()> {
        let mut taken: Vec<Proposal> = Vec::with_capacity(proposals.len());
        for (group, request, payload) in &proposals {
            let bytes = payload.as_bytes();
            if *request == 0 {
                return Err(PyValueError::new_err(format!("request_id of a proposal to group {group} is 0")));
            }
            if bytes.is_empty() || bytes.len() as u64 > self.entry_bytes_max {
                let (length, max) = (bytes.len(), self.entry_bytes_max);
                let text = format!("payload of request {request} has {length} bytes, it must have 1..={max}");
                return Err(PyValueError::new_err(text));
            }
            taken.push((*group, *request, Bytes::copy_from_slice(bytes)));
        }
        py.detach(|| self.runner.send(Command::Propose(taken))).map_err(fatal_error)
    }

    fn read_index_many(&self, py: Python<'_>, reads: Vec<(u64, u64)>) -> PyResult<()> {
        self.task(py, move |host| {
            host.read_index(reads);
            Ok(())
        })
    }

    fn step(&self, py: Python<'_>, frame: &Bound<'_, PyBytes>) -> PyResult<()> {
        let frame = Bytes::copy_from_slice(frame.as_bytes());
        py.detach(|| self.runner.send(Command::Step(vec![frame]))).map_err(fatal_error)
    }

    fn transfer_leader(&self, py: Python<'_>, group: u64, to_replica: u64) -> PyResult<()> {
        self.task(py, move |host| {
            host.transfer_leader(group, to_replica);
            Ok(())
        })
    }

    fn campaign(&self, py: Python<'_>, group: u64) -> PyResult<()> {
        self.task(py, move |host| {
            host.campaign(group);
            Ok(())
        })
    }

    fn change_membership(
        &self,
        py: Python<'_>,
        group: u64,
        request_id: u64,
        changes: Vec<(String, u64)>,
    ) -> PyResult<()> {
        if request_id == 0 {
            return Err(PyValueError::new_err("request_id is 0"));
        }
        if changes.is_empty() {
            return Err(PyValueError::new_err("changes is empty"));
        }
        let mut parsed = Vec::with_capacity(changes.len());
        let mut named = HashSet::new();
        for (kind, replica) in changes {
            if replica == 0 || !named.insert(replica) {
                return Err(PyValueError::new_err(format!(
                    "changes names replica {replica} twice, or it is 0"
                )));
            }
            parsed.push(match kind.as_str() {
                "voter" => Change::Voter(replica),
                "learner" => Change::Learner(replica),
                "remove" => Change::Remove(replica),
                _ => return Err(PyValueError::new_err(format!("changes: {kind:?} is no kind of change"))),
            });
        }
        self.task(py, move |host| {
            host.change_membership(group, request_id, &parsed);
            Ok(())
        })
    }

    fn snapshot_ready(
        &self,
        py: Python<'_>,
        group: u64,
        index: u64,
        manifest: &Bound<'_, PyBytes>,
    ) -> PyResult<()> {
        let manifest = Bytes::copy_from_slice(manifest.as_bytes());
        self.task(py, move |host| {
            host.snapshot_ready(group, index, manifest);
            Ok(())
        })
    }

    fn report_snapshot(&self, py: Python<'_>, group: u64, to_replica: u64, ok: bool) -> PyResult<()> {
        self.task(py, move |host| {
            host.report_snapshot(group, to_replica, ok);
            Ok(())
        })
    }

    fn snapshot_progress(&self, py: Python<'_>, group: u64, to_replica: u64) -> PyResult<()> {
        self.task(py, move |host| {
            host.snapshot_progress(group, to_replica);
            Ok(())
        })
    }

    fn report_unreachable(&self, py: Python<'_>, node_num: u32) -> PyResult<()> {
        self.task(py, move |host| {
            host.report_unreachable(node_num);
            Ok(())
        })
    }

    fn compact(&self, py: Python<'_>, group: u64, index: u64) -> PyResult<()> {
        self.task(py, move |host| host.compact(group, index))
    }

    fn set_priority(&self, py: Python<'_>, group: u64, priority: i64) -> PyResult<()> {
        self.task(py, move |host| {
            host.set_priority(group, priority);
            Ok(())
        })
    }

    fn poll(&self, py: Python<'_>) -> PyResult<Batch> {
        let polled = py.detach(|| {
            let mut out = self.runner.mailbox().poll()?;
            Ok((out.messages.take(), out))
        });
        let (frames, out) = polled.map_err(|fatal: Fatal| super::HostFailed::new_err(fatal.to_string()))?;
        Batch::new(py, frames, out)
    }

    fn salvage(&self, py: Python<'_>) -> PyResult<Batch> {
        self.manual_only("salvage")?;
        let (frames, out) = py.detach(|| {
            let mut out = self.runner.mailbox().salvage();
            (out.messages.take(), out)
        });
        Batch::new(py, frames, out)
    }

    fn log_stats(&self, py: Python<'_>) -> PyResult<LogStats> {
        let stats = self.ask(py, |host| Ok(host.log_stats()))?;
        Ok(LogStats::new(stats, self.runner.mailbox().wakes()))
    }

    fn sync_times(&self) -> (Vec<u64>, u64, u64) {
        let (slots, total_ns) = self.sync_times.ended.seen();
        (slots, total_ns, self.sync_times.under_way_ns())
    }

    #[pyo3(signature = (ticks=1))]
    fn tick(&self, py: Python<'_>, ticks: u64) -> PyResult<()> {
        self.manual_only("tick")?;
        self.task(py, move |host| {
            for _ in 0..ticks {
                host.tick();
            }
            Ok(())
        })
    }

    #[pyo3(signature = (now_us=0))]
    fn drive(&self, py: Python<'_>, now_us: u64) -> PyResult<u64> {
        self.manual_only("drive")?;
        py.detach(|| self.runner.drive(now_us)).map_err(fatal_error)
    }

    fn due_us(&self) -> PyResult<Option<u64>> {
        self.manual_only("due_us")?;
        Ok(self.runner.due_us())
    }

    #[pyo3(signature = (name, hits=1))]
    fn arm_failpoint(&self, py: Python<'_>, name: String, hits: u64) -> PyResult<()> {
        self.manual_only("arm_failpoint")?;
        self.ask(py, move |host| Ok(host.failpoints.arm(&name, hits)))?.map_err(PyValueError::new_err)
    }

    #[allow(clippy::type_complexity)] // the tuple of the contract
    fn log_entries(
        &self,
        py: Python<'_>,
        group: u64,
        low: u64,
        high: u64,
    ) -> PyResult<Vec<(u64, u64, u8, Py<PyBytes>)>> {
        let entries = self.ask(py, move |host| Ok(host.entries(group, low, high)))?;
        Ok(entries
            .iter()
            .map(|entry| {
                let kind = match entry.get_entry_type() {
                    EntryType::EntryNormal if entry.data.is_empty() => APPLY_EMPTY,
                    EntryType::EntryNormal => APPLY_NORMAL,
                    _ => APPLY_CONF,
                };
                (entry.index, entry.term, kind, PyBytes::new(py, &entry.data).unbind())
            })
            .collect())
    }
}
