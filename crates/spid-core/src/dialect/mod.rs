//! Dialects: the protocol of one marketplace each.
//! A dialect converts a request to a [`Callback`] and an [`Outcome`] to a [`Reply`]. It also builds the request a
//! marketplace would send, for replay.
//!
//! Everything specific to one marketplace is in one file of this folder: its names, its actions, its answers, its
//! delivery limit. A dialect opens no socket and reads no clock. It gets bytes and the time, and returns values.
//! So the daemon, the command line, the fixtures and a fuzzer run the same functions.
//!
//! The types enforce every step of a request's path:
//!
//! ```text
//! RawRequest ─ parts ─► Signed<Unchecked> ─ verify(keys) ─► Verified<Unchecked> ─ callback ─► Callback
//!                │                             │
//!                └────────── Denial ──────────┴─ refuse ─► Reply           Outcome ─ reply ─► Reply
//! ```
//!
//! Before the signature is checked, [`Dialect::parts`] is cheap and strict, and may deny the request. After that,
//! [`Dialect::callback`] is total: it never fails. A marketplace that sends something we do not understand has
//! still sold something. So the callback gets a validation issue ([`ValidationIssue`]) and waits for an operator.
//!
//! `alibaba` and `jdcloud` belong to one family, the *query token*. Their common code is in `token`; each of them
//! is a table. `koogallery` shares nothing with them: it has JSON bodies with a nonce, signed answers, and orders
//! that need an order lookup.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::limits::NAME_MAX_BYTES;
use crate::query::{Pair, QueryError, Rule};
use crate::signature::{Cipher, Keys, Mismatch, Parts, Signed, Signer, Verified};
use spid_hook::Secret;
use spid_hook::callback::{
    Action, Answer, Callback, Expiry, Field, Fields, InstanceRef, Nonce, Outcome, Parameters, ValidationIssue,
};
use spid_hook::id::Id;
use spid_hook::time::last_instant;

mod alibaba;
mod explain;
mod generic;
mod jdcloud;
mod koogallery;
mod token;

pub use explain::{explain, shown_base};

/// All dialects, sorted by name.
static DIALECTS: [&dyn Dialect; 4] =
    [&alibaba::ALIBABA, &generic::Generic, &jdcloud::JDCLOUD, &koogallery::KooGallery];

/// Returns the dialect with this name, as the configuration spells it.
///
/// ```
/// assert_eq!(spid_core::dialect::by_name("alibaba").unwrap().name(), "alibaba");
/// assert!(spid_core::dialect::by_name("klingon").is_none());
/// ```
pub fn by_name(name: &str) -> Option<&'static dyn Dialect> {
    DIALECTS.into_iter().find(|dialect| dialect.name() == name)
}

/// Returns the dialect whose marketplace needs an order lookup before a hook can run this callback.
/// `None` when the callback contains everything.
///
/// Callbacks stored by an older spid do not name their dialect, so each dialect is tried. This is safe because
/// only one dialect recognizes such an order.
pub fn asking(callback: &Callback) -> Option<&'static dyn Dialect> {
    let said = callback.dialect.as_deref();
    let spoken = DIALECTS.into_iter().filter(|dialect| said.is_none_or(|name| dialect.name() == name));
    let mut asking = spoken.filter(|dialect| dialect.order_lookup(callback).is_some());
    asking.next()
}

/// Alibaba Cloud Marketplace's dialect, the one that the conformance suite tests.
pub fn alibaba() -> &'static dyn Dialect {
    &alibaba::ALIBABA
}

/// Names that [`by_name`] knows, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    DIALECTS.into_iter().map(Dialect::name)
}

/// The protocol of one marketplace. Object safe: an endpoint holds a `&'static dyn Dialect`.
pub trait Dialect: Send + Sync {
    /// Name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// Name of the signing rule.
    /// Two dialects with the same signing rule accept each other's requests if both use the same key.
    fn signing(&self) -> &'static str {
        self.name()
    }

    /// Delivery limit: the number of calls after which the marketplace gives up.
    /// `None` when it documents no limit, or does not give up.
    fn delivery_limit(&self) -> Option<u32>;

    /// Delivery limit for this callback; it may differ from [`Dialect::delivery_limit`].
    fn delivery_limit_of(&self, callback: &Callback) -> Option<u32> {
        match callback.action {
            // A buyer's browser sends it, and the buyer may try any number of times.
            Action::SignOn => None,
            _ => self.delivery_limit(),
        }
    }

    /// Time at which the marketplace gives up on a callback that was first delivered at `first` and has no
    /// success.
    /// Also says what the marketplace does then. `None` when it documents neither.
    fn gives_up(&self, _action: Action, _first: Timestamp) -> Option<GivesUp> {
        None
    }

    /// Path suffixes, behind the endpoint's path, that this marketplace also calls.
    fn path_suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Splits a request into the signed parts, the signature it carries, and the payload.
    /// The payload becomes usable once the signature is valid. `now` is compared with the timestamp of dated
    /// requests.
    ///
    /// # Errors
    /// [`Denial`], for everything that two readers could read differently. A denied request is not stored.
    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial>;

    /// Converts a verified request to a callback. Total: anything it cannot understand becomes a [`ValidationIssue`].
    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback;

    /// Splits a request that asks several things at once into its callbacks.
    /// They are stored in this order. Never empty.
    fn split(&self, callback: Callback) -> Vec<Callback> {
        vec![callback]
    }

    /// Builds the reply this marketplace expects when `outcome` is the current outcome of `callback`.
    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply;

    /// Builds the single reply to a request that was split.
    /// By default the request is done once all parts are done: the first part that is not done decides.
    fn reply_to_all(&self, answered: &[(Callback, Outcome)], options: &Options) -> Reply {
        let undone = answered.iter().find(|(_, outcome)| !outcome.is_success());
        match undone.or(answered.first()) {
            Some((callback, outcome)) => self.reply(callback, outcome, options),
            None => Reply::json(503, &Value::Null),
        }
    }

    /// Base URL for order lookups, if this marketplace needs them.
    fn asked_at(&self) -> Option<&'static str> {
        None
    }

    /// Builds the order lookup that is needed before a hook can run this callback.
    /// `None` when the callback contains everything, or when the order details are already
    /// [added](Dialect::add_order_details).
    fn order_lookup(&self, _callback: &Callback) -> Option<OrderLookup> {
        None
    }

    /// Adds the order details from the marketplace's answer to the [`OrderLookup`].
    ///
    /// # Errors
    /// [`DetailsError`], if the marketplace reports an error, or nothing usable; then the callback is unchanged.
    fn add_order_details(
        &self,
        _callback: &mut Callback,
        _status: u16,
        _body: &[u8],
    ) -> Result<(), DetailsError> {
        Ok(())
    }

    /// Builds the reply to a denied request.
    /// The request decides only the format of the reply, because nothing in it is verified.
    fn refuse(&self, request: &RawRequest<'_>, refusal: &Denial) -> Reply;

    /// Builds the value of the header `x-dashscope-euid`.
    /// A product that calls Model Studio (Bailian) names the buyer on whose behalf it calls in this header.
    /// `None` when the marketplace has no such header, or when a header cannot hold one of the two values.
    fn dashscope_euid(&self, _product: &str, _buyer: &str) -> Option<String> {
        None
    }

    /// Returns true if the request says that a buyer's browser sent it, as in single sign-on.
    /// Nothing in the request is verified.
    fn is_for_a_browser(&self, request: &RawRequest<'_>) -> bool {
        let _ = request;
        false
    }

    /// Builds a signed request as this marketplace would send it.
    /// `action` is the marketplace's word. `parameters` are its names and values, in sending order.
    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest;
}

/// Point at which a marketplace gives up on a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivesUp {
    /// Time, if the limit is a time and not a number of deliveries.
    pub at: Option<Timestamp>,
    /// The consequence.
    pub then: &'static str,
}

/// A request as it came from the socket. A function looks up the headers, so that nothing is copied.
#[derive(Clone, Copy)]
pub struct RawRequest<'a> {
    /// Method, in upper case as it was sent.
    pub method: &'a str,
    /// Query string without its `?`, still encoded; empty when there is none.
    pub query: &'a [u8],
    /// Returns the value of a header by its lower-case name; `None` when it is missing, given twice or not text.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    /// Body; empty when there is none.
    pub body: &'a [u8],
}

impl<'a> RawRequest<'a> {
    /// A `GET` without headers or a body.
    pub fn get(query: &'a [u8]) -> RawRequest<'a> {
        RawRequest { method: "GET", query, header: &|_| None, body: b"" }
    }

    /// Media type of the body, in lower case, without its parameters.
    fn media_type(&self) -> Option<String> {
        let text = (self.header)("content-type")?;
        Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }
}

/// An order lookup: a GET to the marketplace that asks what was ordered. The sender signs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderLookup {
    /// Path, behind the marketplace's base URL.
    pub path: &'static str,
    /// Names and values of the query, in order.
    pub query: Vec<Pair>,
}

/// Reason why an answer gave no order details. Quotes only the answer's codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DetailsError {
    /// A later attempt may succeed.
    #[error("{0}")]
    Later(String),
    /// Order lookup is misconfigured; an operator must act.
    #[error("{0}")]
    Misconfigured(String),
}

/// Decoded content of a request, before and during the signature check.
/// Only [`Dialect::callback`], which takes it verified, can read it.
#[derive(Debug, Clone)]
pub struct Unchecked {
    parameters: Parameters,
    sent_at: Option<Timestamp>,
    nonce: Option<Nonce>,
}

/// Options of a dialect that an endpoint sets.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time zone for dates without a zone. No vendor states one.
    pub timezone: TimeZone,
    /// JSON type of `success`. The vendor's text and its samples disagree.
    pub success_as: SuccessAs,
    /// Public URL of this endpoint, sent as the single sign-on URL if the hook gives none.
    pub public_url: Option<String>,
    /// Key size for encrypted fields, for marketplaces that require them.
    pub field_cipher: Cipher,
    /// Application URL for test orders of the marketplace, which only check that the interface works.
    pub test_url: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        // Without a time zone database, use the fixed offset: Asia/Shanghai has been UTC+8 since 1991.
        let timezone =
            TimeZone::get("Asia/Shanghai").unwrap_or_else(|_| TimeZone::fixed(jiff::tz::offset(8)));
        Options {
            timezone,
            success_as: SuccessAs::default(),
            public_url: None,
            field_cipher: Cipher::default(),
            test_url: None,
        }
    }
}

/// JSON type of the marketplaces' `success`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuccessAs {
    /// `true`, as in the documentation's tables.
    #[default]
    Boolean,
    /// `"true"`, as in the documentation's samples.
    String,
}

/// Reason for which a request is denied. `Display` is the message for the log.
/// The caller may read only [`Denial::public`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Parameters are ambiguous, or over a limit.
    #[error(transparent)]
    Parameters(#[from] QueryError),
    /// Signature is not valid.
    #[error(transparent)]
    Signature(#[from] Mismatch),
    /// Method that the dialect does not accept.
    #[error("method `{}` is not supported; use {allowed}", method.escape_debug())]
    Method {
        /// Method of the request, shortened.
        method: String,
        /// Accepted methods, as an `Allow` header lists them.
        allowed: &'static str,
    },
    /// Body in a format that the dialect cannot read, and so cannot check.
    #[error("content-type must be {expected}")]
    ContentType {
        /// Accepted media types.
        expected: &'static str,
    },
    /// Signed content that differs from the dialect's documentation.
    #[error("the request is malformed: {detail}")]
    Malformed {
        /// Description of the fault; never contains a value.
        detail: String,
    },
    /// Client address that is in none of the networks the endpoint allows.
    #[error("the client address is in none of the networks in the endpoint's `allow`")]
    Source,
    /// Dated request without a readable date.
    #[error("the timestamp is missing or unreadable")]
    Undated,
    /// Dated request that is too old, or from the future.
    #[error("the timestamp is {off_by_s} s from this clock; the limit is {limit_s} s: compare both clocks")]
    Stale {
        /// Seconds between the request's clock and ours; positive when the request is old.
        off_by_s: i64,
        /// Maximum distance, in seconds.
        limit_s: i64,
    },
    /// Copy of an accepted request. The signature is valid, but the nonce was used before.
    #[error("the nonce was used before: this is a copy of an accepted request")]
    Replayed,
}

impl Denial {
    /// All words that [`Denial::reason`] returns.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        let own = [
            Denial::Signature(Mismatch::Missing),
            Denial::Signature(Mismatch::Malformed),
            Denial::Signature(Mismatch::Wrong),
            Denial::Method { method: String::new(), allowed: "" },
            Denial::ContentType { expected: "" },
            Denial::Malformed { detail: String::new() },
            Denial::Source,
            Denial::Undated,
            Denial::Stale { off_by_s: 0, limit_s: 0 },
            Denial::Replayed,
        ];
        own.map(|refusal| refusal.reason()).into_iter().chain(Rule::ALL.map(Rule::as_str))
    }

    /// Short, stable word under which denied requests are counted.
    pub const fn reason(&self) -> &'static str {
        match self {
            Denial::Parameters(error) => error.reason(),
            Denial::Signature(Mismatch::Missing) => "missing-signature",
            Denial::Signature(Mismatch::Malformed) => "malformed-signature",
            Denial::Signature(Mismatch::Wrong) => "wrong-signature",
            Denial::Method { .. } => "method",
            Denial::ContentType { .. } => "content-type",
            Denial::Malformed { .. } => "malformed",
            Denial::Source => "source",
            Denial::Undated => "undated",
            Denial::Stale { .. } => "stale",
            Denial::Replayed => "replayed",
        }
    }

    /// HTTP status of the reply.
    pub const fn status(&self) -> u16 {
        match self {
            Denial::Parameters(_) | Denial::Malformed { .. } => 400,
            Denial::Signature(_)
            | Denial::Source
            | Denial::Undated
            | Denial::Stale { .. }
            | Denial::Replayed => 403,
            Denial::Method { .. } => 405,
            Denial::ContentType { .. } => 415,
        }
    }

    /// Text that the caller may read. Every invalid signature gives the same text.
    pub const fn public(&self) -> &'static str {
        match self {
            Denial::Parameters(_) | Denial::Malformed { .. } => "bad request",
            Denial::Signature(_) | Denial::Source => "forbidden",
            Denial::Undated => "forbidden: no timestamp",
            Denial::Stale { .. } => "forbidden: the timestamp is too far from this clock",
            Denial::Replayed => "forbidden: the nonce was used before",
            Denial::Method { .. } => "method not allowed",
            Denial::ContentType { .. } => "unsupported content type",
        }
    }
}

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
    /// Encryption and signature that are still to be applied; see [`Reply::sealed`].
    pub seal: Seal,
}

/// Encryption and signature that an answer needs before it is sent.
/// No dialect has access to a key, so it only describes the work here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seal {
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
            seal: Seal::default(),
        }
    }

    /// Builds a page for a buyer's browser. The text is ours and contains nothing from the request.
    fn page(status: u16, words: &'static str) -> Reply {
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
            seal: Seal::default(),
        }
    }

    /// Returns the reply as it is sent: first encrypted, then signed, both with the key in `signer`.
    /// A text that cannot be encrypted is left out.
    pub fn sealed(mut self, signer: &Signer) -> Reply {
        let Seal { encrypts, cipher, signs } = std::mem::take(&mut self.seal);
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

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// Replaces the text at `pointer` with its encrypted form, or with null if encryption fails.
fn encrypt<E>(body: &mut Value, pointer: &str, encrypt: impl FnOnce(&str) -> Result<String, E>) {
    let Some(text) = body.pointer_mut(pointer) else { return };
    let sealed = text.as_str().and_then(|text| encrypt(text).ok());
    // Null, not the text itself: a password must never leave unencrypted.
    *text = sealed.map_or(Value::Null, Value::from);
}

/// Escapes every non-ASCII character of a JSON text.
fn ascii(json: &str) -> String {
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

/// Options for an outgoing request.
#[derive(Debug, Clone)]
pub struct Sending {
    /// Encoding: query string or form.
    pub form: SendForm,
    /// Signature to send.
    pub signature: SendSignature,
    /// Time in the request, for dialects that date their requests.
    pub now: Timestamp,
    /// Nonce, for dialects that mark their requests.
    pub nonce: String,
    /// Values changed after signing, by name, as in a forged request.
    pub altered: Vec<Pair>,
    /// Parameters added after signing, as they are: for example, a duplicate.
    pub appended: Vec<Pair>,
    /// Text appended to the encoded parameters as it is: for example, a broken encoding.
    pub raw: String,
}

impl Sending {
    /// Options for a valid request in the dialect's usual form, dated `now`.
    pub fn at(now: Timestamp) -> Sending {
        Sending {
            form: SendForm::Usual,
            signature: SendSignature::Computed,
            now,
            // Without randomness the nonce is the time. Then two requests of one millisecond have one nonce.
            nonce: Id::new(now)
                .map_or_else(|_| now.as_millisecond().to_string(), |id| hex::encode(id.as_bytes())),
            altered: Vec::new(),
            appended: Vec::new(),
            raw: String::new(),
        }
    }

    /// Returns the digest to send, computed by `right` if needed; `None` for a request without a signature.
    fn digest(&self, right: impl FnOnce() -> String) -> Option<String> {
        match &self.signature {
            SendSignature::Computed => Some(right()),
            SendSignature::Pinned(text) => Some(text.clone()),
            SendSignature::Altered => Some(alter(&right())),
            SendSignature::Omitted => None,
        }
    }

    /// Parameters as they are sent, with the changes made after signing.
    fn after_signing(&self, signed: &[Pair]) -> Vec<Pair> {
        let changed = |name: &str| self.altered.iter().find(|(altered, _)| altered == name);
        let kept = signed.iter().map(|pair| changed(&pair.0).unwrap_or(pair));
        kept.chain(&self.appended).cloned().collect()
    }
}

/// Returns the digest with its first digit changed.
fn alter(digest: &str) -> String {
    let first = if digest.starts_with('0') { '1' } else { '0' };
    std::iter::once(first).chain(digest.chars().skip(1)).collect()
}

/// Position of the parameters in an outgoing request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SendForm {
    /// Position that this marketplace usually uses.
    #[default]
    Usual,
    /// `POST` form.
    Form,
}

/// Signature of an outgoing request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SendSignature {
    /// Correct signature.
    #[default]
    Computed,
    /// This text, independent of the signed content.
    Pinned(String),
    /// Correct signature with one digit changed.
    Altered,
    /// No signature.
    Omitted,
}

/// A request to send to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRequest {
    /// Method: `GET` or `POST`.
    pub method: &'static str,
    /// Encoded query string without a `?`; empty when there is none.
    pub query: String,
    /// Headers, with names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Body; empty when there is none.
    pub body: Vec<u8>,
}

impl OutRequest {
    /// Returns the value of the header with this lower-case name, for [`RawRequest::header`].
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

const FORM_TYPE: &str = "application/x-www-form-urlencoded";

/// A dialect's names for the parameters that every dialect has.
struct Names {
    instance_id: &'static str,
    order_biz_id: &'static str,
    order_id: &'static str,
    request_id: &'static str,
    buyer: &'static str,
    product: &'static str,
    sku: &'static str,
    trial: &'static str,
    refund: &'static str,
    expires_on: &'static str,
    read_date: fn(&str, &TimeZone) -> Option<Timestamp>,
    /// Actions whose order id is new for every event, so that it identifies the callback.
    ordered: &'static [Action],
}

impl Names {
    /// Builds the callback, without its billing items and without validation issues of this dialect only.
    fn read(&self, action: Action, word: &str, parameters: Parameters, options: &Options) -> Callback {
        let mut callback = self.fill(action, word, parameters, options);
        self.issue(&mut callback, matches!(action, Action::Renew | Action::RefundRenew));
        callback
    }

    /// Builds the callback from its parameters, without any validation.
    fn fill(&self, action: Action, word: &str, parameters: Parameters, options: &Options) -> Callback {
        let text = |name: &str| parameters.filled(name).map(str::to_owned);
        let expiry = |raw: String| {
            let at = (self.read_date)(&raw, &options.timezone);
            Expiry { raw, at }
        };
        let mut callback = Callback {
            subject: InstanceRef {
                // A create is identified by its order: an instance id in it belongs to no instance yet.
                instance_id: text(self.instance_id).filter(|_| action != Action::Create),
                order_biz_id: text(self.order_biz_id),
            },
            order_id: text(self.order_id),
            request_id: text(self.request_id),
            buyer: text(self.buyer),
            product: text(self.product),
            sku: text(self.sku),
            trial: parameters.filled(self.trial).and_then(read_bool),
            refund: parameters.filled(self.refund).and_then(read_bool),
            expires_on: text(self.expires_on).map(expiry),
            ..Callback::new(action, word)
        }
        .ordering(self.ordered);
        callback.parameters = parameters;
        callback
    }

    /// Adds a validation issue for each value that is needed and missing.
    /// A date is required only if the callback is `dated`. The lifecycle checks the rest.
    fn issue(&self, callback: &mut Callback, dated: bool) {
        let unnamed = callback.subject.names().next().is_none();
        let missing = match callback.action {
            // Without a name we cannot recognize a redelivery, so every delivery would create another instance.
            Action::Create => unnamed.then_some(self.order_biz_id),
            Action::Renew | Action::RefundRenew | Action::Upgrade | Action::Expire | Action::Release => {
                (unnamed && callback.order_id.is_none()).then_some(self.instance_id)
            }
            Action::SignOn => unnamed.then_some(self.instance_id),
            Action::Payment => {
                // A payment is identified by its request or its order.
                (callback.request_id.is_none() && callback.order_id.is_none()).then_some(self.request_id)
            }
            Action::Query | Action::Other => None,
        };
        let undated = dated && callback.expires_on.as_ref().is_none_or(|expiry| expiry.at.is_none());
        let too_long = |name: &Option<String>| name.as_ref().is_some_and(|name| name.len() > NAME_MAX_BYTES);
        let subject = &callback.subject;
        let found = [
            missing.map(|name| ValidationIssue::MissingParameter { name: name.to_owned() }),
            undated.then(|| ValidationIssue::UnreadableDate { name: self.expires_on.to_owned() }),
            too_long(&subject.instance_id)
                .then(|| ValidationIssue::UnknownValue { name: self.instance_id.to_owned() }),
            too_long(&subject.order_biz_id)
                .then(|| ValidationIssue::UnknownValue { name: self.order_biz_id.to_owned() }),
        ];
        callback.issues.extend(found.into_iter().flatten());
    }
}

/// Reads `true` or `false`, in any case. Any other text is unknown (`None`), which is not `false`.
fn read_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// Reads exactly `yyyy-MM-dd HH:mm:ss` in `zone`.
/// A clock change can make the text ambiguous: then the earlier of the two instants is used. A text within the
/// gap of a clock change is moved behind the gap.
fn read_civil(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    const SHAPE: &str = "0000-00-00 00:00:00";
    // Check the shape first, because the parser also accepts other forms of a date.
    let fits = text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        });
    let civil: jiff::civil::DateTime = text.parse().ok().filter(|_| fits)?;
    // "For ever" is commonly written 9999-12-31, which is one day after the last instant we can represent.
    zone.to_timestamp(civil).ok().or_else(|| (civil.year() == 9999).then(last_instant))
}

fn read_word<'a>(parameters: &'a Parameters, name: &str) -> &'a str {
    parameters.filled(name).unwrap_or_default()
}

/// Builds the JSON object of one section of an answer. `spell` maps the field names.
fn object(fields: &Fields, spell: impl Fn(&str) -> String) -> Map<String, Value> {
    fields.iter().map(|(name, field)| (spell(name), Value::from(Field::expose(field)))).collect()
}

/// Message for the marketplace's staff about an outcome other than success.
fn message(outcome: &Outcome) -> String {
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
    use spid_hook::time::from_millis;

    fn shanghai() -> TimeZone {
        Options::default().timezone
    }

    #[test]
    fn dates_are_read_in_the_zone_or_not_at_all() {
        let at = read_civil("2030-01-01 00:00:00", &shanghai()).unwrap();
        assert_eq!(at.to_string(), "2029-12-31T16:00:00Z");
        let at = read_civil("2030-01-01 00:00:00", &TimeZone::UTC).unwrap();
        assert_eq!(at.to_string(), "2030-01-01T00:00:00Z");
        for unreadable in [
            "",
            "2030-01-01",
            "2030-1-1 00:00:00",
            "2030-02-30 00:00:00",
            "2030-01-01T00:00:00",
            "2030-01-01 00:00:00Z",
            "2030-01-01 24:00:00",
            " 2030-01-01 00:00:00",
            "2030/01/01 00:00:00",
            "9999-99-99 99:99:99",
            "二〇三〇年一月",
        ] {
            assert_eq!(read_civil(unreadable, &shanghai()), None, "{unreadable}");
        }
    }

    #[test]
    fn for_ever_is_a_date() {
        for zone in [shanghai(), TimeZone::UTC] {
            let at = read_civil("9999-12-31 23:59:59", &zone).unwrap();
            assert!(at.to_string().starts_with("9999-12-30"), "{at}");
            assert_eq!(from_millis(at.as_millisecond()), at, "it reads back as it was stored");
            assert!(read_civil("9999-12-29 00:00:00", &zone).unwrap() < at);
        }
    }

    #[test]
    fn unknown_is_not_no() {
        assert_eq!(
            ["true", "TRUE", "false", "False"].map(read_bool),
            [Some(true), Some(true), Some(false), Some(false)]
        );
        assert_eq!(["", "1", "0", "yes", "否"].map(read_bool), [None; 5]);
    }

    #[test]
    fn every_name_leads_to_its_dialect() {
        let all: Vec<&str> = names().collect();
        assert_eq!(all, ["alibaba", "generic", "jdcloud", "koogallery"]);
        for name in all {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        assert!(by_name("").is_none());
    }

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

    #[test]
    fn an_altered_digest_differs_and_stays_a_digest() {
        assert_eq!(alter("0abc"), "1abc");
        assert_eq!(alter("fabc"), "0abc");
    }
}
