//! HTML that is safe by its types: text is always escaped, and nothing else adds text to a page.
//!
//! Everything that a marketplace sends is untrusted. Names of elements and attributes are our own words
//! (`&'static str`). Values and texts are escaped. Every computed target of a link is a [`Link`].

use super::target::Link;
use spid_hook::text;

/// Fragment of a page.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// Attributes of an element: names of our own, values from anywhere.
pub(super) type Attributes<'a> = &'a [(&'static str, &'a str)];

impl Html {
    /// Appends escaped text.
    pub(super) fn text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Characters that could reverse or hide the text around them are shown as escapes.
                c if is_invisible(c) => self.0.extend(c.escape_unicode()),
                c => self.0.push(c),
            }
        }
    }

    /// Appends an element with content.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: Attributes<'_>,
        inside: impl FnOnce(&mut Html),
    ) {
        self.open(name, attributes);
        inside(self);
        self.close(name);
    }

    /// Appends an element that contains only text.
    pub(super) fn leaf(&mut self, name: &'static str, class: &'static str, text: &str) {
        let attributes: Attributes<'_> = if class.is_empty() { &[] } else { &[("class", class)] };
        self.element(name, attributes, |html| html.text(text));
    }

    /// Appends an element that never has content.
    pub(super) fn void(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.open(name, attributes);
    }

    /// Appends a link to another page of the listener.
    pub(super) fn link(&mut self, class: &'static str, link: &Link, text: &str) {
        let link = link.to_string();
        let attributes = [("href", &*link), ("class", class)];
        let count = if class.is_empty() { 1 } else { 2 };
        self.element("a", attributes.get(..count).unwrap_or_default(), |html| html.text(text));
    }

    /// Appends a fragment.
    pub(super) fn push(&mut self, piece: Html) {
        self.0.push_str(&piece.0);
    }

    /// Returns the complete page.
    pub(super) fn into_page(self) -> String {
        format!("<!doctype html>\n{}\n", self.0)
    }

    fn open(&mut self, name: &'static str, attributes: Attributes<'_>) {
        self.0.push('<');
        self.0.push_str(name);
        for (name, value) in attributes {
            self.0.push(' ');
            self.0.push_str(name);
            self.0.push_str("=\"");
            // The same escaping is correct for texts and for quoted attribute values.
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
    }

    fn close(&mut self, name: &'static str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }
}

fn is_invisible(c: char) -> bool {
    !matches!(c, '\n' | '\t') && !text::is_plain(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(text: &str) -> String {
        let mut html = Html::default();
        html.element("p", &[("title", text)], |html| html.text(text));
        html.0
    }

    /// Text as a browser decodes it.
    fn unescaped(markup: &str) -> String {
        let marks = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
        marks.iter().fold(markup.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    #[test]
    fn what_turns_text_around_is_shown() {
        assert_eq!(page("a\u{202e}b\0"), "<p title=\"a\\u{202e}b\\u{0}\">a\\u{202e}b\\u{0}</p>");
        for odd in ['\u{61c}', '\u{2028}', '\u{2029}', '\u{ad}', '\u{180e}', '\u{fff9}', '\u{e0041}', '\r'] {
            assert!(!page(&format!("a{odd}b")).contains(odd), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn text_stays_text(text in "[<>\"'&a-z/=\\s\\PC]{0,60}") {
            let page = page(&text);
            let inner = page.strip_prefix("<p title=\"").unwrap().strip_suffix("</p>").unwrap();
            let (value, body) = inner.split_once("\">").unwrap();
            for part in [value, body] {
                prop_assert!(!part.contains(['<', '>', '"', '\'']), "{}", part);
            }
            prop_assert_eq!(value, body);
            if !text.chars().any(is_invisible) {
                prop_assert_eq!(unescaped(body), text);
            }
        }
    }
}
