//! `replay`: send fixtures to an endpoint, compare the answers.

use std::path::PathBuf;

use clap::Args;

use super::keys::KeyArguments;
use super::output::Output;
use super::scenario::{Kept, Narrator, Progress, summary};
use super::{Done, Exit, Failure, runtime};
use crate::clock::Clock;
use crate::config::{self, ProcessEnvironment};
use crate::http::Url;
use crate::scenario::{Report, Scenario, ScenarioError, States, Target};
use crate::store::Reader;

#[derive(Args)]
pub(super) struct ReplayArguments {
    /// Fixtures; see docs/fixtures.md.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The endpoint.
    #[arg(long, value_name = "URL")]
    to: Url,
    #[command(flatten)]
    key: KeyArguments,
    /// Override a value of every fixture, like `vars.order=order-7` or `buy.params.skuId=…`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// The daemon's database, to check the states of instances as well.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    db: Option<PathBuf>,
    /// The daemon's configuration, which names the database.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on behind a step that failed.
    #[arg(long)]
    keep_going: bool,
    /// Really send to an address that is not this machine.
    #[arg(long)]
    yes: bool,
    /// Print nothing but one line a fixture.
    #[arg(long, short)]
    quiet: bool,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn replay(arguments: ReplayArguments, output: &mut Output) -> Done {
    if !arguments.to.is_loopback() && !arguments.yes {
        let message = format!(
            "{} is not this machine, and a replay looks like real customers there",
            arguments.to.authority()
        );
        return Err(Failure::new(Exit::Usage, message).hint("add --yes if that is meant"));
    }
    let scenarios = load(&arguments)?;
    let reader = reader(&arguments)?;
    let states = reader.as_ref().map(Kept);
    let mut target = Target::new(arguments.to.clone(), arguments.key.keys()?);
    target.keep_going = arguments.keep_going;
    let runtime = runtime()?;
    let mut reports = Vec::new();
    for scenario in &scenarios {
        let states = states.as_ref().map(|kept| kept as &dyn States);
        reports.push(runtime.block_on(run(&arguments, scenario, &target, states, output)));
    }
    if arguments.json {
        output.json(&reports)?;
    } else {
        for report in &reports {
            tell(report, arguments.quiet, output)?;
        }
    }
    verdict(&reports)
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
        scenario.run(target, states, &clock, &mut Progress::new(scenario.deliveries())).await
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

/// Nobody there is not the same as somebody who answers wrongly.
fn verdict(reports: &[Report]) -> Done {
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
        let mut scenario = Scenario::load(path).map_err(|error| {
            let exit =
                if matches!(error, ScenarioError::Unreadable { .. }) { Exit::NoInput } else { Exit::Data };
            Failure::new(exit, error.to_string())
        })?;
        for text in &arguments.set {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::new(Exit::Usage, format!("`{text}` is not an override: expected NAME=VALUE"))
            })?;
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
        (None, None) => return Ok(None),
    };
    Ok(Some(Reader::open(&path)?))
}
