//! Directory messages: the marketplace's directory of tenants, applications, users and departments, which the vendor
//! calls the linked kit. The marketplace sends it to the seller so that a buyer's staff can sign on.
//!
//! It is posted behind the production address, on its own paths, with the signature in headers. The members of
//! the body identify which of the five kinds it is, and all of these members are mandatory. So nothing depends on
//! the path, which no signature covers.
//!
//! Directory messages do not change an instance's state. Each message is stored and passed to the hook as `other`, with a
//! typed body. The types are read here, once, so that hooks need not parse lists within texts.
//!
//! Sources: support.huaweicloud.com/accessg-marketplace/zh-cn_topic_0070649433.html to …437.html; version 1.0:
//! …0070649109.html to …113.html

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::super::{Denial, OutRequest, RawRequest, Sending, Unchecked, text_of};
use super::v2::{read_body, read_sent_at, write_body};
use super::{missing, unknown, v1};
use crate::limits::NONCED_WINDOW_MS;
use crate::query::Pair;
use crate::signature::{Keys, Parts, Signed};
use spid_hook::callback::{Nonce, Parameters, ValidationIssue};
use spid_hook::json::Json;
use spid_hook::time::plus_millis;

const SIGN: &str = "x-sign";
const TIMESTAMP: &str = "x-timestamp";
const NONCE: &str = "x-nonce";
const AUTH_TOKEN: &str = "authtoken";

/// Path suffixes that the marketplace calls, behind the production address: version 2.0, then 1.0.
pub(super) const PATH_SUFFIXES: [&str; 10] = [
    "/produceAPI/v2/tenantSync",
    "/produceAPI/v2/applicationSync",
    "/produceAPI/v2/authSync",
    "/produceAPI/v2/singleOrgSync",
    "/produceAPI/v2/allOrgSync",
    "/produceAPI/tenantSync",
    "/produceAPI/applicationSync",
    "/produceAPI/authSync",
    "/produceAPI/singleOrgSync",
    "/produceAPI/allOrgSync",
];

/// Each kind, with the member that only this kind has.
const KINDS: [(&str, &str); 6] = [
    ("tenantSync", "domainName"),
    ("applicationSync", "clientSecret"),
    ("authSync", "userList"),
    ("allOrgSync", "orgInfoList"),
    ("allOrgSync", "orgInfo"),
    ("singleOrgSync", "orgCode"),
];

/// Returns true if a POST is a directory message: only these have their signature in headers.
pub(super) fn is_directory_message(request: &RawRequest<'_>) -> bool {
    [SIGN, AUTH_TOKEN].into_iter().any(|name| (request.header)(name).is_some())
}

fn header(request: &RawRequest<'_>, name: &str) -> Option<String> {
    (request.header)(name).filter(|text| !text.is_empty()).map(str::to_owned)
}

pub(super) fn parts(request: &RawRequest<'_>, now: Timestamp) -> Result<Signed<Unchecked>, Denial> {
    let parameters = read_body(request.body)?;
    // Version 2.0 has no `authtoken`; it signs nonce, timestamp and body.
    let Some(token) = header(request, AUTH_TOKEN) else {
        let timestamp = header(request, TIMESTAMP).ok_or(Denial::Undated)?;
        let sent_at = read_sent_at(&timestamp, now)?;
        let nonce =
            header(request, NONCE).ok_or_else(|| Denial::malformed("the header `x-nonce` is missing"))?;
        let until = plus_millis(sent_at, NONCED_WINDOW_MS);
        return Ok(Signed {
            presented: header(request, SIGN),
            payload: Unchecked {
                parameters,
                sent_at: Some(sent_at),
                nonce: Some(Nonce { nonce: nonce.clone(), until }),
            },
            parts: Parts::Nonced { nonce, timestamp, body: request.body.to_vec(), digested: false },
        });
    };
    // Version 1.0 signs the members, except for blank ones. A blank member could be added on the way, so it is dropped.
    let signed = parameters.iter().filter(|(_, value)| !value.trim().is_empty());
    let pairs: Vec<Pair> = signed.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // The signed text joins names and values, so a name with a separator would be read in two ways.
    if pairs.iter().any(|(name, _)| name.is_empty() || name.contains(['&', '='])) {
        return Err(Denial::malformed("the name of a member is empty, or holds `&` or `=`"));
    }
    let parameters: Parameters = pairs.iter().cloned().collect();
    let timestamp = parameters.get(v1::TIME_STAMP).ok_or(Denial::Undated)?.to_owned();
    Ok(Signed {
        presented: Some(token),
        parts: Parts::Stamped { timestamp, pairs },
        payload: Unchecked { parameters, sent_at: None, nonce: None },
    })
}

/// Returns the kind of a body that names no activity.
pub(super) fn kind(parameters: &Parameters) -> Option<&'static str> {
    KINDS.into_iter().find(|(_, member)| parameters.get(member).is_some()).map(|(kind, _)| kind)
}

/// Change that the message reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Change {
    Delete,
    Add,
    Modify,
    Revoke,
}

impl Change {
    fn of(parameters: &Parameters) -> Result<Change, ValidationIssue> {
        match parameters.filled("flag") {
            Some("0") => Ok(Change::Delete),
            Some("1") => Ok(Change::Add),
            Some("2") => Ok(Change::Modify),
            Some("3") => Ok(Change::Revoke),
            _ => Err(unknown("flag")),
        }
    }
}

/// A directory message, as a hook reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Message {
    /// A buyer's company.
    Tenant { change: Change, tenant_id: String, tenant_code: String, name: String, domain_name: String },
    /// The credentials of the seller's application at the login center.
    /// The secret is encrypted with the seller's RSA key; spid does not decrypt it.
    Application {
        change: Change,
        tenant_id: String,
        app_id: String,
        client_id: String,
        client_secret: String,
    },
    /// Users who get access to the application, or lose it.
    Users { change: Change, tenant_id: String, app_id: String, users: Vec<User> },
    /// A single department.
    Department { change: Change, tenant_id: String, org: Org },
    /// All departments.
    Departments { tenant_id: String, orgs: Vec<Org> },
}

/// A user of the buyer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct User {
    user_name: String,
    name: String,
    org_code: String,
    role: String,
    enabled: bool,
    /// All other members, under the marketplace's names.
    more: std::collections::BTreeMap<String, String>,
}

/// A department.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Org {
    code: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
}

/// Returns the body of a message, typed; or the validation issue for a missing or unreadable member.
pub(super) fn typed(kind: &str, parameters: &Parameters) -> Result<Value, ValidationIssue> {
    let message = read(kind, parameters)?;
    serde_json::to_value(message).map_err(|_| missing(kind))
}

/// Returns a mandatory member.
fn required(parameters: &Parameters, name: &str) -> Result<String, ValidationIssue> {
    text_of(parameters, name).ok_or_else(|| missing(name))
}

/// Reads each entry of a list.
fn entries<T>(name: &str, text: &str, read: impl Fn(&Json) -> Option<T>) -> Result<Vec<T>, ValidationIssue> {
    let entries = list(text).and_then(|list| list.iter().map(read).collect());
    entries.ok_or_else(|| unknown(name))
}

fn read(kind: &str, parameters: &Parameters) -> Result<Message, ValidationIssue> {
    let tenant_id = required(parameters, "tenantId")?;
    Ok(match kind {
        "tenantSync" => Message::Tenant {
            change: Change::of(parameters)?,
            tenant_id,
            tenant_code: required(parameters, "tenantCode")?,
            name: required(parameters, "name")?,
            domain_name: required(parameters, "domainName")?,
        },
        "applicationSync" => Message::Application {
            change: Change::of(parameters)?,
            tenant_id,
            app_id: required(parameters, "appId")?,
            client_id: required(parameters, "clientId")?,
            client_secret: required(parameters, "clientSecret")?,
        },
        "authSync" => Message::Users {
            users: entries("userList", &required(parameters, "userList")?, user)?,
            change: Change::of(parameters)?,
            tenant_id,
            app_id: required(parameters, "appId")?,
        },
        "singleOrgSync" => {
            let code = required(parameters, "orgCode")?;
            let name = required(parameters, "orgName")?;
            let org = Org { code, name, parent: text_of(parameters, "parentCode") };
            Message::Department { change: Change::of(parameters)?, tenant_id, org }
        }
        _ => {
            // The vendor's pages use both names.
            let sent = required(parameters, "orgInfoList").or_else(|_| required(parameters, "orgInfo"))?;
            Message::Departments { tenant_id, orgs: entries("orgInfoList", &sent, org)? }
        }
    })
}

/// Reads a list, or a text that holds a list. The vendor's sample leaves out the quotes around names.
fn list(text: &str) -> Option<Vec<Json>> {
    match Json::read(text.as_bytes()).or_else(|_| Json::read(quoted(text).as_bytes())).ok()? {
        Json::List(list) => Some(list),
        Json::Text(text) => list(&text),
        _ => None,
    }
}

/// Adds quotes around names that have none.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 64);
    let (mut in_text, mut escaped, mut in_name) = (false, false, false);
    for character in text.chars() {
        // A name starts with a letter outside of quotes, and ends before the first other character.
        let is_name =
            !in_text && (character.is_ascii_alphabetic() || (in_name && character.is_ascii_alphanumeric()));
        if is_name != in_name {
            quoted.push('"');
            in_name = is_name;
        }
        if character == '"' && !escaped {
            in_text = !in_text;
        }
        escaped = in_text && character == '\\' && !escaped;
        quoted.push(character);
    }
    quoted
}

fn member(value: &Json, names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| value.get(name))?.to_text()
}

fn user(value: &Json) -> Option<User> {
    const OWN: [&str; 5] = ["userName", "name", "orgCode", "role", "enable"];
    let Json::Object(members) = value else { return None };
    let others = members.keys().filter(|name| !OWN.contains(&name.as_str()));
    Some(User {
        user_name: member(value, &["userName"])?,
        name: member(value, &["name"]).unwrap_or_default(),
        org_code: member(value, &["orgCode"]).unwrap_or_default(),
        role: member(value, &["role"]).unwrap_or_default(),
        // A missing flag counts as enabled.
        enabled: member(value, &["enable"]).is_none_or(|text| text == "true"),
        more: others.filter_map(|name| Some((name.clone(), member(value, &[name])?))).collect(),
    })
}

/// Reads a department. The vendor's pages spell the name in three ways.
fn org(value: &Json) -> Option<Org> {
    Some(Org {
        code: member(value, &["orgCode"])?,
        name: member(value, &["orgName", "OrgName", "name"])?,
        parent: member(value, &["parentCode"]).filter(|code| !code.is_empty()),
    })
}

/// Returns true if the word is a kind of directory message, for outgoing requests.
pub(super) fn is_kind(word: &str) -> bool {
    KINDS.iter().any(|(kind, _)| *kind == word)
}

/// Builds a request of version 2.0.
pub(super) fn request(pairs: &[Pair], keys: &Keys, send: &Sending) -> OutRequest {
    let timestamp = send.now.as_millisecond().to_string();
    let digest = send.digest(|| {
        let (nonce, timestamp) = (send.nonce.clone(), timestamp.clone());
        Parts::Nonced { nonce, timestamp, body: write_body(pairs).into_bytes(), digested: false }.sign(keys)
    });
    let mut headers = vec![
        ("content-type", "application/json;charset=utf8".to_owned()),
        (TIMESTAMP, timestamp),
        (NONCE, send.nonce.clone()),
    ];
    // Always send the header, even empty: without it the request would be no directory message.
    headers.push((SIGN, digest.unwrap_or_default()));
    let body = format!("{}{}", write_body(&send.after_signing(pairs)), send.raw);
    OutRequest { method: "POST", query: String::new(), headers, body: body.into_bytes() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_without_quotes_get_them_and_texts_stay() {
        let sample =
            r#"[{orgCode:"1",orgName:"a: {b} \"c\", d",parentCode:""},{"orgCode":"2", OrgName :"x2"}]"#;
        let read = list(sample).unwrap();
        let first = json!({"orgCode": "1", "orgName": "a: {b} \"c\", d", "parentCode": ""});
        assert_eq!(read[0], Json::from(first));
        assert_eq!(read[1], Json::from(json!({"orgCode": "2", "OrgName": "x2"})));
        let expected = vec![Json::from(json!({"orgCode": "1"}))];
        assert_eq!(list("\"[{orgCode:\\\"1\\\"}]\""), Some(expected));
        assert_eq!(list("{}"), None);
        assert_eq!(list("nonsense"), None);
    }
}
