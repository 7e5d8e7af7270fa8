//! `LinkHub`: framed connections to other processes of the cluster, batches in and out.

use super::host::RaftHost;
use super::peer::RpcPeer;
use super::tls::ClientTls;
use crate::link::hub::{Event, Hub, What};
use crate::link::options::Options;
use crate::link::raft::NoHost;
use crate::link::{dial, wire};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

pub const LINK_HELLO: u8 = 0;
pub const LINK_UP: u8 = 1;
pub const LINK_REFUSED: u8 = 2;
pub const LINK_FRAME: u8 = 3;
pub const LINK_DOWN: u8 = 4;

#[pyclass(frozen, module = "flotta_native")]
pub struct LinkHub {
    pub hub: Arc<Hub>,
}

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct LinkStats {
    links: u64,
    frames_in: u64,
    frames_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    not_taken: u64,
    raft_frames_in: u64,
    raft_frames_out: u64,
    raft_frames_lost: u64,
    turned_away: u64,
    wakes: u64,
}

fn checked_greeting<'a>(name: &str, bytes: &'a Bound<'_, PyBytes>) -> PyResult<&'a [u8]> {
    let (bytes, max) = (bytes.as_bytes(), wire::GREETING_BYTES_MAX);
    if bytes.len() > max {
        return Err(PyValueError::new_err(format!("{name} has {} bytes, allowed are {max}", bytes.len())));
    }
    Ok(bytes)
}

fn no_host(_: NoHost) -> PyErr {
    PyRuntimeError::new_err("no Raft host is attached")
}

fn event_tuple<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyAny>> {
    let number = event.link.number;
    let tuple = match &event.what {
        What::Hello { purpose, hello } => {
            let data = (purpose, PyBytes::new(py, hello), RpcPeer::new(py, &event.link.peer)?);
            (LINK_HELLO, number, data).into_pyobject(py)?.into_any()
        }
        What::Up(greeting) => (LINK_UP, number, PyBytes::new(py, greeting)).into_pyobject(py)?.into_any(),
        What::Refused(reason) => (LINK_REFUSED, number, reason).into_pyobject(py)?.into_any(),
        What::Frame(body) => (LINK_FRAME, number, PyBytes::new(py, body)).into_pyobject(py)?.into_any(),
        What::Down(reason) => (LINK_DOWN, number, reason).into_pyobject(py)?.into_any(),
    };
    Ok(tuple)
}

#[pymethods]
impl LinkHub {
    #[new]
    #[pyo3(signature = (
        *, frame_bytes_max=64 << 20, unsent_bytes_max=64 << 20, unread_bytes_max=32 << 20, connections_max=1_024,
        hello_timeout_ms=5_000, keepalive_ms=10_000, keepalive_timeout_ms=5_000,
    ))]
    fn new(
        frame_bytes_max: usize,
        unsent_bytes_max: usize,
        unread_bytes_max: usize,
        connections_max: usize,
        hello_timeout_ms: u64,
        keepalive_ms: u64,
        keepalive_timeout_ms: u64,
    ) -> PyResult<Self> {
        let options = Options {
            frame_bytes_max,
            unsent_bytes_max,
            unread_bytes_max,
            connections_max,
            hello_timeout: Duration::from_millis(hello_timeout_ms),
            keepalive: Duration::from_millis(keepalive_ms),
            keepalive_timeout: Duration::from_millis(keepalive_timeout_ms),
        };
        options.check().map_err(PyValueError::new_err)?;
        Ok(LinkHub { hub: Hub::new(options)? })
    }

    fn notify_fd(&self) -> i32 {
        self.hub.notify_fd()
    }

    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = py.detach(|| self.hub.poll());
        let list = PyList::empty(py);
        for event in &events {
            list.append(event_tuple(py, event)?)?;
        }
        Ok(list)
    }

    #[pyo3(signature = (address, purpose, hello, *, timeout_ms, tls=None))]
    fn connect(
        &self,
        py: Python<'_>,
        address: &str,
        purpose: &str,
        hello: &Bound<'_, PyBytes>,
        timeout_ms: u64,
        tls: Option<&Bound<'_, ClientTls>>,
    ) -> PyResult<u64> {
        if purpose.len() > wire::PURPOSE_BYTES_MAX {
            let (bytes, max) = (purpose.len(), wire::PURPOSE_BYTES_MAX);
            return Err(PyValueError::new_err(format!("purpose has {bytes} bytes, allowed are {max}")));
        }
        let hello = checked_greeting("hello", hello)?;
        let within = Duration::from_millis(timeout_ms);
        let tls = tls.map(|tls| tls.get().tls.clone());
        Ok(py.detach(|| dial::connect(&self.hub, address, tls, purpose, hello, within)))
    }

    fn listen(&self, py: Python<'_>, address: &str) -> PyResult<u16> {
        let bound = py.detach(|| dial::listen(&self.hub, address));
        match bound {
            Ok(bound) => Ok(bound.port()),
            Err(error) => Err(PyOSError::new_err((error.raw_os_error(), format!("{address}: {error}")))),
        }
    }

    fn accept(&self, link: u64, greeting: &Bound<'_, PyBytes>) -> PyResult<()> {
        self.hub.accept(link, checked_greeting("greeting", greeting)?);
        Ok(())
    }

    fn refuse(&self, link: u64, reason: &str) {
        self.hub.refuse(link, reason);
    }

    fn send_many(&self, py: Python<'_>, frames: Vec<(u64, Bound<'_, PyBytes>)>) -> Vec<u64> {
        let frames: Vec<(u64, &[u8])> =
            frames.iter().map(|(link, frame)| (*link, frame.as_bytes())).collect();
        py.detach(|| self.hub.send_many(&frames))
    }

    fn unsent_bytes(&self, link: u64) -> usize {
        self.hub.link(link).map_or(0, |link| link.unsent_bytes())
    }

    fn close(&self, link: u64, reason: &str) {
        self.hub.close(link, reason);
    }

    fn shut_down(&self, py: Python<'_>) {
        py.detach(|| self.hub.shut_down());
    }

    fn attach_raft(&self, py: Python<'_>, host: &Bound<'_, RaftHost>) -> PyResult<()> {
        let host = host.get();
        if host.manual {
            return Err(PyRuntimeError::new_err("a host in manual mode is driven by hand, its frames too"));
        }
        let mailbox = host.runner.mailbox().clone();
        if py.detach(|| self.hub.raft.attach(&self.hub, mailbox)) {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("another host is attached"))
    }

    fn detach_raft(&self, py: Python<'_>) {
        py.detach(|| self.hub.raft.detach(&self.hub, "it takes no Raft messages any more"));
    }

    fn bind_raft(&self, py: Python<'_>, link: u64, node_num: u32) -> PyResult<()> {
        py.detach(|| self.hub.raft.bind(&self.hub, link, node_num)).map_err(no_host)
    }

    fn accept_raft(
        &self,
        py: Python<'_>,
        link: u64,
        greeting: &Bound<'_, PyBytes>,
        node_num: u32,
    ) -> PyResult<()> {
        let greeting = checked_greeting("greeting", greeting)?;
        py.detach(|| self.hub.raft.accept(&self.hub, link, greeting, node_num)).map_err(no_host)
    }

    fn peer_clocks(&self) -> Vec<(u32, u64, u64)> {
        self.hub.raft.clocks()
    }

    fn stats(&self) -> LinkStats {
        let counters = &self.hub.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            links: self.hub.links() as u64,
            frames_in: read(&counters.frames_in),
            frames_out: read(&counters.frames_out),
            bytes_in: read(&counters.bytes_in),
            bytes_out: read(&counters.bytes_out),
            not_taken: read(&counters.not_taken),
            raft_frames_in: read(&counters.raft_frames_in),
            raft_frames_out: read(&counters.raft_frames_out),
            raft_frames_lost: read(&counters.raft_frames_lost),
            turned_away: read(&counters.turned_away),
            wakes: read(&counters.wakes),
        }
    }
}

impl Drop for LinkHub {
    fn drop(&mut self) {
        self.hub.shut_down();
    }
}
