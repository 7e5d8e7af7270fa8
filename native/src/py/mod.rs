//! The Python face of the host: batches in, batches out, the GIL let go of in every call.
//!
//! Names, types and promises are those of `flotta_native.pyi`; a test compares the two.

mod batch;
mod disk;
mod hash;
mod host;
mod link;
mod peer;
mod puts;
mod rpc;
mod rpc_values;
mod tls;
mod values;

use crate::raft::error::{Fatal, OpenError};
use crate::raft::failpoints;
use crate::raft::out::Reason;
use pyo3::exceptions::{PyException, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

pyo3::create_exception!(flotta_native, LogCorruption, PyException, "The log is damaged before its end.");
pyo3::create_exception!(flotta_native, HostFailed, PyException, "The host is gone; the process must end.");
pyo3::create_exception!(flotta_native, FailpointReached, PyException, "The simulated process died here.");

const APPLY_NORMAL: u8 = 0;
const APPLY_EMPTY: u8 = 1;
const APPLY_CONF: u8 = 2;
const APPLY_SNAPSHOT: u8 = 3;

fn open_error(error: OpenError) -> PyErr {
    match error {
        OpenError::Corruption(text) => LogCorruption::new_err(text),
        OpenError::Io(error) => error.into(),
        OpenError::Invalid(text) => PyValueError::new_err(text),
        // While opening, a disk that fails is an ordinary error: nothing was promised yet.
        OpenError::Fatal(Fatal::Disk(text)) => PyOSError::new_err(text),
        OpenError::Fatal(fatal) => fatal_error(fatal),
    }
}

fn fatal_error(fatal: Fatal) -> PyErr {
    match fatal {
        Fatal::Failpoint(_) => FailpointReached::new_err(fatal.to_string()),
        _ => HostFailed::new_err(fatal.to_string()),
    }
}

/// One Raft host per process, over one durable log.
#[pymodule]
fn flotta_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let numbers = [
        ("APPLY_NORMAL", APPLY_NORMAL),
        ("APPLY_EMPTY", APPLY_EMPTY),
        ("APPLY_CONF", APPLY_CONF),
        ("APPLY_SNAPSHOT", APPLY_SNAPSHOT),
        ("DROP_NOT_LEADER", Reason::NotLeader as u8),
        ("DROP_OVERLOADED", Reason::Overloaded as u8),
        ("DROP_UNKNOWN_GROUP", Reason::UnknownGroup as u8),
        ("DROP_CONF_PENDING", Reason::ConfPending as u8),
        ("DROP_LOST", Reason::Lost as u8),
        ("DROP_NO_LEADER", Reason::NoLeader as u8),
        ("DROP_INVALID", Reason::Invalid as u8),
        ("ROLE_FOLLOWER", 0),
        ("ROLE_CANDIDATE", 1),
        ("ROLE_LEADER", 2),
        ("ROLE_PRE_CANDIDATE", 3),
        ("EVENT_OPEN", rpc::EVENT_OPEN),
        ("EVENT_MESSAGE", rpc::EVENT_MESSAGE),
        ("EVENT_HALF_CLOSE", rpc::EVENT_HALF_CLOSE),
        ("EVENT_CANCELLED", rpc::EVENT_CANCELLED),
        ("EVENT_DRAINED", rpc::EVENT_DRAINED),
        ("LINK_HELLO", link::LINK_HELLO),
        ("LINK_UP", link::LINK_UP),
        ("LINK_REFUSED", link::LINK_REFUSED),
        ("LINK_FRAME", link::LINK_FRAME),
        ("LINK_DOWN", link::LINK_DOWN),
    ];
    for (name, number) in numbers {
        module.add(name, number)?;
    }
    module.add("LINK_NOT_SPOKEN", crate::link::connection::NOT_SPOKEN)?;
    module.add("TIME_BOUNDS_US", PyTuple::new(py, crate::times::BOUNDS_US)?)?;
    module.add("FAILPOINTS", PyTuple::new(py, failpoints::ALL)?)?;
    module.add("LogCorruption", py.get_type::<LogCorruption>())?;
    module.add("HostFailed", py.get_type::<HostFailed>())?;
    module.add("FailpointReached", py.get_type::<FailpointReached>())?;
    module.add_function(wrap_pyfunction!(hash::key_hashes, module)?)?;
    module.add_class::<values::Membership>()?;
    module.add_class::<values::GroupStatus>()?;
    module.add_class::<values::LogStats>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<disk::SimDisk>()?;
    module.add_class::<peer::RpcPeer>()?;
    module.add_class::<puts::PutRun>()?;
    module.add_class::<tls::ServerTls>()?;
    module.add_class::<tls::ClientTls>()?;
    module.add_class::<rpc_values::RpcStats>()?;
    module.add_class::<rpc::RpcServer>()?;
    module.add_class::<link::LinkStats>()?;
    module.add_class::<link::LinkHub>()?;
    module.add_class::<host::RaftHost>()
}
