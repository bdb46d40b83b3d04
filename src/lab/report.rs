//! Results of tests, in one form for fixtures and the conformance suite, and their JUnit XML for build servers.

use std::fmt::Write as _;

use serde::Serialize;

use spid_hook::text::is_plain;

spid_hook::words! {
    /// Result of one test.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Verdict {
        /// The rule holds.
        Passed = "passed",
        /// The rule does not hold.
        Failed = "failed",
        /// A test before it has failed, so it says nothing.
        NotJudged = "not judged",
    }
}

/// One test and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestReport {
    /// Name of the test.
    pub name: String,
    /// Result.
    pub verdict: Verdict,
    /// Finding, in one sentence.
    pub summary: String,
    /// Details of a failed test, in several lines.
    pub details: String,
    /// Duration, in milliseconds.
    pub duration_ms: u64,
}

/// Result of a group of tests: a fixture, or the conformance suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name of the group.
    pub name: String,
    /// Tests, in order.
    pub tests: Vec<TestReport>,
}

impl Report {
    /// Returns the number of tests with this result.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tests.iter().filter(|test| test.verdict == verdict).count()
    }
}

/// Returns the reports as one document of JUnit XML.
pub fn junit(reports: &[Report]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n".to_owned();
    for suite in reports {
        // Writing to a `String` cannot fail.
        let _ = writeln!(
            text,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\">",
            escaped(&suite.name),
            suite.tests.len(),
            suite.count(Verdict::Failed),
            suite.count(Verdict::NotJudged),
            seconds(suite.tests.iter().map(|test| test.duration_ms).sum()),
        );
        suite.tests.iter().for_each(|test| write_test(&suite.name, test, &mut text));
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

fn write_test(suite: &str, test: &TestReport, text: &mut String) {
    let (suite, name, time) = (escaped(suite), escaped(&test.name), seconds(test.duration_ms));
    let summary = escaped(&test.summary);
    let _ = write!(text, "    <testcase classname=\"{suite}\" name=\"{name}\" time=\"{time}\"");
    let _ = match test.verdict {
        Verdict::Passed => writeln!(text, "/>"),
        Verdict::NotJudged => writeln!(text, "><skipped message=\"{summary}\"/></testcase>"),
        Verdict::Failed => {
            let details = escaped(&test.details);
            writeln!(text, "><failure message=\"{summary}\">{details}</failure></testcase>")
        }
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
        let test = |name: &str, verdict, summary: &str, details: &str| TestReport {
            name: name.to_owned(),
            verdict,
            summary: summary.to_owned(),
            details: details.to_owned(),
            duration_ms: 1_007,
        };
        let suite = Report {
            name: "a <suite>".to_owned(),
            tests: vec![
                test("good", Verdict::Passed, "", ""),
                test("bad", Verdict::Failed, "it's \"no\"", "</failure>\n\u{0}"),
                test("none", Verdict::NotJudged, "later", ""),
            ],
        };
        assert_eq!(
            junit(&[suite]),
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
