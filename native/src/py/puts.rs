//! A run of plain puts, for the state machine: entries in, then rows.

use crate::kv::puts::{plain_put, run_of, Run};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

#[pyclass(frozen, module = "flotta_native")]
pub struct PutRun {
    entries: Vec<Py<PyBytes>>,
    run: Run,
    epoch: u64,
}

#[pymethods]
impl PutRun {
    #[staticmethod]
    fn of(entries: Vec<Bound<'_, PyBytes>>, epoch: u64, now_ms: u64) -> Option<Self> {
        let run = run_of(entries.iter().map(|entry| entry.as_bytes()), epoch, now_ms)?;
        Some(PutRun { entries: entries.into_iter().map(Bound::unbind).collect(), run, epoch })
    }

    #[getter]
    fn now_ms(&self) -> u64 {
        self.run.now_ms
    }

    fn keys<'py>(&self, py: Python<'py>, prefix: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let keys = self.run.written.iter().map(|written| {
            let entry = self.entries[written.last].bind(py).as_bytes();
            let key = plain_put(entry, self.epoch).map_or(&b""[..], |put| put.key);
            PyBytes::new_with(py, prefix.len() + key.len(), |bytes| {
                bytes[..prefix.len()].copy_from_slice(prefix);
                bytes[prefix.len()..].copy_from_slice(key);
                Ok(())
            })
        });
        PyList::new(py, keys.collect::<PyResult<Vec<_>>>()?)
    }

    fn rows<'py>(
        &self,
        py: Python<'py>,
        before: Vec<Option<Bound<'py, PyBytes>>>,
        first_revision: u64,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        if before.len() != self.run.written.len() {
            return Err(PyValueError::new_err("there is a row, or None, for each of the keys"));
        }
        let mut rows = Vec::with_capacity(before.len());
        for (written, before) in self.run.written.iter().zip(&before) {
            let entry = self.entries[written.last].bind(py).as_bytes();
            let before = before.as_ref().map(|row| row.as_bytes());
            let Some(row) = written.row(before, entry, self.epoch, first_revision) else { return Ok(None) };
            rows.push(PyBytes::new(py, &row));
        }
        PyList::new(py, rows).map(Some)
    }
}
