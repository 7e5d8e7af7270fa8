//! TLS of both sides, for gRPC and links: made from PEM, replaced while it is in use.
//!
//! What is in force was checked when it was made. A replacement that is no good changes nothing; a good one is used by
//! every connection made from then on. Sessions are resumed only under what they were made with.

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{client, server, TlsAcceptor, TlsConnector};

/// What a client offers to speak, and a server chooses from.
pub const ALPN_GRPC: &[u8] = b"h2";
pub const ALPN_LINK: &[u8] = b"flotta/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(name: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| format!("{name} cannot be read: {error}"))?;
    if read.is_empty() {
        return Err(format!("{name} holds no certificate in PEM form"));
    }
    Ok(read)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("key_pem cannot be read: {error}"))
}

fn authorities(name: &str, pem: &[u8]) -> Result<Arc<RootCertStore>, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(name, pem)? {
        store.add(certificate).map_err(|error| format!("{name} cannot be used: {error}"))?;
    }
    Ok(Arc::new(store))
}

fn pair_error(error: rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "key_pem is not the key of cert_pem".to_owned(),
        error => format!("cert_pem and key_pem cannot be used: {error}"),
    }
}

fn server_config(cert: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerConfig, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = authorities("client_ca_pem", pem)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        }
    };
    let chain = certificates("cert_pem", cert)?;
    let mut config = builder.with_single_cert(chain, private_key(key)?).map_err(pair_error)?;
    config.alpn_protocols = vec![ALPN_GRPC.to_vec(), ALPN_LINK.to_vec()];
    Ok(config)
}

/// What a listener shows, and whom it lets in.
pub struct ServerTls(Mutex<Arc<ServerConfig>>);

impl ServerTls {
    /// With `client_ca`, a client must show a certificate that one of these signed. Err: what is wrong.
    pub fn new(cert: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerTls, String> {
        Ok(ServerTls(Mutex::new(Arc::new(server_config(cert, key, client_ca)?))))
    }

    pub fn replace(&self, cert: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<(), String> {
        let config = Arc::new(server_config(cert, key, client_ca)?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub async fn accept<T: AsyncRead + AsyncWrite + Unpin>(&self, io: T) -> io::Result<server::TlsStream<T>> {
        let config = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(config).accept(io).await
    }
}

/// Whom a client trusts, and what it shows.
pub struct ClientTls {
    config: Mutex<Arc<ClientConfig>>,
    /// Looked for in the server's certificate, instead of the host.
    server_name: Option<ServerName<'static>>,
}

fn client_config(ca: &[u8], own: Option<(&[u8], &[u8])>) -> Result<ClientConfig, String> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(authorities("ca_pem", ca)?, provider()).build();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_webpki_verifier(verifier.map_err(|error| error.to_string())?);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates("cert_pem", cert)?;
            builder.with_client_auth_cert(chain, private_key(key)?).map_err(pair_error)?
        }
    };
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    Ok(config)
}

impl ClientTls {
    /// `own`: certificate and key to show. Err: what is wrong.
    pub fn new(
        ca: &[u8],
        own: Option<(&[u8], &[u8])>,
        server_name: Option<&str>,
    ) -> Result<ClientTls, String> {
        let named = |name: &str| {
            ServerName::try_from(name.to_owned())
                .map_err(|_| format!("server_name {name:?} is no name of a host"))
        };
        let server_name = server_name.map(named).transpose()?;
        Ok(ClientTls { config: Mutex::new(Arc::new(client_config(ca, own)?)), server_name })
    }

    pub fn replace(&self, ca: &[u8], own: Option<(&[u8], &[u8])>) -> Result<(), String> {
        let config = Arc::new(client_config(ca, own)?);
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Speak TLS to `host` over a connection to it. `Unsupported` where it cannot speak the links' protocol.
    pub async fn connect<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        io: T,
    ) -> io::Result<client::TlsStream<T>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let no_links = || io::Error::new(io::ErrorKind::Unsupported, "it speaks TLS, and no links over it");
        let stream = TlsConnector::from(config).connect(name, io).await.map_err(|error| {
            let refused = rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol);
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            if cause == Some(&refused) {
                no_links()
            } else {
                error
            }
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_LINK) {
            return Err(no_links());
        }
        Ok(stream)
    }
}
