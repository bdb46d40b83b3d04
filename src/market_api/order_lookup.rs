//! Asks a marketplace what was ordered, where its callbacks do not say.
//!
//! A hook must not make something without knowing what was bought. So this comes before the hook, inside
//! the job's attempt: a marketplace that does not answer is a failed attempt, which is kept and retried by the
//! job's own schedule, and what it answered is kept before the hook hears of it. What is asked, and how the
//! answer is read, only the dialect knows; here it is signed, sent and bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::core::dialect;
use crate::core::dialect::{Dialect, Enquiry, Unlearned};
use crate::core::query::Pair;
use crate::core::signature::{AccessKey, Asked};
use crate::hook::callback::Callback;
use crate::net::{Client, ClientError, ClientOptions, ClientRequest, NotAUrl, Reach, Tls, Url};
use crate::observe::limits;

const JSON_TYPE: &str = "application/json";

/// Where one endpoint asks.
#[derive(Clone)]
pub struct Desk {
    dialect: &'static dyn Dialect,
    url: Url,
    key: AccessKey,
    client: Client,
}

impl Desk {
    /// A desk at this address, which is asked with this key. It trusts `tls`, or the system's roots; over
    /// plain http it goes no further than the private network.
    pub fn new(dialect: &'static dyn Dialect, url: Url, key: AccessKey, tls: Option<Tls>) -> Desk {
        let client = Client::new(ClientOptions {
            total: Duration::from_millis(limits::ENQUIRY_MS),
            reach: Reach::Confidential,
            tls,
            ..ClientOptions::default()
        });
        Desk { dialect, url, key, client }
    }

    async fn ask(&self, enquiry: &Enquiry, now: Timestamp) -> Result<(u16, Vec<u8>), Unasked> {
        let request =
            self.request(enquiry, now).map_err(|error| Unasked::Misconfigured(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| match error {
            ClientError::Forbidden { .. } | ClientError::NoTls(_) | ClientError::Unsendable(_) => {
                Unasked::Misconfigured(error.to_string())
            }
            other => Unasked::Later(format!("the marketplace cannot be asked what was ordered: {other}")),
        })?;
        Ok((answer.status, answer.body.to_vec()))
    }

    fn request(&self, enquiry: &Enquiry, now: Timestamp) -> Result<ClientRequest, NotAUrl> {
        let before = self.url.target().trim_end_matches('/');
        let path = format!("{before}{}", enquiry.path);
        let query = canonical(&enquiry.query);
        let (host, date) = (self.url.authority(), now.strftime("%Y%m%dT%H%M%SZ").to_string());
        let asked = Asked {
            method: "GET",
            host: &host,
            path: &path,
            query: &query,
            content_type: JSON_TYPE,
            date: &date,
        };
        let authorization = self.key.authorization(&asked);
        let url = self.url.with_target(&format!("{path}?{query}"))?;
        Ok(ClientRequest::get(url)
            .with_header("content-type", JSON_TYPE)
            .with_header("x-sdk-date", date)
            .with_header("authorization", authorization))
    }
}

/// Names and values sorted, everything but the unreserved characters of RFC 3986 encoded.
fn canonical(query: &[Pair]) -> String {
    let mut pairs: Vec<String> =
        query.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.sort();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}

/// Why it is still not known what was ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// It may be known later.
    #[error("{0}")]
    Later(String),
    /// Asking is set up wrongly: somebody has to look.
    #[error("{0}")]
    Misconfigured(String),
}

impl From<Unlearned> for Unasked {
    fn from(error: Unlearned) -> Unasked {
        match error {
            Unlearned::Later(text) => Unasked::Later(text),
            Unlearned::Misconfigured(text) => Unasked::Misconfigured(text),
        }
    }
}

/// The desks, by the name of the endpoint they belong to. Clones share them.
#[derive(Clone, Default)]
pub struct Orders(Arc<BTreeMap<String, Desk>>);

/// The endpoint through which something came, and those that may ask in its place.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The name it came under.
    pub endpoint: &'a str,
    /// The account it is for.
    pub account: &'a str,
    /// The names of the configured endpoints that stand for it; empty when none does.
    pub successors: &'a [String],
}

impl Orders {
    /// Desks by endpoint. The callbacks of an endpoint without one go to the hook as they are.
    pub fn new(desks: impl IntoIterator<Item = (String, Desk)>) -> Orders {
        Orders(Arc::new(desks.into_iter().collect()))
    }

    /// The endpoint whose marketplace has to be asked before the callback can go to a hook; `None` when there is
    /// nothing to be asked. Where it is gone, its name all the same: asking then says so.
    pub fn asked_endpoint<'a>(&'a self, asker: Asker<'a>, callback: &Callback) -> Option<&'a str> {
        match asker.successors.iter().find_map(|name| self.0.get_key_value(name)) {
            Some((name, desk)) => desk.dialect.enquiry(callback).map(|_| name.as_str()),
            None => {
                let asks = asker.successors.is_empty() && dialect::asking(callback).is_some();
                asks.then_some(asker.endpoint)
            }
        }
    }

    /// The callback with what the marketplace says of its order; `None` when there is nothing to be asked.
    ///
    /// # Errors
    /// When it does not say, or must be asked and cannot: an endpoint that is gone is no reason to go on without.
    pub async fn ask(
        &self,
        asker: Asker<'_>,
        callback: &Callback,
        now: Timestamp,
    ) -> Result<Option<Callback>, Unasked> {
        let Some(desk) = asker.successors.iter().find_map(|name| self.0.get(name)) else {
            return match dialect::asking(callback).filter(|_| asker.successors.is_empty()) {
                Some(dialect) => Err(Unasked::Misconfigured(unserved(asker, dialect))),
                None => Ok(None),
            };
        };
        let Some(enquiry) = desk.dialect.enquiry(callback) else { return Ok(None) };
        let (status, body) = desk.ask(&enquiry, now).await?;
        let mut known = callback.clone();
        desk.dialect.learn(&mut known, status, &body)?;
        Ok(Some(known))
    }
}

fn unserved(asker: Asker<'_>, dialect: &dyn Dialect) -> String {
    let (endpoint, account, dialect) = (asker.endpoint, asker.account, dialect.name());
    format!(
        "endpoint `{endpoint}` is not configured any more, and what was ordered has to be asked: add an [[endpoint]] with `account = \"{account}\"` and `dialect = \"{dialect}\"`, or drop the job"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::dialect::by_name;
    use crate::core::signature::Secret;

    #[test]
    fn a_query_is_sent_as_it_is_signed() {
        let pairs = [("orderLineId", "a b/c"), ("orderId", "会~-_.")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(canonical(&pairs), "orderId=%E4%BC%9A~-_.&orderLineId=a%20b%2Fc");
    }

    #[test]
    fn the_request_carries_its_date_and_its_authorization() {
        let key = AccessKey::new("FAKEACCESS", Secret::new("fake-secret")).unwrap();
        let url = "https://mkt.example/gateway/".parse().unwrap();
        let desk = Desk::new(by_name("koogallery").unwrap(), url, key, None);
        let enquiry = Enquiry { path: "/order/query", query: vec![("orderId".into(), "CS 1".into())] };
        let request = desk.request(&enquiry, "2026-01-02T03:04:05Z".parse().unwrap()).unwrap();
        assert_eq!(request.url.target(), "/gateway/order/query?orderId=CS%201");
        let header = |name: &str| request.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(header("x-sdk-date"), "20260102T030405Z");
        assert!(header("authorization").starts_with("SDK-HMAC-SHA256 Access=FAKEACCESS, "));
    }
}
