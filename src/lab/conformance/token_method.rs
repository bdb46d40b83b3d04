//! Methods by which SPI endpoints compute the token. One is documented, the others are wrong but seen in the wild.

use std::fmt;

use spid_core::query;
use spid_core::query::Pair;
use spid_core::signature::{Keys, Parts};

/// Method by which an SPI endpoint computes its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenMethod {
    /// Decoded values, sorted by name (help.aliyun.com/document_detail/147280.html).
    Documented,
    /// Sorted by value.
    ByValue,
    /// Unsorted, in sending order.
    AsSent,
    /// Values as they are encoded in the URL.
    Encoded,
    /// Only the key appended, without `&key=`. The prose of the international page can be read this way, but not
    /// its example.
    BareKey,
    /// In capital letters.
    Capitals,
}

impl TokenMethod {
    /// All wrong methods.
    pub(super) const WRONG: [TokenMethod; 5] = [
        TokenMethod::ByValue,
        TokenMethod::AsSent,
        TokenMethod::Encoded,
        TokenMethod::BareKey,
        TokenMethod::Capitals,
    ];

    /// Returns the token of `pairs`, which are in sending order.
    /// `plus` is true if a space is sent as `+`.
    pub(super) fn token(self, pairs: &[Pair], plus: bool, keys: &Keys) -> String {
        let parts = Parts::Pairs(self.pairs(pairs, plus));
        match self {
            TokenMethod::BareKey => parts.sign_without_key_name(keys),
            TokenMethod::Capitals => parts.sign(keys).to_ascii_uppercase(),
            TokenMethod::Documented | TokenMethod::ByValue | TokenMethod::AsSent | TokenMethod::Encoded => {
                parts.sign(keys)
            }
        }
    }

    /// Returns the token of an endpoint whose key is not set, so that this text stands in its place.
    pub(super) fn token_of_unset_key(self, pairs: &[Pair], plus: bool, unset: &str) -> String {
        let token =
            Parts::Pairs(self.pairs(pairs, plus)).sign_with_unset_key(unset, self != TokenMethod::BareKey);
        if self == TokenMethod::Capitals { token.to_ascii_uppercase() } else { token }
    }

    /// Returns pairs whose documented token is the token of this method.
    fn pairs(self, pairs: &[Pair], plus: bool) -> Vec<Pair> {
        match self {
            TokenMethod::Documented | TokenMethod::BareKey | TokenMethod::Capitals => pairs.to_vec(),
            TokenMethod::ByValue => {
                let mut sorted = pairs.to_vec();
                sorted.sort_by(|one, other| one.1.cmp(&other.1));
                in_this_order(&sorted)
            }
            TokenMethod::AsSent => in_this_order(pairs),
            TokenMethod::Encoded => {
                pairs.iter().map(|(name, value)| (name.clone(), encoded(value, plus))).collect()
            }
        }
    }
}

/// Describes the method, as the end of a sentence that begins with "the endpoint seems to ".
impl fmt::Display for TokenMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TokenMethod::Documented => "do as documented",
            TokenMethod::ByValue => "sort by the values, not by the names",
            TokenMethod::AsSent => "take the parameters in the order in which they come, unsorted",
            TokenMethod::Encoded => "sign the values as they are encoded in the URL, not decoded",
            TokenMethod::BareKey => "append the key without `&key=` before it",
            TokenMethod::Capitals => "compute the token in upper case, and to accept no other",
        })
    }
}

/// Returns a single pair whose value contains all the others.
/// This prevents the sorting, because the signed text does not mark where a value ends.
fn in_this_order(pairs: &[Pair]) -> Vec<Pair> {
    let mut rest = pairs.iter();
    let Some((name, first)) = rest.next() else { return Vec::new() };
    let mut value = first.clone();
    for (name, more) in rest {
        value.push_str(&format!("&{name}={more}"));
    }
    vec![(name.clone(), value)]
}

/// Encodes a text as in a query.
fn encoded(text: &str, plus: bool) -> String {
    let encoded = query::encode(&[(String::new(), text.to_owned())]);
    let encoded = encoded.trim_start_matches('=');
    if plus { encoded.to_owned() } else { encoded.replace('+', "%20") }
}

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5};

    use super::*;
    use spid_hook::Secret;

    #[test]
    fn every_method_signs_what_it_says() {
        let keys = Keys::single(Secret::new("fake-key")).unwrap();
        let pairs: Vec<Pair> =
            [("b", "1 2"), ("a", "x")].map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let md5 = |text: &str| hex::encode(Md5::digest(text));
        for (method, base) in [
            (TokenMethod::Documented, "a=x&b=1 2&key=fake-key"),
            (TokenMethod::ByValue, "b=1 2&a=x&key=fake-key"),
            (TokenMethod::AsSent, "b=1 2&a=x&key=fake-key"),
            (TokenMethod::Encoded, "a=x&b=1%202&key=fake-key"),
            (TokenMethod::BareKey, "a=x&b=1 2fake-key"),
        ] {
            assert_eq!(method.token(&pairs, false, &keys), md5(base), "{method:?}");
        }
        let unset = |method: TokenMethod, text| method.token_of_unset_key(&pairs, false, text);
        assert_eq!(unset(TokenMethod::Documented, ""), md5("a=x&b=1 2&key="));
        assert_eq!(unset(TokenMethod::BareKey, "null"), md5("a=x&b=1 2null"));
        let capitals = TokenMethod::Capitals.token(&pairs, false, &keys);
        assert_eq!(capitals, md5("a=x&b=1 2&key=fake-key").to_uppercase());
    }
}
