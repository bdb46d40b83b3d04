//! The deduplication key of a callback.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use spid_hook::callback::{Action, Callback, Expiry};

/// Subject of a callback for its deduplication key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An instance of the store, by its number.
    Instance(i64),
    /// No known instance; the name in the callback, or its order.
    Named(&'a str),
    /// A purchase of an instance that another purchase created, identified by its order. Its date may change.
    Purchase(i64),
    /// The purchase that created an instance, repeated with these quantities.
    OtherValues(i64),
}

/// Returns the deduplication key: 16 bytes that are equal for the redeliveries of one request. The key contains
/// the account, the instance or its name, the action, and the values that the action sets. A payment has no instance, and
/// a second purchase no action.
///
/// Two different events that a marketplace announces in the same words have the same key. [`decide`](super::decide) distinguishes them
/// by the reported results and the state.
pub fn deduplication_key(account: &str, subject: Subject<'_>, callback: &Callback) -> [u8; 16] {
    // Stored keys cannot be recomputed, so the contents and their order must never change.
    let mut digest = KeyDigest(Sha256::new());
    digest.text(account);
    match subject {
        // A payment has its own id, and may come before or after the create that it pays for.
        _ if callback.action == Action::Payment => {}
        Subject::Instance(number) => digest.text(&format!("instance {number}")),
        Subject::Named(name) => digest.text(&format!("name {name}")),
        Subject::Purchase(number) => {
            digest.text(&format!("purchase of instance {number}"));
            let order = callback.order_id.as_deref().filter(|order| !order.is_empty());
            digest.option(order);
            // An order has one buyer, so the buyer counts only without an order: a delivery may leave the buyer out.
            digest.option(callback.buyer.as_deref().filter(|_| order.is_none()));
            digest.option(callback.sku.as_deref());
            digest.pairs(&callback.items);
            return digest.finish();
        }
        Subject::OtherValues(number) => {
            digest.text(&format!("other values of instance {number}"));
            digest.pairs(&callback.items);
        }
    }
    digest.text(callback.action.as_str());
    // With a validation issue, only all signed bytes identify the request.
    if callback.issues.is_empty() {
        values(&mut digest, callback);
    } else {
        everything(&mut digest, callback);
    }
    digest.finish()
}

fn values(digest: &mut KeyDigest, callback: &Callback) {
    match callback.action {
        Action::Create => {
            digest.option(callback.subject.order_biz_id.as_deref());
            digest.option(callback.order_id.as_deref());
            digest.option(callback.sku.as_deref());
            digest.option(callback.trial.map(|trial| if trial { "true" } else { "false" }));
            digest.expiry(callback.expires_on.as_ref());
        }
        Action::Renew | Action::RefundRenew => {
            digest.option(callback.order_id.as_deref());
            digest.expiry(callback.expires_on.as_ref());
        }
        Action::Upgrade => {
            digest.option(callback.order_id.as_deref());
            digest.option(callback.sku.as_deref());
            digest.pairs(&callback.items);
        }
        Action::Expire | Action::Release => digest.option(callback.order_id.as_deref()),
        Action::Payment => match &callback.request_id {
            Some(request) => digest.text(request),
            None => everything(digest, callback),
        },
        Action::Other => {
            // A query has its own id for each call, which is in none of its parameters.
            if let Some(id) = &callback.request_id
                && !callback.parameters.iter().any(|(_, value)| value == id)
            {
                digest.text(id);
            }
            everything(digest, callback);
        }
        Action::SignOn | Action::Query => everything(digest, callback),
    }
}

fn everything(digest: &mut KeyDigest, callback: &Callback) {
    digest.text(&callback.action_name);
    for (name, value) in callback.parameters.iter() {
        digest.text(name);
        digest.text(value);
    }
}

/// Digest of texts. The length before each text keeps two texts from running into each other.
struct KeyDigest(Sha256);

impl KeyDigest {
    fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
    }

    fn option(&mut self, text: Option<&str>) {
        self.0.update([u8::from(text.is_some())]);
        self.text(text.unwrap_or_default());
    }

    fn pairs(&mut self, pairs: &BTreeMap<String, String>) {
        for (name, value) in pairs {
            self.text(name);
            self.text(value);
        }
    }

    fn expiry(&mut self, expiry: Option<&Expiry>) {
        match expiry {
            Some(Expiry { at: Some(at), .. }) => self.text(&at.as_millisecond().to_string()),
            Some(Expiry { raw, at: None }) => self.text(raw),
            None => self.option(None),
        }
    }

    fn finish(self) -> [u8; 16] {
        let mut key = [0u8; 16];
        for (slot, byte) in key.iter_mut().zip(self.0.finalize()) {
            *slot = byte;
        }
        key
    }
}
