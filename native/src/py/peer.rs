//! `RpcPeer`: who is at the other end of a connection, shared by everything that comes over it.

use crate::peer::Peer;
use pyo3::prelude::*;

#[pyclass(frozen, get_all, module = "flotta_native")]
pub struct RpcPeer {
    address: String,
    tls_common_name: Option<String>,
    tls_sans: Vec<String>,
}

impl RpcPeer {
    pub fn new(py: Python<'_>, peer: &Peer) -> PyResult<Py<RpcPeer>> {
        let Peer { address, tls_common_name, tls_sans } = peer.clone();
        Py::new(py, RpcPeer { address, tls_common_name, tls_sans })
    }
}

#[pymethods]
impl RpcPeer {
    fn __repr__(&self) -> String {
        format!("RpcPeer({:?}, tls_common_name={:?})", self.address, self.tls_common_name)
    }
}
