//! `simulate`: acts as the marketplace towards any URL, and reports the losses that the answers imply.

use std::path::PathBuf;

use clap::Args;

use crate::cli::keys::arguments::EndpointArguments;
use crate::cli::lab::scenario::{Progress, expect_this_machine, interrupted, write_file};
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, runtime};
use crate::lab::simulator::Simulator;
use crate::lab::simulator::ledger::{Ledger, LossKind, Summary};
use crate::lab::simulator::plan::Plan;
use crate::observe::limits;
use spid_core::span::Span;
use spid_hook::id::Id;
use spid_hook::text::plain_json;
use spid_hook::time::Clock;

/// Maximum length of a simulated day. With longer days the dates on the wire would move too far from any clock.
const DAY_MAX: Span = Span::from_millis(5 * 60_000);

#[derive(Args)]
pub(crate) struct SimulateArguments {
    #[command(flatten)]
    endpoint: EndpointArguments,
    /// Number of orders.
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=limits::MARKET_ORDERS_MAX_COUNT))]
    orders: u32,
    /// Number of orders that arrive per second.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0)]
    rate: f64,
    /// Seed of the plan: the same seed gives the same orders. The default is a new random seed.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Prefix of all order numbers. The default is a new, unique prefix.
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Length of a simulated day.
    #[arg(long, value_name = "TIME", default_value_t = Span::from_millis(limits::MARKET_DAY_MS))]
    day: Span,
    /// Interval between two calls for the same order; the marketplace makes up to 120 more calls.
    #[arg(long, value_name = "TIME", default_value_t = Span::from_millis(limits::MARKET_RETRY_MS))]
    retry: Span,
    /// Length of a simulated minute in the retry schedule of payments.
    #[arg(long, value_name = "TIME", default_value_t = Span::from_millis(limits::MARKET_MINUTE_MS))]
    minute: Span,
    /// Write the ledger to this file: the answers for every order, one line of JSON each.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// Allow an address that is not this machine. The simulation really buys there.
    #[arg(long)]
    yes: bool,
}

pub(crate) fn simulate(arguments: SimulateArguments, output: &mut Output) -> Done {
    let simulator = simulator(&arguments)?;
    let progress = Progress::new(u64::from(arguments.orders), "{bar:40} {pos}/{len} orders finished");
    let (ledger, summary) = runtime()?.block_on(simulator.play(interrupted(), |_| progress.advance()));
    // Clears the progress bar, so that it does not mix with the results.
    drop(progress);
    if arguments.json {
        output.json(&summary)?;
    } else {
        tell(&summary, output)?;
    }
    // The file comes last: if it cannot be written, the results are already printed.
    if let Some(path) = &arguments.ledger {
        write_file(path, &lines(&ledger)?)?;
    }
    verdict(&summary, usize::try_from(arguments.orders).unwrap_or(usize::MAX))
}

fn verdict(summary: &Summary, all: usize) -> Done {
    // An interrupted simulation is no success: the remaining orders were not tested.
    if summary.is_clean() && summary.orders < all {
        let through = summary.orders;
        return Err(Failure::new(
            Exit::NotMet,
            format!("interrupted: {through} of {all} orders were finished"),
        ));
    }
    if summary.is_clean() {
        return Ok(());
    }
    let count: u64 = summary.losses.values().map(|sum| sum.count).sum();
    let losses = if count == 1 { "loss" } else { "losses" };
    Err(Failure::new(Exit::NotMet, format!("the simulation found {count} {losses}"))
        .hint(format!("repeat this run with --seed {}", summary.seed)))
}

fn simulator(arguments: &SimulateArguments) -> Result<Simulator, Failure> {
    let (to, keys) = arguments.endpoint.resolve()?;
    expect_this_machine(
        &to,
        arguments.yes,
        "and the simulation really buys there",
        "add --yes to allow it; only instances that the simulation releases are given back",
    )?;
    if arguments.day > DAY_MAX {
        return Err(Failure::new(Exit::Usage, format!("`--day` can be at most {DAY_MAX}")));
    }
    if !arguments.rate.is_finite() || arguments.rate <= 0.0 {
        return Err(Failure::new(Exit::Usage, "`--rate` must be more than 0"));
    }
    let id = Id::new(Clock::System.now())
        .map_err(|error| Failure::new(Exit::Io, format!("the system's random generator failed: {error}")))?;
    // The last 8 bytes of an id are random; they make a seed of at most nine digits.
    let (_, random) = id.as_bytes().split_at(8);
    let seed = random.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)) % 1_000_000_000;
    let plan = Plan::new(arguments.seed.unwrap_or(seed), arguments.orders, arguments.rate);
    let run = arguments.run.clone().unwrap_or_else(|| format!("sim-{id}"));
    Ok(Simulator {
        day: arguments.day.0,
        every: arguments.retry.0,
        minute: arguments.minute.0,
        ..Simulator::new(to, keys, plan, &run)
    })
}

fn lines(ledger: &Ledger) -> Result<String, Failure> {
    let mut text = String::new();
    for entry in ledger.entries() {
        let line = serde_json::to_string(entry).map_err(|error| {
            Failure::new(
                Exit::Bug,
                format!("internal error: a ledger entry cannot be written as JSON: {error}"),
            )
        })?;
        text.push_str(&plain_json(&line));
        text.push('\n');
    }
    Ok(text)
}

fn tell(summary: &Summary, output: &mut Output) -> Done {
    let mut rows = Vec::new();
    for (name, asked) in &summary.asked {
        let (happened, done, requests) = (asked.happened, asked.done, asked.requests);
        rows.push(vec![name.to_string(), happened.to_string(), done.to_string(), requests.to_string()]);
    }
    output.table(&["ASKED", "HAPPENED", "DONE", "REQUESTS"], &rows)?;
    output.line("")?;
    for entry in &summary.examples {
        let losses: Vec<String> =
            entry.losses.iter().map(|loss| format!("{} {}", loss.what, loss.kind.words())).collect();
        output.line(&format!("order {} ({}): {}", entry.number, shown(&entry.biz), losses.join("; ")))?;
    }
    for kind in LossKind::ALL {
        let sum = summary.losses.get(&kind).copied().unwrap_or_default();
        output.line(&format!("{:<36} {:>7}   worth {}.00", kind.words(), sum.count, sum.worth))?;
    }
    output.line("")?;
    output.line(&format!(
        "{} orders, {} requests, {} without an answer, {} s, seed {}",
        summary.orders,
        summary.requests,
        summary.unanswered,
        summary.took_ms / 1_000,
        summary.seed
    ))
}
