//! The only place that touches a key.
//!
//! A dialect knows *what* was signed; this module knows *how*. The dialect hands over the
//! [`Scheme`], the parts and the payload; here the key is added, the digest made, and the compare
//! done in constant time against every configured key. A [`Verified`] can be made nowhere else, so
//! a function that takes one cannot be called with an unverified request.
//!
//! A mismatch is explained from the parts, with `<key>` where the key stood: see [`Signed::base`].
//!
//! Rules: Alibaba Cloud Marketplace, "SPI security scheme" (help.aliyun.com/document_detail/147280.html);
//! JD Cloud, "Notify-Interface-Standard" (github.com/jdcloudcom/en), whose worked example is the
//! first test vector below; the HMAC scheme is our own, see `docs/dialects/generic.md`.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What stands for the key wherever a base string is shown.
pub const KEY_PLACEHOLDER: &str = "<key>";

/// Text that cannot be printed: a key, a password, a licence key.
///
/// It has no `Display` and no `Serialize`; `Debug` shows that something is there and nothing of
/// it. The memory is wiped when the last clone goes.
///
/// ```
/// use spid::signature::Secret;
/// let password = Secret::new("hunter2");
/// assert_eq!(format!("{password:?}"), "Secret(***)");
/// assert_eq!(password.expose(), "hunter2");
/// ```
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Arc::new(Zeroizing::new(text.into())))
    }

    /// The text itself. Every call of this is a place to look at in a review.
    pub fn expose(&self) -> &str {
        self.0.as_str()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for Secret {}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

/// A key with the name it has in logs, metrics and `callbacks show`.
#[derive(Debug, Clone)]
pub struct Key {
    label: Arc<str>,
    secret: Secret,
}

/// A key that must not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// There is no text in it.
    #[error("the key is empty: a request could be signed by anyone")]
    Empty,
    /// It begins or ends with white space, or holds a control character.
    #[error("the key has white space around it or a control character in it: was more than the key copied?")]
    Unclean,
}

impl Key {
    /// A labelled key. Fails closed: an empty or suspicious text is no key.
    ///
    /// # Errors
    /// [`BadKey`] says what is wrong with it, never what it is.
    pub fn new(label: impl Into<Arc<str>>, secret: Secret) -> Result<Key, BadKey> {
        if secret.is_empty() {
            return Err(BadKey::Empty);
        }
        let text = secret.expose();
        if text.trim() != text || text.chars().any(char::is_control) {
            return Err(BadKey::Unclean);
        }
        Ok(Key { label: label.into(), secret })
    }

    /// The name of this key; never a part of the key.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }
}

/// The keys of one endpoint: the current one first, then previous ones. Never empty.
#[derive(Debug, Clone)]
pub struct Keys(Arc<[Key]>);

impl Keys {
    /// Keeps the keys in the order given. `None` when there is none: nothing may be verified
    /// against nothing.
    pub fn new(keys: Vec<Key>) -> Option<Keys> {
        if keys.is_empty() { None } else { Some(Keys(keys.into())) }
    }

    /// One key, labelled `current`.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn single(secret: Secret) -> Result<Keys, BadKey> {
        Ok(Keys(Arc::from([Key::new("current", secret)?])))
    }

    /// The labels, the current key's first.
    pub fn labels(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(Key::label)
    }

    fn iter(&self) -> std::slice::Iter<'_, Key> {
        self.0.iter()
    }

    /// The key requests are signed with: the first.
    fn current(&self) -> Option<&Key> {
        self.0.first()
    }
}

/// How a digest is made from the parts and the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// `MD5(name=value&…&key=<key>)` over the decoded parameters, names in byte order, 16 bytes.
    QueryToken,
    /// `HMAC-SHA256(key, timestamp.body)`, 32 bytes.
    HmacSha256,
}

impl Scheme {
    /// Hex digits of a whole digest.
    pub const fn hex_digits(self) -> usize {
        match self {
            Scheme::QueryToken => 32,
            Scheme::HmacSha256 => 64,
        }
    }
}

/// What the signature covers, in the form its scheme needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// Names and values, decoded; the order does not matter, the signature sorts them.
    Pairs(Vec<(String, String)>),
    /// The text before the first dot, and the raw body after it.
    Dated {
        /// The timestamp as it was sent.
        timestamp: String,
        /// The body as it was sent.
        body: Vec<u8>,
    },
}

/// A request that claims to be signed: the parts, the digest it came with, and what it carries.
#[derive(Debug, Clone)]
pub struct Signed<T> {
    /// What the signature covers.
    pub parts: Parts,
    /// The digest as it was sent, `None` when there was none.
    pub presented: Option<String>,
    /// What becomes usable once the signature holds.
    pub payload: T,
}

/// A payload whose signature held. Only this module makes one.
#[derive(Debug, Clone)]
pub struct Verified<T> {
    payload: T,
    key_label: Arc<str>,
}

impl<T> Verified<T> {
    /// What was signed.
    pub fn payload(&self) -> &T {
        &self.payload
    }

    /// The label of the key that matched.
    pub fn key_label(&self) -> &Arc<str> {
        &self.key_label
    }

    /// Takes the payload out.
    pub fn into_payload(self) -> T {
        self.payload
    }
}

/// Why a signature did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// There was no digest.
    #[error("the request carries no signature")]
    Missing,
    /// What was sent cannot be a digest.
    #[error("the signature is not the right number of hex digits")]
    Malformed,
    /// No configured key gives this digest.
    #[error("the signature matches none of the configured keys")]
    Wrong,
}

impl<T> Signed<T> {
    /// Checks the digest against every key and hands out the payload if one matches.
    ///
    /// Every key is tried, also after a match: the time does not tell which one it was.
    ///
    /// # Errors
    /// [`Mismatch`], which says as little as a stranger may know.
    pub fn verify(self, keys: &Keys) -> Result<Verified<T>, Mismatch> {
        let presented = self.presented.as_deref().ok_or(Mismatch::Missing)?;
        let scheme = self.parts.scheme();
        if presented.len() != scheme.hex_digits() {
            return Err(Mismatch::Malformed);
        }
        let presented = hex::decode(presented).map_err(|_| Mismatch::Malformed)?;
        let mut matched: Option<Arc<str>> = None;
        for key in keys.iter() {
            let expected = self.parts.digest(&key.secret);
            let equal: bool = expected.ct_eq(presented.as_slice()).into();
            if equal && matched.is_none() {
                matched = Some(key.label.clone());
            }
        }
        let key_label = matched.ok_or(Mismatch::Wrong)?;
        Ok(Verified { payload: self.payload, key_label })
    }

    /// The text the digest was made from, with `<key>` in the key's place.
    pub fn base(&self) -> String {
        self.parts.base()
    }
}

impl Parts {
    /// The scheme these parts belong to.
    pub fn scheme(&self) -> Scheme {
        match self {
            Parts::Pairs(_) => Scheme::QueryToken,
            Parts::Dated { .. } => Scheme::HmacSha256,
        }
    }

    /// Signs with the current key: lower-case hex.
    pub fn sign(&self, keys: &Keys) -> String {
        keys.current().map(|key| hex::encode(self.digest(&key.secret))).unwrap_or_default()
    }

    /// The text the digest is made from, with `<key>` in the key's place. A body that is not text
    /// is shown with replacement characters.
    pub fn base(&self) -> String {
        match self {
            Parts::Pairs(pairs) => format!("{}{KEY_PLACEHOLDER}", canonical(pairs)),
            Parts::Dated { timestamp, body } => format!("{timestamp}.{}", String::from_utf8_lossy(body)),
        }
    }

    fn digest(&self, key: &Secret) -> Vec<u8> {
        match self {
            Parts::Pairs(pairs) => {
                let mut md5 = Md5::new();
                md5.update(canonical(pairs).as_bytes());
                md5.update(key.expose().as_bytes());
                md5.finalize().to_vec()
            }
            Parts::Dated { timestamp, body } => {
                hmac_sha256(key.expose().as_bytes(), &[timestamp.as_bytes(), b".", body])
            }
        }
    }
}

/// `name=value&…&key=`, names in byte order, as the marketplaces' page has it.
fn canonical(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<&(String, String)> = pairs.iter().collect();
    sorted.sort();
    let mut text = String::with_capacity(pairs.iter().map(|(n, v)| n.len() + v.len() + 2).sum::<usize>() + 4);
    for (name, value) in sorted {
        text.push_str(name);
        text.push('=');
        text.push_str(value);
        text.push('&');
    }
    text.push_str("key=");
    text
}

/// HMAC-SHA256 over the pieces, one after the other (RFC 2104).
fn hmac_sha256(key: &[u8], pieces: &[&[u8]]) -> Vec<u8> {
    // HMAC takes a key of any length; the error type has no case that can happen.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize().into_bytes().to_vec()
}
