//! Answers made fit for a terminal, a log and a report.
//!
//! An answer is what the marketplace passes on to the buyer: first passwords, licence keys, a link
//! that lets its bearer in. A run against a live receiver must not print those, so everything that
//! is shown of an answer passes through here; comparing is done on the answer itself.

use serde_json::Value as Json;

/// What stands for a secret.
const HIDDEN: &str = "***";
/// What a name has in it when its value is nobody's business. Too much is hidden rather than too little.
const SECRET_WORDS: [&str; 8] =
    ["database", "key", "license", "passwd", "password", "redirect", "secret", "token"];
/// The section whose names are the hook's own: none of them tells whether it is secret.
const REMARKS: &str = "info";

/// A body: JSON with its secrets hidden, anything else as it is.
pub fn body(bytes: &[u8]) -> String {
    match serde_json::from_slice(bytes) {
        Ok(value) => json("", &value),
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// A JSON value that stands at this path of names with dots between them.
pub fn json(path: &str, value: &Json) -> String {
    let mut shown = value.clone();
    hide(&mut shown, path.split('.').any(is_secret));
    shown.to_string()
}

/// The value of a header. A link loses its query: the ticket stands there.
pub fn header(value: &str) -> String {
    match value.find(['?', '#']) {
        Some(end) => format!("{}{HIDDEN}", value.get(..=end).unwrap_or_default()),
        None => value.to_owned(),
    }
}

fn hide(value: &mut Json, is_hidden: bool) {
    match value {
        Json::Object(members) => {
            members.iter_mut().for_each(|(name, value)| hide(value, is_hidden || is_secret(name)));
        }
        Json::Array(list) => list.iter_mut().for_each(|value| hide(value, is_hidden)),
        Json::String(text) if text.is_empty() => {}
        Json::String(_) | Json::Number(_) if is_hidden => *value = Json::from(HIDDEN),
        Json::Null | Json::Bool(_) | Json::String(_) | Json::Number(_) => {}
    }
}

/// Whether a value of this name is nobody's business.
pub fn is_secret(name: &str) -> bool {
    let plain = name.to_ascii_lowercase();
    plain == REMARKS || SECRET_WORDS.iter().any(|word| plain.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::callback::SECRET_FIELDS;

    #[test]
    fn what_lets_somebody_in_is_hidden_and_the_rest_is_shown() {
        let answer = json!({
            "instanceId": "i-1", "success": true,
            "appInfo": {"frontEndUrl": "https://a.example", "username": "root", "password": "fake", "licenseId": "fake"},
            "hostInfo": {"ip": "192.0.2.1", "ftpPassword": "fake", "databaseInfo": {"x": ["fake", 7]}},
            "info": {"anything": "fake"}, "redirect": "fake", "scimAppsecret": "fake",
        });
        let shown = body(answer.to_string().as_bytes());
        assert!(!shown.contains("fake"), "{shown}");
        for kept in ["i-1", "https://a.example", "root", "192.0.2.1", "true"] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
        assert_eq!(json("json.info.anything", &json!("fake")), "\"***\"");
        assert_eq!(json("json.appInfo.password", &json!("")), "\"\"", "that there is none is no secret");
    }

    #[test]
    fn every_field_the_store_seals_is_hidden() {
        assert!(SECRET_FIELDS.into_iter().all(is_secret));
        assert!(
            !["instanceId", "instance_id", "status", "message", "success", "username"]
                .into_iter()
                .any(is_secret)
        );
    }

    #[test]
    fn a_link_is_shown_without_its_ticket() {
        assert_eq!(header("https://a.example/in?ticket=fake"), "https://a.example/in?***");
        assert_eq!(header("https://a.example/#fake"), "https://a.example/#***");
        assert_eq!(header("application/json"), "application/json");
    }

    #[test]
    fn what_is_not_json_is_shown_as_it_is() {
        assert_eq!(body(b"<p>no</p>"), "<p>no</p>");
        assert_eq!(body(b""), "");
    }
}
