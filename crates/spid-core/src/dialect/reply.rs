//! Answers to a marketplace.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Denial;
use crate::signature::{Cipher, Signer};
use spid_hook::callback::{Fields, Outcome};

/// An answer, ready to be written to the socket.
/// It may contain a buyer's password, so `Debug` shows only its outline.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type` header.
    pub content_type: &'static str,
    /// Other headers, with names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Encryption and signature that are still to be applied; see [`Reply::protected`].
    pub protection: Protection,
}

/// Encryption and signature that an answer needs before it is sent.
/// No dialect has access to a key, so it only describes the work here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Protection {
    /// Texts of the JSON body to encrypt, as JSON pointers.
    pub encrypts: Vec<String>,
    /// Cipher for these texts.
    pub cipher: Cipher,
    /// True if the whole body is to be signed.
    pub signs: bool,
}

impl Reply {
    /// Builds a JSON answer.
    pub fn json(status: u16, body: &impl Serialize) -> Reply {
        Reply {
            status,
            content_type: "application/json",
            // Answers may contain passwords, so no proxy may store them.
            headers: vec![("cache-control", "no-store".to_owned())],
            // Answers consist of texts, numbers, lists and objects, so serialization cannot fail.
            body: serde_json::to_vec(body).unwrap_or_default(),
            protection: Protection::default(),
        }
    }

    /// Builds a page for a buyer's browser. The text is ours and contains nothing from the request.
    pub(super) fn page(status: u16, words: &'static str) -> Reply {
        let body = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{words}</title></head>\
             <body><p>{words}</p></body></html>\n"
        );
        Reply {
            status,
            content_type: "text/html; charset=utf-8",
            headers: vec![
                ("cache-control", "no-store".to_owned()),
                // The page is plain text, so the browser may load nothing.
                ("content-security-policy", "default-src 'none'".to_owned()),
            ],
            body: body.into_bytes(),
            protection: Protection::default(),
        }
    }

    /// Returns the reply as it is sent: first encrypted, then signed, both with the key in `signer`.
    /// A text that cannot be encrypted is left out.
    pub fn protected(mut self, signer: &Signer) -> Reply {
        let Protection { encrypts, cipher, signs } = std::mem::take(&mut self.protection);
        // Encrypt first: the signature must cover the body as it is sent.
        if !encrypts.is_empty() {
            let mut body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
            for pointer in encrypts {
                encrypt(&mut body, &pointer, |text| signer.encrypt(cipher, text));
            }
            self.body = ascii(&body.to_string()).into_bytes();
        }
        if !signs {
            return self;
        }
        let signature = signer.sign(&self.body);
        self.with("body-sign", format!("sign_type=\"HMAC-SHA256\", signature=\"{signature}\""))
    }

    /// Adds the accepted methods, if the method was the reason of the denial.
    pub(super) fn with_allowed_methods(self, denial: &Denial) -> Reply {
        match denial {
            Denial::Method { allowed, .. } => self.with("allow", *allowed),
            _ => self,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// Replaces the text at `pointer` with its encrypted form, or with null if encryption fails.
fn encrypt<E>(body: &mut Value, pointer: &str, encrypt: impl FnOnce(&str) -> Result<String, E>) {
    let Some(text) = body.pointer_mut(pointer) else { return };
    let encrypted = text.as_str().and_then(|text| encrypt(text).ok());
    // Null, not the text itself: a password must never leave unencrypted.
    *text = encrypted.map_or(Value::Null, Value::from);
}

/// Escapes every non-ASCII character of a JSON text.
pub(super) fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only the names of headers: a `location` may hold a ticket.
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("content_type", &self.content_type)
            .field("headers", &headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// Builds the JSON object of one section of an answer. `spellings` holds the names of the hook contract that the
/// marketplace spells in another way.
pub(super) fn object(fields: &Fields, spellings: &[(&str, &str)]) -> Map<String, Value> {
    let mut members = Map::new();
    for (name, field) in fields {
        let spelling = spellings.iter().find(|(known, _)| known == name);
        let name = spelling.map_or(name.as_str(), |(_, spelled)| spelled);
        members.insert(name.to_owned(), Value::from(field.expose()));
    }
    members
}

/// Message for the marketplace's staff about an outcome other than success.
pub(super) fn message(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Applied { .. } => "done".to_owned(),
        Outcome::NotYet => "not finished yet, please call again".to_owned(),
        Outcome::Refused { reason, .. } => reason.clone(),
        Outcome::Held { reason } => format!("waiting for the seller: {reason}"),
        Outcome::Unavailable => "temporarily unavailable, please call again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_ascii_is_escaped() {
        assert_eq!(ascii("{\"memo\":\"会员 😀 ok\"}"), "{\"memo\":\"\\u4f1a\\u5458 \\ud83d\\ude00 ok\"}");
        let read: Value = serde_json::from_str(&ascii("\"会员 😀\"")).unwrap();
        assert_eq!(read, Value::from("会员 😀"));
    }

    #[test]
    fn what_cannot_be_encrypted_is_left_out() {
        let mut body = json!({"app": {"password": "fake-password", "port": 7}});
        for (pointer, result) in
            [("/app/password", Err(())), ("/app/port", Ok(String::new())), ("/app/none", Ok(String::new()))]
        {
            encrypt(&mut body, pointer, |_| result.clone());
        }
        assert_eq!(body, json!({"app": {"password": null, "port": null}}));
    }

    #[test]
    fn no_debug_output_shows_what_a_reply_holds() {
        let reply =
            Reply::json(200, &json!({"password": "fake-password"})).with("location", "https://t.example");
        let shown = format!("{reply:?}");
        assert!(!shown.contains("fake-password") && !shown.contains("t.example"), "{shown}");
    }
}
