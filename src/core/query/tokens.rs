//! Tokens, taken out of requests before anything of a request is shown.
//!
//! A query-string token opens the same request again, for as long as the key is in use. It gets into places
//! where no dialect looks for it: `&amp;token=` copied from a web page, `%2574oken`, a token that was appended
//! to a path. So the name only has to resemble a token's, and a value only has to hold as many hex digits in a
//! row as a digest has. An id of that form is hidden, too: the other direction would be the expensive mistake.

use std::borrow::Cow;

/// What stands for a token.
pub const TOKEN_PLACEHOLDER: &str = "<token>";

/// The fewest hex digits of a digest.
const DIGEST_DIGITS: usize = 32;
/// Characters of a 32-byte digest in base64, without the `=` at its end.
const BASE64_DIGITS: usize = 43;
/// How often a text may have been encoded on its way.
const DECODED_MAX_COUNT: usize = 3;

/// Whether a parameter or header of this name may hold a token or a signature.
pub fn names_a_token(name: &str) -> bool {
    let plain: String = decoded(name).chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    plain.contains("token")
        || plain.contains("signature")
        || matches!(plain.as_str(), "sign" | "xsign" | "bodysign" | "ampsign")
        || strsim::osa_distance(&plain, "token") <= 1
}

/// The text with `<token>` for every run of characters that may be a token or a signature.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let plain = decoded(text);
    if let Some(shown) = without_runs(&plain) {
        return Cow::Owned(shown);
    }
    Cow::Borrowed(text)
}

/// A target, form or JSON text with `<token>` for the value of everything whose name resembles a token's, and
/// for every run of characters that may be a token.
pub fn masked(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((name, value)) = next_token(rest) {
        shown.push_str(rest.get(..value.start).unwrap_or_default());
        shown.push_str(TOKEN_PLACEHOLDER);
        rest = rest.get(value.end.max(name.end)..).unwrap_or_default();
    }
    shown.push_str(rest);
    without_tokens(&shown).into_owned()
}

/// The name and the value of the first member whose name resembles a token's.
fn next_token(text: &str) -> Option<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '%' | ';' | '.');
    let mut from = 0;
    loop {
        let start = from + text.get(from..)?.find(is_part)?;
        let behind = text.get(start..)?;
        let end = start + behind.find(|c| !is_part(c)).unwrap_or(behind.len());
        from = end;
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

/// The text with its runs replaced; `None` when there are none.
fn without_runs(text: &str) -> Option<String> {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    let mut found = false;
    while let Some(start) = rest.find(is_base64) {
        let (before, behind) = rest.split_at(start);
        let (word, after) = behind.split_at(behind.find(|c| !is_base64(c)).unwrap_or(behind.len()));
        shown.push_str(before);
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

/// Appends a word; its runs of hex digits that are as long as a digest are replaced. Returns whether one was.
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

/// The text, decoded as often as it may have been encoded.
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
