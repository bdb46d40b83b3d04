//! TLS of client and server.
//!
//! The system administrator decides which certificate authorities the client trusts. The roots are the system's, none
//! are compiled in. A file can add roots, for hooks inside a company. No option turns certificate checks off.
//!
//! The certificate and key of the listener are two files, which another program renews. [`ServerTls::reload`] reads
//! them again. A new certificate is used from the next handshake on. Open connections keep their session, and files
//! that do not match each other change nothing.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, server};

use crate::observe::{files, limits};

/// The only protocol inside TLS.
const ALPN: &[u8] = b"http/1.1";

/// Certificate authorities that a client trusts over https. Clones share them.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

/// Reasons why TLS cannot be set up: no trusted roots, or no usable certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoTls {
    /// The system has no roots, and no file was configured.
    #[error("the system trusts no certificate authority{why}: install its package `ca-certificates`")]
    NoRoots {
        /// Error of the operating system, if there is one.
        why: String,
    },
    /// A file of certificates cannot be used.
    #[error("`{}` is not a file of PEM certificates: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// The problem with the file.
        why: String,
    },
    /// The file of our own key cannot be used. The error never repeats its content.
    #[error("`{}` is not a PEM file with a private key: {why}", path.display())]
    BadKey {
        /// The file.
        path: PathBuf,
        /// The problem with the file.
        why: String,
    },
    /// Our certificate does not match our key.
    #[error("the certificate in `{}` and the key in `{}` do not match: {why}", certificate.display(), key.display())]
    Misfit {
        /// File of the certificate.
        certificate: PathBuf,
        /// File of the key.
        key: PathBuf,
        /// The reason why they do not match.
        why: rustls::Error,
    },
    /// The TLS library in this build cannot provide the configuration.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl Tls {
    /// Trusts the roots of the system, and those in `more`, a file of PEM certificates. Reads files.
    ///
    /// # Errors
    /// Returns [`NoTls`] if the file cannot be used or there are no roots at all.
    pub fn new(more: Option<&Path>) -> Result<Tls, NoTls> {
        let system = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // Unusable roots of the system are skipped: one damaged certificate must not disable all of TLS.
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
        // HTTP/2 is not offered, because both sides of this module use HTTP/1.1 only.
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Tls(Arc::new(config)))
    }

    /// Verifies that the other end is `host`, and encrypts the connection.
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

/// Certificate and key of an https listener. Clones share them, so that a reload of any clone reloads the listener.
#[derive(Clone)]
pub struct ServerTls(Arc<Certificate>);

struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    acceptor: RwLock<TlsAcceptor>,
}

impl ServerTls {
    /// Loads the certificate and its chain from one PEM file and the key from another. Reads files.
    ///
    /// # Errors
    /// Returns [`NoTls`] if a file cannot be used or the two do not match.
    pub fn load(certificate: &Path, key: &Path) -> Result<ServerTls, NoTls> {
        let acceptor = RwLock::new(acceptor(certificate, key)?);
        Ok(ServerTls(Arc::new(Certificate {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            acceptor,
        })))
    }

    /// Reads both files again; their content is used from the next handshake on.
    ///
    /// # Errors
    /// Returns [`NoTls`]; the previous certificate then stays in use.
    pub fn reload(&self) -> Result<(), NoTls> {
        // Both files are loaded before the lock is taken: an error changes nothing, and no handshake waits for the
        // disk.
        let acceptor = acceptor(&self.0.certificate, &self.0.key)?;
        *self.0.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// Uses the certificate of `other` from the next handshake on. A reload of the configuration reads all files first
    /// and then applies them together.
    pub fn show(&self, other: &ServerTls) {
        let acceptor = other.0.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        *self.0.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
    }

    /// Runs the handshake with a peer. An error of the kind `InvalidData` is the peer's fault; rustls has sent the
    /// alert.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        // The acceptor is cloned, so that the lock is not held during the handshake.
        let acceptor = self.0.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        acceptor.accept(stream).await
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTls").field(&self.0.certificate).finish()
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, NoTls> {
    // `with_single_cert` below checks that the key belongs to the certificate.
    let chain = certificates(certificate)?;
    let text = files::read(key, limits::PEM_FILE_MAX_BYTES)
        .map_err(|error| NoTls::BadKey { path: key.to_owned(), why: error.to_string() })?;
    let private = PrivateKeyDer::from_pem_slice(&text).map_err(|error| bad_key(key, &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(NoTls::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|why| NoTls::Misfit { certificate: certificate.to_owned(), key: key.to_owned(), why })?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Describes the error without its own text, because that text quotes the content of the file.
fn bad_key(path: &Path, error: &pem::Error) -> NoTls {
    let why = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "the file contains no private key".to_owned(),
        _ => "the key is damaged".to_owned(),
    };
    NoTls::BadKey { path: path.to_owned(), why }
}

fn bad_file(path: &Path, why: impl fmt::Display) -> NoTls {
    NoTls::BadFile { path: path.to_owned(), why: why.to_string() }
}

/// Returns every certificate of the file. One bad certificate fails the whole file, because a partial chain is a
/// mistake.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, NoTls> {
    let text = files::read(path, limits::PEM_FILE_MAX_BYTES).map_err(|error| bad_file(path, error))?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let found = read.map_err(|error| bad_file(path, error))?;
    if found.is_empty() { Err(bad_file(path, "the file contains no certificate")) } else { Ok(found) }
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), NoTls> {
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| bad_file(path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a certificate and its key, as PEM.
    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["spi.example".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn what_cannot_be_shown_is_a_mistake_and_its_key_is_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        let ((mine, my_key), (_, their_key)) = (pair(), pair());
        let line = my_key.lines().nth(1).unwrap().to_owned();
        std::fs::write(&certificate, &mine).unwrap();
        let damaged = my_key.replacen("-----END", "-----ENDE", 1);
        for (text, said) in [
            (their_key.as_str(), "do not match"),
            ("", "the file contains no private key"),
            (mine.as_str(), "the file contains no private key"),
            (damaged.as_str(), "the key is damaged"),
            (&my_key.replace(&line, &format!("{line}!?")), "the key is damaged"),
        ] {
            std::fs::write(&key, text).unwrap();
            let why = ServerTls::load(&certificate, &key).unwrap_err().to_string();
            assert!(why.contains(said) && !why.contains(&line), "{why}");
        }
        std::fs::write(&key, &my_key).unwrap();
        let shown = ServerTls::load(&certificate, &key).unwrap();
        assert!(!format!("{shown:?}").contains(&line));
        std::fs::remove_file(&certificate).unwrap();
        assert!(matches!(shown.reload(), Err(NoTls::BadFile { .. })));
    }

    #[test]
    fn a_file_without_certificates_is_a_mistake() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let why = |path: &Path| Tls::new(Some(path)).unwrap_err().to_string();
        assert!(why(file.path()).ends_with("the file contains no certificate"), "{}", why(file.path()));
        assert!(why(Path::new("/no/such/file")).starts_with("`/no/such/file` is not a file of PEM"));
        std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            .unwrap();
        assert!(Tls::new(Some(file.path())).is_err());
    }
}
