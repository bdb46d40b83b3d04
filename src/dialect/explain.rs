//! Why a signature does not hold: the mistakes senders make, tried one after the other.
//!
//! "The signature is wrong" sends two companies looking at each other's code for a day. Most of the
//! time the sender has signed something slightly else, and there are few things it can be: trying
//! them with the keys we have finds it in a millisecond. What is told is the mistake, never a digest
//! and never a key.

use crate::query;
use crate::signature::{Keys, Mismatch, Parts, Signed};

/// Says of a signature that did not hold what would have made it hold, if that can be found.
///
/// It tries a handful of readings and every parameter left out, so its work is the number of
/// parameters times the size of the request: for a command, or for a few requests somebody looks at,
/// never for every one that comes in.
///
/// ```
/// use spid::dialect::explain;
/// use spid::signature::{Keys, Mismatch, Parts, Secret};
///
/// let keys = Keys::single(Secret::new("fake-key")).unwrap();
/// let pairs = |on: &str| Parts::Pairs(vec![("expiredOn".into(), on.into())]);
/// let presented = pairs("2030-01-01+00%3A00").sign(&keys);
/// let text = explain(Mismatch::Wrong, &pairs("2030-01-01 00:00"), Some(&presented), &keys);
/// assert!(text.contains("as they are encoded in the URL"), "{text}");
/// ```
pub fn explain(mismatch: Mismatch, parts: &Parts, presented: Option<&str>, keys: &Keys) -> String {
    let found = match (mismatch, parts, presented) {
        (Mismatch::Wrong, Parts::Pairs(pairs), Some(presented)) => {
            suspects(pairs).into_iter().find(|(_, pairs)| holds(pairs.clone(), presented, keys))
        }
        _ => None,
    };
    match found {
        Some((mistake, _)) => format!("{mismatch}, but it would if {mistake}"),
        None if mismatch == Mismatch::Wrong => format!(
            "{mismatch}: either the key is another one, or something between sender and receiver changed a parameter; compare the base string with the sender's"
        ),
        None => mismatch.to_string(),
    }
}

fn holds(pairs: Vec<(String, String)>, presented: &str, keys: &Keys) -> bool {
    let parts = Parts::Pairs(pairs);
    Signed { parts, presented: Some(presented.to_owned()), payload: () }.verify(keys).is_ok()
}

type Suspect = (String, Vec<(String, String)>);

/// What senders get wrong, and what they would have signed.
fn suspects(pairs: &[(String, String)]) -> Vec<Suspect> {
    let encoded =
        |value: &str| query::encode(&[(String::new(), value.to_owned())]).trim_start_matches('=').to_owned();
    let map = |change: &dyn Fn(&str) -> String| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.clone(), change(value))).collect()
    };
    let mut suspects = vec![
        ("the values had been signed as they are encoded in the URL, not decoded".to_owned(), map(&encoded)),
        (
            "the values had been signed encoded, with %20 for a space".to_owned(),
            map(&|value| encoded(value).replace('+', "%20")),
        ),
        (
            "a `+` in the URL had been meant as a plus and not as a space".to_owned(),
            map(&|value| value.replace(' ', "+")),
        ),
        (
            "the values had been signed with the white space around them trimmed".to_owned(),
            map(&|value| value.trim().to_owned()),
        ),
    ];
    let filled = pairs.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
    suspects.push((
        "the empty parameters had been left out of what was signed; they belong to it".to_owned(),
        filled,
    ));
    for (name, _) in pairs {
        let without = pairs.iter().filter(|(other, _)| other != name).cloned().collect();
        suspects.push((
            format!("`{name}` had not been signed: it was added later, or the sender leaves it out"),
            without,
        ));
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::Secret;

    type Pairs = Vec<(String, String)>;

    fn keys() -> Keys {
        Keys::single(Secret::new("fake-key")).unwrap()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// What is said when this was received and that was signed.
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
            (with("+a+b/c+").to_vec(), "meant as a plus"),
            (with("a b/c").to_vec(), "trimmed"),
            (vec![("action", "x"), ("label", " a b/c ")], "empty parameters"),
            (vec![("label", " a b/c "), ("note", "")], "`action` had not been signed"),
        ] {
            let text = told(&received, &signed);
            assert!(text.contains(mistake), "{signed:?}: {text}");
        }
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
