//! Access control of the admin listener: the token of an operator, and protection against other sites in a browser.
//!
//! Two rules protect the listener:
//!
//! * Reading needs the token. Without a configured token, `Host` must be a name of this machine, which a page from
//!   elsewhere cannot have.
//! * Every client that may read may also run operations. But a browser on the operator's machine repeats credentials
//!   it was given once, so an operation must also come from our own page.

use std::sync::{PoisonError, RwLock};

use crate::net::{Request, Response};
use spid_core::signature::Presented;
use spid_hook::Secret;

/// Access rule of the listener. A reload can change the token while requests are answered.
pub(super) struct Access {
    token: RwLock<Option<Secret>>,
}

/// Reason why a request is not an operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// No token was shown, but one is configured.
    NoToken,
    /// A wrong token was shown.
    WrongToken,
    /// `Host` is not a name of this machine, and no token is configured.
    OtherHost,
}

impl Denied {
    /// Label of the metric for denied requests.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Denied::NoToken | Denied::OtherHost => "no-operator",
            Denied::WrongToken => "wrong-admin-token",
        }
    }

    /// Response to the client.
    pub(super) fn response(self) -> Response {
        match self {
            Denied::NoToken | Denied::WrongToken => ask_for_token(),
            Denied::OtherHost => Response::text(
                403,
                "wrong Host header: use localhost, 127.0.0.1 or [::1], or configure an admin token\n",
            ),
        }
    }
}

/// Operator: a client that may ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Operator {
    /// Name that the client gave; nothing verifies it.
    pub(super) name: Option<String>,
}

impl Access {
    pub(super) fn new(token: Option<Secret>) -> Access {
        Access { token: RwLock::new(token) }
    }

    /// Replaces the token. Requests that are checked from now on need the new one.
    pub(super) fn change(&self, token: Option<Secret>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn token(&self) -> Option<Secret> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the operator, or the reason why the request is not an operator's.
    pub(super) fn check(&self, request: &Request) -> Result<Operator, Denied> {
        match self.token() {
            Some(token) => shown(request, &token),
            // DNS rebinding: a page of another site can reach this address, but only under a name of its own.
            None if request.headers.only("host").is_some_and(is_this_machine) => Ok(Operator { name: None }),
            None => Err(Denied::OtherHost),
        }
    }

    /// Checks access to the totals. Without a token every client of this machine may see them: they contain no
    /// personal data.
    pub(super) fn may_count(&self, request: &Request) -> Result<(), Denied> {
        if self.token().is_none() { Ok(()) } else { self.check(request).map(drop) }
    }
}

fn shown(request: &Request, token: &Secret) -> Result<Operator, Denied> {
    if request.headers.get("authorization").is_none() {
        return Err(Denied::NoToken);
    }
    // Two headers count as a wrong token: a proxy in front may have read the other one.
    let presented = request.headers.only("authorization").and_then(Presented::of);
    // Comparing secrets takes constant time, so the duration reveals nothing about the token.
    match presented.filter(|presented| presented.token == *token) {
        Some(presented) => Ok(Operator { name: presented.name }),
        None => Err(Denied::WrongToken),
    }
}

fn ask_for_token() -> Response {
    Response::text(401, "the admin token is missing or wrong: send it as `Authorization: Bearer …` or as the Basic password\n")
        .with_header("www-authenticate", "Basic realm=\"spid\", charset=\"UTF-8\"")
}

/// Returns true if a `Host` header names this machine, by a name that no other machine can have.
fn is_this_machine(host: &str) -> bool {
    // An IPv6 address contains colons itself, so only digits behind the last colon are a port.
    let without_port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    matches!(without_port.map_or(host, |(name, _)| name), "localhost" | "127.0.0.1" | "[::1]")
}

/// Returns true if a request comes from a page of ours, or from no browser. Every browser declares the source of a
/// POST: in `Sec-Fetch-Site`, which no page can set, or in `Origin`.
pub(super) fn is_from_our_page(request: &Request) -> bool {
    let headers = &request.headers;
    if headers.get("sec-fetch-site").is_some() {
        // `none` is a navigation by the user, which is never a POST from our page.
        return headers.only("sec-fetch-site") == Some("same-origin");
    }
    match (headers.get("origin"), headers.only("origin"), headers.only("host")) {
        // Neither header: the client is no browser, so no other site can have caused the request.
        (None, ..) => true,
        (Some(_), Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "fake-admin-token-of-a-test";

    fn asked(name: &str, value: &str) -> Request {
        Request::get("/v1/jobs").with_header(name, value)
    }

    #[test]
    fn only_names_nobody_else_can_have_are_this_machine() {
        for host in ["localhost", "localhost:8081", "127.0.0.1:1", "[::1]", "[::1]:8081"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:8081", "localhost.evil.example", "localhost:x", "[::1", ":80"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn with_a_token_nothing_else_counts() {
        let access = Access::new(Some(Secret::new(TOKEN)));
        let bearer = asked("authorization", &format!("Bearer {TOKEN}"));
        assert_eq!(access.check(&bearer).unwrap(), Operator { name: None });
        // `ops:fake-admin-token-of-a-test`
        let basic = asked("authorization", "Basic b3BzOmZha2UtYWRtaW4tdG9rZW4tb2YtYS10ZXN0");
        assert_eq!(access.check(&basic).unwrap(), Operator { name: Some("ops".into()) });
        for wrong in ["Bearer", "Bearer ", "Bearer fake", "Basic !", "Digest x", TOKEN, "Basic b3Bz"] {
            assert_eq!(
                access.check(&asked("authorization", wrong)).unwrap_err(),
                Denied::WrongToken,
                "{wrong}"
            );
            assert!(access.may_count(&asked("authorization", wrong)).is_err());
        }
        let twice = bearer.with_header("authorization", "Bearer fake");
        assert_eq!(access.check(&twice), Err(Denied::WrongToken));
        assert_eq!(access.check(&asked("host", "localhost")), Err(Denied::NoToken));
        let bearer = asked("authorization", &format!("Bearer {TOKEN}"));
        access.change(Some(Secret::new("fake-admin-token-number-2")));
        assert_eq!(access.check(&bearer), Err(Denied::WrongToken), "a token that was revoked is a wrong one");
        assert_eq!(Denied::WrongToken.response().status, 401);
    }

    #[test]
    fn without_one_it_is_asked_for_by_a_name_of_this_machine() {
        let access = Access::new(None);
        assert!(access.check(&asked("host", "localhost:8081")).is_ok());
        let rebound = asked("host", "evil.example");
        assert_eq!(access.check(&rebound).unwrap_err().response().status, 403);
        assert!(access.may_count(&rebound).is_ok());
        assert!(access.check(&Request::get("/v1/jobs")).is_err());
    }

    #[test]
    fn an_act_of_another_site_is_known_by_what_the_browser_says() {
        let from = |headers: &[(&str, &str)]| {
            let request = asked("host", "localhost:8081");
            headers.iter().fold(request, |request, (name, value)| request.with_header(name, value))
        };
        for ours in [
            &[][..],
            &[("origin", "http://localhost:8081")],
            &[("sec-fetch-site", "same-origin")],
            // A proxy in front of us that knows us under another name.
            &[("sec-fetch-site", "same-origin"), ("origin", "https://ops.example")],
        ] {
            assert!(is_from_our_page(&from(ours)), "{ours:?}");
        }
        for theirs in [
            &[("origin", "http://evil.example")][..],
            &[("origin", "null")],
            &[("origin", "http://localhost:9999")],
            &[("origin", "http://localhost:8081"), ("origin", "http://evil.example")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("origin", "http://localhost:8081")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(!is_from_our_page(&from(theirs)), "{theirs:?}");
        }
    }
}
