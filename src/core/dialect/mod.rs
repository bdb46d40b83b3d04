//! How one marketplace speaks: its request made a [`Callback`], an [`Outcome`] made its reply, and
//! the way out again, for replay.
//!
//! Everything that is one marketplace's own stands in one file of this folder and nowhere else: its
//! names, its actions, its answers, its budget of retries. A dialect opens no socket and reads no
//! clock; it is given bytes and the time, and returns values. So the daemon, the command line, the
//! fixtures and a fuzzer all run the same functions.
//!
//! The path of a request, every step of which the types enforce:
//!
//! ```text
//! RawRequest ─ parts ─► Signed<Unchecked> ─ verify(keys) ─► Verified<Unchecked> ─ callback ─► Callback
//!                │                             │
//!                └────────── Refusal ──────────┴─ refuse ─► Reply           Outcome ─ reply ─► Reply
//! ```
//!
//! Before the signature is checked, [`Dialect::parts`] is cheap and strict, and says no. After it,
//! [`Dialect::callback`] is total: a marketplace that says something we do not understand has still
//! sold something, so it becomes a [`Doubt`] and waits for an operator, never an error.
//!
//! `alibaba` and `jdcloud` are of one family, the *query token*; what they share stands in `token`, and
//! each of them is a table. `koogallery` shares nothing with them: JSON bodies with a nonce, answers that are
//! signed, and orders that have to be asked for.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::core::query::{Pair, QueryError, Rule};
use crate::core::signature::{Cipher, Keys, Mismatch, Parts, Secret, Signed, Signer, Verified};
use crate::hook::callback::{
    Action, Answer, Callback, Doubt, Expiry, Field, Fields, InstanceRef, Once, Outcome, Parameters,
};
use crate::hook::clock::{Id, last_instant};
use crate::observe::limits::NAME_MAX_BYTES;

mod alibaba;
mod explain;
mod generic;
mod jdcloud;
mod koogallery;
mod token;

pub use explain::{explain, shown_base};

/// Every dialect, by name.
static DIALECTS: [&dyn Dialect; 4] =
    [&alibaba::ALIBABA, &generic::Generic, &jdcloud::JDCLOUD, &koogallery::KooGallery];

/// The dialect with this name, as the configuration has it.
///
/// ```
/// assert_eq!(spid::dialect::by_name("alibaba").unwrap().name(), "alibaba");
/// assert!(spid::dialect::by_name("klingon").is_none());
/// ```
pub fn by_name(name: &str) -> Option<&'static dyn Dialect> {
    DIALECTS.into_iter().find(|dialect| dialect.name() == name)
}

/// The dialect whose marketplace must be asked before a hook can do this; `None` when the callback says it all.
/// What an older spid kept does not say its dialect, so each is tried: an order looks like that of one alone.
pub fn asking(callback: &Callback) -> Option<&'static dyn Dialect> {
    let said = callback.dialect.as_deref();
    let spoken = DIALECTS.into_iter().filter(|dialect| said.is_none_or(|name| dialect.name() == name));
    let mut asking = spoken.filter(|dialect| dialect.enquiry(callback).is_some());
    asking.next()
}

/// Alibaba Cloud Marketplace's dialect: the one that receivers are judged by.
pub fn alibaba() -> &'static dyn Dialect {
    &alibaba::ALIBABA
}

/// The names [`by_name`] knows, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    DIALECTS.into_iter().map(Dialect::name)
}

/// How one marketplace speaks. Object safe: an endpoint holds a `&'static dyn Dialect`.
pub trait Dialect: Send + Sync {
    /// The name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// The name of the signing rule, the same for every dialect whose requests would be taken for one's own when they
    /// are signed with one's key.
    fn signing(&self) -> &'static str {
        self.name()
    }

    /// How often the marketplace calls before it gives up; `None` when it does not say, or does not
    /// give up.
    fn budget(&self) -> Option<u32>;

    /// The same for this callback, where that differs.
    fn budget_of(&self, callback: &Callback) -> Option<u32> {
        match callback.action {
            // It comes from the browser of a buyer, who may try as often as they like.
            Action::SignOn => None,
            _ => self.budget(),
        }
    }

    /// When the marketplace gives up on something it delivered `first` at that instant and has no success for, and
    /// what it does then; `None` when it states neither.
    fn gives_up(&self, _action: Action, _first: Timestamp) -> Option<GivesUp> {
        None
    }

    /// What may stand behind an endpoint's path: this marketplace calls there, too.
    fn tails(&self) -> &'static [&'static str] {
        &[]
    }

    /// Takes a request apart: what was signed, the signature it came with, and what becomes usable
    /// once that holds. `now` judges requests that are dated.
    ///
    /// # Errors
    /// [`Refusal`], for everything two readers could read differently. Nothing is written for it.
    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Refusal>;

    /// What the request asks. Total: what cannot be understood becomes a [`Doubt`].
    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback;

    /// The callbacks a request stands for, where it asks several things at once: they are kept one after the
    /// other. Never empty.
    fn apart(&self, callback: Callback) -> Vec<Callback> {
        vec![callback]
    }

    /// What this marketplace expects to read when `outcome` is what is true of `callback`.
    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply;

    /// The one reply to a request that was taken apart. Unless the dialect says otherwise it is done once all
    /// of it is done: the first part that is not decides.
    fn reply_to_all(&self, answered: &[(Callback, Outcome)], options: &Options) -> Reply {
        let undone = answered.iter().find(|(_, outcome)| !outcome.is_success());
        match undone.or(answered.first()) {
            Some((callback, outcome)) => self.reply(callback, outcome, options),
            None => Reply::json(503, &Value::Null),
        }
    }

    /// Where this marketplace is asked what was ordered, if it has to be asked.
    fn asked_at(&self) -> Option<&'static str> {
        None
    }

    /// What must be asked of the marketplace before a hook can do this: `None` where the callback says it
    /// all, or the answer has been [learned](Dialect::learn).
    fn enquiry(&self, _callback: &Callback) -> Option<Enquiry> {
        None
    }

    /// Takes over what the marketplace answered to the [`Enquiry`].
    ///
    /// # Errors
    /// When it says no, or nothing that could be used; then the callback is as it was.
    fn learn(&self, _callback: &mut Callback, _status: u16, _body: &[u8]) -> Result<(), Unlearned> {
        Ok(())
    }

    /// What a request gets that was turned away before it counted. The request decides no more than
    /// the look of the answer: nothing in it has been verified.
    fn refuse(&self, request: &RawRequest<'_>, refusal: &Refusal) -> Reply;

    /// The value of the header `x-dashscope-euid` with which a product that calls Model Studio (Bailian)
    /// says for whose sake it calls: for the buyer of this product. `None` where the marketplace has no
    /// such thing, or one of the two cannot stand in a header.
    fn dashscope_euid(&self, _product: &str, _buyer: &str) -> Option<String> {
        None
    }

    /// Whether the request says of itself that the browser of a buyer sent it, as single sign-on does. Nothing
    /// in it has been verified.
    fn is_for_a_browser(&self, request: &RawRequest<'_>) -> bool {
        let _ = request;
        false
    }

    /// The way out: a signed request as this marketplace would send it. `action` is the
    /// marketplace's word; parameters are its names and values in the order they are to be sent.
    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest;
}

/// The end of a marketplace's patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivesUp {
    /// The time, where it is a matter of time and not of deliveries.
    pub at: Option<Timestamp>,
    /// The consequence.
    pub then: &'static str,
}

/// A request as it came from the socket, headers looked up by a function so that nothing is copied.
#[derive(Clone, Copy)]
pub struct RawRequest<'a> {
    /// The method, upper case as it was sent.
    pub method: &'a str,
    /// The query string without its `?`, still encoded; empty when there is none.
    pub query: &'a [u8],
    /// The value of a header by its lower-case name; `None` when it is missing, given twice or not text.
    pub header: &'a dyn Fn(&str) -> Option<&'a str>,
    /// The body; empty when there is none.
    pub body: &'a [u8],
}

impl<'a> RawRequest<'a> {
    /// A `GET` without headers or a body.
    pub fn get(query: &'a [u8]) -> RawRequest<'a> {
        RawRequest { method: "GET", query, header: &|_| None, body: b"" }
    }

    /// The media type of the body, lower case, without its parameters.
    fn media_type(&self) -> Option<String> {
        let text = (self.header)("content-type")?;
        Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
    }
}

/// A question to the marketplace about what was ordered: a GET that whoever sends it signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enquiry {
    /// The path, behind the marketplace's own address.
    pub path: &'static str,
    /// Names and values of the query, in order.
    pub query: Vec<Pair>,
}

/// Why nothing was learned from an answer. It quotes no more of the answer than its codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unlearned {
    /// It may be otherwise later.
    #[error("{0}")]
    Later(String),
    /// The way to the answer is set up wrongly: somebody has to look.
    #[error("{0}")]
    Misconfigured(String),
}

/// What a request said, decoded, before and while its signature is checked. It opens only inside
/// [`Dialect::callback`], which takes it verified.
#[derive(Debug, Clone)]
pub struct Unchecked {
    parameters: Parameters,
    sent_at: Option<Timestamp>,
    once: Option<Once>,
}

/// What an endpoint may decide about its dialect.
#[derive(Debug, Clone)]
pub struct Options {
    /// The zone in which dates without a zone are read. No vendor states one.
    pub timezone: TimeZone,
    /// How `success` is spelt. The vendor's text and its samples disagree.
    pub success_as: SuccessAs,
    /// The public URL of this endpoint, told as the single sign-on URL where the hook tells none.
    pub public_url: Option<String>,
    /// With which key size fields are encrypted, for marketplaces that want that.
    pub field_cipher: Cipher,
    /// The address of the application that a marketplace is told which only tries whether it works.
    pub test_url: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        // The fixed offset is what Asia/Shanghai has been since 1991.
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

/// How the marketplaces' `success` is spelt in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuccessAs {
    /// `true`, as the documentation's tables have it.
    #[default]
    Boolean,
    /// `"true"`, as the documentation's samples have it.
    String,
}

/// A request turned away before it counted. `Display` is the message for the log; what the caller
/// may read is [`Refusal::public`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The parameters could be read in two ways, or are over a limit.
    #[error(transparent)]
    Parameters(#[from] QueryError),
    /// The signature does not hold.
    #[error(transparent)]
    Signature(#[from] Mismatch),
    /// The method is not one the dialect takes.
    #[error("the method is `{}`, and this dialect takes {allowed}", method.escape_debug())]
    Method {
        /// The method that was sent, shortened.
        method: String,
        /// The methods it takes, as an `Allow` header lists them.
        allowed: &'static str,
    },
    /// There is a body the dialect cannot read, and so cannot check.
    #[error("the body's content type is not {expected}")]
    ContentType {
        /// The media types it takes.
        expected: &'static str,
    },
    /// What was signed is not what the dialect's documentation describes.
    #[error("the request is malformed: {detail}")]
    Malformed {
        /// What is wrong, never a value.
        detail: String,
    },
    /// The endpoint does not take calls from where it came from.
    #[error("the endpoint's `allow` has no network with this client's address")]
    Source,
    /// Too many requests of this address were refused lately, so it was not looked at.
    #[error("too many requests of this client were refused lately; it was not looked at")]
    TooManyFromAddress,
    /// Too many requests at this endpoint were refused lately, and nothing good is known of the address.
    #[error("too many requests at this endpoint were refused lately; it was not looked at")]
    TooManyAtEndpoint,
    /// A dated request came without a readable date.
    #[error("the timestamp is missing, or cannot be read")]
    Undated,
    /// A dated request is too old, or from the future.
    #[error("the timestamp is {off_by_s} s away from this clock")]
    Stale {
        /// Seconds between the request's clock and ours; positive when it is old.
        off_by_s: i64,
    },
    /// Its signature holds, and it is a copy of a request that was accepted before.
    #[error("the request was accepted before: its nonce is known")]
    Replayed,
}

impl Refusal {
    /// Every word that [`Refusal::reason`] may be.
    pub fn reasons() -> impl Iterator<Item = &'static str> {
        let own = [
            Refusal::Signature(Mismatch::Missing),
            Refusal::Signature(Mismatch::Malformed),
            Refusal::Signature(Mismatch::Wrong),
            Refusal::Method { method: String::new(), allowed: "" },
            Refusal::ContentType { expected: "" },
            Refusal::Malformed { detail: String::new() },
            Refusal::Undated,
            Refusal::Stale { off_by_s: 0 },
            Refusal::Replayed,
        ];
        own.map(|refusal| refusal.reason()).into_iter().chain(Rule::ALL.map(Rule::as_str))
    }

    /// The short, stable word refusals are counted under.
    pub const fn reason(&self) -> &'static str {
        match self {
            Refusal::Parameters(error) => error.reason(),
            Refusal::Signature(Mismatch::Missing) => "missing-signature",
            Refusal::Signature(Mismatch::Malformed) => "malformed-signature",
            Refusal::Signature(Mismatch::Wrong) => "wrong-signature",
            Refusal::Method { .. } => "method",
            Refusal::ContentType { .. } => "content-type",
            Refusal::Malformed { .. } => "malformed",
            Refusal::Source => "source",
            Refusal::TooManyFromAddress => "address-rate",
            Refusal::TooManyAtEndpoint => "endpoint-rate",
            Refusal::Undated => "undated",
            Refusal::Stale { .. } => "stale",
            Refusal::Replayed => "replayed",
        }
    }

    /// The HTTP status.
    pub const fn status(&self) -> u16 {
        match self {
            Refusal::Parameters(_) | Refusal::Malformed { .. } => 400,
            Refusal::Signature(_)
            | Refusal::Source
            | Refusal::Undated
            | Refusal::Stale { .. }
            | Refusal::Replayed => 403,
            Refusal::Method { .. } => 405,
            Refusal::ContentType { .. } => 415,
            Refusal::TooManyFromAddress => 429,
            Refusal::TooManyAtEndpoint => 503,
        }
    }

    /// What the caller may read. Every signature that does not hold reads alike.
    pub const fn public(&self) -> &'static str {
        match self {
            Refusal::Parameters(_) | Refusal::Malformed { .. } => "bad request",
            Refusal::Signature(_) | Refusal::Source => "forbidden",
            Refusal::TooManyFromAddress => "too many requests",
            Refusal::TooManyAtEndpoint => "busy",
            Refusal::Undated => "forbidden: no timestamp",
            Refusal::Stale { .. } => "forbidden: the timestamp is too far from this clock",
            Refusal::Replayed => "forbidden: this was sent before",
            Refusal::Method { .. } => "method not allowed",
            Refusal::ContentType { .. } => "unsupported content type",
        }
    }
}

/// An answer, for whoever writes it to the socket. It may hold a buyer's password: `Debug` shows
/// its outline only.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The `Content-Type`.
    pub content_type: &'static str,
    /// Further headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// What the seller's key has still to do: see [`Reply::sealed`].
    pub seal: Seal,
}

/// What the seller's key has to do to an answer before it is sent. No dialect sees a key, so it says here
/// what is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seal {
    /// The texts of the JSON body that are to be encrypted, as JSON pointers.
    pub encrypts: Vec<String>,
    /// How.
    pub cipher: Cipher,
    /// Whether the whole is to be signed.
    pub signs: bool,
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: &impl Serialize) -> Reply {
        Reply {
            status,
            content_type: "application/json",
            headers: vec![("cache-control", "no-store".to_owned())],
            // What is answered consists of texts, numbers, lists and objects, which can always be written.
            body: serde_json::to_vec(body).unwrap_or_default(),
            seal: Seal::default(),
        }
    }

    /// A page for a buyer's browser. The words are ours: nothing a peer sent stands in it.
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
                ("content-security-policy", "default-src 'none'".to_owned()),
            ],
            body: body.into_bytes(),
            seal: Seal::default(),
        }
    }

    /// The reply as it is sent: what is to be encrypted is, and then it is signed, by the key that `signer`
    /// holds. What cannot be encrypted is left out.
    pub fn sealed(mut self, signer: &Signer) -> Reply {
        let Seal { encrypts, cipher, signs } = std::mem::take(&mut self.seal);
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

/// Puts what `encrypt` makes of a text in its place; nothing where it makes nothing.
fn encrypt<E>(body: &mut Value, pointer: &str, encrypt: impl FnOnce(&str) -> Result<String, E>) {
    let Some(text) = body.pointer_mut(pointer) else { return };
    let sealed = text.as_str().and_then(|text| encrypt(text).ok());
    *text = sealed.map_or(Value::Null, Value::from);
}

/// JSON in which everything but ASCII is escaped.
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
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("content_type", &self.content_type)
            .field("headers", &headers)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

/// How a request is sent on the way out.
#[derive(Debug, Clone)]
pub struct Sending {
    /// In which clothes.
    pub form: SendForm,
    /// With which signature.
    pub signature: SendSignature,
    /// The time it is dated, where the dialect dates its requests.
    pub now: Timestamp,
    /// What marks it as no copy of another, where the dialect marks its requests.
    pub nonce: String,
    /// Values changed after signing, by name: what a forger does.
    pub altered: Vec<Pair>,
    /// Parameters added after signing, as they are: a duplicate, say.
    pub appended: Vec<Pair>,
    /// Text put behind the encoded parameters as it is: a broken encoding, say.
    pub raw: String,
}

impl Sending {
    /// An honest request in the dialect's usual form, dated `now`.
    pub fn at(now: Timestamp) -> Sending {
        Sending {
            form: SendForm::Usual,
            signature: SendSignature::Computed,
            now,
            // Without randomness the time must do: then two requests of one instant are copies.
            nonce: Id::new(now)
                .map_or_else(|_| now.as_millisecond().to_string(), |id| hex::encode(id.as_bytes())),
            altered: Vec::new(),
            appended: Vec::new(),
            raw: String::new(),
        }
    }

    /// The digest to send, given how the right one is made; `None` for none.
    fn digest(&self, right: impl FnOnce() -> String) -> Option<String> {
        match &self.signature {
            SendSignature::Computed => Some(right()),
            SendSignature::Pinned(text) => Some(text.clone()),
            SendSignature::Altered => Some(alter(&right())),
            SendSignature::Omitted => None,
        }
    }

    /// The parameters as they go out after they were signed.
    fn after_signing(&self, signed: &[Pair]) -> Vec<Pair> {
        let changed = |name: &str| self.altered.iter().find(|(altered, _)| altered == name);
        let kept = signed.iter().map(|pair| changed(&pair.0).unwrap_or(pair));
        kept.chain(&self.appended).cloned().collect()
    }
}

/// The digest with its first digit changed.
fn alter(digest: &str) -> String {
    let first = if digest.starts_with('0') { '1' } else { '0' };
    std::iter::once(first).chain(digest.chars().skip(1)).collect()
}

/// Where the parameters of an outgoing request stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SendForm {
    /// Where this marketplace usually puts them.
    #[default]
    Usual,
    /// A `POST` form.
    Form,
}

/// Which signature an outgoing request carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SendSignature {
    /// The right one.
    #[default]
    Computed,
    /// This one, whatever was signed.
    Pinned(String),
    /// The right one with one digit changed.
    Altered,
    /// None.
    Omitted,
}

/// A request to be sent to somebody's endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRequest {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The encoded query string without a `?`; empty for none.
    pub query: String,
    /// Headers, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// The body; empty for none.
    pub body: Vec<u8>,
}

impl OutRequest {
    /// The value of the header with this lower-case name: what [`RawRequest::header`] asks for.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

const FORM_TYPE: &str = "application/x-www-form-urlencoded";

/// What a dialect calls what every dialect has.
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
    /// The actions whose order id is a new one for each happening.
    ordered: &'static [Action],
}

impl Names {
    /// The callback, but for its billing items and what only its dialect can doubt.
    fn read(&self, action: Action, word: &str, parameters: Parameters, options: &Options) -> Callback {
        let mut callback = self.fill(action, word, parameters, options);
        self.doubt(&mut callback, matches!(action, Action::Renew | Action::RefundRenew));
        callback
    }

    /// The callback as its parameters say it, undoubted.
    fn fill(&self, action: Action, word: &str, parameters: Parameters, options: &Options) -> Callback {
        let text = |name: &str| parameters.filled(name).map(str::to_owned);
        let expiry = |raw: String| {
            let at = (self.read_date)(&raw, &options.timezone);
            Expiry { raw, at }
        };
        let mut callback = Callback {
            subject: InstanceRef {
                // A create is known by what was sold; an instance id in it is nobody's yet.
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

    /// Doubts only what nothing can be decided without, a date among it if it must be `dated`; the
    /// lifecycle judges the rest.
    fn doubt(&self, callback: &mut Callback, dated: bool) {
        let unnamed = callback.subject.names().next().is_none();
        let missing = match callback.action {
            Action::Create => unnamed.then_some(self.order_biz_id),
            Action::Renew | Action::RefundRenew | Action::Upgrade | Action::Expire | Action::Release => {
                (unnamed && callback.order_id.is_none()).then_some(self.instance_id)
            }
            Action::SignOn => unnamed.then_some(self.instance_id),
            Action::Payment => {
                (callback.request_id.is_none() && callback.order_id.is_none()).then_some(self.request_id)
            }
            Action::Query | Action::Other => None,
        };
        let undated = dated && callback.expires_on.as_ref().is_none_or(|expiry| expiry.at.is_none());
        let too_long = |name: &Option<String>| name.as_ref().is_some_and(|name| name.len() > NAME_MAX_BYTES);
        let subject = &callback.subject;
        let found = [
            missing.map(|name| Doubt::MissingParameter { name: name.to_owned() }),
            undated.then(|| Doubt::UnreadableDate { name: self.expires_on.to_owned() }),
            too_long(&subject.instance_id).then(|| Doubt::UnknownValue { name: self.instance_id.to_owned() }),
            too_long(&subject.order_biz_id)
                .then(|| Doubt::UnknownValue { name: self.order_biz_id.to_owned() }),
        ];
        callback.doubts.extend(found.into_iter().flatten());
    }
}

/// `true` or `false` in any case; anything else is unknown, which is not `false`.
fn read_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// Reads exactly `yyyy-MM-dd HH:mm:ss` in `zone`. Where a clock change makes the text mean two
/// instants it is the earlier, where it means none it is moved past the gap.
fn read_civil(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    const SHAPE: &str = "0000-00-00 00:00:00";
    let fits = text.len() == SHAPE.len()
        && text.bytes().zip(SHAPE.bytes()).all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        });
    let civil: jiff::civil::DateTime = text.parse().ok().filter(|_| fits)?;
    // "For ever" is commonly written 9999-12-31, which lies a day behind the last instant we can name.
    zone.to_timestamp(civil).ok().or_else(|| (civil.year() == 9999).then(last_instant))
}

fn read_word<'a>(parameters: &'a Parameters, name: &str) -> &'a str {
    parameters.filled(name).unwrap_or_default()
}

/// The fields of one section of an answer, spelt by `spell`.
fn object(fields: &Fields, spell: impl Fn(&str) -> String) -> Map<String, Value> {
    fields.iter().map(|(name, field)| (spell(name), Value::from(Field::expose(field)))).collect()
}

/// What the marketplace's staff may read about an outcome that is no success.
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
    use crate::hook::clock::from_millis;

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
