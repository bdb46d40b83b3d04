//! Explanation of an invalid signature: tries common mistakes of senders, one after the other.
//!
//! A bare "the signature is wrong" makes two companies read each other's code for a day. Most of the time the
//! sender has signed a slightly different text, and there are few candidates. Trying them with the configured
//! keys finds the mistake in a millisecond. The explanation names the mistake. It never contains a digest or a
//! key.

use crate::query::{self, Pair, TOKEN_PLACEHOLDER};
use crate::signature::{Keys, Mismatch, Parts, Signed};
use spid_hook::json::Json;

/// Base string from which the digest is computed, safe to show.
/// `<key>` replaces the key. `<token>` replaces every value that may be a token, under any name.
pub fn shown_base(parts: &Parts) -> String {
    match parts {
        Parts::Pairs(pairs) | Parts::Stamped { pairs, .. } => parts.with_pairs(masked(pairs)).base(),
        Parts::Dated { body, .. } => parts.with_body(masked_body(body)).base(),
        Parts::Nonced { nonce, timestamp, body, digested } => {
            // Honest nonces are shorter than this scheme's signatures, so a longer one may be a signature.
            let is_short = nonce.len() < parts.digest_characters();
            let nonce = if is_short { nonce.clone() } else { TOKEN_PLACEHOLDER.to_owned() };
            let (timestamp, body, digested) = (timestamp.clone(), masked_body(body), *digested);
            Parts::Nonced { nonce, timestamp, body, digested }.base()
        }
    }
}

fn masked(pairs: &[Pair]) -> Vec<Pair> {
    let mut shown = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        let value = match query::names_a_token(name) && !value.is_empty() {
            true => TOKEN_PLACEHOLDER.to_owned(),
            false => query::without_tokens(value).into_owned(),
        };
        shown.push((query::without_tokens(name).into_owned(), value));
    }
    shown
}

fn masked_body(body: &[u8]) -> Vec<u8> {
    query::masked(&String::from_utf8_lossy(body)).into_bytes()
}

/// Explains a mismatch: names the change that would make the signature valid, if there is one.
///
/// It tries a few readings, and it leaves out each parameter in turn. So the cost is the number of parameters
/// times the size of the request. Use it in a command, or for the few requests an operator looks at, but never
/// for every incoming request.
///
/// ```
/// use spid_core::dialect::explain;
/// use spid_core::signature::{Keys, Mismatch, Parts, Secret};
///
/// let keys = Keys::single(Secret::new("fake-key")).unwrap();
/// let pairs = |on: &str| Parts::Pairs(vec![("expiredOn".into(), on.into())]);
/// let presented = pairs("2030-01-01+00%3A00").sign(&keys);
/// let text = explain(Mismatch::Wrong, &pairs("2030-01-01 00:00"), Some(&presented), &keys);
/// assert!(text.contains("as they are encoded in the URL"), "{text}");
/// ```
pub fn explain(mismatch: Mismatch, parts: &Parts, presented: Option<&str>, keys: &Keys) -> String {
    // The explanation quotes parameter names, and a sender may have put a token there.
    query::without_tokens(&explanation(mismatch, parts, presented, keys)).into_owned()
}

fn explanation(mismatch: Mismatch, parts: &Parts, presented: Option<&str>, keys: &Keys) -> String {
    if has_html_separators(parts) {
        return format!(
            "{mismatch}: the URL has `&amp;` between parameters, as in HTML; use the URL itself, with `&`"
        );
    }
    let Some(presented) = presented else { return missing(mismatch, parts) };
    let suspect = suspects(parts).into_iter().find(|(_, parts)| holds(parts.clone(), presented, keys));
    if let Some((mistake, _)) = suspect {
        return format!("{mismatch}: {mistake}");
    }
    let differences = parts.differences(presented, keys);
    match (differences.as_slice(), mismatch) {
        ([], Mismatch::Wrong) => format!(
            "{mismatch}: the key differs, or a parameter changed in transit; compare the base string with the sender's"
        ),
        ([], _) => mismatch.to_string(),
        (differences, _) => format!("{mismatch}: the sender {}", differences.join("; it also ")),
    }
}

/// Returns true if parameters were separated by `&amp;`, so that names begin with `amp;`.
fn has_html_separators(parts: &Parts) -> bool {
    match parts {
        Parts::Pairs(pairs) | Parts::Stamped { pairs, .. } => {
            pairs.iter().any(|(name, _)| name.starts_with("amp;"))
        }
        Parts::Dated { .. } | Parts::Nonced { .. } => false,
    }
}

/// Explains a missing signature: it may have another name.
fn missing(mismatch: Mismatch, parts: &Parts) -> String {
    let Parts::Pairs(pairs) = parts else { return mismatch.to_string() };
    match pairs.iter().find(|(name, _)| query::names_a_token(name)) {
        Some((name, _)) => {
            format!("{mismatch}: `{name}` may be the signature, whose name must be `token`")
        }
        None => mismatch.to_string(),
    }
}

fn holds(parts: Parts, presented: &str, keys: &Keys) -> bool {
    Signed { parts, presented: Some(presented.to_owned()), payload: () }.verify(keys).is_ok()
}

type Suspect<T> = (String, T);

/// Returns the known mistakes of senders, each with the parts that the sender would have signed.
fn suspects(parts: &Parts) -> Vec<Suspect<Parts>> {
    let mut suspects = Vec::new();
    match parts {
        Parts::Pairs(pairs) | Parts::Stamped { pairs, .. } => {
            for (mistake, pairs) in suspect_pairs(pairs) {
                suspects.push((mistake, parts.with_pairs(pairs)));
            }
        }
        Parts::Dated { body, .. } | Parts::Nonced { body, .. } => {
            for (mistake, body) in suspect_bodies(body) {
                suspects.push((mistake, parts.with_body(body)));
            }
        }
    }
    // The vendor has both forms: the body itself, or its digest. A sender may use the wrong one.
    if let Parts::Nonced { nonce, timestamp, body, digested } = parts {
        let mistake = match *digested {
            true => "the sender signs the body itself, not its digest",
            false => "the sender signs a digest of the body, not the body itself",
        };
        let (nonce, timestamp, body) = (nonce.clone(), timestamp.clone(), body.clone());
        suspects.push((mistake.to_owned(), Parts::Nonced { nonce, timestamp, body, digested: !digested }));
    }
    suspects
}

/// Wrong bodies that a sender may have signed. A body must be signed byte for byte as it is sent, so a body that
/// a program has written again differs.
fn suspect_bodies(body: &[u8]) -> Vec<Suspect<Vec<u8>>> {
    let mut suspects = vec![(
        "the sender signs the body without the white space around it".to_owned(),
        body.trim_ascii().to_vec(),
    )];
    if let Ok(value) = Json::read(body) {
        let mistake = "the sender signs the body with sorted members and without white space";
        suspects.push((mistake.to_owned(), value.to_string().into_bytes()));
    }
    suspects.push(("the sender signs an empty body".to_owned(), Vec::new()));
    suspects
}

/// Returns the pairs with each value changed.
fn each_value(pairs: &[Pair], change: impl Fn(&str) -> String) -> Vec<Pair> {
    pairs.iter().map(|(name, value)| (name.clone(), change(value))).collect()
}

fn encoded(value: &str) -> String {
    query::encode(&[(String::new(), value.to_owned())]).trim_start_matches('=').to_owned()
}

/// Wrong names and values that a sender may have signed.
fn suspect_pairs(pairs: &[Pair]) -> Vec<Suspect<Vec<Pair>>> {
    let mut suspects = vec![
        (
            "the sender signs values as they are encoded in the URL; sign decoded values".to_owned(),
            each_value(pairs, encoded),
        ),
        (
            "the sender signs URL-encoded values, with %20 for a space; sign decoded values".to_owned(),
            each_value(pairs, |value| encoded(value).replace('+', "%20")),
        ),
        (
            "the sender means `+` in the URL as a plus; encode a plus as %2B".to_owned(),
            each_value(pairs, |value| value.replace(' ', "+")),
        ),
        (
            "the sender signs trimmed values; sign them as they are sent".to_owned(),
            each_value(pairs, |value| value.trim().to_owned()),
        ),
    ];
    suspects.push((
        "the sender signs values in ISO-8859-1, where other characters become `?`; sign UTF-8".to_owned(),
        each_value(pairs, |value| value.chars().map(|c| if u32::from(c) > 0xff { '?' } else { c }).collect()),
    ));
    let filled = pairs.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
    suspects.push(("the sender does not sign empty parameters; sign them too".to_owned(), filled));
    // A parameter may have been added after signing, or never signed: leave out each one in turn.
    for (name, _) in pairs {
        let without = pairs.iter().filter(|(other, _)| other != name).cloned().collect();
        suspects.push((
            format!("`{name}` is not signed: it was added after signing, or the sender leaves it out"),
            without,
        ));
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use spid_hook::Secret;

    type Pairs = Vec<(String, String)>;

    fn keys() -> Keys {
        Keys::single(Secret::new("fake-key")).unwrap()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Explanation for a request that was received as `received` but signed as `signed`.
    fn told(received: &[(&str, &str)], signed: &[(&str, &str)]) -> String {
        let presented = Parts::Pairs(pairs(signed)).sign(&keys());
        explain(Mismatch::Wrong, &Parts::Pairs(pairs(received)), Some(&presented), &keys())
    }

    #[test]
    fn every_mistake_we_know_is_recognised() {
        let received = [("action", "x"), ("label", " a b/c "), ("note", "")];
        let with = |label: &'static str| [("action", "x"), ("label", label), ("note", "")];
        for (signed, mistake) in [
            (with("+a+b%2Fc+").to_vec(), "encoded in the URL"),
            (with("%20a%20b%2Fc%20").to_vec(), "%20 for a space"),
            (with("+a+b/c+").to_vec(), "as a plus"),
            (with("a b/c").to_vec(), "trimmed values"),
            (vec![("action", "x"), ("label", " a b/c ")], "empty parameters"),
            (vec![("label", " a b/c "), ("note", "")], "`action` is not signed"),
        ] {
            let text = told(&received, &signed);
            assert!(text.contains(mistake), "{signed:?}: {text}");
        }
    }

    #[test]
    fn values_of_another_encoding_are_recognised() {
        let text = told(&[("label", "中文 R"), ("a", "1")], &[("label", "?? R"), ("a", "1")]);
        assert!(text.contains("in ISO-8859-1"), "{text}");
    }

    /// The mistakes of signers in public code, computed here by hand.
    #[test]
    fn every_wrong_way_to_compute_a_token_is_recognised() {
        use md5::{Digest, Md5};
        let received = Parts::Pairs(pairs(&[("orderId", "9"), ("action", "x"), ("Count", "2")]));
        let md5 = |text: &str| hex::encode(Md5::digest(text));
        let sha256 = |text: &str| hex::encode(sha2::Sha256::digest(text));
        let documented = "Count=2&action=x&orderId=9&key=fake-key";
        for (presented, mistake) in [
            (md5("orderId=9&action=x&Count=2&key=fake-key"), "in the order in which they are sent"),
            (md5("Count=2&orderId=9&action=x&key=fake-key"), "by value"),
            (md5("action=x&Count=2&orderId=9&key=fake-key"), "without regard to capitals"),
            (md5("key=fake-key&Count=2&action=x&orderId=9"), "puts the key first; append"),
            (md5("fake-keyCount=2&action=x&orderId=9"), "puts the key first, without `key=`"),
            (md5("Count=2&action=x&key=fake-key&orderId=9"), "sorts the key among the parameters"),
            (md5("fake-keyCount=2&action=x&orderId=9fake-key"), "before and behind the parameters"),
            (md5("Count=2&action=x&orderId=9"), "without the key"),
            (md5("Count=2&action=x&orderId=9&key=fake-key\n"), "a line break behind the key"),
            (md5("Count=2&action=x&orderId=9&&key=fake-key"), "writes `&&key=`"),
            (
                md5("Count2actionxorderId9fake-key"),
                "appends the key without `&key=` before it; it also joins",
            ),
            (sha256(documented), "computes SHA-256; compute MD5"),
            (
                sha256("orderId=9&action=x&Count=2&key=fake-key"),
                "are sent; sort them by name; it also computes SHA-256",
            ),
            (hex::encode(sha1::Sha1::digest(documented)), "computes SHA-1"),
            (md5(documented)[8..24].to_owned(), "sends 16 digits"),
        ] {
            let mismatch =
                Signed { parts: received.clone(), presented: Some(presented.clone()), payload: () };
            let mismatch = mismatch.verify(&keys()).unwrap_err();
            let text = explain(mismatch, &received, Some(&presented), &keys());
            assert!(text.contains(mistake) && !text.contains("fake-key"), "{mistake}: {text}");
        }
        // Right, but for its digits or its name.
        let text = explain(Mismatch::Malformed, &received, Some("0123"), &keys());
        assert_eq!(text, Mismatch::Malformed.to_string());
        let renamed = Parts::Pairs(pairs(&[("action", "x"), ("sign", "0123")]));
        assert!(explain(Mismatch::Missing, &renamed, None, &keys()).contains("`sign` may be the signature"));
        let html = Parts::Pairs(pairs(&[("action", "x"), ("amp;orderId", "9"), ("amp;token", "0123")]));
        assert!(explain(Mismatch::Missing, &html, None, &keys()).contains("with `&`"));
    }

    #[test]
    fn wrong_ways_to_sign_a_body_are_recognised() {
        let body = b"{}".to_vec();
        let dated = Parts::Dated { timestamp: "17".into(), body: body.clone() };
        let hmac = |text: &str| Parts::Dated { timestamp: text.into(), body: Vec::new() }.sign(&keys());
        let bytes = hex::decode(dated.sign(&keys())).unwrap();
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
        for (presented, mistake) in [
            (base64, "in base64; write it in hexadecimal"),
            (hex::encode(<sha2::Sha256 as md5::Digest>::digest("fake-key17.{}")), "computes SHA-256"),
            (hmac("{}"), "the key differs"),
        ] {
            let text = explain(Mismatch::Wrong, &dated, Some(&presented), &keys());
            assert!(text.contains(mistake), "{mistake}: {text}");
        }
        let stamped = Parts::Stamped { timestamp: "17".into(), pairs: pairs(&[("b", "1"), ("a", "2")]) };
        let hexadecimal =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, stamped.sign(&keys()));
        let text = explain(Mismatch::Malformed, &stamped, Some(&hex::encode(hexadecimal.unwrap())), &keys());
        assert!(text.contains("in hexadecimal; write it in base64"), "{text}");
    }

    #[test]
    fn no_token_is_told_whatever_its_name_became() {
        let signed = [("action", "x"), ("orderBizId", "ob-1")];
        let token = Parts::Pairs(pairs(&signed)).sign(&keys());
        for name in ["amp;token", "Token", "%74oken", "tokem", "remark", token.as_str()] {
            for value in
                [token.clone(), format!("x{token}x"), token.to_uppercase(), format!("{token}{token}")]
            {
                let received = [&signed[..], &[(name, value.as_str())]].concat();
                let parts = Parts::Pairs(pairs(&received));
                let base = shown_base(&parts);
                let said = explain(Mismatch::Wrong, &parts, Some(&token), &keys());
                for shown in [base.to_lowercase(), said.to_lowercase()] {
                    assert!(!shown.contains(&token), "{name}: {shown}");
                }
                assert!(base.contains("orderBizId=ob-1") && base.contains("<token>"), "{base}");
            }
        }
        let body = format!(r#"{{"note": "{token}", "token": "abc", "order": "ob-1"}}"#).into_bytes();
        let (nonce, timestamp) = ("n".to_owned(), "17".to_owned());
        for parts in [
            Parts::Dated { timestamp: timestamp.clone(), body: body.clone() },
            Parts::Nonced { nonce, timestamp, body, digested: true },
        ] {
            let base = shown_base(&parts);
            assert!(!base.contains(&token) && !base.contains("abc") && base.contains("ob-1"), "{base}");
        }
    }

    #[test]
    fn a_key_that_was_appended_alone_is_recognised() {
        let parts = Parts::Pairs(pairs(&[("a", "1"), ("b", "2")]));
        for keys in [keys(), Keys::new(vec![key("fake-new"), key("fake-key")]).unwrap()] {
            // md5 of `a=1&b=2fake-key`
            let presented = "e8030a6269f316b23dfba162c6b2c70b";
            let text = explain(Mismatch::Wrong, &parts, Some(presented), &keys);
            assert!(text.contains("without `&key=`") && !text.contains("fake-key"), "{text}");
        }
        let text = explain(Mismatch::Wrong, &parts, Some(&"0".repeat(32)), &keys());
        assert!(text.contains("compare the base string"), "{text}");
    }

    fn key(text: &str) -> crate::signature::Key {
        crate::signature::Key::new(text.to_owned(), Secret::new(text)).unwrap()
    }

    #[test]
    fn mistakes_about_a_body_are_recognised() {
        let body = |text: &str| text.as_bytes().to_vec();
        let nonced = |text: &str, digested| Parts::Nonced {
            nonce: "n".into(),
            timestamp: "17".into(),
            body: body(text),
            digested,
        };
        let dated = |text: &str| Parts::Dated { timestamp: "17".into(), body: body(text) };
        let received = "{\"b\": 1, \"a\": 2}\n";
        for (signed, mistake) in [
            ("{\"b\": 1, \"a\": 2}", "white space around it"),
            ("{\"a\":2,\"b\":1}", "sorted members"),
            ("", "an empty body"),
        ] {
            for (received, signed) in
                [(nonced(received, true), nonced(signed, true)), (dated(received), dated(signed))]
            {
                let text = explain(Mismatch::Wrong, &received, Some(&signed.sign(&keys())), &keys());
                assert!(text.contains(mistake), "{signed:?}: {text}");
            }
        }
        let other = nonced(received, false).sign(&keys());
        let text = explain(Mismatch::Wrong, &nonced(received, true), Some(&other), &keys());
        assert!(text.contains("the body itself"), "{text}");
        let pairs = |value: &str| Parts::Stamped { timestamp: "17".into(), pairs: pairs(&[("a", value)]) };
        let text = explain(Mismatch::Wrong, &pairs("x y"), Some(&pairs("x%20y").sign(&keys())), &keys());
        assert!(text.contains("%20 for a space"), "{text}");
    }

    #[test]
    fn what_is_not_recognised_says_where_to_look() {
        let text = told(&[("a", "1")], &[("a", "2"), ("b", "3")]);
        assert!(text.contains("compare the base string"), "{text}");
        let dated = Parts::Dated { timestamp: "17".into(), body: b"{}".to_vec() };
        let text = explain(Mismatch::Wrong, &dated, Some(&"0".repeat(64)), &keys());
        assert!(text.contains("compare the base string"), "{text}");
        let text = explain(Mismatch::Missing, &Parts::Pairs(Vec::new()), None, &keys());
        assert_eq!(text, Mismatch::Missing.to_string());
    }

    #[test]
    fn no_explanation_holds_a_key_or_a_digest() {
        let presented = Parts::Pairs(pairs(&[("a", "1")])).sign(&keys());
        let text = told(&[("a", "1"), ("b", "2")], &[("a", "1")]);
        assert!(!text.contains("fake-key") && !text.contains(&presented), "{text}");
    }
}
