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
//! still sold something. So the callback gets a validation issue ([`Callback::issues`]) and waits for an operator.
//!
//! `alibaba` and `jdcloud` belong to one family, the *query token*. Their common code is in `token`; each of them
//! is a table. `koogallery` shares nothing with them: it has JSON bodies with a nonce, signed answers, and orders
//! that need an order lookup.

mod alibaba;
mod dates;
mod explain;
mod generic;
mod jdcloud;
mod koogallery;
mod names;
mod receive;
mod reply;
mod send;
mod token;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::query::Pair;
use crate::signature::{Cipher, Keys, Signed, Verified};
use spid_hook::callback::{Action, Callback, Outcome, Parameters};

pub use explain::{explain, shown_base};
pub use receive::{Denial, RawRequest, Unchecked};
pub use reply::{Protection, Reply};
pub use send::{OutRequest, SendForm, SendSignature, Sending};

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

/// Returns the order lookup that is needed before a hook can run this callback, and its dialect.
/// `None` when the callback contains everything.
///
/// Callbacks stored by an older spid do not name their dialect, so each dialect is tried. This is safe because
/// only one dialect recognizes such an order.
pub fn needed_lookup(callback: &Callback) -> Option<(&'static dyn Dialect, OrderLookup)> {
    let named = callback.dialect.as_deref();
    for dialect in DIALECTS {
        if named.is_none_or(|name| dialect.name() == name)
            && let Some(lookup) = dialect.order_api().and_then(|api| (api.lookup)(callback))
        {
            return Some((dialect, lookup));
        }
    }
    None
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

    /// Name of the signing rule. The configuration compares it: two dialects with the same signing rule accept each
    /// other's requests if both use the same key.
    fn signing(&self) -> &'static str {
        self.name()
    }

    /// Path suffixes, behind the endpoint's path, that this marketplace also calls. The public listener adds a route
    /// for each.
    fn path_suffixes(&self) -> &'static [&'static str] {
        &[]
    }

    /// Splits a request into the signed parts, the signature it carries, and the payload. The payload becomes usable
    /// once the signature is valid. `now` is compared with the timestamp of dated requests. Intake and `verify` call
    /// it first.
    ///
    /// # Errors
    /// [`Denial`], for everything that two readers could read differently. A denied request is not stored.
    fn parts(&self, request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial>;

    /// Converts a verified request to a callback. Total: anything it cannot understand becomes a validation issue
    /// ([`Callback::issues`]). Intake and `verify` call it after the signature check.
    fn callback(&self, verified: Verified<Unchecked>, options: &Options) -> Callback;

    /// Splits a request that asks several things at once into its callbacks. Intake stores them in this order. Never
    /// empty.
    fn split(&self, callback: Callback) -> Vec<Callback> {
        vec![callback]
    }

    /// Builds the reply this marketplace expects when `outcome` is the current outcome of `callback`.
    fn reply(&self, callback: &Callback, outcome: &Outcome, options: &Options) -> Reply;

    /// Builds the single reply to a request, from the outcomes of all its [parts](Dialect::split). Intake calls it
    /// for every request. By default the request is done once all parts are done: the first part that is not done
    /// decides.
    fn reply_to_all(&self, answered: &[(Callback, Outcome)], options: &Options) -> Reply {
        let undone = answered.iter().find(|(_, outcome)| !outcome.is_success());
        match undone.or(answered.first()) {
            Some((callback, outcome)) => self.reply(callback, outcome, options),
            None => Reply::json(503, &Value::Null),
        }
    }

    /// Builds the reply to a denied request, for intake. The request decides only the format of the reply, because
    /// nothing in it is verified.
    fn refuse(&self, request: &RawRequest<'_>, refusal: &Denial) -> Reply;

    /// Returns true if the request says that a buyer's browser sent it, as in single sign-on. Nothing in the request
    /// is verified. The public listener asks before it applies an allow-list of addresses.
    fn is_for_a_browser(&self, _request: &RawRequest<'_>) -> bool {
        false
    }

    /// Returns true if buyers of this marketplace sign on to the application through the endpoint.
    fn has_sign_on(&self) -> bool {
        false
    }

    /// Delivery limit for this callback: the number of calls after which the marketplace gives up. `None` when it
    /// documents no limit, or does not give up. Intake stores it with the callback.
    fn delivery_limit(&self, _callback: &Callback) -> Option<u32> {
        None
    }

    /// Time at which the marketplace gives up on a callback that was first delivered at `first` and has no success,
    /// and the consequence. `None` when it documents neither. The attention list shows both.
    fn gives_up(&self, _action: Action, _first: Timestamp) -> Option<GivesUp> {
        None
    }

    /// Order lookups, for a marketplace whose callbacks do not say what was ordered. The configuration requires an
    /// access key for them, and the order lookup client uses them.
    fn order_api(&self) -> Option<&'static OrderApi> {
        None
    }

    /// Builds the value of the header `x-dashscope-euid`. A product that calls Model Studio (Bailian) names the buyer
    /// on whose behalf it calls in this header. `None` when the marketplace has no such header, or when a header
    /// cannot hold one of the two values. The dispatcher puts it into the call of a hook.
    fn dashscope_euid(&self, _product: &str, _buyer: &str) -> Option<String> {
        None
    }

    /// Builds a signed request as this marketplace would send it, for `sign`, `replay`, `conformance` and `simulate`.
    /// `action` is the marketplace's word. `parameters` are its names and values, in sending order.
    fn request(&self, action: &str, parameters: &[Pair], keys: &Keys, send: &Sending) -> OutRequest;
}

/// Order lookups of a marketplace.
#[derive(Debug)]
pub struct OrderApi {
    /// Base URL, if the configuration has none.
    pub url: &'static str,
    /// Builds the order lookup that is needed before a hook can run this callback. `None` when the callback contains
    /// everything, or when the order details are already added.
    pub lookup: fn(&Callback) -> Option<OrderLookup>,
    /// Adds the order details from the status and the body of the marketplace's answer. After an error the callback
    /// is unchanged.
    pub add_details: fn(&mut Callback, u16, &[u8]) -> Result<(), DetailsError>,
}

/// Point at which a marketplace gives up on a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivesUp {
    /// Time, if the limit is a time and not a number of deliveries.
    pub at: Option<Timestamp>,
    /// The consequence.
    pub then: &'static str,
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

spid_hook::words! {
    /// JSON type of the marketplaces' `success`.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum SuccessAs {
        /// `true`, as in the documentation's tables.
        #[default]
        Boolean = "boolean",
        /// `"true"`, as in the documentation's samples.
        String = "string",
    }
}

const FORM_TYPE: &str = "application/x-www-form-urlencoded";

/// Returns a parameter that is not empty.
fn text_of(parameters: &Parameters, name: &str) -> Option<String> {
    parameters.filled(name).map(str::to_owned)
}

fn read_word<'a>(parameters: &'a Parameters, name: &str) -> &'a str {
    parameters.filled(name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_its_dialect() {
        let all: Vec<&str> = names().collect();
        assert_eq!(all, ["alibaba", "generic", "jdcloud", "koogallery"]);
        for name in all {
            assert_eq!(by_name(name).unwrap().name(), name);
        }
        assert!(by_name("").is_none());
    }
}
