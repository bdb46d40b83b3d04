//! Credentials of a client of the admin listener.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use spid_hook::Secret;
use zeroize::Zeroizing;

/// Credentials of a client: an `Authorization` header, split into its parts.
/// Programs send `Bearer TOKEN`. Browsers send `Basic`, with a name of the user's choice and the token as the
/// password.
#[derive(Debug, Clone)]
pub struct Presented {
    /// Name that a browser's user entered; it is not verified.
    pub name: Option<String>,
    /// Token. Compare it with `==`, which takes the same time for every wrong token.
    pub token: Secret,
}

impl Presented {
    /// Reads the header's value. `None` when the scheme is another one, or the value is malformed.
    pub fn of(authorization: &str) -> Option<Presented> {
        let (scheme, rest) = authorization.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Presented { name: None, token: Secret::new(rest.trim()) });
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        // The decoded text contains the token, so wipe it afterwards.
        let plain = Zeroizing::new(BASE64.decode(rest.trim()).ok()?);
        let (name, token) = std::str::from_utf8(&plain).ok()?.split_once(':')?;
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        Some(Presented { name, token: Secret::new(token) })
    }
}
