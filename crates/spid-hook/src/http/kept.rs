//! Answers by idempotency key, in a file of encrypted lines.
//!
//! A line holds a version, the time, and the answer with its key, encrypted with XChaCha20-Poly1305 under a random
//! nonce: `1 1767225600 <base64>`. A line is on the disk before its answer is given. A crash can leave a part of the
//! last line; that part is removed at the next start. Lines that are too old are removed at a start, and when the file
//! has doubled since then.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Secret;
use crate::text::fault_of_secret;

const NONCE_BYTES: usize = 24;
const KEY_BYTES: usize = 32;
/// Version of a line, its first word.
const VERSION: &str = "1";
/// Permissions of the file: for its owner only.
const MODE: u32 = 0o600;
/// Number of lines from which the file is written again when it has doubled.
const REWRITE_MIN_COUNT: usize = if cfg!(test) { 40 } else { 1_000 };

/// The key that encrypts kept answers.
#[derive(Clone)]
pub struct AnswerKey(Zeroizing<[u8; KEY_BYTES]>);

/// Error for a text that is not an [`AnswerKey`]. It never contains the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer key is not 64 hexadecimal digits{0}; make one with `openssl rand -hex 32`")]
pub struct BadAnswerKey(String);

impl AnswerKey {
    /// Reads 64 hexadecimal digits. White space at the ends is ignored, because files end with a line break.
    ///
    /// ```
    /// use spid_hook::{Secret, http::AnswerKey};
    ///
    /// assert!(AnswerKey::new(&Secret::new("07".repeat(32))).is_ok());
    /// assert!(AnswerKey::new(&Secret::new("a password")).is_err());
    /// ```
    ///
    /// # Errors
    /// [`BadAnswerKey`].
    pub fn new(secret: &Secret) -> Result<AnswerKey, BadAnswerKey> {
        let text = secret.expose().trim();
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        if hex::decode_to_slice(text, key.as_mut()).is_err() {
            let fault = fault_of_secret(text).map(|fault| format!(": {fault}"));
            return Err(BadAnswerKey(fault.unwrap_or_default()));
        }
        Ok(AnswerKey(key))
    }
}

impl std::fmt::Debug for AnswerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswerKey(***)")
    }
}

/// Reason why the file of answers cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeptError {
    /// The file cannot be read or written.
    #[error("the file of answers `{}`: {source}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// Another process uses the file.
    #[error("the file of answers `{}` is in use by another process; give each process a file of its own", .0.display())]
    InUse(PathBuf),
    /// No line of the file can be decrypted.
    #[error("no answer in `{}` can be decrypted with this key; give the key it was written with, or another file", .0.display())]
    WrongKey(PathBuf),
}

/// Content of a line, as it is encrypted.
#[derive(Serialize)]
struct Content<'a> {
    key: &'a str,
    /// The JSON of the answer, as a text.
    answer: &'a str,
}

/// Content of a line, as it is decrypted.
#[derive(Deserialize)]
struct Owned {
    key: String,
    answer: Secret,
}

/// A line of the file.
#[derive(Clone)]
struct Line {
    /// Time of the answer, in seconds since 1970.
    at: i64,
    /// Nonce and ciphertext, as base64.
    sealed: String,
}

impl Line {
    fn parse(text: &str) -> Option<Line> {
        let rest = text.strip_prefix(VERSION)?.strip_prefix(' ')?;
        let (at, sealed) = rest.split_once(' ')?;
        Some(Line { at: at.parse().ok()?, sealed: sealed.to_owned() })
    }

    fn text(&self) -> String {
        format!("{VERSION} {} {}\n", self.at, self.sealed)
    }

    /// Data that the ciphertext is bound to: the time decides how long an answer is given.
    fn bound_to(at: i64) -> String {
        format!("spid-hook answer {VERSION} {at}")
    }
}

/// The kept answers, and the file that holds them.
pub(super) struct KeptAnswers {
    path: PathBuf,
    file: File,
    /// Length of the file up to its last whole line.
    length: u64,
    cipher: XChaCha20Poly1305,
    age: Duration,
    lines: HashMap<String, Line>,
    /// Number of lines in the file, with those that are too old.
    count: usize,
    /// Number of lines at which the file is written again.
    rewrite_at: usize,
}

/// Kept answers of a file, and the faults that were found in it.
pub(super) struct Opened {
    pub(super) kept: KeptAnswers,
    pub(super) warnings: Vec<String>,
}

impl KeptError {
    /// Returns the conversion of an error of this file.
    fn at(path: &Path) -> impl Fn(std::io::Error) -> KeptError {
        move |source| KeptError::File { path: path.to_owned(), source }
    }
}

impl KeptAnswers {
    /// Opens the file, or creates it. Answers older than `age` are removed.
    pub(super) fn open(
        path: &Path,
        key: &AnswerKey,
        age: Duration,
        now: Timestamp,
    ) -> Result<Opened, KeptError> {
        let file = locked(path)?;
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).map_err(KeptError::at(path))?;
        let cipher = XChaCha20Poly1305::new((&*key.0).into());
        let mut kept = KeptAnswers {
            path: path.to_owned(),
            file,
            length: 0,
            cipher,
            age,
            lines: HashMap::new(),
            count: 0,
            rewrite_at: REWRITE_MIN_COUNT,
        };
        let warnings = kept.load(&bytes, now)?;
        kept.rewrite(now).map_err(KeptError::at(path))?;
        Ok(Opened { kept, warnings })
    }

    /// Reads all lines. Returns the faults that do not prevent a start.
    fn load(&mut self, bytes: &[u8], now: Timestamp) -> Result<Vec<String>, KeptError> {
        let mut warnings = Vec::new();
        // A crash while a line was written leaves a last piece without a line break. Its answer was never given.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            warnings.push("the last line was cut off by a crash; it is removed".to_owned());
        }
        let (mut damaged, mut sound) = (0, 0);
        let whole = String::from_utf8_lossy(bytes.get(..whole).unwrap_or_default());
        for text in whole.lines() {
            match Line::parse(text).and_then(|line| Some((self.decrypt(&line)?.0, line))) {
                Some((key, line)) => {
                    sound += 1;
                    self.lines.insert(key, line);
                }
                None => damaged += 1,
            }
        }
        // With a wrong key every line looks damaged. To go on would delete all answers.
        if damaged > 0 && sound == 0 {
            return Err(KeptError::WrongKey(self.path.clone()));
        }
        if damaged > 0 {
            warnings.push(format!("{damaged} damaged lines are removed; their calls run the hook again"));
        }
        self.forget_old(now);
        Ok(warnings)
    }

    /// Returns the answer that was kept under this key.
    pub(super) fn get(&self, key: &str, now: Timestamp) -> Option<Secret> {
        let line = self.lines.get(key).filter(|line| !self.is_old(line, now))?;
        self.decrypt(line).map(|(_, answer)| answer)
    }

    /// Keeps an answer. It is on the disk when this returns.
    pub(super) fn put(&mut self, key: &str, answer: &Secret, now: Timestamp) -> std::io::Result<()> {
        let line = self.encrypt(key, answer, now.as_second())?;
        let text = line.text();
        // Remove what an earlier failure may have left behind the last whole line.
        self.file.set_len(self.length)?;
        let written = (&self.file).write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // A part of a line must not stand before the next one. `put` repeats this if it fails.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += text.len() as u64;
        self.count += 1;
        self.lines.insert(key.to_owned(), line);
        if self.count >= self.rewrite_at {
            self.forget_old(now);
            // The answer is on the disk already, so a failure here only leaves a longer file.
            let _ = self.rewrite(now);
        }
        Ok(())
    }

    fn is_old(&self, line: &Line, now: Timestamp) -> bool {
        let seconds = now.as_second().saturating_sub(line.at);
        u64::try_from(seconds).is_ok_and(|seconds| seconds > self.age.as_secs())
    }

    fn forget_old(&mut self, now: Timestamp) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.retain(|_, line| !self.is_old(line, now));
        self.lines = lines;
    }

    /// Writes the file again, with the lines that are still needed: completely or not at all.
    fn rewrite(&mut self, now: Timestamp) -> std::io::Result<()> {
        let mut lines: Vec<&Line> = self.lines.values().filter(|line| !self.is_old(line, now)).collect();
        lines.sort_by_key(|line| line.at);
        let text: String = lines.iter().map(|line| line.text()).collect();
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        // A file that a crash left behind may have other permissions.
        let _ = std::fs::remove_file(&new);
        let file = OpenOptions::new().read(true).append(true).create_new(true).mode(MODE).open(&new)?;
        file.try_lock().map_err(std::io::Error::from)?;
        (&file).write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, &self.path)?;
        sync_folder_of(&self.path)?;
        let count = lines.len();
        self.file = file;
        self.length = text.len() as u64;
        self.count = count;
        self.rewrite_at = (2 * count).max(REWRITE_MIN_COUNT);
        Ok(())
    }

    fn encrypt(&self, key: &str, answer: &Secret, at: i64) -> std::io::Result<Line> {
        let text = Zeroizing::new(serde_json::to_vec(&Content { key, answer: answer.expose() })?);
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
        let bound_to = Line::bound_to(at);
        let payload = Payload { msg: &text, aad: bound_to.as_bytes() };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| std::io::Error::other("the answer cannot be encrypted"))?;
        Ok(Line { at, sealed: BASE64.encode([nonce.as_slice(), &sealed].concat()) })
    }

    /// Returns the key and the answer of a line.
    fn decrypt(&self, line: &Line) -> Option<(String, Secret)> {
        let bytes = BASE64.decode(&line.sealed).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let bound_to = Line::bound_to(line.at);
        let payload = Payload { msg: sealed, aad: bound_to.as_bytes() };
        let text = Zeroizing::new(self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()?);
        let content: Owned = serde_json::from_slice(&text).ok()?;
        Some((content.key, content.answer))
    }
}

/// Opens the file for this process only, with permissions for its owner only.
fn locked(path: &Path) -> Result<File, KeptError> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(MODE)
        .open(path)
        .map_err(KeptError::at(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(KeptError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => return Err(KeptError::at(path)(source)),
    }
    // The process that had the lock before may have put another file there meanwhile.
    let (locked, there) =
        (file.metadata().map_err(KeptError::at(path))?, path.metadata().map_err(KeptError::at(path))?);
    if (locked.dev(), locked.ino()) != (there.dev(), there.ino()) {
        return Err(KeptError::InUse(path.to_owned()));
    }
    file.set_permissions(PermissionsExt::from_mode(MODE)).map_err(KeptError::at(path))?;
    Ok(file)
}

/// Makes a rename in the folder of `path` durable.
fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("spid-hook-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join("answers")
        }

        fn open(&self, key: u8, now: Timestamp) -> Result<Opened, KeptError> {
            KeptAnswers::open(&self.file(), &key_of(key), DAY, now)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn key_of(byte: u8) -> AnswerKey {
        AnswerKey::new(&Secret::new(hex::encode([byte; 32]))).unwrap()
    }

    fn after(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_767_225_600 + seconds).unwrap()
    }

    #[test]
    fn an_answer_is_kept_encrypted_and_survives_a_torn_line() {
        let folder = Folder::new("torn");
        let answer = Secret::new(r#"{"app":{"password":"fake-canary"}}"#);
        let mut kept = folder.open(1, after(0)).unwrap().kept;
        kept.put("key-1", &answer, after(0)).unwrap();
        assert!(matches!(folder.open(1, after(0)), Err(KeptError::InUse(_))));
        drop(kept);
        let text = std::fs::read_to_string(folder.file()).unwrap();
        assert!(text.ends_with('\n') && !text.contains("canary") && !text.contains("key-1"), "{text}");
        assert_eq!(folder.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);

        std::fs::write(folder.file(), format!("{text}{}", &text[..text.len() / 2])).unwrap();
        std::fs::set_permissions(folder.file(), PermissionsExt::from_mode(0o644)).unwrap();
        let Opened { mut kept, warnings } = folder.open(1, after(1)).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(kept.get("key-1", after(1)), Some(answer.clone()));
        assert_eq!(kept.get("key-2", after(1)), None);
        kept.put("key-2", &answer, after(1)).unwrap();
        drop(kept);
        assert_eq!(folder.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let Opened { kept, warnings } = folder.open(1, after(2)).unwrap();
        assert_eq!((warnings.len(), kept.get("key-2", after(2))), (0, Some(answer)));
    }

    #[test]
    fn an_old_answer_goes_and_a_wrong_key_deletes_nothing() {
        let folder = Folder::new("age");
        let mut kept = folder.open(1, after(0)).unwrap().kept;
        kept.put("old", &Secret::new("{}"), after(0)).unwrap();
        kept.put("new", &Secret::new("{}"), after(86_400)).unwrap();
        assert!(kept.get("old", after(86_400)).is_some());
        assert!(kept.get("old", after(86_401)).is_none());
        drop(kept);
        let before = std::fs::read(folder.file()).unwrap();
        assert!(matches!(folder.open(2, after(86_401)), Err(KeptError::WrongKey(_))));
        assert_eq!(std::fs::read(folder.file()).unwrap(), before);
        let kept = folder.open(1, after(86_401)).unwrap().kept;
        assert!(kept.get("new", after(86_401)).is_some());
        assert_eq!(std::fs::read_to_string(folder.file()).unwrap().lines().count(), 1);
    }

    #[test]
    fn a_line_is_bound_to_its_time_and_a_damaged_one_is_left_out() {
        let folder = Folder::new("damaged");
        let mut kept = folder.open(1, after(0)).unwrap().kept;
        kept.put("key-1", &Secret::new("{}"), after(0)).unwrap();
        kept.put("key-2", &Secret::new("{}"), after(0)).unwrap();
        drop(kept);
        let text = std::fs::read_to_string(folder.file()).unwrap();
        let later = after(9).as_second().to_string();
        std::fs::write(folder.file(), text.replacen(&after(0).as_second().to_string(), &later, 1)).unwrap();
        let Opened { kept, warnings } = folder.open(1, after(9)).unwrap();
        assert_eq!(warnings, ["1 damaged lines are removed; their calls run the hook again"]);
        assert!(kept.get("key-1", after(9)).is_none() && kept.get("key-2", after(9)).is_some());
    }

    #[test]
    fn a_long_file_is_written_again_without_what_is_old() {
        let folder = Folder::new("long");
        let mut kept = folder.open(1, after(0)).unwrap().kept;
        for number in 0..REWRITE_MIN_COUNT {
            let at = if number < REWRITE_MIN_COUNT - 10 { after(0) } else { after(90_000) };
            kept.put(&number.to_string(), &Secret::new("{}"), at).unwrap();
        }
        assert_eq!(std::fs::read_to_string(folder.file()).unwrap().lines().count(), 10);
        assert!(kept.get(&(REWRITE_MIN_COUNT - 1).to_string(), after(90_000)).is_some());
    }
}
