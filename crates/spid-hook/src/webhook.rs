//! Signatures of the requests to a hook, by Standard Webhooks
//! (github.com/standard-webhooks/standard-webhooks, `spec/standard-webhooks.md`).
//!
//! spid signs with [`WebhookKeys::sign`]. [`http_main`](crate::http_main) verifies with [`WebhookKeys::verify`], and so
//! can a service of your own; in other languages use a Standard Webhooks library.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::Secret;
use crate::text::fault_of_secret;

/// Prefix of a Standard Webhooks key.
pub const WEBHOOK_KEY_PREFIX: &str = "whsec_";
/// Size of a Standard Webhooks key, in bytes ("Signature scheme" of the specification).
pub const WEBHOOK_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Maximum number of signatures of one request that are compared. A sender needs two during a change of keys.
const SIGNATURES_MAX_COUNT: usize = 16;

/// A Standard Webhooks key, decoded.
#[derive(Clone)]
pub struct WebhookKey(Arc<Zeroizing<Vec<u8>>>);

/// Reason why a text is not a Standard Webhooks key. It never contains the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWebhookKey {
    /// A character that no key has, or a space at the beginning or end.
    #[error("the secret cannot be used: {0}")]
    Unclean(String),
    /// A text without the prefix `whsec_`.
    #[error("the secret does not begin with `whsec_`; make one with `echo whsec_$(openssl rand -base64 32)`")]
    Prefix,
    /// A text behind the prefix that is not base64.
    #[error("what follows `whsec_` in the secret is not base64 (with its padding)")]
    NotBase64,
    /// Too few or too many bytes.
    #[error("the secret has {0} bytes; it must have 24 to 64 (Standard Webhooks)")]
    Length(usize),
}

impl WebhookKey {
    /// Reads `whsec_` and base64.
    ///
    /// # Errors
    /// [`BadWebhookKey`].
    pub fn new(secret: &Secret) -> Result<WebhookKey, BadWebhookKey> {
        if let Some(fault) = fault_of_secret(secret.expose()) {
            return Err(BadWebhookKey::Unclean(fault));
        }
        // Invisible characters were reported above: here they would only look like bad base64.
        let text = secret.expose().strip_prefix(WEBHOOK_KEY_PREFIX).ok_or(BadWebhookKey::Prefix)?;
        let bytes = BASE64.decode(text).map(Zeroizing::new).map_err(|_| BadWebhookKey::NotBase64)?;
        if !WEBHOOK_KEY_BYTES.contains(&bytes.len()) {
            return Err(BadWebhookKey::Length(bytes.len()));
        }
        Ok(WebhookKey(Arc::new(bytes)))
    }
}

impl fmt::Debug for WebhookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookKey(***)")
    }
}

/// Keys that sign the requests we send. Never empty.
/// All keys sign each request, so that the receiving side can change from one key to the next at any time.
#[derive(Debug, Clone)]
pub struct WebhookKeys(Arc<[WebhookKey]>);

impl WebhookKeys {
    /// Keeps the keys in the order given; `None` for an empty list.
    pub fn new(keys: Vec<WebhookKey>) -> Option<WebhookKeys> {
        if keys.is_empty() { None } else { Some(WebhookKeys(keys.into())) }
    }

    /// Returns the value of `webhook-signature`.
    /// For each key it contains `v1,` and the base64 of `HMAC-SHA256(key, id.timestamp.body)`, separated by
    /// spaces.
    ///
    /// `id` must not contain a dot, because otherwise two messages could have one signature. `timestamp` is in
    /// seconds since the epoch.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let timestamp = timestamp.to_string();
        let pieces = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        let mut signatures = Vec::new();
        for key in self.0.iter() {
            signatures.push(format!("v1,{}", BASE64.encode(hmac_sha256(&key.0, &pieces))));
        }
        signatures.join(" ")
    }
}

/// Reason why a request is not genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSignature {
    /// An id that is empty or contains a dot. With a dot, two messages could have one signature.
    #[error("`webhook-id` is empty or contains a dot")]
    Id,
    /// A timestamp that is not a number of seconds.
    #[error("`webhook-timestamp` is not a number of seconds since 1970")]
    Timestamp,
    /// A timestamp too far from now.
    #[error(
        "`webhook-timestamp` is {off_s} s from now, more than the {tolerance_s} s allowed; compare the clocks"
    )]
    Stale {
        /// Distance from now, in seconds.
        off_s: u64,
        /// Allowed distance, in seconds.
        tolerance_s: u64,
    },
    /// No signature of the request was made with one of the keys.
    #[error("no signature in `webhook-signature` was made with one of the keys over this body")]
    NoMatch,
}

impl WebhookKeys {
    /// Reads one or more keys `whsec_…` with white space between them. Give two keys while a key is changed.
    ///
    /// ```
    /// use spid_hook::{Secret, webhook::WebhookKeys};
    ///
    /// let keys = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw whsec_ZmFrZS1mYWtlLWZha2UtZmFrZS1mYWtlLWZha2U=");
    /// assert!(WebhookKeys::read(&keys).is_ok());
    /// assert!(WebhookKeys::read(&Secret::new("")).is_err());
    /// ```
    ///
    /// # Errors
    /// [`BadWebhookKey`], for the first key that is wrong.
    pub fn read(secrets: &Secret) -> Result<WebhookKeys, BadWebhookKey> {
        let words = secrets.expose().split_ascii_whitespace();
        let keys: Vec<WebhookKey> =
            words.map(|word| WebhookKey::new(&Secret::new(word))).collect::<Result<_, _>>()?;
        WebhookKeys::new(keys).ok_or(BadWebhookKey::Prefix)
    }

    /// Verifies the three header fields of a request over its body as it came. Any signature of the request may
    /// match any of the keys. The time that a comparison takes does not depend on the content of a signature.
    ///
    /// Returns the timestamp of the request.
    ///
    /// ```
    /// use std::time::Duration;
    /// use spid_hook::{Secret, webhook::WebhookKeys};
    ///
    /// let keys = WebhookKeys::read(&Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))?;
    /// let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse()?;
    /// let signature = keys.sign("msg-1", now.as_second(), b"{}");
    /// let (timestamp, tolerance) = (now.as_second().to_string(), Duration::from_secs(300));
    /// assert!(keys.verify("msg-1", &timestamp, &signature, b"{}", now, tolerance).is_ok());
    /// assert!(keys.verify("msg-1", &timestamp, &signature, b"[]", now, tolerance).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`BadSignature`], with the reason.
    pub fn verify(
        &self,
        id: &str,
        timestamp: &str,
        signature: &str,
        body: &[u8],
        now: Timestamp,
        tolerance: Duration,
    ) -> Result<Timestamp, BadSignature> {
        if id.is_empty() || id.contains('.') {
            return Err(BadSignature::Id);
        }
        // Digits only: `parse` alone would also accept a sign.
        let digits = Some(timestamp).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let seconds: i64 = digits.and_then(|text| text.parse().ok()).ok_or(BadSignature::Timestamp)?;
        let sent = Timestamp::from_second(seconds).map_err(|_| BadSignature::Timestamp)?;
        let off_s = seconds.abs_diff(now.as_second());
        if off_s > tolerance.as_secs() {
            return Err(BadSignature::Stale { off_s, tolerance_s: tolerance.as_secs() });
        }
        let pieces = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body];
        let expected: Vec<Vec<u8>> = self.0.iter().map(|key| hmac_sha256(&key.0, &pieces)).collect();
        // Compare all pairs, also after a match.
        let mut is_genuine = false;
        for one in signature.split(' ').take(SIGNATURES_MAX_COUNT) {
            let given = one.strip_prefix("v1,").and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
            for mac in &expected {
                is_genuine |= bool::from(mac.as_slice().ct_eq(&given)) && !mac.is_empty();
            }
        }
        if is_genuine { Ok(sent) } else { Err(BadSignature::NoMatch) }
    }
}

fn hmac_sha256(key: &[u8], pieces: &[&[u8]]) -> Vec<u8> {
    // HMAC accepts a key of any length, so this error cannot happen.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    for piece in pieces {
        mac.update(piece);
    }
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Example key of the specification's own libraries.
    const WEBHOOK_EXAMPLE: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn webhook_key(text: &str) -> Result<WebhookKey, BadWebhookKey> {
        WebhookKey::new(&Secret::new(text))
    }

    #[test]
    fn the_webhook_example_holds() {
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        let key = webhook_key(WEBHOOK_EXAMPLE).unwrap();
        let keys = WebhookKeys::new(vec![key.clone()]).unwrap();
        assert_eq!(keys.sign(id, 1_614_265_330, body), signature);
        let other = webhook_key(&format!("whsec_{}", BASE64.encode([b'f'; 24]))).unwrap();
        let both = WebhookKeys::new(vec![other.clone(), key]).unwrap().sign(id, 1_614_265_330, body);
        let others = WebhookKeys::new(vec![other]).unwrap().sign(id, 1_614_265_330, body);
        assert_eq!(both, format!("{others} {signature}"));
        assert_ne!(others, signature);
    }

    #[test]
    fn a_webhook_key_is_whsec_base64_and_long_enough() {
        let of = |count: usize| format!("whsec_{}", BASE64.encode(vec![b'f'; count]));
        for (text, error) in [
            (String::new(), BadWebhookKey::Prefix),
            (WEBHOOK_EXAMPLE.replace("whsec_", ""), BadWebhookKey::Prefix),
            (WEBHOOK_EXAMPLE.replace("whsec_", "whpk_"), BadWebhookKey::Prefix),
            (WEBHOOK_EXAMPLE.replace('M', " "), BadWebhookKey::NotBase64),
            (WEBHOOK_EXAMPLE.replace('M', "-"), BadWebhookKey::NotBase64),
            ("whsec_".to_owned(), BadWebhookKey::Length(0)),
            (of(23), BadWebhookKey::Length(23)),
            (of(65), BadWebhookKey::Length(65)),
        ] {
            assert_eq!(webhook_key(&text).unwrap_err(), error, "{text}");
        }
        assert!(webhook_key(&of(24)).is_ok() && webhook_key(&of(64)).is_ok());
        assert!(WebhookKeys::new(Vec::new()).is_none());
        assert_eq!(format!("{:?}", webhook_key(WEBHOOK_EXAMPLE).unwrap()), "WebhookKey(***)");
    }

    #[test]
    fn an_unclean_webhook_key_is_named_by_its_fault_and_not_shown() {
        for (unclean, fault) in [
            (" whsec_fake", "character 1 of 11 is a space"),
            ("whsec_fake\n", "character 11 of 11 is U+000A"),
            ("\u{feff}whsec_fake", "character 1 of 11 is U+FEFF"),
            ("whsec_fake\u{200b}", "character 11 of 11 is U+200B"),
        ] {
            let error = WebhookKey::new(&Secret::new(unclean)).unwrap_err().to_string();
            assert!(error.contains(fault) && !error.contains("fake"), "{error}");
        }
    }

    #[test]
    fn what_is_signed_verifies_and_nothing_else_does() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let (id, at, tolerance) = ("msg-1", now.as_second(), Duration::from_secs(300));
        let (old, new) =
            (webhook_key(WEBHOOK_EXAMPLE).unwrap(), format!("whsec_{}", BASE64.encode([b'f'; 32])));
        let new = webhook_key(&new).unwrap();
        let keys =
            |keys: &[&WebhookKey]| WebhookKeys::new(keys.iter().map(|key| (*key).clone()).collect()).unwrap();
        let both = keys(&[&old, &new]);
        let check = |by: &WebhookKeys, id: &str, at: &str, signature: &str, body: &[u8]| {
            by.verify(id, at, signature, body, now, tolerance)
        };
        for (signer, verifier) in
            [(&both, keys(&[&new])), (&both, keys(&[&old])), (&keys(&[&old]), both.clone())]
        {
            let signature = signer.sign(id, at, b"{}");
            assert_eq!(check(&verifier, id, &at.to_string(), &signature, b"{}"), Ok(now));
        }
        let (text, signature) = (at.to_string(), keys(&[&old]).sign(id, at, b"{}"));
        let unlike = BadSignature::NoMatch;
        assert_eq!(check(&keys(&[&new]), id, &text, &signature, b"{}"), Err(unlike));
        assert_eq!(check(&both, id, &text, &signature, b"{ }"), Err(unlike));
        assert_eq!(check(&both, "msg-2", &text, &signature, b"{}"), Err(unlike));
        assert_eq!(check(&both, id, &(at + 1).to_string(), &signature, b"{}"), Err(unlike));
        for wrong in ["", "v1,", "v1", &signature.replace("v1,", "v2,"), &signature[..signature.len() - 4]] {
            assert_eq!(check(&both, id, &text, wrong, b"{}"), Err(unlike), "{wrong}");
        }
        for wrong in ["", "a.b"] {
            assert_eq!(check(&both, wrong, &text, &signature, b"{}"), Err(BadSignature::Id));
        }
        for wrong in ["", "-5", "+5", "1e9", "99999999999999999999", "9223372036854775807"] {
            assert_eq!(check(&both, id, wrong, &signature, b"{}"), Err(BadSignature::Timestamp), "{wrong}");
        }
        for off in [-301, 301] {
            let (signature, text) = (both.sign(id, at + off, b"{}"), (at + off).to_string());
            let stale = BadSignature::Stale { off_s: 301, tolerance_s: 300 };
            assert_eq!(check(&both, id, &text, &signature, b"{}"), Err(stale));
        }
    }
}
