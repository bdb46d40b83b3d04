//! `ACS3-HMAC-SHA256`: signatures of requests to Alibaba Cloud's APIs.
//!
//! Source: "Request syntax and signature method V3" (help.aliyun.com/document_detail/315526.html). The vendor's own
//! SDKs sign the headers `accept` and `user-agent`, too. Requests are built as these SDKs build them, so that what
//! is accepted from them is accepted from spid.

use std::fmt;

use sha2::{Digest, Sha256};
use spid_hook::Secret;
use subtle::ConstantTimeEq;

use super::{BadKey, Key, hmac_sha256};
use crate::query::{self, Pair};

const ALGORITHM: &str = "ACS3-HMAC-SHA256";
const FORM: &str = "application/x-www-form-urlencoded";

/// A seller's access key at Alibaba Cloud, with the session token of a temporary key.
#[derive(Clone)]
pub struct ApiKey {
    id: String,
    secret: Secret,
    token: Option<Secret>,
    provider: &'static str,
}

/// Shows the public id and the source of the key.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey")
            .field("id", &self.id)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

impl ApiKey {
    /// Creates a key. A key with a session token is temporary.
    ///
    /// # Errors
    /// See [`Key::new`]; the id, the secret and the token are checked.
    pub fn new(id: impl Into<String>, secret: Secret, token: Option<Secret>) -> Result<ApiKey, BadKey> {
        let id = id.into();
        // Only for their checks; these keys are dropped.
        Key::new("id", Secret::new(id.clone()))?;
        Key::new("secret", secret.clone())?;
        if let Some(token) = &token {
            Key::new("token", token.clone())?;
        }
        let provider = if token.is_some() { "static_sts" } else { "static_ak" };
        Ok(ApiKey { id, secret, token, provider })
    }

    /// Names the source of the key in the header `x-acs-credentials-provider`, which the vendor records.
    pub fn from_provider(self, provider: &'static str) -> ApiKey {
        ApiKey { provider, ..self }
    }

    /// Returns the public id of the key.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the value of the `Authorization` header for a request.
    fn authorization(&self, request: &CanonicalRequest<'_>) -> String {
        format!(
            "{ALGORITHM} Credential={},SignedHeaders={},Signature={}",
            self.id,
            request.signed_headers(),
            request.signature(&self.secret)
        )
    }
}

/// A request to an API, before it is signed.
#[derive(Debug, Clone, Copy)]
pub struct ApiRequest<'a> {
    /// Method: `POST` or `GET`.
    pub method: &'a str,
    /// `Host` header.
    pub host: &'a str,
    /// Path.
    pub path: &'a str,
    /// Name of the operation.
    pub action: &'a str,
    /// Version of the API, a date.
    pub version: &'a str,
    /// Parameters in the query.
    pub query: &'a [Pair],
    /// Parameters in the body. Empty: the request has no body.
    pub form: &'a [Pair],
    /// `User-Agent` header.
    pub user_agent: &'a str,
    /// Time of the request: `yyyy-MM-ddTHH:mm:ssZ`. The gateway denies a difference of more than 15 minutes.
    pub date: &'a str,
    /// A value that is used once. The gateway denies it a second time, so a repeated request needs a new one.
    pub nonce: &'a str,
}

/// A signed request.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedApiRequest {
    /// Query, encoded; empty if there is none.
    pub query: String,
    /// Header fields, in lower case and sorted, with `authorization`.
    pub headers: Vec<(&'static str, String)>,
    /// Body; empty if there is none.
    pub body: String,
}

impl ApiRequest<'_> {
    /// Signs the request with a key.
    ///
    /// ```
    /// use spid_core::signature::{ApiKey, ApiRequest, Secret};
    /// let key = ApiKey::new("FAKEID", Secret::new("fake-secret"), None)?;
    /// let parameters = [("InstanceId".to_owned(), "1001".to_owned())];
    /// let signed = ApiRequest {
    ///     method: "POST",
    ///     host: "market.aliyuncs.com",
    ///     path: "/",
    ///     action: "DescribeInstanceForIsv",
    ///     version: "2015-11-01",
    ///     query: &parameters,
    ///     form: &[],
    ///     user_agent: "spid",
    ///     date: "2026-01-02T03:04:05Z",
    ///     nonce: "3156853299f313e23d1673dc12e1703d",
    /// }
    /// .sign(&key);
    /// assert_eq!(signed.query, "InstanceId=1001");
    /// let (name, value) = signed.headers.last().unwrap();
    /// assert_eq!(*name, "authorization");
    /// assert!(value.starts_with("ACS3-HMAC-SHA256 Credential=FAKEID,SignedHeaders=accept;host;"));
    /// # Ok::<(), spid_core::signature::BadKey>(())
    /// ```
    pub fn sign(&self, key: &ApiKey) -> SignedApiRequest {
        let body = query::encode_sorted(self.form);
        let digest = hex::encode(Sha256::digest(body.as_bytes()));
        let mut headers = vec![
            ("accept", "application/json".to_owned()),
            ("host", self.host.to_owned()),
            ("user-agent", self.user_agent.to_owned()),
            ("x-acs-action", self.action.to_owned()),
            ("x-acs-content-sha256", digest),
            ("x-acs-credentials-provider", key.provider.to_owned()),
            ("x-acs-date", self.date.to_owned()),
            ("x-acs-signature-nonce", self.nonce.to_owned()),
            ("x-acs-version", self.version.to_owned()),
        ];
        if !self.form.is_empty() {
            headers.push(("content-type", FORM.to_owned()));
        }
        if let Some(token) = &key.token {
            headers.push(("x-acs-accesskey-id", key.id.clone()));
            headers.push(("x-acs-security-token", token.expose().to_owned()));
        }
        headers.sort_unstable();
        let fields: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let canonical =
            CanonicalRequest { method: self.method, path: self.path, query: self.query, headers: &fields };
        let authorization = key.authorization(&canonical);
        headers.push(("authorization", authorization));
        SignedApiRequest { query: query::encode_sorted(self.query), headers, body }
    }
}

/// The parts of a request that its signature covers.
struct CanonicalRequest<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a [Pair],
    /// Signed header fields, sorted, with `x-acs-content-sha256`.
    headers: &'a [(&'a str, &'a str)],
}

impl CanonicalRequest<'_> {
    fn signed_headers(&self) -> String {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n{}\n{}\n", self.method, self.path, query::canonical(self.query));
        let mut digest = "";
        for (name, value) in self.headers {
            text.push_str(&format!("{name}:{}\n", value.trim()));
            if *name == "x-acs-content-sha256" {
                digest = value;
            }
        }
        text.push_str(&format!("\n{}\n{digest}", self.signed_headers()));
        text
    }

    fn signature(&self, secret: &Secret) -> String {
        let digest = hex::encode(Sha256::digest(self.text().as_bytes()));
        let text = format!("{ALGORITHM}\n{digest}");
        hex::encode(hmac_sha256(secret.expose().as_bytes(), &[text.as_bytes()]))
    }
}

/// A request to an API as it arrived, for a program that plays the API.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedApiRequest<'a> {
    /// Method.
    pub method: &'a str,
    /// Path.
    pub path: &'a str,
    /// Query as it arrived.
    pub query: &'a str,
    /// Header fields.
    pub headers: &'a [(String, String)],
    /// Body.
    pub body: &'a [u8],
}

/// Fault of a received request. The variants are named like the gateway's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ApiSignatureError {
    /// The header, or a part that it needs, is missing or unreadable.
    #[error("the signature is incomplete")]
    Incomplete,
    /// The key is unknown.
    #[error("the access key is unknown")]
    UnknownKey,
    /// The session token is missing, wrong or unexpected.
    #[error("the session token is not the token of the access key")]
    Token,
    /// The signature is another one.
    #[error("the signature does not match")]
    Mismatch,
}

impl ReceivedApiRequest<'_> {
    /// Verifies the signature against the known keys, and returns the public id of the key that made it.
    ///
    /// # Errors
    /// Fails like the vendor's gateway. Every signed header, the query and the body are covered: one changed byte is a
    /// mismatch.
    pub fn verify(&self, keys: &[ApiKey]) -> Result<String, ApiSignatureError> {
        let (id, names, presented) = self.authorization().ok_or(ApiSignatureError::Incomplete)?;
        let key = keys.iter().find(|key| key.id == id).ok_or(ApiSignatureError::UnknownKey)?;
        let mut fields = Vec::new();
        for name in names.split(';') {
            fields.push((name, self.header(name).ok_or(ApiSignatureError::Incomplete)?));
        }
        // A header that says what is asked must be signed, or it could be replaced.
        let required = ["host", "x-acs-action", "x-acs-version", "x-acs-date", "x-acs-signature-nonce"];
        let signs_all = required.iter().all(|required| fields.iter().any(|(name, _)| name == required));
        if !signs_all || !fields.iter().any(|(name, _)| *name == "x-acs-content-sha256") {
            return Err(ApiSignatureError::Incomplete);
        }
        if self.header("x-acs-content-sha256") != Some(hex::encode(Sha256::digest(self.body)).as_str()) {
            return Err(ApiSignatureError::Mismatch);
        }
        if self.header("x-acs-security-token") != key.token.as_ref().map(Secret::expose) {
            return Err(ApiSignatureError::Token);
        }
        let pairs = query::parse(self.query.as_bytes(), None).map_err(|_| ApiSignatureError::Incomplete)?;
        let canonical =
            CanonicalRequest { method: self.method, path: self.path, query: &pairs, headers: &fields };
        let expected = canonical.signature(&key.secret);
        match bool::from(expected.as_bytes().ct_eq(presented.as_bytes())) {
            true => Ok(key.id.clone()),
            false => Err(ApiSignatureError::Mismatch),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let first = found.next()?;
        // Two fields of one name have two readings.
        found.next().is_none().then_some(first.1.trim())
    }

    /// Returns the key's id, the names of the signed headers, and the signature.
    fn authorization(&self) -> Option<(&str, &str, &str)> {
        let rest = self.header("authorization")?.strip_prefix(ALGORITHM)?.trim_start();
        let mut parts = rest.split(',').map(str::trim);
        let id = parts.next()?.strip_prefix("Credential=")?;
        let names = parts.next()?.strip_prefix("SignedHeaders=")?;
        let signature = parts.next()?.strip_prefix("Signature=")?;
        parts.next().is_none().then_some((id, names, signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Requests recorded from the vendor's SDKs, others signed by the vendor's signing function, and one published.
    /// The keys are the vendor's examples.
    const VECTORS: &str = include_str!("acs3-vectors.json");

    fn vectors() -> Vec<Value> {
        serde_json::from_str::<Vec<Value>>(VECTORS).unwrap()
    }

    fn text<'v>(vector: &'v Value, name: &str) -> &'v str {
        vector[name].as_str().unwrap()
    }

    fn pairs(vector: &Value, name: &str) -> Vec<Pair> {
        let members = vector[name].as_object().unwrap();
        members.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
    }

    fn headers(vector: &Value) -> Vec<Pair> {
        pairs(vector, "headers")
    }

    fn key(vector: &Value) -> ApiKey {
        let token = vector["headers"]["x-acs-security-token"].as_str().map(Secret::new);
        ApiKey::new(text(vector, "access_key_id"), Secret::new(text(vector, "access_key_secret")), token)
            .unwrap()
    }

    #[test]
    fn every_signature_of_the_vendor_is_computed_alike() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 37);
        for vector in &vectors {
            let mut headers = headers(vector);
            headers.sort();
            let fields: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            let query = pairs(vector, "params");
            let canonical = CanonicalRequest {
                method: text(vector, "method"),
                path: text(vector, "path"),
                query: &query,
                headers: &fields,
            };
            let name = text(vector, "name");
            assert_eq!(canonical.text(), text(vector, "canonical_request"), "{name}");
            assert_eq!(key(vector).authorization(&canonical), text(vector, "authorization"), "{name}");
        }
    }

    #[test]
    fn a_request_is_the_one_that_the_vendor_s_sdk_sends() {
        let mut compared = 0;
        for vector in vectors().iter().filter(|vector| vector["source"] == "recorded") {
            let signed = ApiRequest {
                method: text(vector, "method"),
                host: text(vector, "endpoint"),
                path: text(vector, "path"),
                action: text(vector, "operation"),
                version: text(vector, "version"),
                query: &pairs(vector, "params"),
                form: &pairs(vector, "form"),
                user_agent: "spid-vector",
                date: vector["headers"]["x-acs-date"].as_str().unwrap(),
                nonce: vector["headers"]["x-acs-signature-nonce"].as_str().unwrap(),
            }
            .sign(&key(vector));
            let name = text(vector, "name");
            assert_eq!(signed.query, text(vector, "query"), "{name}");
            assert_eq!(signed.body, text(vector, "body"), "{name}");
            let mut expected = headers(vector);
            expected.sort();
            expected.push(("authorization".to_owned(), text(vector, "authorization").to_owned()));
            let found: Vec<Pair> =
                signed.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            assert_eq!(found, expected, "{name}");
            compared += 1;
        }
        assert_eq!(compared, 24);
    }

    fn received(vector: &Value) -> (Vec<Pair>, String, String) {
        let mut headers = headers(vector);
        headers.push(("authorization".to_owned(), text(vector, "authorization").to_owned()));
        (headers, text(vector, "query").to_owned(), text(vector, "body").to_owned())
    }

    fn verify(
        vector: &Value,
        headers: &[Pair],
        query: &str,
        body: &str,
    ) -> Result<String, ApiSignatureError> {
        let (method, path) = (text(vector, "method"), text(vector, "path"));
        ReceivedApiRequest { method, path, query, headers, body: body.as_bytes() }.verify(&[key(vector)])
    }

    #[test]
    fn one_changed_byte_anywhere_is_refused() {
        for vector in vectors() {
            let (headers, query, body) = received(&vector);
            let name = text(&vector, "name");
            assert_eq!(
                verify(&vector, &headers, &query, &body),
                Ok(text(&vector, "access_key_id").to_owned()),
                "{name}"
            );
            for (index, (field, value)) in headers.iter().enumerate() {
                for at in 0..value.len() {
                    let mut changed = headers.clone();
                    let mut bytes = value.clone().into_bytes();
                    bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
                    changed[index].1 = String::from_utf8(bytes).unwrap();
                    assert!(
                        verify(&vector, &changed, &query, &body).is_err(),
                        "{name}: byte {at} of {field}"
                    );
                }
            }
            for at in 0..query.len() {
                let mut bytes = query.clone().into_bytes();
                bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(
                    verify(&vector, &headers, &changed, &body).is_err(),
                    "{name}: byte {at} of the query"
                );
            }
            for at in 0..body.len() {
                let mut bytes = body.clone().into_bytes();
                bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
                let changed = String::from_utf8(bytes).unwrap();
                assert!(
                    verify(&vector, &headers, &query, &changed).is_err(),
                    "{name}: byte {at} of the body"
                );
            }
        }
    }

    #[test]
    fn an_unsigned_header_cannot_say_what_is_asked() {
        let vector = vectors().into_iter().find(|vector| vector["name"] == "DescribeLicense").unwrap();
        let (headers, query, body) = received(&vector);
        for required in ["x-acs-action", "x-acs-date", "x-acs-signature-nonce", "x-acs-version", "host"] {
            let kept: Vec<Pair> = headers
                .iter()
                .map(|(name, value)| {
                    let value = match name == "authorization" {
                        true => {
                            value.replace(&format!("{required};"), "").replace(&format!(";{required}"), "")
                        }
                        false => value.clone(),
                    };
                    (name.clone(), value)
                })
                .collect();
            assert_eq!(
                verify(&vector, &kept, &query, &body),
                Err(ApiSignatureError::Incomplete),
                "{required}"
            );
        }
        let mut twice = headers.clone();
        twice.push(("X-Acs-Action".to_owned(), "ActivateLicense".to_owned()));
        assert_eq!(verify(&vector, &twice, &query, &body), Err(ApiSignatureError::Incomplete));
    }

    #[test]
    fn a_key_shows_nothing_of_its_secret_or_token() {
        let key = ApiKey::new("FAKEID", Secret::new("fake-secret"), Some(Secret::new("fake-token"))).unwrap();
        assert_eq!(format!("{key:?}"), r#"ApiKey { id: "FAKEID", provider: "static_sts", .. }"#);
        assert_eq!(ApiKey::new("", Secret::new("s"), None).unwrap_err(), BadKey::Empty);
        assert!(ApiKey::new("FAKEID", Secret::new("s\u{feff}"), None).is_err());
        assert!(ApiKey::new("FAKEID", Secret::new("s"), Some(Secret::new(" t"))).is_err());
    }
}
