//! Masking of tokens before any part of a request is shown.
//!
//! A query-string token allows the same request again, for as long as the key is in use. Tokens also appear where
//! no dialect expects them: in `&amp;token=` copied from a web page, in `%2574oken`, or appended to a path. So a
//! name only has to resemble a token's name. A value only needs as many hex digits in a row as a digest has. An
//! id of that form is masked too, because a visible token would be the more expensive mistake.

use std::borrow::Cow;

/// Placeholder for a token.
pub const TOKEN_PLACEHOLDER: &str = "<token>";

/// Minimum number of hex digits in a digest.
const DIGEST_DIGITS: usize = 32;
/// Number of characters of a 32-byte digest in base64, without the `=` at the end.
const BASE64_DIGITS: usize = 43;
/// Maximum number of times that a text is decoded.
const DECODED_MAX_COUNT: usize = 3;

/// Returns true if a parameter or header with this name may hold a token or a signature.
pub fn names_a_token(name: &str) -> bool {
    let plain: String = decoded(name).chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    plain.contains("token")
        || plain.contains("signature")
        // Short names must be equal, because `design` is no signature.
        || matches!(plain.as_str(), "sign" | "xsign" | "bodysign" | "ampsign")
        // A single typing error also counts: `tken`, `tokem`.
        || strsim::osa_distance(&plain, "token") <= 1
}

/// Replaces every run of characters that may be a token or a signature with `<token>`.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let plain = decoded(text);
    // A run may be visible only after decoding. Without a run, the text stays as it was sent.
    if let Some(shown) = without_runs(&plain) {
        return Cow::Owned(shown);
    }
    Cow::Borrowed(text)
}

/// Masks a target, form or JSON text.
/// `<token>` replaces every value whose name resembles a token's, and every run of characters that may be a
/// token.
pub fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    // First values with a suspicious name, then (below) suspicious runs in any place.
    while let Some((name, value)) = next_token(rest) {
        shown.push_str(rest.get(..value.start).unwrap_or_default());
        shown.push_str(TOKEN_PLACEHOLDER);
        // Continue behind the value; an empty value must still move forward.
        rest = rest.get(value.end.max(name.end)..).unwrap_or_default();
    }
    shown.push_str(rest);
    without_tokens(&shown).into_owned()
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | ';' | '.')
}

/// Returns the positions of the name and the value of the first member whose name resembles a token's.
fn next_token(text: &str) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut from = 0;
    loop {
        let start = from + text.get(from..)?.find(is_of_name)?;
        let behind = text.get(start..)?;
        let end = start + behind.find(|c| !is_of_name(c)).unwrap_or(behind.len());
        from = end;
        // JSON has quotes and spaces around the name, and backslashes if it is a text within JSON.
        let separator = text.get(end..)?.trim_start_matches(['"', '\'', '\\', ' ']);
        if !separator.starts_with(['=', ':']) || !text.get(start..end).is_some_and(names_a_token) {
            continue;
        }
        let behind = separator.get(1..)?.trim_start_matches(['"', '\'', '\\', ' ']);
        let at = text.len() - behind.len();
        let length = behind.find(['&', '"', '\'', '\\', ' ', ',', '}', '<', '\n']).unwrap_or(behind.len());
        return Some((start..end, at..at + length));
    }
}

/// Replaces the runs in a text; `None` when there are none.
fn without_runs(text: &str) -> Option<String> {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some(start) = rest.find(is_base64) {
        let (before, behind) = rest.split_at(start);
        let (word, after) = behind.split_at(behind.find(|c| !is_base64(c)).unwrap_or(behind.len()));
        shown.push_str(before);
        // The `=` at the end distinguishes base64 from a long path or id.
        let is_base64_digest = word.len() >= BASE64_DIGITS && after.starts_with('=');
        if is_base64_digest {
            shown.push_str(TOKEN_PLACEHOLDER);
            found = true;
        } else {
            found |= push_without_digits(&mut shown, word);
        }
        rest = if is_base64_digest { after.trim_start_matches('=') } else { after };
    }
    shown.push_str(rest);
    found.then_some(shown)
}

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/')
}

/// Appends a word, with its digest-length runs of hex digits replaced. Returns true if there was one.
fn push_without_digits(shown: &mut String, word: &str) -> bool {
    let mut found = false;
    let mut rest = word;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, behind) = rest.split_at(start);
        let length = behind.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(behind.len());
        let (digits, after) = behind.split_at(length);
        shown.push_str(before);
        let is_digest = digits.len() >= DIGEST_DIGITS;
        shown.push_str(if is_digest { TOKEN_PLACEHOLDER } else { digits });
        found |= is_digest;
        rest = after;
    }
    shown.push_str(rest);
    found
}

/// Decodes a text several times, because it may have been encoded several times.
fn decoded(text: &str) -> Cow<'_, str> {
    let mut plain = Cow::Borrowed(text);
    for _ in 0..DECODED_MAX_COUNT {
        if !plain.contains('%') {
            break;
        }
        plain = Cow::Owned(decoded_once(&plain));
    }
    plain
}

fn decoded_once(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| hex::decode(digits).ok());
        match digits.as_deref() {
            Some([byte]) if *first == b'%' => {
                bytes.push(*byte);
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789ABCDEF";

    #[test]
    fn a_name_only_has_to_resemble_a_token_s() {
        for name in [
            "token",
            "Token",
            "TOKEN",
            "amp;token",
            "%74oken",
            "%2574oken",
            "tok-en",
            "authToken",
            "tokem",
            "x-sign",
            "signature",
            "spid-signature",
            "_token_",
            "tken",
        ] {
            assert!(names_a_token(name), "{name}");
        }
        for name in ["action", "orderBizId", "design", "expiredOn", "skuId", "", "sku", "test"] {
            assert!(!names_a_token(name), "{name}");
        }
    }

    #[test]
    fn tokens_are_masked_wherever_they_stand() {
        let encoded: String = DIGEST.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for (text, shown) in [
            ("/spi?a=1&token=abc", "/spi?a=1&token=<token>"),
            ("token=abc&a=1", "token=<token>&a=1"),
            ("authToken=abc&signature=x", "authToken=<token>&signature=<token>"),
            ("/spi?token=abc&b=2&token=abc%z", "/spi?token=<token>&b=2&token=<token>"),
            ("/spi?a=1&amp;token=abc&b=2", "/spi?a=1&amp;token=<token>&b=2"),
            ("/spi?%74oken=abc", "/spi?%74oken=<token>"),
            (r#"{"a":"token","Token" : "abc", "b":1}"#, r#"{"a":"token","Token" : "<token>", "b":1}"#),
            (r#"{"token":7,"b":1}"#, r#"{"token":<token>,"b":1}"#),
            ("{\"a\":1}", "{\"a\":1}"),
            ("token=", "token=<token>"),
            ("", ""),
        ] {
            assert_eq!(masked(text), shown);
        }
        for text in [
            format!("/spi/{DIGEST}?a=1"),
            format!("/spi?x={DIGEST}"),
            format!("x={DIGEST}{DIGEST}"),
            format!("x=zz{DIGEST}zz"),
            format!("x={encoded}"),
            format!("x={}", encoded.replace('%', "%25")),
            format!("echo of spid-signature: {DIGEST}{DIGEST}"),
        ] {
            let shown = masked(&text);
            assert!(shown.contains(TOKEN_PLACEHOLDER) && !shown.contains("0123456789abcdef"), "{shown}");
            assert!(!shown.contains("%30") && !shown.contains("%2530"), "{shown}");
        }
        let base64 = format!("{}+/=", "fake".repeat(10) + "x");
        assert_eq!(masked(&format!("x={base64}")), "x=<token>");
    }

    #[test]
    fn ids_and_dates_stay() {
        for text in
            ["order 202611300000000000000001", "550e8400-e29b-41d4-a716-446655440000", "100%", "a%zz", "中"]
        {
            assert_eq!(without_tokens(text), text);
        }
    }
}
