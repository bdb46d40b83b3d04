//! Signatures of requests to Huawei's API gateway.

use sha2::{Digest, Sha256};
use spid_hook::Secret;
use zeroize::Zeroizing;

use super::{BadKey, Key, hmac_sha256};

/// A seller's key at a marketplace's gateway. It signs the requests that *we* send there.
///
/// The scheme is `SDK-HMAC-SHA256` of Huawei's API gateway ("Signing algorithm",
/// support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-algorithm.html). It has two forms: the present form,
/// and an older form whose key is derived for a day, a region and a service.
#[derive(Debug, Clone)]
pub struct AccessKey {
    id: String,
    secret: Secret,
    scope: Option<(String, String)>,
}

/// A request without a body, in the form that its signature needs.
#[derive(Debug, Clone, Copy)]
pub struct UnsignedRequest<'a> {
    /// Method.
    pub method: &'a str,
    /// `Host` header.
    pub host: &'a str,
    /// Path, encoded, without a query.
    pub path: &'a str,
    /// Query: encoded names and values, sorted by name.
    pub query: &'a str,
    /// `Content-Type` header.
    pub content_type: &'a str,
    /// `X-Sdk-Date` header: `yyyyMMddTHHmmssZ`, in UTC.
    pub date: &'a str,
}

impl AccessKey {
    const ALGORITHM: &'static str = "SDK-HMAC-SHA256";
    const SIGNED_HEADERS: &'static str = "content-type;host;x-sdk-date";

    /// Creates a key with this public id.
    ///
    /// # Errors
    /// See [`Key::new`]; both the id and the secret are checked.
    pub fn new(id: impl Into<String>, secret: Secret) -> Result<AccessKey, BadKey> {
        let id = id.into();
        // Only for their checks; the two keys are dropped.
        Key::new("id", Secret::new(id.clone()))?;
        Key::new("secret", secret.clone())?;
        Ok(AccessKey { id, secret, scope: None })
    }

    /// Makes the key sign in the older form, for this region and service.
    pub fn scoped(self, region: impl Into<String>, service: impl Into<String>) -> AccessKey {
        AccessKey { scope: Some((region.into(), service.into())), ..self }
    }

    /// Returns the value of the `Authorization` header.
    pub fn authorization(&self, asked: &UnsignedRequest<'_>) -> String {
        let secret = self.secret.expose().as_bytes();
        let hash = hex::encode(Sha256::digest(canonical_request(asked)));
        let (claim, key, scope) = match &self.scope {
            None => (format!("Access={}", self.id), Zeroizing::new(secret.to_vec()), String::new()),
            Some((region, service)) => {
                let day = asked.date.get(..8).unwrap_or_default();
                let scope = format!("{day}/{region}/{service}/sdk_request");
                let first = Zeroizing::new([b"SDK", secret].concat());
                let key = [day, region.as_str(), service.as_str(), "sdk_request"]
                    .iter()
                    // Each HMAC is the key of the next one.
                    .fold(first, |key, piece| Zeroizing::new(hmac_sha256(&key, &[piece.as_bytes()])));
                (format!("Credential={}/{scope}", self.id), key, format!("{scope}\n"))
            }
        };
        let text = format!("{}\n{}\n{scope}{hash}", Self::ALGORITHM, asked.date);
        let signature = hex::encode(hmac_sha256(&key, &[text.as_bytes()]));
        format!("{} {claim}, SignedHeaders={}, Signature={signature}", Self::ALGORITHM, Self::SIGNED_HEADERS)
    }
}

fn canonical_request(asked: &UnsignedRequest<'_>) -> String {
    let UnsignedRequest { method, host, path, query, content_type, date } = asked;
    // The gateway signs the path with a slash at its end, even if the request has none.
    let slash = if path.ends_with('/') { "" } else { "/" };
    // The requests have no body, so this is the hash of an empty text.
    let nothing = hex::encode(Sha256::digest(b""));
    format!(
        "{method}\n{path}{slash}\n{query}\ncontent-type:{content_type}\nhost:{host}\nx-sdk-date:{date}\n\n{}\n{nothing}",
        AccessKey::SIGNED_HEADERS
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vendor's example. The vendor publishes the digest of the canonical request, but masks the secret.
    const ASKED: UnsignedRequest<'static> = UnsignedRequest {
        method: "GET",
        host: "service.region.example.com",
        path: "/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs",
        query: "limit=2&marker=13551d6b-755d-4757-b956-536f674975c0",
        content_type: "application/json",
        date: "20191115T033655Z",
    };

    #[test]
    fn the_gateway_s_published_canonical_request_holds() {
        let hash = hex::encode(Sha256::digest(canonical_request(&ASKED)));
        assert_eq!(hash, "b25362e603ee30f4f25e7858e8a7160fd36e803bb2dfe206278659d71a9bcd7a");
    }

    #[test]
    fn both_forms_name_the_key_and_show_nothing_of_the_secret() {
        let key = AccessKey::new("FAKEACCESS", Secret::new("fake-secret")).unwrap();
        let present = key.authorization(&ASKED);
        let older = key.clone().scoped("cn-north-4", "mkt").authorization(&ASKED);
        assert!(present.starts_with(
            "SDK-HMAC-SHA256 Access=FAKEACCESS, SignedHeaders=content-type;host;x-sdk-date, Signature="
        ));
        assert!(older.starts_with(
            "SDK-HMAC-SHA256 Credential=FAKEACCESS/20191115/cn-north-4/mkt/sdk_request, SignedHeaders="
        ));
        let digest = |text: &str| text.rsplit('=').next().unwrap().to_owned();
        assert_ne!(digest(&present), digest(&older));
        let other = AccessKey::new("FAKEACCESS", Secret::new("fake-other")).unwrap().authorization(&ASKED);
        assert_ne!(digest(&present), digest(&other));
        assert!(!format!("{key:?}{present}{older}").contains("fake-secret"));
        assert_eq!(AccessKey::new("", Secret::new("s")).unwrap_err(), BadKey::Empty);
        for unclean in [" s", "s\u{200b}"] {
            assert!(matches!(AccessKey::new("FAKE", Secret::new(unclean)), Err(BadKey::Unclean(_))));
            assert!(matches!(AccessKey::new(unclean, Secret::new("s")), Err(BadKey::Unclean(_))));
        }
    }
}
