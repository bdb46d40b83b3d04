//! Sealing the secret fields of answers at rest.
//!
//! A database is copied: into backups, onto a colleague's laptop, into a ticket. The passwords a
//! hook answered with must not travel along. They are sealed with XChaCha20-Poly1305 under a key that
//! lives beside the database, not in it; a random 24-byte nonce stands in front of each. What is
//! sealed is bound to the job it belongs to, so that it cannot be moved to another.
//!
//! In front of the nonce stands which key it was: while a key is changed there are several, and an old one
//! may go only once nothing is left that it sealed. What was sealed before there was such a header has
//! none; it is tried with every key.
//!
//! Losing the key loses the passwords, never an order: the id and the addresses lie open.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::core::signature::Secret;
use crate::hook::text::{fault_of_secret, named_file};
use crate::observe::files;

const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;

/// How long what stands before the nonce is.
pub const HEADER_BYTES: usize = FORM.len() + KEY_ID_BYTES;

/// What stands before the key's id: the name of the form, and its version.
const FORM: [u8; 4] = *b"spd1";
/// What a key's id is made of, beside the key.
const ID_TEXT: &[u8] = b"spid sealing key id";

/// Why something could not be sealed or opened. It never says what.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file could not be read or written.
    #[error("the sealing key {}: {source}", named_file(path))]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The key that the daemon makes is not there, and it is not to be made now.
    #[error("there is no sealing key at `{}`; the daemon makes one at its first start, and --config FILE says where it is if it is not beside the database", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A key that is named cannot be had.
    #[error("the sealing key {name}: {why}")]
    Unavailable {
        /// Where it should come from.
        name: String,
        /// What is wrong there.
        why: String,
    },
    /// It holds something else.
    #[error(
        "the sealing key {name} is not 64 hex digits{fault}; restore it, or move it away to start with a new one (sealed passwords are then lost, ids are not)"
    )]
    NotAKey {
        /// Where it came from.
        name: String,
        /// The first character that cannot be one, and its position, behind a colon; empty if its length is wrong.
        fault: String,
    },
    /// The same key twice.
    #[error("the sealing key {name} is the same as an earlier one")]
    Twice {
        /// Where the second one came from.
        name: String,
    },
    /// The system's generator gave nothing.
    #[error("the system's random generator failed")]
    Random,
    /// It was sealed with another key, for another job, or has been altered.
    #[error("sealed with another key, or altered")]
    Unopenable,
}

/// Where a sealing key comes from. It is looked for when it is needed: whoever only reads ids need not be
/// able to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that the daemon makes if it is not there.
    Own(PathBuf),
    /// A file that must be there.
    File(PathBuf),
    /// A text from elsewhere, or why it cannot be had.
    Text {
        /// What it is called in messages.
        name: String,
        /// The text.
        text: Result<Secret, String>,
    },
}

impl KeySource {
    /// The file, if it is one.
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
        hex::decode_to_slice(text, key.as_mut())
            .map_err(|_| SealError::NotAKey { name: self.name(), fault: fault() })?;
        Ok(SealingKey::new(&key))
    }
}

/// Tells one sealing key from another, and nothing of either.
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

    /// Opens what stands behind a header, which may be none.
    fn open(&self, header: &[u8], bound_to: &[u8], sealed: &[u8]) -> Option<Secret> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let aad = [header, bound_to].concat();
        let plain = self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad }).ok()?;
        String::from_utf8(plain).map(Secret::new).ok()
    }
}

/// The key that sealed this, if it says so.
pub fn key_of(sealed: &[u8]) -> Option<KeyId> {
    let id = sealed.strip_prefix(&FORM)?.first_chunk::<KEY_ID_BYTES>()?;
    Some(KeyId(*id))
}

/// Seals with the current key, and opens with every one.
#[derive(Clone)]
pub struct Sealer {
    current: SealingKey,
    previous: Vec<SealingKey>,
}

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
        Ok(Sealer { current: SealingKey::new(&key), previous: Vec::new() })
    }

    /// With these keys, the current one first. One that the daemon keeps itself, and that is not there, is
    /// made, readable by its owner alone.
    ///
    /// # Errors
    /// When a key cannot be read or made, or is none.
    pub fn from_sources(sources: &[KeySource]) -> Result<Sealer, SealError> {
        for source in sources {
            if let (KeySource::Own(path), Err(SealError::Missing { .. })) = (source, source.key()) {
                let key = random_key()?;
                write_key(path, &key).map_err(|source| SealError::File { path: path.clone(), source })?;
            }
        }
        Sealer::from_existing(sources)
    }

    /// With these keys, all of which must be there: whoever works beside a daemon must not make a key that
    /// the daemon does not have.
    ///
    /// # Errors
    /// When a key is missing, cannot be read, or is none.
    pub fn from_existing(sources: &[KeySource]) -> Result<Sealer, SealError> {
        let mut keys: Vec<SealingKey> = Vec::new();
        for source in sources {
            let key = source.key()?;
            if keys.iter().any(|known| known.id == key.id) {
                return Err(SealError::Twice { name: source.name() });
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let none =
            || SealError::Unavailable { name: "of this store".to_owned(), why: "none is named".to_owned() };
        Ok(Sealer { current: keys.next().ok_or_else(none)?, previous: keys.collect() })
    }

    /// The ids of its keys, the current one first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.keys().map(|key| key.id).collect()
    }

    /// What stands before everything it seals.
    pub fn header(&self) -> Vec<u8> {
        self.current.header()
    }

    /// The id of the key that seals.
    pub fn current(&self) -> KeyId {
        self.current.id
    }

    fn keys(&self) -> impl Iterator<Item = &SealingKey> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// Seals `secret` for the place `bound_to`.
    ///
    /// # Errors
    /// [`SealError::Random`] when no nonce can be had.
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

    /// Opens what [`Sealer::seal`] sealed for the same place.
    ///
    /// # Errors
    /// [`SealError::Unopenable`].
    pub fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Result<Secret, SealError> {
        let named = key_of(sealed).and_then(|id| self.keys().find(|key| key.id == id));
        let opened = named.and_then(|key| {
            let (header, rest) = sealed.split_at_checked(HEADER_BYTES)?;
            key.open(header, bound_to, rest)
        });
        // What was sealed before there were headers begins with its nonce.
        let opened = opened.or_else(|| self.keys().find_map(|key| key.open(&[], bound_to, sealed)));
        opened.ok_or(SealError::Unopenable)
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
    // What stands there is what an earlier crash left, or no file at all: to open a named pipe would wait.
    let _ = std::fs::remove_file(&partial);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
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

    fn given(key: u8) -> KeySource {
        let text = Ok(Secret::new(hex::encode([key; KEY_BYTES])));
        KeySource::Text { name: format!("`FAKE_{key}`"), text }
    }

    fn with(keys: &[u8]) -> Sealer {
        Sealer::from_existing(&keys.iter().copied().map(given).collect::<Vec<_>>()).unwrap()
    }

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
        assert!(sealer.open(b"job-1", &FORM).is_err());
    }

    #[test]
    fn the_same_text_never_seals_the_same_way_twice() {
        let sealer = Sealer::ephemeral().unwrap();
        let secret = Secret::new("fake-password");
        assert_ne!(sealer.seal(b"", &secret).unwrap(), sealer.seal(b"", &secret).unwrap());
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

    /// As it was written before what is sealed had a header.
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
        assert!(matches!(Sealer::from_existing(&own), Err(SealError::Missing { .. })));
        let first = Sealer::from_sources(&own).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = first.seal(b"job", &Secret::new("fake-password")).unwrap();
        let again = Sealer::from_sources(&[KeySource::File(path)]).unwrap();
        assert_eq!(again.open(b"job", &sealed).unwrap().expose(), "fake-password");
    }

    #[test]
    fn a_key_that_is_named_is_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("named.key");
        let missing = Sealer::from_sources(&[KeySource::File(path.clone())]);
        assert!(matches!(missing, Err(SealError::File { .. })));
        assert!(!path.exists());
        let twice = Sealer::from_existing(&[given(1), given(1)]).unwrap_err().to_string();
        assert!(twice.contains("same as an earlier one"), "{twice}");
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spid.db.key");
        std::fs::write(&path, "not a key").unwrap();
        let error = Sealer::from_sources(&[KeySource::Own(path)]).unwrap_err().to_string();
        assert!(error.contains("spid.db.key") && error.contains("64 hex digits"), "{error}");
        assert!(!error.contains("not a key"));
    }
}
