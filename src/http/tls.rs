//! https, and *the* user of rustls.
//!
//! Who is trusted is the system administrator's choice: the roots are the system's, not ones compiled
//! in, and a file of further ones for hooks inside of a company. There is no way to trust everybody.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

/// Whom a client trusts over https. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

/// Why nobody could be trusted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoTls {
    /// The system has no roots, and no file was named.
    #[error("the system trusts no certificate authority{why}: install its package `ca-certificates`")]
    NoRoots {
        /// What the system says, if it says something.
        why: String,
    },
    /// The file of further roots cannot be used.
    #[error("`{}` is not a file of PEM certificates: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// This build cannot do it.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl Tls {
    /// Trusts the roots of the system, and those in `more`, a file of PEM certificates. Reads files.
    ///
    /// # Errors
    /// [`NoTls`].
    pub fn new(more: Option<&Path>) -> Result<Tls, NoTls> {
        let system = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = more {
            add_file(&mut roots, path)?;
        }
        if roots.is_empty() {
            let why = system.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
            return Err(NoTls::NoRoots { why });
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(NoTls::Setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config)))
    }

    /// Makes sure that the other end is `host`, and encrypts from there on.
    pub(super) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.0.clone()).connect(name, stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Every certificate of the file, or none: half of a file is a mistake.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), NoTls> {
    let bad = |why: String| NoTls::BadFile { path: path.to_owned(), why };
    let before = roots.len();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(error.to_string()))? {
        let certificate = certificate.map_err(|error| bad(error.to_string()))?;
        roots.add(certificate).map_err(|error| bad(error.to_string()))?;
    }
    if roots.len() == before { Err(bad("there is none in it".to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_a_mistake() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let why = |path: &Path| Tls::new(Some(path)).unwrap_err().to_string();
        assert!(why(file.path()).ends_with("there is none in it"), "{}", why(file.path()));
        assert!(why(Path::new("/no/such/file")).starts_with("`/no/such/file` is not a file of PEM"));
        std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(Tls::new(Some(file.path())).is_err());
    }
}
