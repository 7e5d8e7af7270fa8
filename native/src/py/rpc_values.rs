//! What the RPC server shows to Python and takes from it: metadata, peers, stats.

use super::peer::RpcPeer;
use crate::rpc::connection::Conn;
use crate::rpc::headers::{user_headers, Metadata, Value};
use crate::rpc::server::Server;
use http::HeaderMap;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};

/// Text as it is, or as Latin-1 where it is not UTF-8: what was sent is never refused for its looks.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

pub fn metadata_tuple<'py>(
    py: Python<'py>,
    metadata: Option<Metadata>,
) -> PyResult<Option<Bound<'py, PyTuple>>> {
    let Some(metadata) = metadata else { return Ok(None) };
    let mut pairs = Vec::with_capacity(metadata.len());
    for (name, value) in &metadata {
        let value = match value {
            Value::Text(value) => PyString::new(py, &text(value.as_bytes())).into_any(),
            Value::Binary(bytes) => PyBytes::new(py, bytes).into_any(),
        };
        pairs.push((PyString::new(py, name.as_str()), value).into_pyobject(py)?);
    }
    Ok(Some(PyTuple::new(py, pairs)?))
}

/// Metadata given by Python, as headers. ValueError says what is wrong.
pub fn headers_of(metadata: &Bound<'_, PyAny>) -> PyResult<HeaderMap> {
    let mut pairs = Vec::new();
    for pair in metadata.try_iter()? {
        let (name, value): (String, Bound<'_, PyAny>) = pair?.extract()?;
        let value = if let Ok(bytes) = value.cast::<PyBytes>() {
            bytes.as_bytes().to_vec()
        } else if let Ok(text) = value.cast::<PyString>() {
            if name.ends_with("-bin") {
                return Err(PyTypeError::new_err(format!("the value of {name} must be bytes")));
            }
            text.extract::<String>()?.into_bytes()
        } else {
            return Err(PyTypeError::new_err(format!("the value of {name} must be str or bytes")));
        };
        pairs.push((name, value));
    }
    user_headers(pairs).map_err(PyValueError::new_err)
}

/// The one object of a connection.
pub fn peer_of<'py>(py: Python<'py>, conn: &Conn) -> PyResult<Bound<'py, RpcPeer>> {
    if let Some(peer) = conn.face.get().and_then(|face| face.downcast_ref::<Py<RpcPeer>>()) {
        return Ok(peer.bind(py).clone());
    }
    let made = RpcPeer::new(py, &conn.peer)?;
    let kept = conn.face.get_or_init(|| Box::new(made));
    let peer = kept.downcast_ref::<Py<RpcPeer>>().expect("nothing else is kept there");
    Ok(peer.bind(py).clone())
}

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct RpcStats {
    connections: u64,
    calls: u64,
    waiting_calls: u64,
    timers: u64,
    request_bytes: u64,
    reply_bytes: u64,
    connections_total: u64,
    calls_total: u64,
    refused_connections: u64,
    refused_calls: u64,
    refused_request_bytes: u64,
    refused_reply_bytes: u64,
    failed_handshakes: u64,
    resets: u64,
    reset_floods: u64,
    frame_floods: u64,
    deadlines_exceeded: u64,
    stalled_requests: u64,
    stalled_replies: u64,
    keepalive_timeouts: u64,
    bytes_in: u64,
    bytes_out: u64,
    messages_in: u64,
    messages_out: u64,
    packed_messages_in: u64,
    packed_messages_out: u64,
}

impl RpcStats {
    pub fn of(server: &Server) -> RpcStats {
        let counters = &server.counters;
        RpcStats {
            connections: server.connections_room.used(),
            calls: server.calls_room.used(),
            waiting_calls: server.inbox.waiting_calls() as u64,
            timers: server.timers() as u64,
            request_bytes: server.request_bytes.used(),
            reply_bytes: server.reply_bytes.used(),
            connections_total: counters.accepted_connections.get(),
            calls_total: counters.calls.get(),
            refused_connections: server.connections_room.refused(),
            refused_calls: server.calls_room.refused(),
            refused_request_bytes: server.request_bytes.refused(),
            refused_reply_bytes: server.reply_bytes.refused(),
            failed_handshakes: counters.failed_handshakes.get(),
            resets: counters.resets.get(),
            reset_floods: counters.reset_floods.get(),
            frame_floods: counters.frame_floods.get(),
            deadlines_exceeded: counters.deadlines_exceeded.get(),
            stalled_requests: counters.stalled_requests.get(),
            stalled_replies: counters.stalled_replies.get(),
            keepalive_timeouts: counters.keepalive_timeouts.get(),
            bytes_in: counters.bytes_in.get(),
            bytes_out: counters.bytes_out.get(),
            messages_in: counters.messages_in.get(),
            messages_out: counters.messages_out.get(),
            packed_messages_in: counters.packed_messages_in.get(),
            packed_messages_out: counters.packed_messages_out.get(),
        }
    }
}
