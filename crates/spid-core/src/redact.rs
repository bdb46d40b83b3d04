//! Masking of answers for a terminal, a log and a report.
//!
//! The marketplace passes an answer on to the buyer: initial passwords, license keys, a link that signs its bearer
//! in. A run against a live SPI endpoint must not print those. So everything that is shown of an answer passes
//! through this module. Comparisons use the unmasked answer.

use crate::query::without_tokens;
use spid_hook::json::Json;
use spid_hook::text::{ends_url, plain as on_one_line, plain_json, plain_lines, without_user_info};

/// Placeholder for a secret.
const HIDDEN: &str = "***";
/// Words in the name of a secret value. Masking too much is better than masking too little.
const SECRET_WORDS: [&str; 13] = [
    "bearer",
    "credential",
    "database",
    "key",
    "license",
    "pass",
    "pwd",
    "redirect",
    "secret",
    "ticket",
    "token",
    // The next two words mean "password" in Chinese.
    "\u{5bc6}\u{7801}",
    "\u{53e3}\u{4ee4}",
];
/// Section whose names the hook chooses: none of them tells whether its value is secret.
const REMARKS: &str = "info";

/// Masks a body: JSON with its secrets hidden, or any other text up to the first apparent secret.
/// Characters that could move a terminal's cursor are escaped.
pub fn body(bytes: &[u8]) -> String {
    match Json::read(bytes) {
        Ok(value) => json("", &value),
        Err(_) => plain_lines(&text(&String::from_utf8_lossy(bytes))).into_owned(),
    }
}

/// Removes passwords in URLs and tokens from a text, because some SPI endpoints answer with the token they
/// expected.
fn masked(text: &str) -> String {
    let text = without_user_info(text);
    let mut shown = String::with_capacity(text.len());
    let mut rest = &*text;
    while let Some((before, url)) = rest.split_once("://") {
        let (url, after) = url.split_at(url.find(ends_url).unwrap_or(url.len()));
        shown.push_str(before);
        shown.push_str("://");
        // The query or fragment of a URL may hold a ticket.
        shown.push_str(&cut_at(url, url.find(['?', '#']).map(|query| query + 1)));
        rest = after;
    }
    shown.push_str(rest);
    without_tokens(&shown).into_owned()
}

/// Masks a text that is not JSON.
/// Such a text is often almost JSON: a PHP warning or a byte order mark comes before it, or half of it is
/// missing. So a secret name hides everything behind it.
fn text(text: &str) -> String {
    // The earlier of the two hides more.
    let end = [secret_word(text), secret_value(text)].into_iter().flatten().min();
    masked(&cut_at(text, end))
}

/// Words that hide the rest of a sentence, with or without a sign that a value follows.
const ALWAYS_SECRET: [&str; 8] = [
    "passw",
    "pwd",
    "passphrase",
    "credential",
    "secret",
    "\u{5bc6}\u{7801}",
    "\u{53e3}\u{4ee4}",
    "\u{5bc6}\u{94a5}",
];

/// Returns the end of the first word that always announces a password or similar.
fn secret_word(text: &str) -> Option<usize> {
    let lower = text.to_ascii_lowercase();
    let start = ALWAYS_SECRET.iter().filter_map(|word| Some((lower.find(word)?, word.len()))).min();
    let (at, length) = start?;
    let behind = text.get(at + length..)?;
    Some(at + length + behind.find(|c| !is_of_name(c)).unwrap_or(behind.len()))
}

/// Returns the start of the first value that has a secret name.
fn secret_value(text: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(name) = next_name(text, from) {
        from = name.end;
        let value = text.get(name.end..)?.trim_start_matches(BETWEEN);
        let sign = value.chars().next().filter(|c| FOLLOWS.contains(c));
        if let Some(sign) = sign
            && text.get(name).is_some_and(is_secret)
        {
            return Some(text.len() - value.len() + sign.len_utf8());
        }
    }
    None
}

fn cut_at(text: &str, end: Option<usize>) -> String {
    match end.and_then(|end| text.get(..end)) {
        Some(shown) => format!("{shown}{HIDDEN}"),
        None => text.to_owned(),
    }
}

/// Characters that may be between a name and the sign before its value.
const BETWEEN: [char; 7] = ['"', '\'', '\\', ']', ')', ' ', '\t'];
/// Signs that announce a value.
const FOLLOWS: [char; 4] = [':', '=', '>', '\u{ff1a}'];

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Returns the position of the next word of letters, digits, `_` and `-`.
fn next_name(text: &str, from: usize) -> Option<std::ops::Range<usize>> {
    let rest = text.get(from..)?;
    let start = rest.find(is_of_name)?;
    let length = rest.get(start..)?.find(|c| !is_of_name(c)).unwrap_or(rest.len() - start);
    Some(from + start..from + start + length)
}

/// Masks a JSON value. `path` is its path of names, separated by dots.
pub fn json(path: &str, value: &Json) -> String {
    let mut shown = value.clone();
    hide(&mut shown, path.split('.').any(is_secret));
    plain_json(&shown.to_string()).into_owned()
}

/// Maximum length of a path segment that is shown, in bytes: a longer segment may be a ticket.
const PIECE_MAX_BYTES: usize = 24;

/// Masks the value of a header. A link loses its query, and every other part that may be a ticket or a password.
pub fn header(value: &str) -> String {
    let value = &*without_user_info(value);
    let (plain, query) = match value.find(['?', '#']) {
        Some(end) => (value.get(..end).unwrap_or_default(), value.get(end..=end).unwrap_or_default()),
        None => (value, ""),
    };
    // The host is never cut: only path segments have a length limit.
    let (host, path) = match plain.find("://") {
        Some(scheme) => {
            let behind = scheme + "://".len();
            let end = plain.get(behind..).and_then(|rest| rest.find('/'));
            plain.split_at_checked(end.map_or(plain.len(), |end| behind + end)).unwrap_or((plain, ""))
        }
        None => ("", plain),
    };
    let path: Vec<&str> = path.split('/').map(shown_piece).collect();
    let hidden = if query.is_empty() { "" } else { HIDDEN };
    on_one_line(&without_tokens(&format!("{host}{}{query}{hidden}", path.join("/")))).into_owned()
}

fn shown_piece(piece: &str) -> &str {
    if piece.len() > PIECE_MAX_BYTES { HIDDEN } else { piece }
}

fn hide(value: &mut Json, is_hidden: bool) {
    match value {
        Json::Object(members) => {
            let shown = std::mem::take(members).into_iter().map(|(name, mut value)| {
                // Everything below a secret name is secret too.
                hide(&mut value, is_hidden || is_secret(&name));
                // An SPI endpoint may use a token as a name, so mask names too.
                (shown_text(&name), value)
            });
            *members = shown.collect();
        }
        Json::List(list) => list.iter_mut().for_each(|value| hide(value, is_hidden)),
        Json::Text(text) if text.is_empty() => {}
        Json::Text(_) | Json::Number(_) if is_hidden => *value = Json::from(HIDDEN),
        Json::Text(text) => *text = shown_text(text),
        Json::Null | Json::Bool(_) | Json::Number(_) => {}
    }
}

/// Masks a text or a name within a JSON document: a sentence, another document, or one word, which may be an id.
fn shown_text(word: &str) -> String {
    if word.contains(' ') { text(word) } else { masked(&cut_at(word, secret_value(word))) }
}

/// Returns true if a value with this name is a secret.
pub fn is_secret(name: &str) -> bool {
    let plain = name.to_ascii_lowercase();
    plain == REMARKS || SECRET_WORDS.iter().any(|word| plain.contains(word))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use spid_hook::callback::SECRET_FIELDS;

    #[test]
    fn what_lets_somebody_in_is_hidden_and_the_rest_is_shown() {
        let answer = json!({
            "instanceId": "i-1", "success": true,
            "appInfo": {"frontEndUrl": "https://a.example", "username": "root", "password": "fake", "licenseId": "fake"},
            "hostInfo": {"ip": "192.0.2.1", "ftpPassword": "fake", "databaseInfo": {"x": ["fake", 7]}},
            "info": {"anything": "fake"}, "redirect": "fake", "scimAppsecret": "fake",
            "initialPass": "fake", "密码": "fake", "pass": 1234,
        });
        let shown = body(answer.to_string().as_bytes());
        assert!(!shown.contains("fake") && !shown.contains("1234"), "{shown}");
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
    fn a_token_is_shown_nowhere() {
        let digest = "0123456789abcdef".repeat(2);
        let expected = format!("no: it should have been {digest}.");
        assert_eq!(body(expected.as_bytes()), "no: it should have been <token>.");
        let long = format!("signature {0}{0}, not {0}{0}0", digest);
        let mut names = serde_json::Map::new();
        names.insert(digest.clone(), json!("x"));
        names.insert(format!("the token {digest}"), json!("x"));
        for answer in [
            json!({"instanceId": "i-1", "message": format!("tok:{digest}")}),
            json!({"instanceId": digest, "message": expected}),
            json!([digest.to_uppercase(), format!("x{digest}x"), long]),
            json!({"instanceId": "i-1", "x": names}),
        ] {
            let shown = body(answer.to_string().as_bytes());
            assert!(!shown.to_lowercase().contains(&digest) && shown.contains("<token>"), "{shown}");
            assert!(!json("json", &Json::from(answer)).to_lowercase().contains(&digest));
        }
        assert!(!header(&format!("https://{digest}.example/{digest}")).contains(&digest));
        assert!(!body(long.as_bytes()).contains(&digest));
        assert_eq!(
            body(br#"{"instanceId":"202611300000000000000001"}"#),
            r#"{"instanceId":"202611300000000000000001"}"#
        );
    }

    #[test]
    fn a_url_is_shown_without_its_password_and_its_query() {
        for (told, shown) in [
            ("https://root:fake@a.example/x", "https://***@a.example/x"),
            ("https://root:fa/ke@a.example/x", "https://***@a.example/x"),
            ("https://a.example:8443/?pw=fake&a=1", "https://a.example:8443/?***"),
            ("https://a.example/#fake", "https://a.example/#***"),
            (
                "see https://root:fake@a.example/?fake or ssh://fake@b.example",
                "see https://***@a.example/?*** or ssh://***@b.example",
            ),
            ("https://a.example:8443/of/a@b.example", "https://a.example:8443/of/a@b.example"),
        ] {
            assert_eq!(body(told.as_bytes()), shown);
            assert_eq!(body(json!([told]).to_string().as_bytes()), json!([shown]).to_string());
        }
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
    fn nothing_that_is_shown_moves_a_cursor() {
        let odd = "a\u{1b}[2J\u{202e}b\u{9b}";
        for shown in [body(odd.as_bytes()), body(json!({"message": odd}).to_string().as_bytes()), header(odd)]
        {
            assert!(!shown.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{shown:?}");
        }
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
            "<td>i-1</td><td>password</td><td>fake</td>".to_owned(),
            "i-1: the initial password is fake".to_owned(),
            "i-1 \u{5bc6}\u{7801}\u{ff1a}fake".to_owned(),
            "i-1 licenseId\u{ff1a}fake".to_owned(),
            format!("{}", json!({"instanceId": "i-1", "message": answer})),
            format!("{}", json!({"instanceId": "i-1", "message": "the pwd fake was set"})),
            format!("{}", json!({"instanceId": "i-1", "next": "https://a.example/?ticket=fake"})),
        ] {
            let shown = body(told.as_bytes());
            assert!(!shown.contains("fake") && shown.contains("i-1"), "{told}: {shown}");
        }
        let broken = [b"{\"password\":\"fake\",\"name\":\"".as_slice(), &[0xff], b"\"}"].concat();
        assert!(!body(&broken).contains("fake"));
    }
}
