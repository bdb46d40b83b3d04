//! Requests to an SPI endpoint as its marketplace sends them: sent, repeated, and read.
//!
//! Fixtures, the conformance suite and the simulator send requests that a dialect built. None of them may show a
//! token, because it allows the same request again and so is as good as a key. None of them may show the parts of
//! an answer that are for the buyer only.

use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

pub use spid_core::query::masked;
pub use spid_core::redact::{body, header, is_secret, json};

use crate::net::{Client, ClientError, ClientOptions, ClientRequest, ClientResponse, Method, NotAUrl, Url};
use crate::observe::limits;
use spid_core::dialect::OutRequest;
use spid_hook::json::Json;

/// Returns options for a client whose timeouts equal those of spid's own listener for a peer, and this much longer.
pub fn client_options(longer: Duration) -> ClientOptions {
    let connect = Duration::from_millis(limits::HEADERS_READ_MS);
    let total = connect + Duration::from_millis(limits::BODY_READ_MS) + longer;
    ClientOptions { connect, total, ..ClientOptions::default() }
}

/// Addresses the request to the endpoint `url`: behind its path, and behind its own query if it has one.
///
/// # Errors
/// [`NotAUrl`], if the query contains a character that no URL has.
pub fn addressed(out: &OutRequest, url: &Url) -> Result<ClientRequest, NotAUrl> {
    let own = url.target();
    let separator = if own.contains('?') { "&" } else { "?" };
    let target = if out.query.is_empty() { own.to_owned() } else { [own, separator, &out.query].concat() };
    let headers = out.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Ok(ClientRequest {
        method: Method::from(out.method),
        url: url.with_target(&target)?,
        headers,
        body: out.body.clone().into(),
    })
}

/// Request that is ready to be sent, with its parts made safe to show.
pub struct PreparedRequest {
    /// HTTP method.
    pub method: &'static str,
    /// Path as sent, with the query if there is one.
    pub target: String,
    /// Body as text; empty if there is none.
    pub body: String,
    outgoing: Outgoing,
}

enum Outgoing {
    Signed(ClientRequest),
    Recorded(Url, Vec<u8>),
}

impl PreparedRequest {
    /// Prepares a request that a dialect built, for the endpoint `url`.
    ///
    /// # Errors
    /// See [`addressed`].
    pub fn signed(out: &OutRequest, url: &Url) -> Result<PreparedRequest, NotAUrl> {
        let request = addressed(out, url)?;
        Ok(PreparedRequest {
            method: out.method,
            target: masked(request.url.target()),
            body: masked(&String::from_utf8_lossy(&out.body)),
            outgoing: Outgoing::Signed(request),
        })
    }

    /// Prepares a recorded request, which is sent byte for byte to the host of `url`.
    pub fn recorded(bytes: &[u8], url: &Url) -> PreparedRequest {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut words = head.lines().next().unwrap_or_default().split(' ');
        let method = match words.next() {
            Some("GET") => "GET",
            Some("POST") => "POST",
            _ => "(recorded)",
        };
        PreparedRequest {
            method,
            target: masked(words.next().unwrap_or_default()),
            body: masked(body),
            outgoing: Outgoing::Recorded(url.clone(), bytes.to_vec()),
        }
    }

    /// Sends the request once.
    ///
    /// # Errors
    /// See [`Client::send`].
    pub async fn send(self, client: &Client) -> Result<ClientResponse, ClientError> {
        match self.outgoing {
            Outgoing::Signed(request) => client.send(request).await,
            Outgoing::Recorded(url, bytes) => client.send_raw(&url, &bytes).await,
        }
    }
}

/// Repetitions of one request: the waits before each of them.
pub struct Repetitions(Box<dyn Iterator<Item = Duration> + Send>);

impl Repetitions {
    /// Repeats at this interval. The request is sent at most `limit` times, the first time included.
    pub fn every(interval: Duration, limit: u32) -> Repetitions {
        let count = usize::try_from(limit.saturating_sub(1)).unwrap_or(usize::MAX);
        Repetitions(Box::new(std::iter::repeat_n(interval, count)))
    }

    /// Repeats after each of these waits.
    pub fn after(waits: Vec<Duration>) -> Repetitions {
        Repetitions(Box::new(waits.into_iter()))
    }

    /// Waits for the next repetition. Returns false if there is none left.
    pub async fn again(&mut self) -> bool {
        let Some(wait) = self.0.next() else { return false };
        sleep(wait).await;
        true
    }
}

/// Answer of an SPI endpoint of the Alibaba dialect, read as the marketplace does.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Media type, with its parameters; empty if there is none.
    pub content_type: String,
    /// Target of a redirect.
    pub location: Option<String>,
    /// Body, if it is JSON.
    pub json: Option<Json>,
    /// True if there is no body.
    pub is_empty: bool,
}

impl From<&ClientResponse> for Answer {
    fn from(response: &ClientResponse) -> Answer {
        Answer {
            status: response.status,
            content_type: response.headers.text("content-type").unwrap_or_default().to_owned(),
            location: response.headers.text("location").map(str::to_owned),
            json: Json::read(&response.body).ok(),
            is_empty: response.body.iter().all(u8::is_ascii_whitespace),
        }
    }
}

impl Answer {
    /// Returns a member of the answer.
    pub fn member(&self, name: &str) -> Option<&Json> {
        self.json.as_ref()?.get(name)
    }

    /// Returns the id in the answer, unless it is missing, empty, or the 0 that means "call again".
    pub fn id(&self) -> Option<String> {
        let id = match self.member("instanceId")? {
            Json::Text(text) | Json::Number(text) => text.clone(),
            _ => return None,
        };
        (!id.is_empty() && id != "0").then_some(id)
    }

    /// Returns `success`, in either of the two documented forms.
    pub fn success(&self) -> Option<bool> {
        match self.member("success")? {
            Json::Bool(success) => Some(*success),
            Json::Text(text) if text == "true" => Some(true),
            Json::Text(text) if text == "false" => Some(false),
            _ => None,
        }
    }

    /// Returns true if a marketplace would take the answer for "done".
    pub fn reports_success(&self) -> bool {
        self.status < 300 && (self.id().is_some() || self.success() == Some(true))
    }

    /// Returns true if a browser shows a page for the answer, or goes on to another address.
    pub fn leads_a_browser(&self) -> bool {
        match self.status {
            300..400 => self.location.as_ref().is_some_and(|url| !url.is_empty()),
            // The members of the JSON decide nothing: a browser shows them as text.
            _ => !self.is_empty && self.json.is_none(),
        }
    }

    /// Returns the target of a redirect without its query, because the query holds the ticket.
    pub fn redirect_target(&self) -> Option<&str> {
        self.location.as_deref().map(|url| url.split(['?', '#']).next().unwrap_or_default())
    }
}

/// A request and its answer, safe to show: without tokens, passwords and license keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Description of the request, in a few words.
    pub what: String,
    /// Method.
    pub method: &'static str,
    /// Path and query.
    pub target: String,
    /// Body; empty when there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// HTTP status of the answer; `None` when there was no answer.
    pub status: Option<u16>,
    /// Body of the answer, or the reason why there is none.
    pub answer: String,
    /// Duration, in milliseconds.
    pub duration_ms: u64,
}

impl Exchange {
    /// Returns the status of the answer, or the text "no answer".
    pub fn status_text(&self) -> String {
        self.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let json = Json::read(body.as_bytes()).ok();
        Answer { status, content_type: String::new(), location: None, json, is_empty: body.is_empty() }
    }

    #[test]
    fn a_browser_needs_a_page_or_an_address() {
        let to = |location: &str| Answer { location: Some(location.to_owned()), ..answer(302, "") };
        assert!(answer(200, "<p>welcome</p>").leads_a_browser() && to("/app").leads_a_browser());
        for nothing in [answer(200, r#"{"success": false}"#), answer(200, ""), answer(302, "<p>"), to("")] {
            assert!(!nothing.leads_a_browser(), "{nothing:?}");
        }
    }

    #[test]
    fn a_request_goes_behind_the_query_the_endpoint_has() {
        let out = OutRequest { method: "GET", query: "a=1".into(), headers: Vec::new(), body: Vec::new() };
        for (url, target) in
            [("http://a.example/spi", "/spi?a=1"), ("http://a.example/spi?tenant=7", "/spi?tenant=7&a=1")]
        {
            assert_eq!(addressed(&out, &url.parse().unwrap()).unwrap().url.target(), target);
        }
    }

    #[test]
    fn an_id_and_success_are_read_in_every_way_they_are_written() {
        assert_eq!(answer(200, r#"{"instanceId": "7"}"#).id().as_deref(), Some("7"));
        assert_eq!(answer(200, r#"{"instanceId": 7}"#).id().as_deref(), Some("7"));
        for none in [r#"{"instanceId": "0"}"#, r#"{"instanceId": 0}"#, r#"{"instanceId": ""}"#, "{}", "<p>"] {
            assert_eq!(answer(200, none).id(), None, "{none}");
        }
        assert_eq!(answer(200, r#"{"success": "true"}"#).success(), Some(true));
        assert_eq!(answer(200, r#"{"success": "yes"}"#).success(), None);
        assert!(answer(200, r#"{"success": true}"#).reports_success());
        assert!(!answer(403, r#"{"instanceId": "7"}"#).reports_success());
    }

    #[tokio::test(start_paused = true)]
    async fn repetitions_end_at_their_limit() {
        for limit in [0, 1, 3] {
            let mut repetitions = Repetitions::every(Duration::from_secs(1), limit);
            let mut sent = 1;
            while repetitions.again().await {
                sent += 1;
            }
            assert_eq!(sent, limit.max(1));
        }
    }
}
