//! Request target: decoded path segments and parameters; and [`Link`], the reverse.

use std::collections::BTreeMap;

use super::Fault;
use crate::net::Request;
use crate::observe::limits;
use spid_core::query;

/// Decoded request target.
#[derive(Debug)]
pub(crate) struct Target {
    segments: Vec<String>,
    parameters: BTreeMap<String, String>,
}

impl Target {
    pub(crate) fn of(request: &Request) -> Result<Target, Fault> {
        // Split before decoding: an encoded `/` belongs to a name.
        let segments = request.path().split('/').filter(|part| !part.is_empty()).map(decode);
        let segments = segments.collect::<Option<_>>();
        let segments = segments.ok_or_else(|| Fault::new(400, "the path is not percent-encoded text"))?;
        let parameters = query::parse(request.query(), None)?;
        // A form also sends its empty fields; they count as absent.
        let filled = parameters.into_iter().filter(|(_, value)| !value.is_empty());
        Ok(Target { segments, parameters: filled.collect() })
    }

    pub(crate) fn segments(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// Refuses unknown parameters: a misspelled filter must not show everything.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), Fault> {
        match self.parameters.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) if known.is_empty() => {
                Err(Fault::new(400, format!("unknown parameter `{name}`: this path has none")))
            }
            Some(name) => {
                Err(Fault::new(400, format!("unknown parameter `{name}`; use {}", known.join(", "))))
            }
        }
    }

    /// Maximum number of rows to show.
    pub(crate) fn limit(&self, default: usize) -> Result<usize, Fault> {
        let Some(text) = self.get("limit") else { return Ok(default) };
        let limit = text.parse().ok().filter(|limit| (1..=limits::LIST_MAX_COUNT).contains(limit));
        let most = limits::LIST_MAX_COUNT;
        limit.ok_or_else(|| Fault::new(400, format!("`limit` is a number from 1 to {most}")))
    }

    /// Number of the last row of the previous page.
    pub(crate) fn before(&self) -> Result<Option<i64>, Fault> {
        let before = self.get("before").map(str::parse).transpose();
        before.map_err(|_| Fault::new(400, "`before` is the `next` of the page before"))
    }
}

/// Decodes percent-encoded text; `None` if it is not valid.
pub(super) fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.extend(hex::decode(digits).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Link inside this listener. It consists of our own words and encoded text, so it cannot lead anywhere else.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    path: String,
    parameters: Vec<query::Pair>,
}

impl Link {
    pub(crate) fn to(path: &'static str) -> Link {
        Link { path: path.to_owned(), parameters: Vec::new() }
    }

    /// Appends a path segment.
    pub(crate) fn segment(mut self, text: &str) -> Link {
        self.path.push('/');
        for byte in text.bytes() {
            match byte {
                // Dots are encoded, too: browsers resolve the segments `.` and `..`.
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => self.path.push(char::from(byte)),
                byte => self.path.push_str(&format!("%{byte:02X}")),
            }
        }
        self
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Link {
        self.parameters.push((name.to_owned(), value.to_string()));
        self
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)?;
        if self.parameters.is_empty() { Ok(()) } else { write!(f, "?{}", query::encode(&self.parameters)) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> Result<Target, Fault> {
        Target::of(&Request::get(text))
    }

    #[test]
    fn what_is_not_there_and_what_is_wrong_are_told_apart() {
        let page = target("/v1/instances/?search=a+b&state=&limit=3&before=17").unwrap();
        assert_eq!(page.segments(), ["v1", "instances"]);
        assert_eq!((page.get("search"), page.get("state")), (Some("a b"), None));
        assert_eq!((page.limit(9).unwrap(), page.before().unwrap()), (3, Some(17)));
        assert!(page.only(&["search", "limit", "before"]).is_ok() && page.only(&["search"]).is_err());
        for wrong in ["limit=", "limit=0", "limit=-1", "limit=x", "limit=1000000", "before=x"] {
            let page = target(&format!("/v1/jobs?{wrong}")).unwrap();
            let fine = page.limit(9).is_ok_and(|limit| limit == 9) && page.before().is_ok();
            assert_eq!(fine, wrong == "limit=", "{wrong}");
        }
        for wrong in ["/v1/%zz", "/v1/%4", "/v1/%ff", "/v1?a=1&a=2", "/v1?a=%f"] {
            assert_eq!(target(wrong).unwrap_err().status, 400, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_link_leads_where_it_was_meant_to(name in "\\PC{1,40}", value in "[^\0]{1,40}") {
            let link = Link::to("/console/instances").segment(&name).with("account", &value).to_string();
            prop_assert!(link.bytes().all(|byte| byte.is_ascii_graphic()));
            let there = target(&link).unwrap();
            prop_assert_eq!(there.segments(), ["console", "instances", &name]);
            prop_assert_eq!(there.get("account"), Some(value.as_str()));
        }
    }
}
