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
//! `alibaba` and `jdcloud` are of one family, the *query token*; what they share is the second half
//! of this file, and each of them is a table.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use crate::callback::{
    Action, Answer, Callback, Doubt, Expiry, Field, Fields, InstanceRef, Outcome, Parameters,
};
use crate::clock::from_millis;
use crate::limits::NAME_MAX_BYTES;
use crate::query::{self, Pair, QueryError};
use crate::signature::{Keys, Mismatch, Parts, Secret, Signed, Verified};

mod alibaba;
mod explain;
mod generic;
mod jdcloud;

pub use explain::explain;

/// Every dialect, by name.
static DIALECTS: [&dyn Dialect; 3] = [&alibaba::ALIBABA, &generic::Generic, &jdcloud::JDCLOUD];

/// The dialect with this name, as the configuration has it.
///
/// ```
/// assert_eq!(spid::dialect::by_name("alibaba").unwrap().name(), "alibaba");
/// assert!(spid::dialect::by_name("klingon").is_none());
/// ```
pub fn by_name(name: &str) -> Option<&'static dyn Dialect> {
    DIALECTS.into_iter().find(|dialect| dialect.name() == name)
}

/// The names [`by_name`] knows, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    DIALECTS.into_iter().map(Dialect::name)
}

/// How one marketplace speaks. Object safe: an endpoint holds a `&'static dyn Dialect`.
pub trait Dialect: Send + Sync {
    /// The name in configuration, logs and metrics.
    fn name(&self) -> &'static str;

    /// How often the marketplace calls before it gives up; `None` when it does not say, or does not
    /// give up.
    fn budget(&self) -> Option<u32>;

    /// Takes a request apart: what was signed, the signature it came with, and what becomes usable
    /// once that holds. `now` judges requests that are dated.
    ///
    /// # Errors
    /// [`Refusal`], for everything two readers could read differently. Nothing is written for it.
    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Refusal>;

    /// What the request asks. Total: what cannot be understood becomes a [`Doubt`].
    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback;

    /// What this marketplace expects to read when `outcome` is what is true of `callback`.
    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply;

    /// What a request gets that was turned away before it counted. The request decides no more than
    /// the look of the answer: nothing in it has been verified.
    fn refuse(&self, request: &RawRequest<'_>, refusal: &Refusal) -> Reply;

    /// The way out: a signed request as this marketplace would send it. `action` is the
    /// marketplace's word; parameters are its names and values in the order they are to be sent.
    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest;
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

/// What a request said, decoded, before and while its signature is checked. It opens only inside
/// [`Dialect::callback`], which takes it verified.
#[derive(Debug, Clone)]
pub struct Unchecked {
    parameters: Parameters,
    sent_at: Option<Timestamp>,
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
}

impl Default for Options {
    fn default() -> Options {
        // The fixed offset is what Asia/Shanghai has been since 1991.
        let timezone =
            TimeZone::get("Asia/Shanghai").unwrap_or_else(|_| TimeZone::fixed(jiff::tz::offset(8)));
        Options { timezone, success_as: SuccessAs::default(), public_url: None }
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
    /// A dated request came without a readable date.
    #[error("the timestamp is missing, or not a number of seconds")]
    Undated,
    /// A dated request is too old, or from the future.
    #[error("the timestamp is {off_by_s} s away from this clock")]
    Stale {
        /// Seconds between the request's clock and ours; positive when it is old.
        off_by_s: i64,
    },
}

impl Refusal {
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
            Refusal::Undated => "undated",
            Refusal::Stale { .. } => "stale",
        }
    }

    /// The HTTP status.
    pub const fn status(&self) -> u16 {
        match self {
            Refusal::Parameters(_) | Refusal::Malformed { .. } => 400,
            Refusal::Signature(_) | Refusal::Undated | Refusal::Stale { .. } => 403,
            Refusal::Method { .. } => 405,
            Refusal::ContentType { .. } => 415,
        }
    }

    /// What the caller may read. Every signature that does not hold reads alike.
    pub const fn public(&self) -> &'static str {
        match self {
            Refusal::Parameters(_) | Refusal::Malformed { .. } => "bad request",
            Refusal::Signature(_) => "forbidden",
            Refusal::Undated => "forbidden: no timestamp",
            Refusal::Stale { .. } => "forbidden: the timestamp is too far from this clock",
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
}

impl Reply {
    /// A JSON answer.
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply {
            status,
            content_type: "application/json",
            headers: vec![("cache-control", "no-store".to_owned())],
            body: body.to_string().into_bytes(),
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
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
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
}

impl Names {
    /// The callback, but for its billing items and what only its dialect can doubt.
    fn read(&self, action: Action, word: &str, parameters: Parameters, options: &Options) -> Callback {
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
        };
        callback.parameters = parameters;
        self.doubt(&mut callback);
        callback
    }

    /// Doubts only what nothing can be decided without; the lifecycle judges the rest.
    fn doubt(&self, callback: &mut Callback) {
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
        let undated = matches!(callback.action, Action::Renew | Action::RefundRenew)
            && callback.expires_on.as_ref().is_none_or(|expiry| expiry.at.is_none());
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
    let last = || from_millis(Timestamp::MAX.as_millisecond());
    zone.to_timestamp(civil).ok().or_else(|| (civil.year() == 9999).then(last))
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
        Outcome::Refused { reason } => reason.clone(),
        Outcome::Held { reason } => format!("waiting for the seller: {reason}"),
        Outcome::Unavailable => "temporarily unavailable, please call again".to_owned(),
    }
}

// ---------------------------------------------------------------------------------------------
// The query-token family: parameters in the query string or a form, an MD5 over all of them but
// `token`, replies that carry `instanceId` or `success`.

/// A marketplace of the query-token family, as a table.
struct TokenDialect {
    name: &'static str,
    budget: u32,
    names: Names,
    verbs: &'static [Verb],
    /// Names the marketplace itself may send with any action: never billing items.
    system: &'static [&'static str],
}

/// One action of a query-token marketplace.
struct Verb {
    word: &'static str,
    action: Action,
    /// Documented names beside the system's: never billing items either.
    names: &'static [&'static str],
    shape: Shape,
}

/// The shape of the answer to a verb.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// `instanceId`, `"0"` until it is true, with what the buyer is shown.
    Instance,
    /// `success`, spelt as the endpoint is configured.
    Success,
    /// The same, with what the buyer is shown from now on.
    SuccessWithApp,
    /// `success`, documented to be a boolean.
    Boolean,
    /// A redirect or a page: the peer is a buyer's browser.
    Page,
    /// Whatever JSON the hook gives; without it there is no success.
    Free,
}

const ACTION: &str = "action";
const TOKEN: &str = "token";
const TIME_STAMP: &str = "timeStamp";

/// How the family spells the names of an answer; a name that is not here is passed on as it is.
const SPELLINGS: [(&str, &str); 12] = [
    ("front_end_url", "frontEndUrl"),
    ("admin_url", "adminUrl"),
    ("auth_url", AUTH_URL),
    ("license_id", "licenseId"),
    ("license_valid_period", "licenseValidPeriod"),
    ("license_for_user_guide", "licenseForUserGuide"),
    ("inner_ip", "innerIp"),
    ("temp_domain", "tempDomain"),
    ("ftp_username", "ftpUsername"),
    ("ftp_password", "ftpPassword"),
    ("beian_info", "beianInfo"),
    ("database_info", "databaseInfo"),
];
const AUTH_URL: &str = "authUrl";

fn spell(name: &str) -> String {
    let known = SPELLINGS.iter().find(|(neutral, _)| *neutral == name);
    known.map_or(name, |(_, wire)| wire).to_owned()
}

impl Dialect for TokenDialect {
    fn name(&self) -> &'static str {
        self.name
    }

    fn budget(&self) -> Option<u32> {
        Some(self.budget)
    }

    fn parts(&self, request: &RawRequest<'_>, _now: Timestamp) -> Result<Signed<Unchecked>, Refusal> {
        if !matches!(request.method, "GET" | "POST") {
            let method = request.method.chars().take(16).collect();
            return Err(Refusal::Method { method, allowed: "GET, POST" });
        }
        let mut pairs = query::parse(request.query, form_of(request)?)?;
        let token = pairs.iter().position(|(name, _)| name == TOKEN);
        let presented = token.map(|at| pairs.swap_remove(at).1);
        let payload = Unchecked { parameters: pairs.iter().cloned().collect(), sent_at: None };
        Ok(Signed { parts: Parts::Pairs(pairs), presented, payload })
    }

    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback {
        let parameters = verified.into_payload().parameters;
        let word = read_word(&parameters, ACTION).to_owned();
        let verb = self.verb(&word);
        let action = verb.map_or(Action::Other, |verb| verb.action);
        let mut callback = self.names.read(action, &word, parameters, options);
        callback.items = self.items(verb, &callback.parameters);
        callback.sent_at =
            callback.parameters.filled(TIME_STAMP).and_then(|text| read_civil(text, &options.timezone));
        if verb.is_none() {
            callback.doubts.push(Doubt::UnknownAction);
        }
        if let Some(name) = query::ambiguous(callback.parameters.iter()) {
            let name = name.to_owned();
            callback.doubts.push(Doubt::AmbiguousValue { name });
        }
        callback
    }

    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply {
        match self.verb(&callback.action_name).map(|verb| verb.shape) {
            Some(Shape::Instance) => instance_reply(outcome, options),
            Some(Shape::Success) => success_reply(outcome, options.success_as),
            Some(Shape::SuccessWithApp) => success_with_app_reply(outcome, options),
            Some(Shape::Boolean) => success_reply(outcome, SuccessAs::Boolean),
            Some(Shape::Page) => page_reply(outcome),
            Some(Shape::Free) => free_reply(outcome).unwrap_or_else(|| no_answer_reply(outcome)),
            None => free_reply(outcome).unwrap_or_else(|| success_reply(outcome, options.success_as)),
        }
    }

    fn refuse(&self, request: &RawRequest<'_>, refusal: &Refusal) -> Reply {
        let status = refusal.status();
        let reply = if self.is_for_a_browser(request) {
            Reply::page(
                status,
                "This link is not valid. Please open the application from the marketplace again.",
            )
        } else {
            // Which HTTP statuses count as a failure is stated nowhere, so the body says it too, in
            // both ways the family has of saying it.
            let body = json!({"instanceId": NOT_READY, "success": false, "message": refusal.public()});
            Reply::json(status, &body)
        };
        match refusal {
            Refusal::Method { allowed, .. } => reply.with("allow", *allowed),
            _ => reply,
        }
    }

    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
        let named = parameters.iter().any(|(name, _)| name == ACTION);
        let word = (!named && !action.is_empty()).then(|| (ACTION.to_owned(), action.to_owned()));
        let signed: Vec<Pair> = word.into_iter().chain(parameters.iter().cloned()).collect();
        let digest = send.digest(|| Parts::Pairs(signed.clone()).sign(keys));
        let mut pairs = send.after_signing(&signed);
        pairs.extend(digest.map(|digest| (TOKEN.to_owned(), digest)));
        let text = format!("{}{}", query::encode(&pairs), send.raw);
        match send.form {
            SendForm::Usual => {
                OutRequest { method: "GET", query: text, headers: Vec::new(), body: Vec::new() }
            }
            SendForm::Form => OutRequest {
                method: "POST",
                query: String::new(),
                headers: vec![("content-type", FORM_TYPE.to_owned())],
                body: text.into_bytes(),
            },
        }
    }
}

impl TokenDialect {
    fn verb(&self, word: &str) -> Option<&'static Verb> {
        self.verbs.iter().find(|verb| verb.word == word)
    }

    /// The quantities the seller defined when publishing: every name that is nobody else's.
    fn items(&self, verb: Option<&Verb>, parameters: &Parameters) -> BTreeMap<String, String> {
        let Some(verb) = verb.filter(|verb| matches!(verb.action, Action::Create | Action::Upgrade)) else {
            return BTreeMap::new();
        };
        let is_item = |name: &str| !self.system.contains(&name) && !verb.names.contains(&name);
        let items = parameters.iter().filter(|(name, _)| is_item(name));
        items.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// Whether the sender seems to be a buyer's browser: decides the look of a refusal, no more.
    fn is_for_a_browser(&self, request: &RawRequest<'_>) -> bool {
        let pages = || self.verbs.iter().filter(|verb| verb.shape == Shape::Page);
        request.query.split(|byte| *byte == b'&').any(|pair| {
            let word = pair.strip_prefix(b"action=");
            word.is_some_and(|word| pages().any(|verb| verb.word.as_bytes() == word))
        })
    }
}

/// The body as a form; a body that is something else was not signed and must not be carried along.
fn form_of<'a>(request: &RawRequest<'a>) -> Result<Option<&'a [u8]>, Refusal> {
    if request.body.is_empty() {
        return Ok(None);
    }
    match request.media_type().as_deref() {
        Some(FORM_TYPE) => Ok(Some(request.body)),
        _ => Err(Refusal::ContentType { expected: FORM_TYPE }),
    }
}

/// The `instanceId` that means "not ready or failed, call again".
const NOT_READY: &str = "0";

fn instance_reply(outcome: &Outcome, options: &Options) -> Reply {
    let told = match outcome {
        Outcome::Applied { instance_id: Some(id), answer } if !id.is_empty() => Some((id, answer)),
        _ => None,
    };
    let Some((id, answer)) = told else { return Reply::json(200, &json!({"instanceId": NOT_READY})) };
    let mut body = Map::from_iter([("instanceId".to_owned(), Value::from(id.as_str()))]);
    let mut app = object(&answer.app, spell);
    fill_auth_url(&mut app, options);
    let info = object(&answer.info, str::to_owned);
    for (name, section) in [("hostInfo", object(&answer.host, spell)), ("appInfo", app), ("info", info)] {
        if !section.is_empty() {
            body.insert(name.to_owned(), Value::Object(section));
        }
    }
    Reply::json(200, &Value::Object(body))
}

fn fill_auth_url(app: &mut Map<String, Value>, options: &Options) {
    let told = app.get(AUTH_URL).and_then(Value::as_str).is_some_and(|url| !url.is_empty());
    if let (false, Some(url)) = (told, &options.public_url) {
        app.insert(AUTH_URL.to_owned(), Value::from(url.as_str()));
    }
}

fn success_body(outcome: &Outcome, success_as: SuccessAs) -> Map<String, Value> {
    let success = outcome.is_success();
    let spelt = match success_as {
        SuccessAs::Boolean => Value::from(success),
        SuccessAs::String => Value::from(success.to_string()),
    };
    let mut body = Map::from_iter([("success".to_owned(), spelt)]);
    if !success {
        body.insert("message".to_owned(), Value::from(message(outcome)));
    }
    body
}

fn success_reply(outcome: &Outcome, success_as: SuccessAs) -> Reply {
    Reply::json(200, &Value::Object(success_body(outcome, success_as)))
}

fn success_with_app_reply(outcome: &Outcome, options: &Options) -> Reply {
    let mut body = success_body(outcome, options.success_as);
    if let Outcome::Applied { answer, .. } = outcome
        && !answer.app.is_empty()
    {
        let mut app = object(&answer.app, spell);
        fill_auth_url(&mut app, options);
        body.insert("appInfo".to_owned(), Value::Object(app));
    }
    Reply::json(200, &Value::Object(body))
}

/// The hook's own JSON, if it is done and gave some.
fn free_reply(outcome: &Outcome) -> Option<Reply> {
    let Outcome::Applied { answer, .. } = outcome else { return None };
    let body: Value = serde_json::from_str(answer.body.as_ref()?.expose()).ok()?;
    Some(Reply::json(200, &body))
}

/// A verb that is answered freely has no success without an answer.
fn no_answer_reply(outcome: &Outcome) -> Reply {
    if outcome.is_success() {
        let body = json!({"success": false, "message": "the seller's hook gave no answer"});
        return Reply::json(200, &body);
    }
    success_reply(outcome, SuccessAs::Boolean)
}

/// Seconds after which a browser may try again.
const RETRY_AFTER_S: &str = "5";

fn page_reply(outcome: &Outcome) -> Reply {
    match outcome {
        Outcome::Applied { answer, .. } => redirect_reply(answer),
        Outcome::Refused { .. } | Outcome::Held { .. } => Reply::page(
            403,
            "You cannot be signed in with this link. Please open the application from the marketplace again.",
        ),
        Outcome::NotYet | Outcome::Unavailable => {
            Reply::page(503, "The application is not ready yet. Please try again in a moment.")
                .with("retry-after", RETRY_AFTER_S)
        }
    }
}

fn redirect_reply(answer: &Answer) -> Reply {
    match answer.redirect.as_ref().map(Secret::expose).filter(|url| is_safe_redirect(url)) {
        Some(url) => Reply::page(302, "Signing you in.")
            .with("location", url)
            // The URL lets its bearer in: it must not travel on in a Referer.
            .with("referrer-policy", "no-referrer"),
        None => Reply::page(502, "The application gave no address to go to. Please tell the seller."),
    }
}

/// Whether a browser may be sent there: `http` or `https`, a host, and nothing that could end the
/// header it stands in.
fn is_safe_redirect(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let web = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    web && !host.is_empty() && url.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_redirect_goes_to_the_web_and_ends_no_header() {
        for safe in ["https://a.example/in?ticket=1#top", "http://127.0.0.1:8080", "HTTPS://a.example"] {
            assert!(is_safe_redirect(safe), "{safe}");
        }
        for unsafe_url in [
            "",
            "/in",
            "//a.example",
            "javascript://a.example/%0aalert(1)",
            "data:text/html,x",
            "https://",
            "https:///in",
            "https://a.example/\r\nset-cookie: a=b",
            "https://a.example/ x",
            "https://a.example/\u{7f}",
            "https://ä.example/",
        ] {
            assert!(!is_safe_redirect(unsafe_url), "{unsafe_url:?}");
        }
    }

    #[test]
    fn every_name_leads_to_its_dialect() {
        let all: Vec<&str> = names().collect();
        assert_eq!(all, ["alibaba", "generic", "jdcloud"]);
        for name in all {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        assert!(by_name("").is_none());
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

    #[test]
    fn every_table_is_sound() {
        for dialect in [&alibaba::ALIBABA, &jdcloud::JDCLOUD] {
            for verb in dialect.verbs {
                let twins = dialect.verbs.iter().filter(|other| other.word == verb.word).count();
                assert_eq!(twins, 1, "{}: {} stands there once", dialect.name, verb.word);
                assert_eq!(verb.shape == Shape::Instance, verb.action == Action::Create, "{}", verb.word);
                assert_eq!(verb.shape == Shape::Page, verb.action == Action::SignOn, "{}", verb.word);
            }
            assert!(dialect.system.is_sorted(), "{}", dialect.name);
            assert!(!dialect.system.contains(&TOKEN), "it is no parameter");
        }
    }
}
