//! `ServerTls` and `ClientTls`: certificates in PEM form, checked here, watched by Python.

use crate::tls;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::sync::Arc;

#[pyclass(frozen, module = "flotta_native")]
pub struct ServerTls {
    pub tls: Arc<tls::ServerTls>,
}

#[pymethods]
impl ServerTls {
    #[new]
    #[pyo3(signature = (cert_pem, key_pem, client_ca_pem=None))]
    fn new(cert_pem: &[u8], key_pem: &[u8], client_ca_pem: Option<&[u8]>) -> PyResult<Self> {
        let made = tls::ServerTls::new(cert_pem, key_pem, client_ca_pem);
        Ok(ServerTls { tls: Arc::new(made.map_err(PyValueError::new_err)?) })
    }

    #[pyo3(signature = (cert_pem, key_pem, client_ca_pem=None))]
    fn replace(&self, cert_pem: &[u8], key_pem: &[u8], client_ca_pem: Option<&[u8]>) -> PyResult<()> {
        self.tls.replace(cert_pem, key_pem, client_ca_pem).map_err(PyValueError::new_err)
    }
}

#[pyclass(frozen, module = "flotta_native")]
pub struct ClientTls {
    pub tls: Arc<tls::ClientTls>,
}

/// A certificate is of use only with its key.
fn own<'a>(cert: Option<&'a [u8]>, key: Option<&'a [u8]>) -> PyResult<Option<(&'a [u8], &'a [u8])>> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some((cert, key))),
        (None, None) => Ok(None),
        _ => Err(PyValueError::new_err("cert_pem and key_pem are of use only together")),
    }
}

#[pymethods]
impl ClientTls {
    #[new]
    #[pyo3(signature = (ca_pem, cert_pem=None, key_pem=None, server_name=None))]
    fn new(
        ca_pem: &[u8],
        cert_pem: Option<&[u8]>,
        key_pem: Option<&[u8]>,
        server_name: Option<&str>,
    ) -> PyResult<Self> {
        let made = tls::ClientTls::new(ca_pem, own(cert_pem, key_pem)?, server_name);
        Ok(ClientTls { tls: Arc::new(made.map_err(PyValueError::new_err)?) })
    }

    #[pyo3(signature = (ca_pem, cert_pem=None, key_pem=None))]
    fn replace(&self, ca_pem: &[u8], cert_pem: Option<&[u8]>, key_pem: Option<&[u8]>) -> PyResult<()> {
        self.tls.replace(ca_pem, own(cert_pem, key_pem)?).map_err(PyValueError::new_err)
    }
}
