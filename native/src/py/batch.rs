//! `Batch`: what one `poll` returns, as lists of tuples made once.

use super::values::Membership;
use super::{APPLY_CONF, APPLY_EMPTY, APPLY_NORMAL, APPLY_SNAPSHOT};
use crate::raft::out::{Applied, Out, Payload};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct Batch {
    messages: Py<PyList>,
    snapshot_messages: Py<PyList>,
    applies: Py<PyList>,
    roles: Py<PyList>,
    reads: Py<PyList>,
    dropped: Py<PyList>,
    snapshots_wanted: Py<PyList>,
    compactions_wanted: Py<PyList>,
    events: Py<PyList>,
}

impl Batch {
    /// `frames`: the sealed messages of `out`, taken while the GIL was free.
    pub fn new(py: Python<'_>, frames: Vec<(u32, Vec<u8>)>, out: Out) -> PyResult<Self> {
        let messages = frames.iter().map(|(node, frame)| (*node, PyBytes::new(py, frame)));
        let snapshots = out.snapshot_messages.iter().map(|sent| {
            let (manifest, frame) = (PyBytes::new(py, &sent.manifest), PyBytes::new(py, &sent.frame));
            (sent.node_num, sent.group, sent.to, sent.from, sent.index, sent.term, manifest, frame)
        });
        let applies = PyList::empty(py);
        for applied in &out.applies {
            applies.append(apply_tuple(py, applied)?)?;
        }
        let roles = out.roles.iter().map(|role| (role.group, role.role, role.term, role.leader));
        let dropped =
            out.dropped.iter().map(|drop| (drop.group, drop.request, drop.reason as u8, drop.leader));
        let events =
            out.events.iter().map(|event| (event.group, event.name, event.number, event.text.as_str()));
        Ok(Batch {
            messages: PyList::new(py, messages)?.unbind(),
            snapshot_messages: PyList::new(py, snapshots)?.unbind(),
            applies: applies.unbind(),
            roles: PyList::new(py, roles)?.unbind(),
            reads: PyList::new(py, &out.reads)?.unbind(),
            dropped: PyList::new(py, dropped)?.unbind(),
            snapshots_wanted: PyList::new(py, &out.snapshots_wanted)?.unbind(),
            compactions_wanted: PyList::new(py, &out.compactions_wanted)?.unbind(),
            events: PyList::new(py, events)?.unbind(),
        })
    }
}

fn apply_tuple<'py>(py: Python<'py>, applied: &Applied) -> PyResult<Bound<'py, PyAny>> {
    let Applied { group, index, term, request, .. } = *applied;
    let tuple = match &applied.payload {
        Payload::Normal(bytes) => {
            (group, index, term, request, APPLY_NORMAL, PyBytes::new(py, bytes)).into_pyobject(py)?
        }
        Payload::Empty => {
            (group, index, term, request, APPLY_EMPTY, PyBytes::new(py, b"")).into_pyobject(py)?
        }
        Payload::Conf(conf) => {
            (group, index, term, request, APPLY_CONF, Py::new(py, Membership::from(conf))?)
                .into_pyobject(py)?
        }
        Payload::Snapshot(conf, manifest) => {
            let payload = (Py::new(py, Membership::from(conf))?, PyBytes::new(py, manifest));
            (group, index, term, request, APPLY_SNAPSHOT, payload).into_pyobject(py)?
        }
    };
    Ok(tuple.into_any())
}

#[pymethods]
impl Batch {
    fn __bool__(&self, py: Python<'_>) -> bool {
        let lists = [
            &self.messages,
            &self.snapshot_messages,
            &self.applies,
            &self.roles,
            &self.reads,
            &self.dropped,
            &self.snapshots_wanted,
            &self.compactions_wanted,
            &self.events,
        ];
        lists.iter().any(|list| !list.bind(py).is_empty())
    }
}
