//! `simulate`: acts as the marketplace towards any URL, and reports the losses that the answers imply.

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::keys::arguments::KeyArguments;
use crate::cli::lab::conformance::{interrupted, write};
use crate::cli::lab::span::Span;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure, runtime};
use crate::lab::simulator::Market;
use crate::lab::simulator::ledger::{Kind, Ledger, Summary};
use crate::lab::simulator::plan::Plan;
use crate::net::Url;
use crate::observe::limits;
use spid_hook::id::Id;
use spid_hook::text::plain_json;
use spid_hook::time::Clock;

/// Maximum length of a simulated day. With longer days the dates on the wire would move too far from any clock.
const DAY_MAX: Span = Span::from_millis(5 * 60_000);

#[derive(Args)]
pub(crate) struct SimulateArguments {
    /// URL of the SPI endpoint under test.
    #[arg(long, value_name = "URL")]
    to: Url,
    #[command(flatten)]
    key: KeyArguments,
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
    let market = market(&arguments)?;
    let bar = bar(arguments.orders);
    let (ledger, summary) = runtime()?.block_on(market.play(interrupted(), |_| bar.inc(1)));
    bar.finish_and_clear();
    if arguments.json {
        output.json(&summary)?;
    } else {
        tell(&summary, output)?;
    }
    // The file comes last: if it cannot be written, the results are already printed.
    if let Some(path) = &arguments.ledger {
        write(path, &lines(&ledger)?)?;
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

fn market(arguments: &SimulateArguments) -> Result<Market, Failure> {
    // The simulation buys for real: a mistyped address must not reach a production system.
    if !arguments.to.is_loopback() && !arguments.yes {
        let message =
            format!("{} is not this machine, and the simulation really buys there", arguments.to.authority());
        return Err(Failure::new(Exit::Usage, message)
            .hint("add --yes to allow it; only instances that the simulation releases are given back"));
    }
    if arguments.day.0 > DAY_MAX.0 {
        return Err(Failure::new(Exit::Usage, format!("`--day` can be at most {DAY_MAX}")));
    }
    if !arguments.rate.is_finite() || arguments.rate <= 0.0 {
        return Err(Failure::new(Exit::Usage, "`--rate` must be more than 0"));
    }
    let id = Id::new(Clock::System.now())
        .map_err(|error| Failure::new(Exit::Io, format!("the system's random generator failed: {error}")))?;
    // The first bytes of an id are the time, the others are random: those make a seed of at most nine digits.
    let (_, random) = id.as_bytes().split_at(8);
    let seed = random.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)) % 1_000_000_000;
    let plan = Plan::new(arguments.seed.unwrap_or(seed), arguments.orders, arguments.rate);
    let run = arguments.run.clone().unwrap_or_else(|| format!("sim-{id}"));
    Ok(Market {
        day: arguments.day.0,
        every: arguments.retry.0,
        minute: arguments.minute.0,
        ..Market::new(arguments.to.clone(), arguments.key.keys()?, plan, &run)
    })
}

fn bar(orders: u32) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(u64::from(orders)), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} orders finished");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
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
    let rows: Vec<Vec<String>> = summary
        .asked
        .iter()
        .map(|(name, asked)| {
            let numbers = [asked.happened, asked.done, asked.requests].map(|number| number.to_string());
            std::iter::once((*name).to_owned()).chain(numbers).collect()
        })
        .collect();
    output.table(&["ASKED", "HAPPENED", "DONE", "REQUESTS"], &rows)?;
    output.line("")?;
    for entry in &summary.examples {
        let losses: Vec<String> =
            entry.losses.iter().map(|loss| format!("{} {}", loss.what, loss.kind.words())).collect();
        output.line(&format!("order {} ({}): {}", entry.number, shown(&entry.biz), losses.join("; ")))?;
    }
    for kind in Kind::ALL {
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
