//! `demo`: an instance from purchase to release in one command. It runs the real daemon; its database is in a temporary
//! folder, which is deleted afterwards.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use clap::Args;
use tokio::net::TcpListener;

use crate::cli::app::{in_process, start};
use crate::cli::lab::scenario::{Narrator, StoreStates, summary};
use crate::cli::output::Output;
use crate::cli::{Done, Exit, Failure, Inside, runtime};
use crate::config::{Config, DEV_KEY};
use crate::lab::scenario::{Scenario, Target};
use crate::net::Url;
use crate::serve::daemon::{Daemon, DaemonOptions};
use spid_core::signature::Keys;
use spid_hook::Secret;
use spid_hook::time::Clock;

const FIXTURE: &str = include_str!("../../../spi-fixtures/alibaba/life.toml");

#[derive(Args)]
pub(crate) struct DemoArguments {
    /// Print only the report, as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn demo(arguments: DemoArguments, hook: Option<Inside>, output: &mut Output) -> Done {
    let scenario =
        Scenario::parse(FIXTURE, "life.toml").map_err(|error| Failure::new(Exit::Bug, error.to_string()))?;
    // The folder is deleted when this variable is dropped, at the end of the demo.
    let folder = tempfile::Builder::new()
        .prefix("spid-demo-")
        .tempdir()
        .map_err(|error| Failure::new(Exit::Io, format!("cannot create a temporary folder: {error}")))?;
    // The demo uses the configuration of `serve --dev`.
    let config = Config::dev(&[], in_process(hook.as_ref()))?;
    let options =
        DaemonOptions::new(folder.path().join("spid.db"), config.live.endpoints, config.live.runner);
    runtime()?.block_on(async {
        start(hook).await?;
        run(&arguments, &scenario, options, output).await
    })
}

async fn run(
    arguments: &DemoArguments,
    scenario: &Scenario,
    options: DaemonOptions,
    output: &mut Output,
) -> Done {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Io, format!("cannot open a port on this machine: {error}"))
    };
    // Port 0 lets the system choose a free port, so that the demo runs beside a daemon.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
    let daemon = Daemon::start(listener, None, options).await?;
    let target = target(&daemon)?;
    let store = daemon.store().clone();
    let (account, accounts) = (None, BTreeMap::new());
    let states = StoreStates { reader: store.reader(), account, accounts };
    let report = if arguments.json {
        scenario.run(&target, Some(&states), &Clock::System, &mut ()).await
    } else {
        introduce(&daemon, scenario, output)?;
        scenario.run(&target, Some(&states), &Clock::System, &mut Narrator::new(output)).await
    };
    // The store's writer ends only when the last handle on the store is dropped; `stop` waits for that.
    drop(store);
    daemon.stop().await;
    if arguments.json {
        output.json(&report)?;
    } else {
        output.line("")?;
        output.line(&summary(&report))?;
        output.line("next: `spid serve --dev`, then docs/hooks.md for a hook of your own")?;
    }
    if report.passed {
        Ok(())
    } else {
        Err(Failure::new(Exit::NotMet, "the demo failed: see the lines that begin with !!"))
    }
}

fn target(daemon: &Daemon) -> Result<Target, Failure> {
    let bug =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Bug, format!("the demo's own endpoint: {error}"));
    let url: Url = format!("http://{}/spi", daemon.address()).parse().map_err(|error| bug(&error))?;
    let keys = Keys::single(Secret::new(DEV_KEY)).map_err(|error| bug(&error))?;
    Ok(Target::new(url, keys))
}

fn introduce(daemon: &Daemon, scenario: &Scenario, output: &mut Output) -> Done {
    output.line(&format!(
        "spid {} is listening on http://{}/spi, its state in a temporary SQLite file.",
        env!("CARGO_PKG_VERSION"),
        daemon.address()
    ))?;
    output.line("The marketplace is played by the fixture spi-fixtures/alibaba/life.toml:")?;
    output.line(&format!("{}.", scenario.title()))
}
