//! Sealing the secret fields of answers at rest.
//!
//! A database is copied: into backups, onto a colleague's laptop, into a ticket. The passwords a
//! hook answered with must not travel along. They are sealed with XChaCha20-Poly1305 under a key that
//! lives beside the database, not in it; a random 24-byte nonce stands in front of each. What is
//! sealed is bound to the job it belongs to, so that it cannot be moved to another.
//!
//! Losing the key loses the passwords, never an order: the id and the addresses lie open.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::signature::Secret;

const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;

/// Why something could not be sealed or opened. It never says what.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file could not be read or written.
    #[error("the sealing key `{}`: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no key file, and none is to be made.
    #[error("there is no sealing key at `{}`; the daemon makes one at its first start, and --config FILE says where it is if it is not beside the database", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// The key file holds something else.
    #[error("the sealing key `{}` is not 64 hex digits; restore it, or move it away to start with a new one (sealed passwords are then lost, ids are not)", path.display())]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// The system's generator gave nothing.
    #[error("the system's random generator failed")]
    Random,
    /// It was sealed with another key, for another job, or has been altered.
    #[error("sealed with another key, or altered")]
    Unopenable,
}

/// Seals and opens.
#[derive(Clone)]
pub struct Sealer(XChaCha20Poly1305);

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(***)")
    }
}

impl Sealer {
    /// A sealer with a key of its own that nobody keeps: for stores that live in memory.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn ephemeral() -> Result<Sealer, SealError> {
        let key = random_key()?;
        Ok(Sealer::new(&key))
    }

    /// Reads the key from `path`; makes one there, readable by its owner alone, if there is none.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds no key.
    pub fn from_file(path: &Path) -> Result<Sealer, SealError> {
        let file_error = |source| SealError::File { path: path.to_owned(), source };
        match File::open(path) {
            Ok(file) => Sealer::read(file, path),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let key = random_key()?;
                write_key(path, &key).map_err(file_error)?;
                Ok(Sealer::new(&key))
            }
            Err(error) => Err(file_error(error)),
        }
    }

    /// Reads the key from `path`, which must be there: whoever works beside a daemon must not make
    /// a key that the daemon does not have.
    ///
    /// # Errors
    /// When the file is missing, cannot be read, or holds no key.
    pub fn from_existing(path: &Path) -> Result<Sealer, SealError> {
        match File::open(path) {
            Ok(file) => Sealer::read(file, path),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(SealError::Missing { path: path.to_owned() })
            }
            Err(source) => Err(SealError::File { path: path.to_owned(), source }),
        }
    }

    fn read(file: File, path: &Path) -> Result<Sealer, SealError> {
        let mut text = Zeroizing::new(String::new());
        file.take(1024)
            .read_to_string(&mut text)
            .map_err(|source| SealError::File { path: path.to_owned(), source })?;
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        hex::decode_to_slice(text.trim(), key.as_mut())
            .map_err(|_| SealError::NotAKey { path: path.to_owned() })?;
        Ok(Sealer::new(&key))
    }

    fn new(key: &[u8; KEY_BYTES]) -> Sealer {
        Sealer(XChaCha20Poly1305::new(key.into()))
    }

    /// Seals `secret` for the place `bound_to`.
    ///
    /// # Errors
    /// [`SealError::Random`] when no nonce can be had.
    pub fn seal(&self, bound_to: &[u8], secret: &Secret) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let payload = Payload { msg: secret.expose().as_bytes(), aad: bound_to };
        let sealed = self.0.encrypt(&XNonce::from(nonce), payload).map_err(|_| SealError::Random)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens what [`Sealer::seal`] sealed for the same place.
    ///
    /// # Errors
    /// [`SealError::Unopenable`].
    pub fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Result<Secret, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Unopenable)?;
        let payload = Payload { msg: sealed, aad: bound_to };
        let plain = self.0.decrypt(&XNonce::from(*nonce), payload).map_err(|_| SealError::Unopenable)?;
        String::from_utf8(plain).map(Secret::new).map_err(|_| SealError::Unopenable)
    }
}

fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    getrandom::fill(key.as_mut()).map_err(|_| SealError::Random)?;
    Ok(key)
}

/// Written whole under another name, then moved: a crash leaves a key or none, never half of one.
fn write_key(path: &Path, key: &[u8; KEY_BYTES]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let partial = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(Zeroizing::new(hex::encode(key)).as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_only_in_its_place() {
        let sealer = Sealer::ephemeral().unwrap();
        let sealed = sealer.seal(b"job-1", &Secret::new("fake-password")).unwrap();
        assert_eq!(sealer.open(b"job-1", &sealed).unwrap().expose(), "fake-password");
        assert!(sealer.open(b"job-2", &sealed).is_err());
        assert!(Sealer::ephemeral().unwrap().open(b"job-1", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(sealer.open(b"job-1", &altered).is_err(), "byte {at}");
        }
        assert!(sealer.open(b"job-1", b"short").is_err());
    }

    #[test]
    fn the_same_text_never_seals_the_same_way_twice() {
        let sealer = Sealer::ephemeral().unwrap();
        let secret = Secret::new("fake-password");
        assert_ne!(sealer.seal(b"", &secret).unwrap(), sealer.seal(b"", &secret).unwrap());
    }

    #[test]
    fn the_key_file_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        let first = Sealer::from_file(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = first.seal(b"job", &Secret::new("fake-password")).unwrap();
        let again = Sealer::from_file(&path).unwrap();
        assert_eq!(again.open(b"job", &sealed).unwrap().expose(), "fake-password");
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        std::fs::write(&path, "not a key").unwrap();
        let error = Sealer::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("spid.db.key") && error.contains("64 hex digits"), "{error}");
        assert!(!error.contains("not a key"));
    }
}
