//! Playing the marketplace: a signed request on its way to anybody's endpoint, and both sides of the
//! exchange made fit to be shown.
//!
//! Fixtures, the conformance suite and the pretended market send what a dialect made; none of them may show a
//! token, which is as good as a key until somebody asks for the same again, nor what an answer holds
//! for the buyer alone.

mod shown;

pub use shown::{body, header, is_secret, json};

use crate::dialect::OutRequest;
use crate::http::{ClientRequest, Method, NotAUrl, Url};

/// The request as it goes to the endpoint `url`: behind its path, and behind its own query if it has one.
///
/// # Errors
/// When the query holds a character no URL has.
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

/// A target or form with `<token>` in the place of every token.
pub fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for piece in text.split_inclusive(['?', '&']) {
        let end = piece.trim_end_matches(['?', '&']).len();
        let (pair, separator) = piece.split_at(end);
        match pair.split_once('=') {
            Some((name @ ("token" | "signature" | "authToken"), _)) => {
                shown.push_str(name);
                shown.push_str("=<token>");
            }
            _ => shown.push_str(pair),
        }
        shown.push_str(separator);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_masked_wherever_they_stand() {
        for (text, shown) in [
            ("/spi?a=1&token=abc", "/spi?a=1&token=<token>"),
            ("token=abc&a=1", "token=<token>&a=1"),
            ("authToken=abc&signature=x", "authToken=<token>&signature=<token>"),
            ("/spi?token=abc&b=2&token=abc%z", "/spi?token=<token>&b=2&token=<token>"),
            ("/spi?mytoken=abc", "/spi?mytoken=abc"),
            ("{\"a\":1}", "{\"a\":1}"),
            ("", ""),
        ] {
            assert_eq!(masked(text), shown);
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
}
