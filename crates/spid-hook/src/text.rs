//! Text from other programs and people: made safe to show, and checked before it becomes a name.
//!
//! A hook, a marketplace or an import may send any character. Some characters move a terminal's cursor, and
//! some reverse the text around them. Others are invisible, so that two different ids look equal. All of these
//! are shown as escapes everywhere, and no new id or key may hold one.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;

/// Returns true if a character can be shown as it is. Such a character is visible or a space, is no control
/// character, and does not change the direction of text.
pub fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    match c {
        // Spaces of other widths, which Chinese text contains.
        '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => true,
        // Letters and marks without a visible shape.
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' => false,
        '\u{3164}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}' => false,
        // The standard library knows all other characters that cannot be printed. It escapes a combining mark
        // at the beginning of a text, so put another character before it.
        _ => ['x', c].iter().collect::<String>().escape_debug().count() == 2,
    }
}

/// Escapes a text to one line, for a terminal, a log or a table.
pub fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, is_plain, |c, out| out.extend(c.escape_default()))
}

/// Escapes a text to one line and keeps its tabs, because stack traces are indented with tabs.
pub fn plain_log(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\t' || is_plain(c), |c, out| out.extend(c.escape_default()))
}

/// Escapes a text and keeps its line breaks and tabs.
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t') || is_plain(c), |c, out| out.extend(c.escape_default()))
}

/// Escapes a JSON document without changing its meaning, so that it is safe to print. A character that is not
/// plain becomes `\uXXXX`.
pub fn plain_json(json: &str) -> Cow<'_, str> {
    escaped(json, |c| matches!(c, '\n' | '\r' | '\t') || is_plain(c), push_json_escape)
}

fn push_json_escape(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        let _ = write!(out, "\\u{unit:04x}");
    }
}

fn escaped(text: &str, stays: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> Cow<'_, str> {
    // Most texts need no escape, so return them without a copy.
    if text.chars().all(&stays) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) { shown.push(c) } else { escape(c, &mut shown) }
    }
    Cow::Owned(shown)
}

/// Formats a path of the configuration for an error. A text that does not look like a path may be a key that
/// was pasted by mistake, so it is not shown.
pub fn named_file(path: &Path) -> String {
    let is_extension =
        |end: &str| (2..=8).contains(&end.len()) && end.bytes().all(|c| c.is_ascii_lowercase());
    // A text with a `/`, or with an extension of 2 to 8 lower-case letters, is taken for a path.
    let text = path.display().to_string();
    let is_path = text.contains('/') || path.extension().and_then(OsStr::to_str).is_some_and(is_extension);
    if is_path { format!("`{text}`") } else { "the configured file".to_owned() }
}

/// Replaces the user and the password of every URL in a text with `***`.
pub fn without_user_info(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        shown.push_str(before);
        shown.push_str("://");
        rest = behind;
        if let Some((_, host)) = user_info_end(behind).and_then(|end| behind.split_at_checked(end)) {
            shown.push_str("***");
            rest = host;
        }
    }
    // No `://` was found.
    if rest.len() == text.len() {
        return Cow::Borrowed(text);
    }
    shown.push_str(rest);
    if shown == text { Cow::Borrowed(text) } else { Cow::Owned(shown) }
}

/// Returns true for a character that ends a URL in a text.
pub fn ends_url(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '\\')
}

fn is_port(port: &str) -> bool {
    port.ends_with(']') || port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the position of the `@` that ends the user and the password of a URL, in the text after its `://`.
fn user_info_end(behind: &str) -> Option<usize> {
    // A text can hold several URLs, and other words after them.
    let url = behind.split(ends_url).next()?;
    let authority = url.split(['/', '?', '#']).next()?;
    match authority.rfind('@') {
        // The last `@`, because a password may contain one.
        Some(end) => Some(end),
        // A password may contain an unencoded `/`, `?` or `#`, which seems to end the authority.
        None => authority.rsplit_once(':').filter(|(_, port)| !is_port(port)).and_then(|_| url.rfind('@')),
    }
}

/// Returns the first character of a text that cannot be shown as it is, and its position in characters, from 1.
pub fn fault_of_text(text: &str) -> Option<String> {
    let (index, c) = text.chars().enumerate().find(|(_, c)| !is_plain(*c))?;
    Some(format!("character {} is {}, which cannot be shown", index + 1, code_point(c)))
}

/// Returns the first character that a name must not hold, and its position in characters, from 1.
///
/// A name identifies an instance, a tenant or an account. People compare names by eye and copy them. So a name
/// holds plain characters only, no space except U+0020, and no space at its ends.
pub fn fault_of_name(name: &str) -> Option<String> {
    let fits =
        |c: char| is_plain(c) && (c == ' ' || !c.is_whitespace()) && !matches!(c, '\u{fe00}'..='\u{fe0f}');
    let odd = name.chars().enumerate().find(|(_, c)| !fits(*c));
    if let Some((index, c)) = odd {
        return Some(format!("character {} is {}, which a name must not hold", index + 1, code_point(c)));
    }
    let has_space = name.starts_with(' ') || name.ends_with(' ');
    has_space.then(|| "the name begins or ends with a space; remove the space".to_owned())
}

/// Returns the fault of a key, a token or another secret from outside. The text names one character and its
/// position, and nothing else of the secret.
///
/// Every character must be printable ASCII (U+0020 to U+007E), without a space at the ends. Marketplaces issue
/// letters, digits and punctuation. Any other character was copied along with the key by mistake.
pub fn fault_of_secret(secret: &str) -> Option<String> {
    let last = secret.chars().count();
    for (index, c) in secret.chars().enumerate() {
        let at = index + 1;
        if !(' '..='~').contains(&c) {
            return Some(format!(
                "character {at} of {last} is {}; a key holds printable ASCII only, so copy it again without it",
                code_point(c)
            ));
        }
        if c == ' ' && (at == 1 || at == last) {
            return Some(format!(
                "character {at} of {last} is a space (U+0020); remove the space around the key"
            ));
        }
    }
    None
}

/// Formats a character as its number, with its name if it is a common one.
fn code_point(c: char) -> String {
    let name = match c {
        '\0' => " (NUL)",
        '\t' => " (a tab)",
        '\n' => " (a line break)",
        '\r' => " (a carriage return)",
        '\u{1b}' => " (ESC)",
        '\u{a0}' => " (a no-break space)",
        '\u{200b}' => " (a zero-width space)",
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}' | '\u{200e}' | '\u{200f}' => {
            " (changes the direction of text)"
        }
        '\u{3000}' => " (an ideographic space)",
        '\u{feff}' => " (a byte order mark)",
        _ => "",
    };
    format!("U+{:04X}{name}", u32::from(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_loses_its_user_and_password() {
        for (text, shown) in [
            ("https://root:fake@a.example/", "https://***@a.example/"),
            ("postgres://u:fa@ke@db:5432/x and http://t@b", "postgres://***@db:5432/x and http://***@b"),
            ("https://root:fa?k#e@a.example/", "https://***@a.example/"),
            ("{\"a\":\"https://r:fake@a\",\"b\":\"x@y\"}", "{\"a\":\"https://***@a\",\"b\":\"x@y\"}"),
        ] {
            assert_eq!(without_user_info(text), shown);
        }
        for text in [
            "",
            "://",
            "a@b",
            "https://a.example:8443/@x",
            "https://[2001:db8::1]/@x",
            "https://a/ b@c",
            "https://***@a",
        ] {
            assert_eq!(without_user_info(text), text);
        }
    }

    /// Characters that reverse, hide or break the text around them.
    const ODD: [char; 24] = [
        '\0',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{ad}',
        '\u{61c}',
        '\u{180e}',
        '\u{200b}',
        '\u{200d}',
        '\u{200f}',
        '\u{2028}',
        '\u{2029}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{3164}',
        '\u{feff}',
        '\u{fff9}',
        '\u{fffe}',
        '\u{e0041}',
        '\u{e0100}',
    ];

    #[test]
    fn what_does_not_show_is_shown_as_an_escape() {
        for c in ODD {
            let text = format!("a{c}b");
            for shown in [plain(&text), plain_json(&text)] {
                let kept = matches!(c, '\n' | '\r');
                assert!(kept || !shown.contains(c), "{c:?}: {shown:?}");
            }
            assert_eq!(plain(&text), format!("a{}b", c.escape_default()));
            assert!(fault_of_name(&text).unwrap().contains("character 2 is U+"), "{c:?}");
            assert!(fault_of_secret(&text).unwrap().contains("character 2 of 3 is U+"), "{c:?}");
        }
        assert_eq!(plain_lines("a\n\tb\r"), "a\n\tb\\r");
        assert_eq!(plain_log("a\n\tb\r"), "a\\n\tb\\r");
    }

    #[test]
    fn languages_stay() {
        for text in [
            "order-1",
            "中文　名",
            "Ünïcödé",
            "e\u{301}",
            "ชื่อ",
            "नाम",
            "😀",
            "\u{2764}\u{fe0f}",
            "R&D \"x\" \\'",
        ] {
            assert_eq!(plain(text), text);
            assert!(matches!(plain_json(text), Cow::Borrowed(_)));
        }
        for name in ["order-1", "中文名", "a b", "e\u{301}", "😀"] {
            assert_eq!(fault_of_name(name), None, "{name}");
        }
        for name in [" a", "a ", "a\u{a0}b", "a　b", "\u{2764}\u{fe0f}"] {
            assert!(fault_of_name(name).is_some(), "{name}");
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let text: String = ODD.iter().collect();
        let json = serde_json::to_string_pretty(&vec![text.clone()]).unwrap();
        let shown = plain_json(&json);
        assert!(shown.chars().all(|c| c == '\n' || c.is_ascii_graphic() || c == ' '), "{shown}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [text]);
    }

    #[test]
    fn a_secret_is_printable_ascii_and_never_told() {
        for (secret, said) in [
            ("\u{feff}fake-canary", "character 1 of 12 is U+FEFF (a byte order mark)"),
            ("fake-canary\u{200b}", "character 12 of 12 is U+200B (a zero-width space)"),
            ("fake canary ", "character 12 of 12 is a space"),
            ("fäke", "character 2 of 4 is U+00E4"),
        ] {
            let fault = fault_of_secret(secret).unwrap();
            assert!(
                fault.starts_with(said) && !fault.contains("fake") && !fault.contains("canary"),
                "{fault}"
            );
        }
        assert_eq!(fault_of_secret("fake canary+/=~!"), None);
    }
}
