//! Order lookup: asks a marketplace what was ordered, if its callbacks do not say that.
//!
//! A hook must not create an instance without knowing what was bought. So the lookup runs before the hook, within
//! the job's attempt. If the marketplace does not answer, the attempt fails: it is stored and retried by the
//! job's own schedule. The order details are stored before the hook gets them.
//!
//! Only the dialect knows what to ask and how to read the answer. This module signs and sends the request, and
//! bounds its duration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::net::{Client, ClientError, ClientOptions, ClientRequest, NotAUrl, OutboundPolicy, Tls, Url};
use crate::observe::limits;
use spid_core::dialect;
use spid_core::dialect::{DetailsError, Dialect, OrderApi, OrderLookup};
use spid_core::query::canonical;
use spid_core::signature::{AccessKey, UnsignedRequest};
use spid_hook::callback::Callback;

const JSON_TYPE: &str = "application/json";

/// Order lookup client of one endpoint.
#[derive(Clone)]
pub struct OrderLookupClient {
    api: &'static OrderApi,
    url: Url,
    key: AccessKey,
    client: Client,
}

impl OrderLookupClient {
    /// Creates a client for this address, which signs with this key.
    /// It trusts `tls`, or the system's roots. Over plain http it connects only to addresses of the private
    /// network.
    pub fn new(api: &'static OrderApi, url: Url, key: AccessKey, tls: Option<Tls>) -> OrderLookupClient {
        let client = Client::new(ClientOptions {
            total: Duration::from_millis(limits::ORDER_LOOKUP_MS),
            outbound: OutboundPolicy::Confidential,
            tls,
            ..ClientOptions::default()
        });
        OrderLookupClient { api, url, key, client }
    }

    /// Returns the lookup that this callback needs.
    fn lookup(&self, callback: &Callback) -> Option<OrderLookup> {
        (self.api.lookup)(callback)
    }

    async fn ask(&self, order_lookup: &OrderLookup, now: Timestamp) -> Result<(u16, Vec<u8>), LookupError> {
        let request =
            self.request(order_lookup, now).map_err(|error| LookupError::Misconfigured(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| match error {
            // A retry cannot correct these: an operator must change the configuration.
            ClientError::Forbidden { .. } | ClientError::NoTls(_) | ClientError::Unsendable(_) => {
                LookupError::Misconfigured(error.to_string())
            }
            other => LookupError::Later(format!("the order lookup failed: {other}")),
        })?;
        Ok((answer.status, answer.body.to_vec()))
    }

    fn request(&self, order_lookup: &OrderLookup, now: Timestamp) -> Result<ClientRequest, NotAUrl> {
        let before = self.url.target().trim_end_matches('/');
        let path = format!("{before}{}", order_lookup.path);
        // Send the query exactly as it is signed, or the gateway computes another signature.
        let query = canonical(&order_lookup.query);
        let (host, date) = (self.url.authority(), now.strftime("%Y%m%dT%H%M%SZ").to_string());
        let asked = UnsignedRequest {
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

/// Reason why the order details are still unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// A later attempt may succeed.
    #[error("{0}")]
    Later(String),
    /// Order lookup is misconfigured; an operator must act.
    #[error("{0}")]
    Misconfigured(String),
}

impl From<DetailsError> for LookupError {
    fn from(error: DetailsError) -> LookupError {
        match error {
            DetailsError::Later(text) => LookupError::Later(text),
            DetailsError::Misconfigured(text) => LookupError::Misconfigured(text),
        }
    }
}

/// Order lookup clients, by endpoint name. Clones share them.
#[derive(Clone, Default)]
pub struct OrderLookupClients(Arc<BTreeMap<String, OrderLookupClient>>);

/// Endpoint that received a callback, and the endpoints that may do the lookup for it.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Name of the endpoint that received the callback.
    pub endpoint: &'a str,
    /// Account of that endpoint.
    pub account: &'a str,
    /// Names of the configured endpoints that can act for it; empty when there are none.
    pub successors: &'a [String],
}

impl OrderLookupClients {
    /// Creates the lookup from clients by endpoint. Callbacks of an endpoint without a client go to the hook as
    /// they are.
    pub fn new(lookup_clients: impl IntoIterator<Item = (String, OrderLookupClient)>) -> OrderLookupClients {
        OrderLookupClients(Arc::new(lookup_clients.into_iter().collect()))
    }

    /// Returns the endpoint that must do an order lookup before the callback can go to a hook.
    /// `None` when no lookup is needed. If the endpoint no longer exists, its name is returned anyway, and the
    /// lookup then reports that.
    pub fn asked_endpoint<'a>(&'a self, asker: Asker<'a>, callback: &Callback) -> Option<&'a str> {
        match asker.successors.iter().find_map(|name| self.0.get_key_value(name)) {
            Some((name, lookup_client)) => lookup_client.lookup(callback).map(|_| name.as_str()),
            None => {
                // A configured endpoint without a client means: its callbacks go to the hook as they are.
                let asks = asker.successors.is_empty() && dialect::needed_lookup(callback).is_some();
                asks.then_some(asker.endpoint)
            }
        }
    }

    /// Returns the callback with the order details added; `None` when no lookup is needed.
    ///
    /// # Errors
    /// Fails if the marketplace does not answer the question, or if a necessary lookup is impossible.
    /// A removed endpoint is an error too: the hook must not run without the order details.
    pub async fn ask(
        &self,
        asker: Asker<'_>,
        callback: &Callback,
        now: Timestamp,
    ) -> Result<Option<Callback>, LookupError> {
        // Without a client, go on only if the callback needs no lookup.
        let Some(lookup_client) = asker.successors.iter().find_map(|name| self.0.get(name)) else {
            return match dialect::needed_lookup(callback).filter(|_| asker.successors.is_empty()) {
                Some((dialect, _)) => Err(LookupError::Misconfigured(unserved(asker, dialect))),
                None => Ok(None),
            };
        };
        let Some(order_lookup) = lookup_client.lookup(callback) else { return Ok(None) };
        let (status, body) = lookup_client.ask(&order_lookup, now).await?;
        // Change a copy: if the answer is unusable, the callback stays as it was.
        let mut known = callback.clone();
        (lookup_client.api.add_details)(&mut known, status, &body)?;
        Ok(Some(known))
    }
}

fn unserved(asker: Asker<'_>, dialect: &dyn Dialect) -> String {
    let (endpoint, account, dialect) = (asker.endpoint, asker.account, dialect.name());
    format!(
        "endpoint `{endpoint}` is not configured any more, so its order lookup is impossible: add an [[endpoint]] with `account = \"{account}\"` and `dialect = \"{dialect}\"`, or drop the job"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_core::dialect::by_name;
    use spid_hook::Secret;

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
        let lookup_client =
            OrderLookupClient::new(by_name("koogallery").unwrap().order_api().unwrap(), url, key, None);
        let order_lookup =
            OrderLookup { path: "/order/query", query: vec![("orderId".into(), "CS 1".into())] };
        let request = lookup_client.request(&order_lookup, "2026-01-02T03:04:05Z".parse().unwrap()).unwrap();
        assert_eq!(request.url.target(), "/gateway/order/query?orderId=CS%201");
        let header = |name: &str| request.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
        assert_eq!(header("x-sdk-date"), "20260102T030405Z");
        assert!(header("authorization").starts_with("SDK-HMAC-SHA256 Access=FAKEACCESS, "));
    }
}
