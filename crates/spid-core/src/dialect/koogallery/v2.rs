//! Version 2.0 of the vendor's guide: a POST of JSON, signed with a timestamp and a nonce in the query.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Denial, OutRequest, RawRequest, Sending, Unchecked};
use super::JSON_TYPE;
use crate::limits::NONCED_WINDOW_MS;
use crate::query::{self, Pair};
use crate::signature::{Keys, Parts, Signed};
use spid_hook::callback::{Nonce, Parameters};
use spid_hook::json::Json;
use spid_hook::time::plus_millis;

/// Returns the signed parts of a request of version 2.0.
/// Query parameters other than timestamp, nonce and signature are not signed, so they are dropped.
pub(super) fn parts(request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
    // Check date and nonce before the body: both checks cost less.
    let mut query = query::parse(request.query, None)?;
    let timestamp = take(&mut query, "timestamp").ok_or(Denial::Undated)?;
    let sent_at = read_sent_at(&timestamp, now)?;
    let nonce = take(&mut query, "nonce")
        .ok_or_else(|| Denial::malformed("the query parameter `nonce` is missing"))?;
    let parameters = read_body(request.body)?;
    let until = plus_millis(sent_at, NONCED_WINDOW_MS);
    Ok(Signed {
        presented: take(&mut query, "signature"),
        payload: Unchecked {
            parameters,
            sent_at: Some(sent_at),
            nonce: Some(Nonce { nonce: nonce.clone(), until }),
        },
        parts: Parts::Nonced { nonce, timestamp, body: request.body.to_vec(), digested: true },
    })
}

/// Takes a parameter out of the query. An empty value counts as missing.
fn take(query: &mut Vec<Pair>, name: &str) -> Option<String> {
    let at = query.iter().position(|(known, _)| known == name)?;
    Some(query.swap_remove(at).1).filter(|value| !value.is_empty())
}

/// Reads the timestamp of a request.
/// The vendor's pages disagree: the Chinese pages say milliseconds, the international pages say seconds, and all
/// samples have 13 digits. The number of digits decides.
pub(super) fn read_sent_at(text: &str, now: Timestamp) -> Result<Timestamp, Denial> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Denial::Undated);
    }
    let number: i64 = text.parse().map_err(|_| Denial::Undated)?;
    let sent_at = match text.len() {
        10 => Timestamp::from_second(number),
        13 => Timestamp::from_millisecond(number),
        _ => return Err(Denial::Undated),
    };
    let sent_at = sent_at.map_err(|_| Denial::Undated)?;
    Denial::check_date(sent_at, now, NONCED_WINDOW_MS)?;
    Ok(sent_at)
}

/// Reads the members of the body: scalars as text, nested values as JSON text.
/// The signature covers the bytes, so a name may be any text. Unknown names are accepted.
pub(super) fn read_body(body: &[u8]) -> Result<Parameters, Denial> {
    let members = match Json::read(body) {
        Ok(Json::Object(members)) => members,
        Ok(_) => return Err(Denial::malformed("the body is not a JSON object")),
        Err(error) => {
            // Report only the position of the error, because `serde_json` messages quote values.
            let (line, column) = (error.line(), error.column());
            return Err(Denial::malformed(format!(
                "the body is not valid JSON (line {line}, column {column})"
            )));
        }
    };
    let mut pairs: Vec<Pair> = Vec::new();
    for (name, value) in members {
        let value = match value {
            Json::Null => String::new(),
            Json::Text(text) => text,
            other => other.to_string(),
        };
        // Many programs stop reading at a NUL, so the rest of the text would be invisible to them.
        if name.contains('\0') || value.contains('\0') {
            return Err(Denial::malformed("the body contains a NUL character; remove it"));
        }
        pairs.push((name, value));
    }
    Ok(pairs.into_iter().collect())
}

pub(super) fn request(pairs: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
    let timestamp = send.now.as_millisecond().to_string();
    let digest = send.digest(|| {
        let body = write_body(pairs).into_bytes();
        let (nonce, timestamp) = (send.nonce.clone(), timestamp.clone());
        Parts::Nonced { nonce, timestamp, body, digested: true }.sign(keys)
    });
    let mut query: Vec<Pair> = digest.map(|digest| ("signature".to_owned(), digest)).into_iter().collect();
    query.push(("timestamp".to_owned(), timestamp));
    query.push(("nonce".to_owned(), send.nonce.clone()));
    // Changes after signing go only into the body that is sent.
    let body = format!("{}{}", write_body(&send.after_signing(pairs)), send.raw);
    let headers =
        vec![("accept", JSON_TYPE.to_owned()), ("content-type", "application/json;charset=utf8".to_owned())];
    OutRequest { method: "POST", query: query::encode(&query), headers, body: body.into_bytes() }
}

/// Writes one JSON object.
/// A value that is a JSON object or list exactly as [`read_body`] returns it (members sorted, no white space) is
/// sent as JSON. Any other value is sent as a text. So the other side reads what was given here. Written by hand,
/// because a fixture may need the same member twice.
pub(super) fn write_body(pairs: &[Pair]) -> String {
    let members: Vec<String> = pairs.iter().map(write_member).collect();
    format!("{{{}}}", members.join(","))
}

fn write_member((name, value): &Pair) -> String {
    let is_nested = value.starts_with(['{', '['])
        && Json::read(value.as_bytes()).is_ok_and(|read| read.to_string() == *value);
    let value = if is_nested { value.clone() } else { Value::from(value.as_str()).to_string() };
    format!("{}:{value}", Value::from(name.as_str()))
}
