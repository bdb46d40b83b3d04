//! Version 1.0 of the vendor's guide: a GET with every field as a parameter, and `authToken` over all other
//! fields.
//!
//! The vendor has withdrawn it for new products, but still calls and probes it for products on sale. A request
//! has no nonce, and no time window is documented. A request that is sent again may be byte for byte the same. So
//! spid cannot tell a copy from a redelivery, and the lifecycle decides, as for every token without a time.
//!
//! Source: support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649066.html

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

use super::super::dates::read_compact;
use super::super::{Denial, OutRequest, RawRequest, Sending, Unchecked, text_of};
use crate::query::{self, Pair};
use crate::signature::{Cipher, Keys, Parts, Signed, Signer};
use spid_hook::callback::{Callback, Parameters, ValidationIssue};

pub(super) const TIME_STAMP: &str = "timeStamp";
pub(super) const TRIAL_FLAG: &str = "trialFlag";
const AUTH_TOKEN: &str = "authToken";

/// Parameters that the marketplace encrypts.
const CONTACT: [&str; 2] = ["mobilePhone", "email"];

/// Quantities that a buyer pays for in addition to the SKU.
const ITEMS: [&str; 3] = ["amount", "diskSize", "bandWidth"];

pub(super) fn parts(request: &RawRequest<'_>) -> Result<Signed<Unchecked>, Denial> {
    // The signature covers the query only, so a body could have been changed on the way.
    if !request.body.is_empty() {
        return Err(Denial::malformed("a GET must not have a body, because the signature does not cover it"));
    }
    let mut pairs = query::parse(request.query, None)?;
    let token = pairs.iter().position(|(name, _)| name == AUTH_TOKEN);
    let presented = token.map(|at| pairs.swap_remove(at).1);
    let timestamp = pairs.iter().find(|(name, _)| name == TIME_STAMP).map(|(_, value)| value.clone());
    let timestamp = timestamp.filter(|text| !text.is_empty()).ok_or(Denial::Undated)?;
    let sent_at = read_compact(&timestamp, &TimeZone::UTC);
    let payload = Unchecked { parameters: pairs.iter().cloned().collect(), sent_at, nonce: None };
    Ok(Signed { parts: Parts::Stamped { timestamp, pairs }, presented, payload })
}

pub(super) fn items(parameters: &Parameters) -> BTreeMap<String, String> {
    let mut items = BTreeMap::new();
    for name in ITEMS {
        items.extend(text_of(parameters, name).map(|value| (name.to_owned(), value)));
    }
    items
}

/// Returns true if the callback came as version 1.0.
pub(super) fn is_of(callback: &Callback) -> bool {
    callback.parameters.get(TIME_STAMP).is_some() && callback.parameters.get(super::ACTIVITY).is_some()
}

/// Returns a validation issue if a value is ambiguous. Like the query-token family's token, this one does not
/// mark the end of a value.
pub(super) fn ambiguous(parameters: &Parameters) -> Option<ValidationIssue> {
    let name = query::ambiguous(parameters.iter())?.to_owned();
    Some(ValidationIssue::AmbiguousValue { name })
}

/// Returns the positions of an administrator's account in an answer, as JSON pointers.
pub(super) fn accounts(body: &Map<String, Value>) -> Vec<String> {
    let infos = body.get("info").and_then(Value::as_array).map_or(0, Vec::len);
    // A query answers with several instances, a create with one.
    let sections = (0..infos).map(|index| format!("/info/{index}/appInfo")).chain(["/appInfo".to_owned()]);
    let all = sections.flat_map(|section| ["userName", "password"].map(|name| format!("{section}/{name}")));
    let body = Value::Object(body.clone());
    all.filter(|pointer| body.pointer(pointer).is_some()).collect()
}

/// Returns the vendor's number for a cipher.
pub(super) const fn encrypt_type(cipher: Cipher) -> &'static str {
    match cipher {
        Cipher::Aes256 => "1",
        Cipher::Aes128 => "2",
    }
}

/// Decrypts the buyer's contact.
/// The vendor does not document the key size it encrypts with: the endpoint's size is tried first, then the
/// other. A value that cannot be decrypted stays available among the parameters only.
pub(super) fn contact(parameters: &Parameters, signer: &Signer, first: Cipher) -> Option<Parameters> {
    let mut opened = Vec::new();
    for name in CONTACT {
        let Some(text) = parameters.filled(name) else { continue };
        // A wrong key size almost always fails at the padding, so the first success counts.
        let mut ciphers = [first].into_iter().chain(Cipher::ALL);
        let contact = ciphers.find_map(|cipher| signer.decrypt(cipher, text));
        opened.extend(contact.map(|contact| (name.to_owned(), contact.expose().to_owned())));
    }
    (!opened.is_empty()).then(|| opened.into_iter().collect())
}

/// Returns true if an outgoing request is one of version 1.0: only these carry their time among the fields.
pub(super) fn is_v1(pairs: &[Pair]) -> bool {
    pairs.iter().any(|(name, _)| name == TIME_STAMP)
}

/// Builds a request. An empty `timeStamp` is set to the current time.
pub(super) fn request(mut pairs: Vec<Pair>, keys: &Keys, send: &Sending) -> OutRequest {
    let now = compact(send.now);
    let mut timestamp = now.clone();
    for (_, value) in pairs.iter_mut().filter(|(name, _)| name == TIME_STAMP) {
        if value.is_empty() {
            value.clone_from(&now);
        }
        timestamp.clone_from(value);
    }
    let digest = send.digest(|| Parts::Stamped { timestamp, pairs: pairs.clone() }.sign(keys));
    let mut sent = send.after_signing(&pairs);
    sent.extend(digest.map(|digest| (AUTH_TOKEN.to_owned(), digest)));
    let query = format!("{}{}", query::encode(&sent), send.raw);
    OutRequest { method: "GET", query, headers: Vec::new(), body: Vec::new() }
}

/// Formats a time as `yyyyMMddHHmmssSSS` in UTC.
fn compact(at: Timestamp) -> String {
    format!("{}{:03}", at.strftime("%Y%m%d%H%M%S"), at.as_millisecond().rem_euclid(1000))
}
