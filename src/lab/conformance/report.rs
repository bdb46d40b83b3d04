//! Reports: a [`SelfTestReport`] as a document that a seller can attach, in Markdown or as one self-contained HTML
//! page.
//!
//! Before a product is listed, its seller tests it and sends a report. The vendor's template is not public
//! (help.aliyun.com/zh/marketplace/self-test-saas-commodities). These documents answer the questions of that page
//! in its order, and list what only a person can check. All text from an SPI endpoint is untrusted here: it is
//! escaped, and it cannot end the block that contains it.

use std::fmt::{self, Write as _};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Aspect, CaseReport, SelfTestReport};
use crate::lab::exchange::Exchange;
use crate::lab::report::{Report, TestReport, Verdict};
use spid_hook::text::is_plain;

/// Questions of the vendor's self-test: aspect, question, and the check that only a person can do.
const ASKED: [(Aspect, &str, &str); 5] = [
    (
        Aspect::Purchase,
        "A buyer opens the preview page and buys.",
        "The product was bought from its preview page (change the order's price to 0 if necessary).",
    ),
    (
        Aspect::Activation,
        "The buyer's console shows it as activated.",
        "The buyer's console shows the order as activated, not as being activated.",
    ),
    (
        Aspect::SignOn,
        "A click in the console leads into the application's back end.",
        "The click led into the back end: not to a login page, the vendor's home page or an error.",
    ),
    (
        Aspect::Information,
        "The buyer sees front end, back end, user name and password.",
        "The buyer's console shows all four, and they work.",
    ),
    (
        Aspect::Renewal,
        "A renewal extends the term.",
        "After a renewal the application shows the new term. Its own pages for purchase, renewal and upgrade are hidden, or lead to the marketplace.",
    ),
];

/// Returns the result of all cases about `aspect`, with its text.
fn summary(report: &SelfTestReport, aspect: Aspect) -> (Verdict, String) {
    let cases: Vec<&CaseReport> = report.cases.iter().filter(|case| case.aspect == aspect).collect();
    let count = |verdict| cases.iter().filter(|case| case.verdict == verdict).count();
    // One failed case decides, then one that was not judged.
    let worst = [Verdict::Failed, Verdict::NotJudged].into_iter().find(|verdict| count(*verdict) > 0);
    let verdict = worst.unwrap_or(Verdict::Passed);
    match cases.len() {
        0 => (Verdict::NotJudged, Verdict::NotJudged.as_str().to_owned()),
        all => (verdict, format!("{}: {} of {all} cases", verdict.as_str(), count(verdict))),
    }
}

fn verdict_of(report: &SelfTestReport) -> String {
    let count = |verdict| report.count(verdict);
    let stopped = if report.stopped { "; stopped before its end" } else { "" };
    format!(
        "{} of {} cases passed, {} failed, {} not judged{stopped}",
        count(Verdict::Passed),
        report.cases.len(),
        count(Verdict::Failed),
        count(Verdict::NotJudged)
    )
}

impl From<&SelfTestReport> for Report {
    fn from(report: &SelfTestReport) -> Report {
        let mut tests = Vec::new();
        for case in &report.cases {
            tests.push(TestReport {
                name: case.id.to_owned(),
                verdict: case.verdict,
                summary: case.finding.to_string(),
                details: case.details().join("\n"),
                duration_ms: case.duration_ms,
            });
        }
        Report { name: format!("conformance of {}", report.receiver), tests }
    }
}

impl CaseReport {
    /// Returns the rule, the source of the rule and the exchanges, line by line.
    pub fn details(&self) -> Vec<String> {
        let mut lines = vec![self.rule.to_owned(), format!("source: {}", self.source)];
        for exchange in &self.exchanges {
            let Exchange { what, method, target, body, answer, duration_ms, .. } = exchange;
            lines.extend([format!("{what}:"), format!("  -> {method} {target}")]);
            if !body.is_empty() {
                lines.push(format!("     {body}"));
            }
            lines.push(format!("  <- {} {answer} ({duration_ms} ms)", exchange.status_text()));
        }
        if self.left_out > 0 {
            lines.push(format!("… and {} similar ones", self.left_out));
        }
        lines
    }
}

/// Writes the result of a run as Markdown.
pub fn markdown(report: &SelfTestReport) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_markdown(report, &mut text);
    text
}

fn write_markdown(report: &SelfTestReport, text: &mut String) -> fmt::Result {
    writeln!(text, "# Self-test of an SPI endpoint\n")?;
    writeln!(text, "* receiver: {}", in_markdown(&report.receiver))?;
    writeln!(text, "* judged: {}, by spid {}", report.began_at, report.spid)?;
    writeln!(text, "* level: {}", report.level)?;
    writeln!(text, "* result: **{}**\n", verdict_of(report))?;
    writeln!(text, "## What the marketplace's self-test asks\n")?;
    writeln!(text, "| | asked | result |\n|---|---|---|")?;
    for (aspect, asked, _) in ASKED {
        writeln!(text, "| {} | {asked} | {} |", aspect.as_str(), summary(report, aspect).1)?;
    }
    writeln!(text, "\nCheck by hand:\n")?;
    for (_, _, by_hand) in ASKED {
        writeln!(text, "- [ ] {by_hand}")?;
    }
    for aspect in Aspect::ALL {
        write_markdown_cases(report, aspect, text)?;
    }
    write_markdown_findings(report, text)?;
    if !report.left_behind.is_empty() {
        writeln!(text, "\n## To be released by hand\n")?;
        writeln!(text, "These instances were bought and could not be released.\n")?;
        for id in &report.left_behind {
            writeln!(text, "* {}", in_markdown(id))?;
        }
    }
    Ok(())
}

fn write_markdown_cases(report: &SelfTestReport, aspect: Aspect, text: &mut String) -> fmt::Result {
    let mut cases = report.cases.iter().filter(|case| case.aspect == aspect).peekable();
    if cases.peek().is_none() {
        return Ok(());
    }
    writeln!(
        text,
        "\n## {}\n\n| case | level | result | rule | found |\n|---|---|---|---|---|",
        aspect.as_str()
    )?;
    for case in cases {
        let CaseReport { id, level, rule, .. } = case;
        let (verdict, said) = (case.verdict.as_str(), in_markdown(&case.finding.to_string()));
        writeln!(text, "| `{id}` | {level} | {verdict} | {rule} | {said} |")?;
    }
    Ok(())
}

fn write_markdown_findings(report: &SelfTestReport, text: &mut String) -> fmt::Result {
    for case in report.cases.iter().filter(|case| case.verdict == Verdict::Failed) {
        writeln!(text, "\n## Failed: `{}`\n", case.id)?;
        writeln!(text, "{} ({})\n\n{}\n", case.rule, case.source, in_markdown(&case.finding.to_string()))?;
        for exchange in &case.exchanges {
            let block = exchange_text(exchange);
            // A fence longer than every run of backticks in the block, so that the answer cannot close it.
            let fence = "`".repeat(longest_run(&block, '`').max(2) + 1);
            writeln!(text, "{}:\n\n{fence}text\n{block}\n{fence}\n", in_markdown(&exchange.what))?;
        }
    }
    Ok(())
}

/// Escapes a text for Markdown, on one line.
fn in_markdown(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        match c {
            '&' => plain.push_str("&amp;"),
            '<' => plain.push_str("&lt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '!' | '~' => plain.extend(['\\', c]),
            // Line ends too: a table row must stay on one line.
            c if !is_plain(c) => plain.push(' '),
            c => plain.push(c),
        }
    }
    plain
}

fn longest_run(text: &str, of: char) -> usize {
    text.split(|c| c != of).map(str::len).max().unwrap_or_default()
}

fn exchange_text(exchange: &Exchange) -> String {
    let Exchange { method, target, body, answer, duration_ms, .. } = exchange;
    let body = if body.is_empty() { String::new() } else { format!("\n\n{body}") };
    let status = exchange.status_text();
    without_controls(&format!("{method} {target}{body}\n\n{status} after {duration_ms} ms\n{answer}"))
}

/// Removes control characters, but keeps line ends: a block has several lines.
fn without_controls(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || is_plain(*c)).collect()
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1d2733;--dim:#5d6b7a;--line:#d9e0e7;--ground:#f6f8fa;--card:#fff;\
--good:#137a4b;--bad:#b3261e;--none:#7a6a14}\
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf0;--dim:#9aa8b6;--line:#2f3a45;--ground:#12181f;\
--card:#1a222b;--good:#4cc38a;--bad:#ff8a80;--none:#d9c35a}}\
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);\
font:16px/1.5 system-ui,sans-serif}main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem}\
h1{font-size:1.8rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.25rem 0 .75rem}\
.dim{color:var(--dim)}.tiles{display:flex;flex-wrap:wrap;gap:.75rem;margin:1.5rem 0}\
.tile{flex:1 1 10rem;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem}\
.tile b{display:block;font-size:1.7rem;line-height:1.2}\
table{width:100%;border-collapse:collapse;background:var(--card);border:1px solid var(--line)}\
th,td{text-align:left;vertical-align:top;padding:.55rem .75rem;border-top:1px solid var(--line)}\
details{background:var(--card);border:1px solid var(--line);border-radius:.6rem;margin:.4rem 0}\
summary{cursor:pointer;padding:.6rem .9rem;display:flex;gap:.75rem;align-items:baseline}\
summary::-webkit-details-marker{display:none}.id{font-family:ui-monospace,monospace;font-size:.9rem}\
.rule{flex:1}.mark{font-weight:600;min-width:5.5rem}.level{font-size:.8rem;color:var(--dim);min-width:5rem}\
.passed{color:var(--good)}.failed{color:var(--bad)}.not{color:var(--none)}\
.in{padding:0 .9rem .9rem}pre{background:var(--ground);border:1px solid var(--line);border-radius:.4rem;\
padding:.7rem;overflow-x:auto;white-space:pre-wrap;word-break:break-all;font-size:.82rem}\
ul.check{list-style:none;padding:0}ul.check li::before{content:\"\\2610\\00a0\\00a0\"}\
@media print{details{break-inside:avoid}}";

/// Writes the result of a run as an HTML page.
pub fn html(report: &SelfTestReport) -> String {
    let receiver = without_controls(&report.receiver);
    // The policy allows no scripts, because the page shows text from the endpoint.
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width,initial-scale=1";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "Self-test of " (receiver) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    h1 { "Self-test of an SPI endpoint" }
                    p class="dim" {
                        (receiver) br;
                        "judged " (report.began_at) " by spid " (report.spid) ", level " (report.level) br;
                        (verdict_of(report))
                    }
                    (tiles(report))
                    (asked(report))
                    @for aspect in Aspect::ALL { (cases_about(report, aspect)) }
                    @if !report.left_behind.is_empty() {
                        h2 { "To be released by hand" }
                        p { "Bought, but not released:" }
                        ul { @for id in &report.left_behind { li { (without_controls(id)) } } }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn tiles(report: &SelfTestReport) -> Markup {
    html! {
        div class="tiles" {
            @for verdict in Verdict::ALL {
                @let count = report.count(verdict);
                // "0 failed" must not look alarming.
                div class="tile" { b class=(if count == 0 { "dim" } else { verdict.as_str() }) { (count) } (verdict) }
            }
        }
    }
}

fn asked(report: &SelfTestReport) -> Markup {
    html! {
        h2 { "What the marketplace's self-test asks" }
        table {
            @for (aspect, asked, _) in ASKED {
                @let (verdict, said) = summary(report, aspect);
                tr { th { (aspect) } td { (asked) } td class=(verdict) { (said) } }
            }
        }
        h2 { "Check by hand" }
        ul class="check" { @for (_, _, by_hand) in ASKED { li { (by_hand) } } }
    }
}

fn cases_about(report: &SelfTestReport, aspect: Aspect) -> Markup {
    let cases: Vec<&CaseReport> = report.cases.iter().filter(|case| case.aspect == aspect).collect();
    html! {
        @if !cases.is_empty() { h2 { (aspect) } }
        @for case in cases {
            details open[case.verdict == Verdict::Failed] {
                summary {
                    span class={ "mark " (case.verdict) } { (case.verdict) }
                    span class="level" { (case.level) }
                    span class="rule" { (case.rule) }
                    span class="id" { (case.id) }
                }
                div class="in" {
                    p { (without_controls(&case.finding.to_string())) }
                    p class="dim" { (case.source) }
                    @for exchange in &case.exchanges {
                        p class="dim" { (without_controls(&exchange.what)) }
                        pre { (exchange_text(exchange)) }
                    }
                    @if case.left_out > 0 { p class="dim" { "and " (case.left_out) " more" } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Finding, Level};
    use super::*;

    const HOSTILE: &str = "</pre><script>alert(1)</script> | **bold** ```\n# heading & 'x' \"y\" \u{1b}[2J";

    fn report() -> SelfTestReport {
        let exchange = Exchange {
            what: HOSTILE.to_owned(),
            method: "GET",
            target: "/spi?token=<token>".to_owned(),
            body: HOSTILE.to_owned(),
            status: Some(200),
            answer: HOSTILE.to_owned(),
            duration_ms: 7,
        };
        let case = |id, aspect, verdict| CaseReport {
            id,
            level: Level::Must,
            aspect,
            rule: "A rule.",
            source: "help.example",
            verdict,
            finding: Finding::Unsendable { error: HOSTILE.to_owned() },
            exchanges: vec![exchange.clone()],
            left_out: 2,
            duration_ms: 9,
        };
        SelfTestReport {
            spid: "0",
            receiver: HOSTILE.to_owned(),
            began_at: "2026-01-01T00:00:00Z".parse().unwrap(),
            level: Level::Must,
            passed: false,
            stopped: false,
            cases: vec![
                case("create", Aspect::Activation, Verdict::Passed),
                case("renew", Aspect::Renewal, Verdict::Failed),
                case("late", Aspect::Renewal, Verdict::NotJudged),
            ],
            left_behind: vec![HOSTILE.to_owned()],
        }
    }

    #[test]
    fn nothing_a_receiver_says_is_markup() {
        let page = html(&report());
        assert!(!page.contains("<script") && !page.contains("</pre><script"), "{page}");
        assert_eq!(page.matches("<pre>").count(), page.matches("</pre>").count());
        let text = markdown(&report());
        let outside_of_fences: String = text.split("````").step_by(2).collect();
        assert!(
            !outside_of_fences.contains("<script") && !outside_of_fences.contains("\n# heading"),
            "{text}"
        );
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells = line.replace("\\|", "").matches('|').count();
            assert_eq!(cells, 6, "{line}");
        }
        assert!(text.contains("````text\n"), "a fence that the answer cannot close");
        assert!(!text.contains('\u{1b}') && !page.contains('\u{1b}'));
    }

    #[test]
    fn what_was_stopped_says_so() {
        let stopped = SelfTestReport { stopped: true, ..report() };
        for (text, whole) in [(markdown(&stopped), markdown(&report())), (html(&stopped), html(&report()))] {
            assert!(text.contains("stopped before its end") && !whole.contains("stopped"), "{text}");
        }
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = html(&report());
        for outside in ["http://", "https://", "src=", "url(", "@import", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn every_question_of_the_self_test_has_its_answer() {
        let text = markdown(&report());
        assert!(
            text.contains(
                "| Activation | The buyer's console shows it as activated. | passed: 1 of 1 cases |"
            )
        );
        assert!(text.contains("| Renewal | A renewal extends the term. | failed: 1 of 2 cases |"));
        assert!(text.contains("| Purchase | A buyer opens the preview page and buys. | not judged |"));
        assert!(
            text.contains("## Failed: `renew`")
                && text.contains("**1 of 3 cases passed, 1 failed, 1 not judged**")
        );
        for (aspect, ..) in ASKED {
            assert!(html(&report()).contains(&format!("<th>{}</th>", aspect.as_str())));
        }
    }
}
