//! Requests as a marketplace sends them, and as a forger or a broken sender does.

use jiff::Timestamp;

use crate::query::Pair;
use spid_hook::id::Id;

/// Options for an outgoing request.
#[derive(Debug, Clone)]
pub struct Sending {
    /// Encoding: query string or form.
    pub form: SendForm,
    /// Signature to send.
    pub signature: SendSignature,
    /// Time in the request, for dialects that date their requests.
    pub now: Timestamp,
    /// Nonce, for dialects that mark their requests.
    pub nonce: String,
    /// Values changed after signing, by name, as in a forged request.
    pub altered: Vec<Pair>,
    /// Parameters added after signing, as they are: for example, a duplicate.
    pub appended: Vec<Pair>,
    /// Text appended to the encoded parameters as it is: for example, a broken encoding.
    pub raw: String,
}

impl Sending {
    /// Options for a valid request in the dialect's usual form, dated `now`.
    pub fn at(now: Timestamp) -> Sending {
        Sending {
            form: SendForm::Usual,
            signature: SendSignature::Computed,
            now,
            // Without randomness the nonce is the time. Then two requests of one millisecond have one nonce.
            nonce: Id::new(now)
                .map_or_else(|_| now.as_millisecond().to_string(), |id| hex::encode(id.as_bytes())),
            altered: Vec::new(),
            appended: Vec::new(),
            raw: String::new(),
        }
    }

    /// Returns the digest to send, computed by `right` if needed; `None` for a request without a signature.
    pub(super) fn digest(&self, right: impl FnOnce() -> String) -> Option<String> {
        match &self.signature {
            SendSignature::Computed => Some(right()),
            SendSignature::Pinned(text) => Some(text.clone()),
            SendSignature::Altered => Some(alter(&right())),
            SendSignature::Omitted => None,
        }
    }

    /// Parameters as they are sent, with the changes made after signing.
    pub(super) fn after_signing(&self, signed: &[Pair]) -> Vec<Pair> {
        let mut sent = Vec::with_capacity(signed.len() + self.appended.len());
        for pair in signed {
            let altered = self.altered.iter().find(|(name, _)| *name == pair.0);
            sent.push(altered.unwrap_or(pair).clone());
        }
        sent.extend_from_slice(&self.appended);
        sent
    }
}

/// Returns the parameters, with the action under the name `member` before them, unless they hold that name already.
pub(super) fn with_action(member: &str, action: &str, parameters: &[Pair]) -> Vec<Pair> {
    let mut pairs = Vec::with_capacity(parameters.len() + 1);
    if !action.is_empty() && !parameters.iter().any(|(name, _)| name == member) {
        pairs.push((member.to_owned(), action.to_owned()));
    }
    pairs.extend_from_slice(parameters);
    pairs
}

/// Returns the digest with its first digit changed.
fn alter(digest: &str) -> String {
    let first = if digest.starts_with('0') { '1' } else { '0' };
    std::iter::once(first).chain(digest.chars().skip(1)).collect()
}

/// Position of the parameters in an outgoing request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SendForm {
    /// Position that this marketplace usually uses.
    #[default]
    Usual,
    /// `POST` form.
    Form,
}

/// Signature of an outgoing request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SendSignature {
    /// Correct signature.
    #[default]
    Computed,
    /// This text, independent of the signed content.
    Pinned(String),
    /// Correct signature with one digit changed.
    Altered,
    /// No signature.
    Omitted,
}

/// A request to send to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutRequest {
    /// Method: `GET` or `POST`.
    pub method: &'static str,
    /// Encoded query string without a `?`; empty when there is none.
    pub query: String,
    /// Headers, with names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Body; empty when there is none.
    pub body: Vec<u8>,
}

impl OutRequest {
    /// Returns the value of the header with this lower-case name, for [`RawRequest::header`](super::RawRequest::header).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_altered_digest_differs_and_stays_a_digest() {
        assert_eq!(alter("0abc"), "1abc");
        assert_eq!(alter("fabc"), "0abc");
    }
}
