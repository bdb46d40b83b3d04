//! Encryption at rest of the secret fields in answers.
//!
//! Databases are copied: into backups, onto laptops, into tickets. The passwords in the answers of a hook must not
//! travel along. They are encrypted with XChaCha20-Poly1305, under a key that is stored beside the database and not in
//! it. A random nonce of 24 bytes precedes each ciphertext. The ciphertext is bound to its job, so it cannot be moved
//! to another job.
//!
//! A header before the nonce names the key. While a key is changed there are several keys, and an old one may be
//! removed only when no ciphertext needs it. Older versions of spid wrote no header; such a ciphertext is tried with
//! every key.
//!
//! A lost key loses the passwords but never an order: ids and addresses are not encrypted.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::observe::files;
use spid_hook::Secret;
use spid_hook::text::{fault_of_secret, named_file};

const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;

/// Length of the header before the nonce, in bytes.
pub const HEADER_BYTES: usize = FORM.len() + KEY_ID_BYTES;

/// First part of the header: name and version of the format.
const FORM: [u8; 4] = *b"spd1";
/// Text that is hashed together with the key to give the key's id.
const ID_TEXT: &[u8] = b"spid sealing key id";

/// Errors of encryption and decryption. They never contain the secret.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file could not be read or written.
    #[error("the sealing key {}: {source}", named_file(path))]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The key that the daemon creates does not exist, and may not be created now.
    #[error("there is no sealing key at `{}`; the daemon creates the key at its first start; if the key is elsewhere, pass --config FILE", path.display())]
    Missing {
        /// Path of the missing file.
        path: PathBuf,
    },
    /// A configured key is not available.
    #[error("the sealing key {name}: {why}")]
    Unavailable {
        /// Configured source of the key.
        name: String,
        /// Reason why the source has no key.
        why: String,
    },
    /// The source does not hold a key.
    #[error(
        "the sealing key {name} is not 64 hex digits{fault}; restore the key, or move it away to create a new one (encrypted passwords are then lost, ids are not)"
    )]
    NotAKey {
        /// Source of the text.
        name: String,
        /// A colon, the first invalid character and its position; empty if only the length is wrong.
        fault: String,
    },
    /// Two sources hold the same key.
    #[error("the sealing key {name} is the same as an earlier one")]
    Twice {
        /// Source of the second copy.
        name: String,
    },
    /// The random generator of the system failed.
    #[error("the system's random generator failed")]
    Random,
    /// The ciphertext was made with another key or for another job, or was altered.
    #[error("the ciphertext was made with another key, or was altered")]
    Unopenable,
}

/// Source of a sealing key. The key is read only when it is needed, so a command that reads only ids does not need
/// permission to read the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that the daemon creates if it does not exist.
    Own(PathBuf),
    /// A file that must exist.
    File(PathBuf),
    /// A text from another source, or the reason why it is not available.
    Text {
        /// Name of the source in messages.
        name: String,
        /// The text.
        text: Result<Secret, String>,
    },
}

impl KeySource {
    /// Returns the path, if the source is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            KeySource::Own(path) | KeySource::File(path) => Some(path),
            KeySource::Text { .. } => None,
        }
    }

    fn name(&self) -> String {
        match self {
            KeySource::Own(path) | KeySource::File(path) => named_file(path),
            KeySource::Text { name, .. } => name.clone(),
        }
    }

    fn key(&self) -> Result<SealingKey, SealError> {
        match self {
            KeySource::Own(path) | KeySource::File(path) => match (files::open(path), self) {
                (Ok(file), _) => self.of_file(file, path),
                (Err(error), KeySource::Own(_)) if error.kind() == ErrorKind::NotFound => {
                    Err(SealError::Missing { path: path.clone() })
                }
                (Err(source), _) => Err(SealError::File { path: path.clone(), source }),
            },
            KeySource::Text { text: Ok(text), .. } => self.of_text(text.expose()),
            KeySource::Text { name, text: Err(why) } => {
                Err(SealError::Unavailable { name: name.clone(), why: why.clone() })
            }
        }
    }

    fn of_file(&self, file: File, path: &Path) -> Result<SealingKey, SealError> {
        // Limit the read, because the path may name any file.
        let mut text = Zeroizing::new(String::new());
        file.take(1024)
            .read_to_string(&mut text)
            .map_err(|source| SealError::File { path: path.to_owned(), source })?;
        self.of_text(&text)
    }

    fn of_text(&self, text: &str) -> Result<SealingKey, SealError> {
        let mut key = Zeroizing::new([0u8; KEY_BYTES]);
        let text = text.trim();
        let fault = || fault_of_secret(text).map(|fault| format!(": {fault}")).unwrap_or_default();
        // The error names the fault but never the text, because the text may be a mistyped key.
        hex::decode_to_slice(text, key.as_mut())
            .map_err(|_| SealError::NotAKey { name: self.name(), fault: fault() })?;
        Ok(SealingKey::new(&key))
    }
}

/// Id of a sealing key: a part of a hash, which reveals nothing about the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl serde::Serialize for KeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Clone)]
struct SealingKey {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl SealingKey {
    fn new(key: &[u8; KEY_BYTES]) -> SealingKey {
        let mut id = [0; KEY_ID_BYTES];
        for (slot, byte) in
            id.iter_mut().zip(Sha256::new().chain_update(ID_TEXT).chain_update(key).finalize())
        {
            *slot = byte;
        }
        SealingKey { id: KeyId(id), cipher: XChaCha20Poly1305::new(key.into()) }
    }

    fn header(&self) -> Vec<u8> {
        [FORM.as_slice(), &self.id.0].concat()
    }

    /// Decrypts the bytes after the header. `header` is empty for a ciphertext of an older spid.
    fn open(&self, header: &[u8], bound_to: &[u8], sealed: &[u8]) -> Option<Secret> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        // Header and job are authenticated too, so neither can be exchanged.
        let aad = [header, bound_to].concat();
        let plain = self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad }).ok()?;
        String::from_utf8(plain).map(Secret::new).ok()
    }
}

/// Returns the id of the key that made this ciphertext, if it has a header.
pub fn key_of(sealed: &[u8]) -> Option<KeyId> {
    let id = sealed.strip_prefix(&FORM)?.first_chunk::<KEY_ID_BYTES>()?;
    Some(KeyId(*id))
}

/// Encrypts with the current key, and decrypts with every key.
#[derive(Clone)]
pub struct Encryptor {
    current: SealingKey,
    previous: Vec<SealingKey>,
}

impl std::fmt::Debug for Encryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(***)")
    }
}

impl Encryptor {
    /// Creates a sealer with a random key that is never stored, for stores in memory.
    ///
    /// # Errors
    /// [`SealError::Random`].
    pub fn ephemeral() -> Result<Encryptor, SealError> {
        let key = random_key()?;
        Ok(Encryptor { current: SealingKey::new(&key), previous: Vec::new() })
    }

    /// Creates a sealer with these keys, the current one first. Creates a missing key that belongs to the daemon
    /// ([`KeySource::Own`]) in a file that only its owner can read.
    ///
    /// # Errors
    /// If a key cannot be read or created, or is not valid.
    pub fn from_sources(sources: &[KeySource]) -> Result<Encryptor, SealError> {
        for source in sources {
            // A missing key of another source is an error: only the daemon's own key may be created.
            if let (KeySource::Own(path), Err(SealError::Missing { .. })) = (source, source.key()) {
                let key = random_key()?;
                write_key(path, &key).map_err(|source| SealError::File { path: path.clone(), source })?;
            }
        }
        Encryptor::from_existing(sources)
    }

    /// Creates a sealer with these keys, the current one first. All of them must exist: a command beside a daemon must
    /// not create a key that the daemon does not have.
    ///
    /// # Errors
    /// If a key is missing, cannot be read, or is not valid.
    pub fn from_existing(sources: &[KeySource]) -> Result<Encryptor, SealError> {
        let mut keys: Vec<SealingKey> = Vec::new();
        for source in sources {
            let key = source.key()?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(SealError::Twice { name: source.name() });
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let none = || SealError::Unavailable {
            name: "of this store".to_owned(),
            why: "no key is configured".to_owned(),
        };
        Ok(Encryptor { current: keys.next().ok_or_else(none)?, previous: keys.collect() })
    }

    /// Returns the ids of the keys, the current one first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys().map(|key| key.id).collect()
    }

    /// Returns the header of every ciphertext that this sealer makes.
    pub fn header(&self) -> Vec<u8> {
        self.current.header()
    }

    /// Returns the id of the key that encrypts.
    pub fn current(&self) -> KeyId {
        self.current.id
    }

    fn keys(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Encrypts `secret` and binds it to `bound_to`.
    ///
    /// # Errors
    /// [`SealError::Random`] when the system gives no nonce.
    pub fn seal(&self, bound_to: &[u8], secret: &Secret) -> Result<Vec<u8>, SealError> {
        let mut nonce = [0u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SealError::Random)?;
        let header = self.current.header();
        let aad = [header.as_slice(), bound_to].concat();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: &aad };
        let sealed =
            self.current.cipher.encrypt(&XNonce::from(nonce), payload).map_err(|_| SealError::Random)?;
        Ok([header.as_slice(), &nonce, &sealed].concat())
    }

    /// Decrypts a ciphertext of [`Encryptor::seal`] with the same `bound_to`.
    ///
    /// # Errors
    /// [`SealError::Unopenable`].
    pub fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Result<Secret, SealError> {
        let named = key_of(sealed).and_then(|id| self.keys().find(|key| key.id == id));
        let opened = named.and_then(|key| {
            let (header, rest) = sealed.split_at_checked(HEADER_BYTES)?;
            key.open(header, bound_to, rest)
        });
        // A ciphertext without a header begins with its nonce. Try every key.
        let opened = opened.or_else(|| self.keys().find_map(|key| key.open(&[], bound_to, sealed)));
        opened.ok_or(SealError::Unopenable)
    }
}

fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>, SealError> {
    let mut key = Zeroizing::new([0u8; KEY_BYTES]);
    getrandom::fill(key.as_mut()).map_err(|_| SealError::Random)?;
    Ok(key)
}

/// Writes a key file, unless another process has made one meanwhile. The file is written under another name and then
/// linked, so that a crash leaves a whole key or none.
fn write_key(path: &Path, key: &[u8; KEY_BYTES]) -> std::io::Result<()> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|_| std::io::Error::other(SealError::Random))?;
    // A random name, because two processes that both miss the key must not write the same file.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{}", hex::encode(suffix)));
    let partial = PathBuf::from(name);
    let published = write_partial(&partial, key).and_then(|()| publish(&partial, path));
    let _ = std::fs::remove_file(&partial);
    published?;
    // Without this sync, a power cut could undo the link, and the passwords encrypted meanwhile would be lost.
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn write_partial(partial: &Path, key: &[u8; KEY_BYTES]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(partial)?;
    file.write_all(Zeroizing::new(hex::encode(key)).as_bytes())?;
    file.write_all(b"\n")?;
    // The key must be on the disk before the link publishes it.
    file.sync_all()
}

/// Gives the file its final name. A file that already has this name stays: passwords may be encrypted with it.
fn publish(partial: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::hard_link(partial, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        // Some file systems have no hard links. A rename could replace a key, so check again just before.
        Err(_) if !path.try_exists()? => std::fs::rename(partial, path),
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn given(key: u8) -> KeySource {
        let text = Ok(Secret::new(hex::encode([key; KEY_BYTES])));
        KeySource::Text { name: format!("`FAKE_{key}`"), text }
    }

    fn with(keys: &[u8]) -> Encryptor {
        Encryptor::from_existing(&keys.iter().copied().map(given).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_place() {
        let encryptor = Encryptor::ephemeral().unwrap();
        let sealed = encryptor.seal(b"job-1", &Secret::new("fake-password")).unwrap();
        assert_eq!(encryptor.open(b"job-1", &sealed).unwrap().expose(), "fake-password");
        assert!(encryptor.open(b"job-2", &sealed).is_err());
        assert!(Encryptor::ephemeral().unwrap().open(b"job-1", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(encryptor.open(b"job-1", &altered).is_err(), "byte {at}");
        }
        assert!(encryptor.open(b"job-1", b"short").is_err());
        assert!(encryptor.open(b"job-1", &FORM).is_err());
    }

    #[test]
    fn the_same_text_never_seals_the_same_way_twice() {
        let encryptor = Encryptor::ephemeral().unwrap();
        let secret = Secret::new("fake-password");
        assert_ne!(encryptor.seal(b"", &secret).unwrap(), encryptor.seal(b"", &secret).unwrap());
    }

    #[test]
    fn what_is_sealed_says_which_key_it_was_and_opens_with_any_of_them() {
        let (old, both, new) = (with(&[1]), with(&[2, 1]), with(&[2]));
        let secret = Secret::new("fake-password");
        let (before, since) = (old.seal(b"job", &secret).unwrap(), both.seal(b"job", &secret).unwrap());
        assert_eq!((key_of(&before), key_of(&since)), (Some(old.current()), Some(new.current())));
        assert_ne!(old.current(), new.current());
        assert_eq!(both.ids(), [new.current(), old.current()]);
        for sealed in [&before, &since] {
            assert_eq!(both.open(b"job", sealed).unwrap().expose(), "fake-password");
        }
        assert!(new.open(b"job", &before).is_err() && old.open(b"job", &since).is_err());
    }

    /// Checks a ciphertext as spid wrote it before headers existed.
    #[test]
    fn what_was_sealed_without_a_header_opens_with_the_key_it_was() {
        let key = [1; KEY_BYTES];
        let nonce = [7; NONCE_BYTES];
        let payload = Payload { msg: b"fake-password", aad: b"job" };
        let sealed = XChaCha20Poly1305::new(&key.into()).encrypt(&XNonce::from(nonce), payload).unwrap();
        let sealed = [nonce.as_slice(), &sealed].concat();
        assert_eq!(key_of(&sealed), None);
        for keys in [[1].as_slice(), &[2, 1], &[3, 2, 1]] {
            assert_eq!(with(keys).open(b"job", &sealed).unwrap().expose(), "fake-password");
        }
        assert!(with(&[2]).open(b"job", &sealed).is_err());
    }

    #[test]
    fn the_key_file_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        let own = [KeySource::Own(path.clone())];
        assert!(matches!(Encryptor::from_existing(&own), Err(SealError::Missing { .. })));
        let first = Encryptor::from_sources(&own).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = first.seal(b"job", &Secret::new("fake-password")).unwrap();
        let again = Encryptor::from_sources(&[KeySource::File(path)]).unwrap();
        assert_eq!(again.open(b"job", &sealed).unwrap().expose(), "fake-password");
    }

    #[test]
    fn key_that_another_process_made_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        write_key(&path, &[1; KEY_BYTES]).unwrap();
        write_key(&path, &[2; KEY_BYTES]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().trim(), hex::encode([1; KEY_BYTES]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file remains");
        // All processes that start together use the same key.
        std::fs::remove_file(&path).unwrap();
        let sources = [KeySource::Own(path)];
        let start = || Encryptor::from_sources(&sources).unwrap().current();
        let keys: Vec<KeyId> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == start()), "{keys:?}");
    }

    #[test]
    fn a_key_that_is_named_is_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("named.key");
        let missing = Encryptor::from_sources(&[KeySource::File(path.clone())]);
        assert!(matches!(missing, Err(SealError::File { .. })));
        assert!(!path.exists());
        let twice = Encryptor::from_existing(&[given(1), given(1)]).unwrap_err().to_string();
        assert!(twice.contains("same as an earlier one"), "{twice}");
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        std::fs::write(&path, "not a key").unwrap();
        let error = Encryptor::from_sources(&[KeySource::Own(path)]).unwrap_err().to_string();
        assert!(error.contains("spid.db.key") && error.contains("64 hex digits"), "{error}");
        assert!(!error.contains("not a key"));
    }
}
