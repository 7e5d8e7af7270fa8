//! `RpcServer`: batches of calls out, batches of answers in.

use super::link::LinkHub;
use super::rpc_values::{headers_of, metadata_tuple, peer_of, RpcStats};
use super::tls::ServerTls;
use crate::rpc::codec::frame;
use crate::rpc::inbox::{StreamEvent, Unary, What};
use crate::rpc::limits::Options;
use crate::rpc::listener;
use crate::rpc::server::{Command, Server};
use crate::rpc::writer::Outcome;
use bytes::Bytes;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const EVENT_OPEN: u8 = 0;
pub const EVENT_MESSAGE: u8 = 1;
pub const EVENT_HALF_CLOSE: u8 = 2;
pub const EVENT_CANCELLED: u8 = 3;
pub const EVENT_DRAINED: u8 = 4;

#[pyclass(frozen, module = "flotta_native")]
pub struct RpcServer {
    server: Arc<Server>,
    started: AtomicBool,
}

fn remaining_ms(deadline: Option<Instant>, now: Instant) -> Option<f64> {
    deadline.map(|deadline| deadline.saturating_duration_since(now).as_secs_f64() * 1_000.0)
}

fn unary_tuple<'py>(py: Python<'py>, unary: Unary, now: Instant) -> PyResult<Bound<'py, PyTuple>> {
    let message = PyBytes::new(py, &unary.message);
    let metadata = metadata_tuple(py, unary.metadata)?;
    let remaining_ms = remaining_ms(unary.deadline, now);
    (unary.call, unary.method, message, metadata, remaining_ms, peer_of(py, &unary.conn)?).into_pyobject(py)
}

fn event_tuple<'py>(py: Python<'py>, event: StreamEvent, now: Instant) -> PyResult<Bound<'py, PyTuple>> {
    let StreamEvent { call, method, what } = event;
    match what {
        What::Message(message) => (EVENT_MESSAGE, call, method, PyBytes::new(py, &message)).into_pyobject(py),
        What::Open(opening) => {
            let metadata = metadata_tuple(py, opening.metadata)?;
            let peer = peer_of(py, &opening.conn)?;
            let data = (metadata, remaining_ms(opening.deadline, now), peer);
            (EVENT_OPEN, call, method, data).into_pyobject(py)
        }
        What::HalfClose => (EVENT_HALF_CLOSE, call, method, py.None()).into_pyobject(py),
        What::Cancelled => (EVENT_CANCELLED, call, method, py.None()).into_pyobject(py),
        What::Drained => (EVENT_DRAINED, call, method, py.None()).into_pyobject(py),
    }
}

fn framed(payload: &Bound<'_, PyAny>) -> PyResult<Bytes> {
    Ok(frame(payload.cast::<PyBytes>()?.as_bytes()))
}

fn outcome_of(code: u32, message: String, trailers: Option<&Bound<'_, PyAny>>) -> PyResult<Outcome> {
    if code > 16 {
        return Err(PyValueError::new_err(format!("{code} is no status code of gRPC")));
    }
    let trailers = trailers.filter(|trailers| !trailers.is_none()).map(headers_of).transpose()?;
    Ok(Outcome { code, message, trailers })
}

fn reply_of(reply: &Bound<'_, PyAny>) -> PyResult<Command> {
    let reply = reply.cast::<PyTuple>()?;
    let call = reply.get_item(0)?.extract()?;
    match reply.len() {
        2 => Ok(Command::Reply(call, framed(&reply.get_item(1)?)?)),
        5 => {
            let payload = reply.get_item(3)?;
            let payload = if payload.is_none() { None } else { Some(framed(&payload)?) };
            let trailers = reply.get_item(4)?;
            let code = reply.get_item(1)?.extract()?;
            let outcome = outcome_of(code, reply.get_item(2)?.extract()?, Some(&trailers))?;
            Ok(Command::Answer(call, payload, outcome))
        }
        length => Err(PyValueError::new_err(format!("a reply has 2 or 5 items, not {length}"))),
    }
}

#[pymethods]
impl RpcServer {
    #[new]
    #[pyo3(signature = (
        methods, *, message_bytes_max=17 << 20, metadata_bytes_max=64 << 10, calls_max=20_000,
        request_bytes_max=256 << 20, reply_bytes_max=256 << 20, connections_max=10_000,
        streams_per_connection_max=1_000, resets_per_second_max=5_000, idle_frames_per_second_max=20_000,
        keepalive_ms=30_000, keepalive_timeout_ms=10_000, stall_ms=20_000, stream_window_bytes=1 << 20,
        compress_bytes_min=1_024, tls=None, links=None,
    ))]
    #[allow(clippy::too_many_arguments)] // the keyword options of the contract
    fn new(
        methods: Vec<(String, bool)>,
        message_bytes_max: usize,
        metadata_bytes_max: usize,
        calls_max: u64,
        request_bytes_max: u64,
        reply_bytes_max: u64,
        connections_max: u64,
        streams_per_connection_max: u32,
        resets_per_second_max: u32,
        idle_frames_per_second_max: u32,
        keepalive_ms: u64,
        keepalive_timeout_ms: u64,
        stall_ms: u64,
        stream_window_bytes: usize,
        compress_bytes_min: usize,
        tls: Option<&Bound<'_, ServerTls>>,
        links: Option<&Bound<'_, LinkHub>>,
    ) -> PyResult<Self> {
        let options = Options {
            message_bytes_max,
            metadata_bytes_max,
            calls_max,
            request_bytes_max,
            reply_bytes_max,
            connections_max,
            streams_per_connection_max,
            resets_per_second_max,
            idle_frames_per_second_max,
            keepalive: Duration::from_millis(keepalive_ms),
            keepalive_timeout: Duration::from_millis(keepalive_timeout_ms),
            stall: Duration::from_millis(stall_ms),
            stream_window_bytes,
            compress_bytes_min,
        };
        options.check().map_err(PyValueError::new_err)?;
        let links = links.map(|links| links.get().hub.clone());
        let tls = tls.map(|tls| tls.get().tls.clone());
        let server = Server::new(methods, options, tls, links).map_err(PyValueError::new_err)?;
        Ok(RpcServer { server, started: AtomicBool::new(false) })
    }

    fn start(&self, py: Python<'_>, listen: &str) -> PyResult<u16> {
        if self.server.is_draining() {
            return Err(PyRuntimeError::new_err("the server was drained"));
        }
        let bound = py.detach(|| {
            let port = listener::listen(&self.server, listen)?;
            if !self.started.swap(true, SeqCst) {
                crate::io::handle().spawn(self.server.clone().pump());
            }
            Ok(port)
        });
        bound.map_err(|error: std::io::Error| {
            PyOSError::new_err((error.raw_os_error(), format!("{listen}: {error}")))
        })
    }

    fn notify_fd(&self) -> i32 {
        self.server.inbox.event.fd()
    }

    #[allow(clippy::type_complexity)] // the shape of the contract
    fn poll<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>, Bound<'py, PyList>)> {
        let batch = self.server.inbox.take();
        let now = Instant::now();
        let unary = PyList::empty(py);
        for one in batch.unary {
            unary.append(unary_tuple(py, one, now)?)?;
        }
        let streams = PyList::empty(py);
        for event in batch.streams {
            streams.append(event_tuple(py, event, now)?)?;
        }
        Ok((unary, streams, PyList::new(py, batch.ended)?))
    }

    fn reply_many(&self, replies: &Bound<'_, PyAny>) -> PyResult<()> {
        let commands: PyResult<Vec<Command>> = replies.try_iter()?.map(|reply| reply_of(&reply?)).collect();
        self.server.command(commands?);
        Ok(())
    }

    fn initial_metadata(&self, call: u64, metadata: &Bound<'_, PyAny>) -> PyResult<()> {
        self.server.command(vec![Command::Head(call, headers_of(metadata)?)]);
        Ok(())
    }

    fn send_many(&self, messages: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
        let mut framed_messages = Vec::new();
        for message in messages.try_iter()? {
            let (call, payload): (u64, Bound<'_, PyAny>) = message?.extract()?;
            framed_messages.push((call, framed(&payload)?));
        }
        Ok(self.server.send(framed_messages))
    }

    #[pyo3(signature = (call, code, message="", trailers=None))]
    fn finish(
        &self,
        call: u64,
        code: u32,
        message: &str,
        trailers: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let outcome = outcome_of(code, message.to_owned(), trailers)?;
        self.server.command(vec![Command::Answer(call, None, outcome)]);
        Ok(())
    }

    fn credit(&self, call: u64, bytes: usize) {
        self.server.command(vec![Command::Credit(call, bytes)]);
    }

    fn drain(&self, py: Python<'_>) {
        py.detach(|| self.server.drain());
    }

    fn stop(&self, py: Python<'_>, grace_ms: u64) {
        py.detach(|| self.server.stop(Duration::from_millis(grace_ms)));
    }

    fn stats(&self, py: Python<'_>) -> RpcStats {
        py.detach(|| RpcStats::of(&self.server))
    }

    fn call_times(&self) -> Vec<(String, Vec<u64>, u64)> {
        self.server.call_times()
    }

    fn notices(&self) -> Vec<(&'static str, String, u64)> {
        let told = self.server.notices.take();
        told.into_iter().map(|notice| (notice.kind, notice.address, notice.count)).collect()
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        self.server.close();
    }
}
