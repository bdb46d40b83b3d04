//! Signatures of the requests to a hook, by Standard Webhooks
//! (github.com/standard-webhooks/standard-webhooks, `spec/standard-webhooks.md`).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::Secret;
use crate::text::fault_of_secret;

/// Prefix of a Standard Webhooks key.
pub const WEBHOOK_KEY_PREFIX: &str = "whsec_";
/// Size of a Standard Webhooks key, in bytes ("Signature scheme" of the specification).
pub const WEBHOOK_KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

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
        let one = |key: &WebhookKey| format!("v1,{}", BASE64.encode(hmac_sha256(&key.0, &pieces)));
        self.0.iter().map(one).collect::<Vec<_>>().join(" ")
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
}
