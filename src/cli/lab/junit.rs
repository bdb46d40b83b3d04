//! JUnit XML, the format of test results that build servers read.

use std::fmt::Write as _;

use serde::Serialize;

use spid_hook::text::is_plain;

/// Result of one test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Came {
    Passed,
    /// Failed: one sentence, and all details.
    Failed(String, String),
    Skipped(String),
}

/// Single test of a suite.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) duration_ms: u64,
    pub(crate) came: Came,
}

/// Group of tests.
pub(crate) struct Suite {
    pub(crate) name: String,
    pub(crate) tests: Vec<Test>,
}

/// Returns the whole XML document.
pub(crate) fn xml(suites: &[Suite]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
    for suite in suites {
        let count = |is: fn(&Came) -> bool| suite.tests.iter().filter(|test| is(&test.came)).count();
        // Writing to a `String` cannot fail.
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

/// Escapes a text for XML. Characters that XML does not allow become replacement characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML readers turn a plain line break in an attribute into a space.
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
