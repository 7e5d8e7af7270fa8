//! The key hash, for a whole batch of keys.

use crate::hash::key_hash;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

#[pyfunction]
pub fn key_hashes<'py>(py: Python<'py>, keys: Vec<Bound<'py, PyBytes>>) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, keys.iter().map(|key| key_hash(key.as_bytes())))
}
