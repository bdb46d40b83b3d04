//! `conformance`: tests any SPI endpoint that speaks the Alibaba dialect.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;

use crate::cli::keys::arguments::KeyArguments;
use crate::cli::lab::junit::{self, Came};
use crate::cli::lab::span::Span;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, runtime};
use crate::lab::conformance::{
    Case, Exchange, Goods, Judged, Judgement, Level, Suite, Unjudged, Verdict, Watcher, report,
};
use crate::net::Url;
use crate::observe::limits;

/// Interval between two redraws of the progress bar, in milliseconds.
const TICK_MS: u64 = 200;

#[derive(Args)]
pub(crate) struct ConformanceArguments {
    /// URL of the SPI endpoint under test, as the marketplace would be given it.
    #[arg(long, value_name = "URL")]
    to: Url,
    #[command(flatten)]
    key: KeyArguments,
    /// Highest level to test: must, should (and must), or hardening (everything).
    #[arg(long, value_name = "LEVEL", default_value = "hardening", value_parser = PossibleValuesParser::new(["must", "should", "hardening"]))]
    level: String,
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
    #[arg(long, value_name = "CODE", default_value_t = Goods::default().product)]
    product: String,
    /// SKU to buy.
    #[arg(long, value_name = "SKU", default_value_t = Goods::default().sku)]
    sku: String,
    /// SKU to upgrade to.
    #[arg(long, value_name = "SKU", default_value_t = Goods::default().upgrade)]
    upgrade_sku: String,
    /// Account of the buyer.
    #[arg(long, value_name = "UID", default_value_t = Goods::default().buyer)]
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
        kind_of(path)?;
    }
    let mut progress = Progress::new(suite.selected()?.len());
    let judgement = runtime()?.block_on(judged(&suite, &mut progress))?;
    // Clears the progress bar, so that it does not mix with the results.
    drop(progress);
    if arguments.json {
        output.json(&judgement)?;
    } else {
        tell(&judgement, arguments.verbose, output)?;
    }
    // Instances that could not be released may cost money, so they are always reported.
    tell_left_behind(&judgement, output);
    // Files come last: if a file cannot be written, the results are already printed.
    write_files(&arguments, &judgement)?;
    verdict(&judgement)
}

/// Runs the suite. The first Ctrl-C ends the tests and gives back what was bought; the second one ends at once.
async fn judged(suite: &Suite, progress: &mut Progress) -> Result<Judgement, Failure> {
    // The suite handles the first interrupt itself; this future waits for the second one.
    let twice = async {
        interrupted().await;
        interrupted().await;
    };
    tokio::select! {
        judgement = suite.judge_until(interrupted(), progress) => Ok(judgement?),
        () = twice => Err(Failure::new(
            Exit::TryAgain,
            "stopped by a second interrupt; bought instances were not released",
        )),
    }
}

fn write_files(arguments: &ConformanceArguments, judgement: &Judgement) -> Done {
    for path in &arguments.report {
        let text = match kind_of(path)? {
            Kind::Markdown => report::markdown(judgement),
            Kind::Html => report::html(judgement),
        };
        write(path, &text)?;
    }
    match &arguments.junit {
        Some(path) => write(path, &junit::xml(&[junit_of(judgement)])),
        None => Ok(()),
    }
}

fn suite(arguments: &ConformanceArguments) -> Result<Suite, Failure> {
    for url in std::iter::once(&arguments.to).chain(&arguments.sign_on_url) {
        // The test buys for real: a mistyped address must not reach a production system.
        if !url.is_loopback() && !arguments.yes {
            let message = format!("{} is not this machine, and the test really buys there", url.authority());
            return Err(Failure::new(Exit::Usage, message).hint(
                "add --yes to allow it; bought instances are released afterwards, but the endpoint may have \
                 provisioned them",
            ));
        }
    }
    let zone = TimeZone::get(&arguments.timezone).map_err(|_| {
        Failure::new(Exit::Usage, format!("`{}` is not a time zone, like Asia/Shanghai", arguments.timezone))
    })?;
    Ok(Suite {
        sign_on: arguments.sign_on_url.clone(),
        level: Level::from_word(&arguments.level).unwrap_or(Level::Hardening),
        only: arguments.only.iter().cloned().collect(),
        goods: Goods {
            product: arguments.product.clone(),
            sku: arguments.sku.clone(),
            upgrade: arguments.upgrade_sku.clone(),
            buyer: arguments.buyer.clone(),
        },
        zone,
        within: arguments.within.0,
        ..Suite::new(arguments.to.clone(), arguments.key.keys()?)
    })
}

impl From<Unjudged> for Failure {
    fn from(error: Unjudged) -> Failure {
        let exit = match &error {
            Unjudged::NoSuchCase(_) => Exit::Usage,
            Unjudged::NoAnswer { .. } => Exit::Unavailable,
            Unjudged::NoRandomness(_) => Exit::Io,
        };
        Failure::new(exit, error.to_string())
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Markdown,
    Html,
}

fn kind_of(path: &Path) -> Result<Kind, Failure> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => Ok(Kind::Markdown),
        Some("html") => Ok(Kind::Html),
        _ => Err(Failure::new(
            Exit::Usage,
            format!("`--report {}`: the file name must end in .md or .html", path.display()),
        )),
    }
}

/// Completes at Ctrl-C; the caller then reports what it has so far.
pub(crate) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a signal handler the future never completes, and Ctrl-C ends the process as usual.
        std::future::pending::<()>().await;
    }
}

/// Writes a file that the user asked for.
pub(crate) fn write(path: &Path, text: &str) -> Done {
    std::fs::write(path, text)
        .map_err(|error| Failure::new(Exit::Io, format!("{} cannot be written: {error}", path.display())))
}

fn junit_of(judgement: &Judgement) -> junit::Suite {
    let test = |case: &Judged| junit::Test {
        name: case.id.to_owned(),
        duration_ms: case.duration_ms,
        came: match case.verdict {
            Verdict::Passed => Came::Passed,
            Verdict::Failed => Came::Failed(case.said.clone(), details(case).join("\n")),
            Verdict::NotJudged => Came::Skipped(case.said.clone()),
        },
    };
    let name = format!("conformance of {}", judgement.receiver);
    junit::Suite { name, tests: judgement.cases.iter().map(test).collect() }
}

/// Details of a case, line by line: its rule, the source of the rule, and the exchanges.
fn details(case: &Judged) -> Vec<String> {
    let mut lines = vec![case.rule.to_owned(), format!("source: {}", case.source)];
    lines.extend(case.exchanges.iter().flat_map(told));
    if case.left_out > 0 {
        lines.push(format!("… and {} similar ones", case.left_out));
    }
    lines
}

fn told(exchange: &Exchange) -> Vec<String> {
    let Exchange { what, method, target, body, status, answer, duration_ms } = exchange;
    let status = status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
    let mut lines = vec![format!("{what}:"), format!("  -> {method} {target}")];
    lines.extend((!body.is_empty()).then(|| format!("     {body}")));
    lines.push(format!("  <- {status} {answer} ({duration_ms} ms)"));
    lines
}

fn tell(judgement: &Judgement, verbose: bool, output: &mut Output) -> Done {
    let cells = |case: &Judged| {
        let mark = case.verdict.as_str();
        vec![mark.to_owned(), case.level.to_string(), case.id.to_owned(), case.said.clone()]
    };
    let rows: Vec<Vec<String>> = judgement.cases.iter().map(cells).collect();
    output.table(&["RESULT", "LEVEL", "CASE", "FOUND"], &rows)?;
    for case in judgement.cases.iter().filter(|case| verbose || case.verdict == Verdict::Failed) {
        output.line("")?;
        output.line(&format!("{} {}: {}", case.verdict.as_str(), case.id, shown(&case.said)))?;
        for line in details(case) {
            output.line(&format!("  {}", shown(&line)))?;
        }
    }
    output.line("")?;
    let count = |verdict| judgement.count(verdict);
    output.line(&format!(
        "{}: {} passed, {} failed, {} not judged",
        judgement.receiver,
        count(Verdict::Passed),
        count(Verdict::Failed),
        count(Verdict::NotJudged)
    ))
}

fn tell_left_behind(judgement: &Judgement, output: &mut Output) {
    if !judgement.left_behind.is_empty() {
        let ids = judgement.left_behind.join(", ");
        output.print_error(&format!("warning: instances that were bought and not released: {}", shown(&ids)));
    }
}

fn verdict(judgement: &Judgement) -> Done {
    if judgement.passed {
        return Ok(());
    }
    // A stopped test is no success, even if no case has failed so far.
    if judgement.stopped {
        let count = judgement.cases.len();
        return Err(Failure::new(Exit::NotMet, format!("interrupted: only {count} cases were tested")));
    }
    let failed = judgement.count(Verdict::Failed);
    let cases = if failed == 1 { "case" } else { "cases" };
    Err(Failure::new(Exit::NotMet, format!("{failed} {cases} failed")))
}

/// Progress bar on stderr; drawn only on a terminal.
struct Progress(ProgressBar);

impl Progress {
    fn new(cases: usize) -> Progress {
        let bar = ProgressBar::with_draw_target(
            Some(u64::try_from(cases).unwrap_or_default()),
            ProgressDrawTarget::stderr(),
        );
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message("the first purchase");
        // Keeps the bar moving while a case waits for an answer.
        bar.enable_steady_tick(Duration::from_millis(TICK_MS));
        Progress(bar)
    }
}

impl Watcher for Progress {
    fn begins(&mut self, case: &Case) {
        self.0.set_message(case.id);
    }

    fn judged(&mut self, _: &Judged) {
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
