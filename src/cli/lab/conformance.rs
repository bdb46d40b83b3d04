//! `conformance`: tests any SPI endpoint that speaks the Alibaba dialect.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use jiff::tz::TimeZone;

use crate::cli::keys::arguments::EndpointArguments;
use crate::cli::lab::scenario::{Progress, expect_this_machine, interrupted, write_file};
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, runtime};
use crate::lab::conformance::{
    Case, CaseReport, Level, SelfTestReport, Suite, SuiteError, SuiteObserver, TestProduct, report,
};
use crate::lab::report::{Verdict, junit};
use crate::net::Url;
use crate::observe::limits;
use spid_core::span::Span;

#[derive(Args)]
pub(crate) struct ConformanceArguments {
    #[command(flatten)]
    endpoint: EndpointArguments,
    /// Highest level to test: must, should (and must), or hardening (everything).
    #[arg(long, value_name = "LEVEL", default_value = "hardening")]
    level: Level,
    /// Test only this case and the cases it needs; can be repeated. docs/conformance.md lists the cases.
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// Write a report: Markdown to FILE.md, HTML to FILE.html; can be repeated.
    #[arg(long, value_name = "FILE")]
    report: Vec<PathBuf>,
    /// Write a JUnit XML report for a build server.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Show every request and answer, not only those of failed cases.
    #[arg(long, short)]
    verbose: bool,
    /// Allow an address that is not this machine. The test really buys there.
    #[arg(long)]
    yes: bool,
    /// Code of the product to buy.
    #[arg(long, value_name = "CODE", default_value_t = TestProduct::default().code)]
    product: String,
    /// SKU to buy.
    #[arg(long, value_name = "SKU", default_value_t = TestProduct::default().sku)]
    sku: String,
    /// SKU to upgrade to.
    #[arg(long, value_name = "SKU", default_value_t = TestProduct::default().upgrade_sku)]
    upgrade_sku: String,
    /// Account of the buyer.
    #[arg(long, value_name = "UID", default_value_t = TestProduct::default().buyer)]
    buyer: String,
    /// URL of sign-on links, if it is neither the appInfo.authUrl of the endpoint's answer nor the endpoint itself.
    #[arg(long, value_name = "URL")]
    sign_on_url: Option<Url>,
    /// Time zone of dates that carry no zone.
    #[arg(long, value_name = "ZONE", default_value = "Asia/Shanghai")]
    timezone: String,
    /// Time limit for an answer.
    #[arg(long, value_name = "TIME", default_value_t = Span::from_millis(limits::CONFORMANCE_ANSWER_MS))]
    within: Span,
}

pub(crate) fn conformance(arguments: ConformanceArguments, output: &mut Output) -> Done {
    let suite = suite(&arguments)?;
    // Check the names of the reports first: after the test has bought something, it is too late.
    for path in &arguments.report {
        writer_of(path)?;
    }
    let cases = u64::try_from(suite.selected()?.len()).unwrap_or_default();
    let mut progress = Progress::new(cases, "{bar:40} {pos}/{len} {msg}");
    progress.set_message("the first purchase");
    let report = runtime()?.block_on(run(&suite, &mut progress))?;
    // Clears the progress bar, so that it does not mix with the results.
    drop(progress);
    if arguments.json {
        output.json(&report)?;
    } else {
        tell(&report, arguments.verbose, output)?;
    }
    // Instances that could not be released may cost money, so they are always reported.
    tell_left_behind(&report, output);
    // Files come last: if a file cannot be written, the results are already printed.
    write_files(&arguments, &report)?;
    verdict(&report)
}

/// Runs the suite. The first Ctrl-C ends the tests and gives back what was bought; the second one ends at once.
async fn run(suite: &Suite, progress: &mut Progress) -> Result<SelfTestReport, Failure> {
    // The suite handles the first interrupt itself; this future waits for the second one.
    let twice = async {
        interrupted().await;
        interrupted().await;
    };
    tokio::select! {
        report = suite.run_until(interrupted(), progress) => Ok(report?),
        () = twice => Err(Failure::new(
            Exit::TryAgain,
            "stopped by a second interrupt; bought instances were not released",
        )),
    }
}

fn write_files(arguments: &ConformanceArguments, report: &SelfTestReport) -> Done {
    for path in &arguments.report {
        let text = writer_of(path)?(report);
        write_file(path, &text)?;
    }
    match &arguments.junit {
        Some(path) => write_file(path, &junit(&[report.into()])),
        None => Ok(()),
    }
}

fn suite(arguments: &ConformanceArguments) -> Result<Suite, Failure> {
    let (to, keys) = arguments.endpoint.resolve()?;
    for url in std::iter::once(&to).chain(&arguments.sign_on_url) {
        expect_this_machine(
            url,
            arguments.yes,
            "and the test really buys there",
            "add --yes to allow it; bought instances are released afterwards, but the endpoint may have provisioned them",
        )?;
    }
    let zone = TimeZone::get(&arguments.timezone).map_err(|_| {
        Failure::new(Exit::Usage, format!("`{}` is not a time zone, like Asia/Shanghai", arguments.timezone))
    })?;
    Ok(Suite {
        sign_on: arguments.sign_on_url.clone(),
        level: arguments.level,
        only: arguments.only.iter().cloned().collect(),
        product: TestProduct {
            code: arguments.product.clone(),
            sku: arguments.sku.clone(),
            upgrade_sku: arguments.upgrade_sku.clone(),
            buyer: arguments.buyer.clone(),
        },
        zone,
        within: arguments.within.0,
        ..Suite::new(to, keys)
    })
}

impl From<SuiteError> for Failure {
    fn from(error: SuiteError) -> Failure {
        let exit = match &error {
            SuiteError::NoSuchCase(_) => Exit::Usage,
            SuiteError::NoAnswer { .. } => Exit::Unavailable,
            SuiteError::NoRandomness(_) => Exit::Io,
        };
        Failure::new(exit, error.to_string())
    }
}

/// Writer of a report, by the name of its file.
fn writer_of(path: &Path) -> Result<fn(&SelfTestReport) -> String, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => Ok(report::markdown),
        Some("html") => Ok(report::html),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("`--report {}`: the file name must end in .md or .html", path.display()),
        )),
    }
}

fn tell(report: &SelfTestReport, verbose: bool, output: &mut Output) -> Done {
    let mut rows = Vec::new();
    for case in &report.cases {
        let finding = case.finding.to_string();
        rows.push(vec![
            case.verdict.as_str().to_owned(),
            case.level.to_string(),
            case.id.to_owned(),
            finding,
        ]);
    }
    output.table(&["RESULT", "LEVEL", "CASE", "FOUND"], &rows)?;
    for case in report.cases.iter().filter(|case| verbose || case.verdict == Verdict::Failed) {
        output.line("")?;
        let finding = shown(&case.finding.to_string());
        output.line(&format!("{} {}: {finding}", case.verdict.as_str(), case.id))?;
        for line in case.details() {
            output.line(&format!("  {}", shown(&line)))?;
        }
    }
    output.line("")?;
    output.line(&format!(
        "{}: {} passed, {} failed, {} not judged",
        report.receiver,
        report.count(Verdict::Passed),
        report.count(Verdict::Failed),
        report.count(Verdict::NotJudged)
    ))
}

fn tell_left_behind(report: &SelfTestReport, output: &mut Output) {
    if !report.left_behind.is_empty() {
        let ids = report.left_behind.join(", ");
        output.print_error(&format!("warning: instances that were bought and not released: {}", shown(&ids)));
    }
}

fn verdict(report: &SelfTestReport) -> Done {
    if report.passed {
        return Ok(());
    }
    // A stopped test is no success, even if no case has failed so far.
    if report.stopped {
        let count = report.cases.len();
        return Err(Failure::new(Exit::NotMet, format!("interrupted: only {count} cases were tested")));
    }
    let failed = report.count(Verdict::Failed);
    let cases = if failed == 1 { "case" } else { "cases" };
    Err(Failure::new(Exit::NotMet, format!("{failed} {cases} failed")))
}

impl SuiteObserver for Progress {
    fn case_started(&mut self, case: &Case) {
        self.set_message(case.id);
    }

    fn case_ended(&mut self, _: &CaseReport) {
        self.advance();
    }
}

impl ValueEnum for Level {
    fn value_variants<'a>() -> &'a [Level] {
        &Level::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.as_str()))
    }
}
