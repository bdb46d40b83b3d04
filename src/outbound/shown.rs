//! Answers made fit for a terminal, a log and a report.
//!
//! An answer is what the marketplace passes on to the buyer: first passwords, licence keys, a link
//! that lets its bearer in. A run against a live receiver must not print those, so everything that
//! is shown of an answer passes through here; comparing is done on the answer itself.

use crate::json::Json;

/// What stands for a secret.
const HIDDEN: &str = "***";
/// What a name has in it when its value is nobody's business. Too much is hidden rather than too little.
const SECRET_WORDS: [&str; 11] = [
    "credential",
    "database",
    "key",
    "license",
    "passwd",
    "password",
    "pwd",
    "redirect",
    "secret",
    "ticket",
    "token",
];
/// The section whose names are the hook's own: none of them tells whether it is secret.
const REMARKS: &str = "info";

/// A body: JSON with its secrets hidden, anything else up to the first secret it seems to tell.
pub fn body(bytes: &[u8]) -> String {
    match Json::read(bytes) {
        Ok(value) => json("", &value),
        Err(_) => text(&String::from_utf8_lossy(bytes)),
    }
}

/// Digits of a token or a signature.
const DIGEST_DIGITS: [usize; 2] = [32, 64];

/// A sentence without the tokens in it: receivers tell which one they had expected.
fn without_digests(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric();
    let mut shown = String::with_capacity(text.len());
    for piece in text.split_inclusive(|c| !is_part(c)) {
        let word = piece.trim_end_matches(|c| !is_part(c));
        let is_digest =
            DIGEST_DIGITS.contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        shown.push_str(if is_digest { HIDDEN } else { word });
        shown.push_str(piece.get(word.len()..).unwrap_or_default());
    }
    shown
}

/// What is no JSON is often nearly so: a warning of PHP stands before it, a byte order mark, or half of it is
/// missing. So a name that is nobody's business hides all that is behind it.
fn text(text: &str) -> String {
    let mut from = 0;
    while let Some(name) = next_name(text, from) {
        from = name.end;
        let behind = text.get(name.end..).unwrap_or_default();
        let value = behind.trim_start_matches(BETWEEN);
        let tells = value.starts_with([':', '=', '>']) && text.get(name.clone()).is_some_and(is_secret);
        if tells {
            let end = text.len() - value.len() + 1;
            return format!("{}{HIDDEN}", without_digests(text.get(..end).unwrap_or_default()));
        }
    }
    without_digests(text)
}

/// What may stand between a name and the sign that says that its value follows.
const BETWEEN: [char; 7] = ['"', '\'', '\\', ']', ')', ' ', '\t'];

/// Where the next word of letters, digits, `_` and `-` stands.
fn next_name(text: &str, from: usize) -> Option<std::ops::Range<usize>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let rest = text.get(from..)?;
    let start = rest.find(is_part)?;
    let length = rest.get(start..)?.find(|c| !is_part(c)).unwrap_or(rest.len() - start);
    Some(from + start..from + start + length)
}

/// A JSON value that stands at this path of names with dots between them.
pub fn json(path: &str, value: &Json) -> String {
    let mut shown = value.clone();
    hide(&mut shown, path.split('.').any(is_secret));
    shown.to_string()
}

/// Longest piece of a path that is shown, in bytes: a longer one may be a ticket.
const PIECE_MAX_BYTES: usize = 24;

/// The value of a header. A link loses its query, and whatever else of it may be a ticket or a password.
pub fn header(value: &str) -> String {
    let (plain, query) = match value.find(['?', '#']) {
        Some(end) => (value.get(..end).unwrap_or_default(), value.get(end..=end).unwrap_or_default()),
        None => (value, ""),
    };
    let (host, path) = match plain.find("://") {
        Some(scheme) => {
            let behind = scheme + "://".len();
            let end = plain.get(behind..).and_then(|rest| rest.find('/'));
            plain.split_at_checked(end.map_or(plain.len(), |end| behind + end)).unwrap_or((plain, ""))
        }
        None => ("", plain),
    };
    let host = match host.split_once("://").zip(host.rsplit_once('@')) {
        Some(((scheme, _), (_, host))) => format!("{scheme}://{HIDDEN}@{host}"),
        None => host.to_owned(),
    };
    let piece =
        |piece: &str| if piece.len() > PIECE_MAX_BYTES { HIDDEN.to_owned() } else { piece.to_owned() };
    let path: Vec<String> = path.split('/').map(piece).collect();
    let hidden = if query.is_empty() { "" } else { HIDDEN };
    format!("{host}{}{query}{hidden}", path.join("/"))
}

fn hide(value: &mut Json, is_hidden: bool) {
    match value {
        Json::Object(members) => {
            members.iter_mut().for_each(|(name, value)| hide(value, is_hidden || is_secret(name)));
        }
        Json::List(list) => list.iter_mut().for_each(|value| hide(value, is_hidden)),
        Json::Text(text) if text.is_empty() => {}
        Json::Text(_) | Json::Number(_) if is_hidden => *value = Json::from(HIDDEN),
        // One word alone may be an id.
        Json::Text(text) if text.contains(' ') => *text = without_digests(text),
        Json::Null | Json::Bool(_) | Json::Text(_) | Json::Number(_) => {}
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
        assert_eq!(json("json.info.anything", &Json::from("fake")), "\"***\"");
        assert_eq!(json("json.appInfo.password", &Json::from("")), "\"\"", "that there is none is no secret");
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
    fn a_token_that_was_expected_is_not_told_and_an_id_is() {
        let digest = "0123456789abcdef".repeat(2);
        let expected = format!("no: it should have been {digest}.");
        assert_eq!(body(expected.as_bytes()), "no: it should have been ***.");
        let answer = json!({"instanceId": digest, "message": expected, "trace": [digest.to_uppercase()]});
        let shown = body(answer.to_string().as_bytes());
        assert_eq!(shown.to_lowercase().matches(&digest).count(), 2, "{shown}");
        let long = format!("signature {0}{0}, not {0}{0}0", digest);
        assert_eq!(body(long.as_bytes()), format!("signature ***, not {0}{0}0", digest));
    }

    #[test]
    fn a_link_is_shown_without_its_ticket() {
        assert_eq!(header("https://a.example/in?ticket=fake"), "https://a.example/in?***");
        assert_eq!(header("https://a.example/#fake"), "https://a.example/#***");
        let ticket = "fake".repeat(8);
        assert_eq!(header(&format!("https://a.example/in/{ticket}/x?y")), "https://a.example/in/***/x?***");
        assert_eq!(header("https://root:fake@a.example"), "https://***@a.example");
        assert_eq!(header("/in?ticket=fake"), "/in?***");
        let host = "a-host-with-a-name-that-is-long.example";
        assert_eq!(header(&format!("https://{host}/")), format!("https://{host}/"));
        assert_eq!(header("application/json"), "application/json");
    }

    #[test]
    fn what_is_not_json_is_shown_as_it_is() {
        assert_eq!(body(b"<p>no</p>"), "<p>no</p>");
        assert_eq!(body(b""), "");
        assert_eq!(body(b"Invalid token"), "Invalid token");
        assert_eq!(body(b"Warning: line 7"), "Warning: line 7");
    }

    #[test]
    fn what_is_nearly_json_tells_no_secret_either() {
        let answer = r#"{"instanceId":"i-1","appInfo":{"password":"fake","adminUrl":"https://a.example"}}"#;
        for told in [
            format!("\u{feff}{answer}"),
            format!("<br />\nWarning: mysql_connect() in /srv/spi.php on line 7<br />{answer}"),
            format!("{answer}\nok"),
            answer.replace("}}", ""),
            answer.replace('"', "\\\""),
            "Array ( [instanceId] => i-1 [password] => fake )".to_owned(),
            "instanceId: i-1\ninitial_pwd: fake".to_owned(),
            "instanceId=i-1&ticket=fake".to_owned(),
            "<instanceId>i-1</instanceId><licenseKey>fake</licenseKey>".to_owned(),
        ] {
            let shown = body(told.as_bytes());
            assert!(!shown.contains("fake") && shown.contains("i-1"), "{told}: {shown}");
        }
        let broken = [b"{\"password\":\"fake\",\"name\":\"".as_slice(), &[0xff], b"\"}"].concat();
        assert!(!body(&broken).contains("fake"));
    }
}
