//! `SimDisk`: the simulated file layer.

use crate::raft::simdisk;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::BTreeMap;

#[pyclass(frozen, module = "flotta_native")]
pub struct SimDisk {
    pub disk: simdisk::SimDisk,
}

#[pymethods]
impl SimDisk {
    #[new]
    fn new(seed: u64) -> Self {
        SimDisk { disk: simdisk::SimDisk::new(seed) }
    }

    fn crash(&self, py: Python<'_>) -> BTreeMap<&'static str, u64> {
        let report = py.detach(|| self.disk.crash());
        BTreeMap::from([("lost", report.lost), ("torn", report.torn), ("kept", report.kept)])
    }

    fn reset_faults(&self) {
        self.disk.reset_faults();
    }

    fn fail_sync_after(&self, syncs: u64) {
        self.disk.fail_sync_after(syncs);
    }

    fn fill_up_after(&self, bytes: u64) {
        self.disk.fill_up_after(bytes);
    }

    fn flip_bit(&self, path: &str, offset: u64) -> PyResult<()> {
        if self.disk.flip_bit(path, offset) {
            return Ok(());
        }
        Err(PyValueError::new_err(format!("there is no byte {offset} in {path:?}")))
    }

    fn files(&self) -> BTreeMap<String, u64> {
        self.disk.files()
    }

    fn unsynced_bytes(&self) -> u64 {
        self.disk.unsynced_bytes()
    }
}
