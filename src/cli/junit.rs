//! JUnit's XML: what build servers read.

use std::fmt::Write as _;

use serde::Serialize;

use crate::hook::text::is_plain;

/// What came of one test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) enum Came {
    Passed,
    /// In a sentence, and all of it.
    Failed(String, String),
    Skipped(String),
}

/// One test of a suite.
pub(super) struct Test {
    pub(super) name: String,
    pub(super) duration_ms: u64,
    pub(super) came: Came,
}

/// Tests that belong together.
pub(super) struct Suite {
    pub(super) name: String,
    pub(super) tests: Vec<Test>,
}

/// The document.
pub(super) fn xml(suites: &[Suite]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
    for suite in suites {
        let count = |is: fn(&Came) -> bool| suite.tests.iter().filter(|test| is(&test.came)).count();
        // Writing to a text cannot fail.
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\">",
            escaped(&suite.name),
            suite.tests.len(),
            count(|came| matches!(came, Came::Failed(..))),
            count(|came| matches!(came, Came::Skipped(_))),
            seconds(suite.tests.iter().map(|test| test.duration_ms).sum()),
        );
        suite.tests.iter().for_each(|test| write_test(&suite.name, test, &mut text));
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn write_test(suite: &str, test: &Test, text: &mut String) {
    let (suite, name, time) = (escaped(suite), escaped(&test.name), seconds(test.duration_ms));
    let _ = write!(text, "    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{time}\"");
    let _ = match &test.came {
        Came::Passed => writeln!(text, "/>"),
        Came::Failed(shortly, whole) => writeln!(
            text,
            "><failure message=\"{}\">{}</failure></testcase>",
            escaped(shortly),
            escaped(whole)
        ),
        Came::Skipped(why) => writeln!(text, "><skipped message=\"{}\"/></testcase>", escaped(why)),
    };
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

/// A text as XML has it. What XML cannot carry at all becomes a replacement character.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            c if !is_plain(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_stays_text() {
        let test = |name: &str, came| Test { name: name.to_owned(), duration_ms: 1_007, came };
        let suite = Suite {
            name: "a <suite>".to_owned(),
            tests: vec![
                test("good", Came::Passed),
                test("bad", Came::Failed("it's \"no\"".to_owned(), "</failure>\n\u{0}".to_owned())),
                test("none", Came::Skipped("later".to_owned())),
            ],
        };
        assert_eq!(
            xml(&[suite]),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  \
             <testsuite name=\"a &lt;suite&gt;\" tests=\"3\" failures=\"1\" skipped=\"1\" time=\"3.021\">\n    \
             <testcase classname=\"a &lt;suite&gt;\" name=\"good\" time=\"1.007\"/>\n    \
             <testcase classname=\"a &lt;suite&gt;\" name=\"bad\" time=\"1.007\">\
             <failure message=\"it's &quot;no&quot;\">&lt;/failure&gt;&#10;\u{fffd}</failure></testcase>\n    \
             <testcase classname=\"a &lt;suite&gt;\" name=\"none\" time=\"1.007\"><skipped message=\"later\"/></testcase>\n  \
             </testsuite>\n</testsuites>\n"
        );
    }
}
