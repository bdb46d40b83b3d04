//! `replay`: sends fixtures to an endpoint and compares the answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::keys::arguments::{KeyArguments, keys_in};
use crate::cli::lab::scenario::{Narrator, Progress, StoreStates, expect_this_machine, summary, write_file};
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, runtime};
use crate::config::{self, ProcessEnvironment};
use crate::lab::report::junit;
use crate::lab::scenario::{Report, Scenario, ScenarioError, States, Target};
use crate::net::Url;
use crate::store::Reader;
use spid_hook::time::Clock;

/// Minimum number of requests of a run for which a progress bar is shown.
const LONG_RUN: u64 = 200;

#[derive(Args)]
pub(crate) struct ReplayArguments {
    /// Fixture files; see docs/fixtures.md.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// URL of the endpoint. The default is the only endpoint of --config, on this machine.
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    to: Option<Url>,
    #[command(flatten)]
    key: KeyArguments,
    /// Override a value of every fixture, like `vars.order=order-7` or `buy.params.skuId=…`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Database of the daemon, to check the states of instances as well.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    db: Option<PathBuf>,
    /// Configuration of the daemon, which names the database, and the account and the key of each path.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Seller account of the instances. With --config, the default is the account of the endpoint at the URL's path.
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Another endpoint, under the name that steps use for it.
    #[arg(long = "endpoint", value_name = "NAME=URL")]
    endpoints: Vec<String>,
    /// Another key, under the name that steps use for it.
    #[arg(long = "other-key", value_name = "NAME=FILE")]
    other_keys: Vec<String>,
    /// Continue after a failed step.
    #[arg(long)]
    keep_going: bool,
    /// Allow an address that is not this machine. The requests are really sent.
    #[arg(long)]
    yes: bool,
    /// Print only one line for each fixture.
    #[arg(long, short)]
    quiet: bool,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
    /// Write a JUnit XML report for a build server.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub(crate) fn replay(arguments: ReplayArguments, output: &mut Output) -> Done {
    let target = target(&arguments)?;
    let scenarios = load(&arguments)?;
    let reader = reader(&arguments)?;
    let accounts = match &arguments.config {
        Some(file) => config::accounts_by_path(file, &ProcessEnvironment)?,
        None => BTreeMap::new(),
    };
    let account = arguments.account.clone();
    let states = reader.as_ref().map(|reader| StoreStates { reader, account, accounts });
    let runtime = runtime()?;
    let mut reports = Vec::new();
    for scenario in &scenarios {
        let states = states.as_ref().map(|states| states as &dyn States);
        reports.push(runtime.block_on(run(&arguments, scenario, &target, states, output)));
    }
    if arguments.json {
        output.json(&reports)?;
    } else {
        for report in &reports {
            tell(report, arguments.quiet, output)?;
        }
    }
    // The file comes last: if it cannot be written, the results are already printed.
    if let Some(path) = &arguments.junit {
        write_file(path, &junit(&reports.iter().map(Into::into).collect::<Vec<_>>()))?;
    }
    verdict(&reports)
}

fn target(arguments: &ReplayArguments) -> Result<Target, Failure> {
    let access = arguments.key.access_at(arguments.config.as_deref(), arguments.to.as_ref())?;
    let mut target = Target::new(access.url_or(arguments.to.as_ref())?, access.keys);
    target.keep_going = arguments.keep_going;
    for text in &arguments.endpoints {
        let (name, url) = pair(text, "an endpoint: expected NAME=URL")?;
        let url = url.parse::<Url>();
        let url = url.map_err(|error| Failure::new(Exit::Usage, format!("--endpoint {name}: {error}")))?;
        target.endpoints.insert(name.to_owned(), url);
    }
    for text in &arguments.other_keys {
        let (name, file) = pair(text, "a key: expected NAME=FILE")?;
        target.other_keys.insert(name.to_owned(), keys_in(Path::new(file))?);
    }
    for url in std::iter::once(&target.url).chain(target.endpoints.values()) {
        let danger = "and would treat the replay as real orders";
        expect_this_machine(url, arguments.yes, danger, "add --yes to allow it")?;
    }
    Ok(target)
}

fn pair<'a>(text: &'a str, what: &str) -> Result<(&'a str, &'a str), Failure> {
    text.split_once('=').ok_or_else(|| Failure::new(Exit::Usage, format!("`{text}` is not {what}")))
}

async fn run(
    arguments: &ReplayArguments,
    scenario: &Scenario,
    target: &Target,
    states: Option<&dyn States>,
    output: &mut Output,
) -> Report {
    let clock = Clock::System;
    if arguments.quiet || arguments.json {
        let mut progress = match scenario.deliveries() {
            deliveries @ LONG_RUN.. => Progress::new(deliveries, "{bar:40} {pos}/{len} {per_sec} {eta} left"),
            _ => Progress::hidden(),
        };
        scenario.run(target, states, &clock, &mut progress).await
    } else {
        scenario.run(target, states, &clock, &mut Narrator::new(output)).await
    }
}

fn tell(report: &Report, quiet: bool, output: &mut Output) -> Done {
    if !quiet {
        output.line("")?;
    }
    output.line(&summary(report))?;
    if quiet {
        for step in report.steps.iter().filter(|step| !step.passed) {
            for failure in &step.failures {
                output.line(&format!("  {}: {failure}", step.name))?;
            }
        }
    }
    Ok(())
}

/// Exit code of the run: an endpoint that does not answer (69) differs from one that answers wrongly (1).
fn verdict(reports: &[Report]) -> Done {
    // Report a missing endpoint first: the other failures follow from it.
    if let Some(error) = reports.iter().find_map(|report| report.error.as_deref()) {
        return Err(Failure::new(Exit::Unavailable, error));
    }
    match reports.iter().filter(|report| !report.passed).count() {
        0 => Ok(()),
        failed => Err(Failure::new(
            Exit::NotMet,
            format!("{failed} of {} fixtures did not end as expected", reports.len()),
        )),
    }
}

fn load(arguments: &ReplayArguments) -> Result<Vec<Scenario>, Failure> {
    let mut scenarios = Vec::new();
    for path in &arguments.files {
        let mut scenario = Scenario::load(path)?;
        for text in &arguments.set {
            let (name, value) = pair(text, "an override: expected NAME=VALUE")?;
            scenario
                .set(name, value)
                .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display())))?;
        }
        scenarios.push(scenario);
    }
    Ok(scenarios)
}

fn reader(arguments: &ReplayArguments) -> Result<Option<Reader>, Failure> {
    let path = match (&arguments.db, &arguments.config) {
        (Some(db), _) => db.clone(),
        (None, Some(file)) => config::store_of(file, &ProcessEnvironment)?.0,
        // Without a database no state is checked, and the user would believe that it was.
        (None, None) if arguments.account.is_some() => {
            return Err(Failure::new(Exit::Usage, "`--account` needs the database of the instances")
                .hint("add --config FILE or --db FILE"));
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(Reader::open(&path)?))
}

impl From<ScenarioError> for Failure {
    fn from(error: ScenarioError) -> Failure {
        let exit = if matches!(error, ScenarioError::Unreadable { .. }) { Exit::NoInput } else { Exit::Data };
        Failure::new(exit, error.to_string())
    }
}
