//! Playing the marketplace: a signed request on its way to anybody's endpoint, and both sides of the
//! exchange made fit to be shown.
//!
//! Fixtures, the conformance suite and the pretended market send what a dialect made; none of them may show a
//! token, which is as good as a key until somebody asks for the same again, nor what an answer holds
//! for the buyer alone.

pub use crate::core::redact::{body, header, is_secret, json};

pub use crate::core::query::masked;

use crate::core::dialect::OutRequest;
use crate::net::{ClientRequest, Method, NotAUrl, Url};

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

#[cfg(test)]
mod tests {
    use super::*;

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
