//! Requests to an SPI endpoint, as a marketplace sends them, and masking of what is shown of them.
//!
//! Fixtures, the conformance suite and the simulator send requests that a dialect built. None of them may show a
//! token, because it allows the same request again and so is as good as a key. None of them may show the parts of
//! an answer that are for the buyer only.

pub use spid_core::redact::{body, header, is_secret, json};

pub use spid_core::query::masked;

use crate::net::{ClientRequest, Method, NotAUrl, Url};
use spid_core::dialect::OutRequest;

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
