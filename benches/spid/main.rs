//! Benchmark of speed and size, always with another program in the same run for comparison.
//!
//! ```text
//! cargo bench --bench spid                         # everything; a table
//! cargo bench --bench spid -- --quick              # a look, in a minute
//! cargo bench --bench spid -- --only paths,growth  # parts
//! cargo bench --bench spid -- --json FILE --write docs/performance.md
//! cargo bench --bench spid -- --drive repeat       # ten seconds of one load, for a profiler to look at
//! ```
//!
//! Rounds are interleaved (bare hyper, a repeat, a new order, …, and again), so that a machine that slows down affects
//! all of them alike. A figure is the median of its rounds, with its spread beside it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark that cannot run panics"
)]

mod floor;
mod grow;
mod load;
mod machine;
mod orders;
mod parts;
mod report;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use report::Report;

/// The allocator of the `spid` command. The measured spid, bare hyper and the load all run in this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Options for the benchmark, from the command line.
pub(crate) struct Plan {
    rounds: usize,
    round: Duration,
    largest: usize,
    cache: PathBuf,
    only: Option<Vec<String>>,
    json: Option<PathBuf>,
    write: Option<PathBuf>,
}

impl Plan {
    fn read(arguments: &[String]) -> Plan {
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1).cloned()
        };
        let quick = arguments.iter().any(|argument| argument == "--quick");
        let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
        std::fs::create_dir_all(&cache).unwrap();
        Plan {
            rounds: if quick { 1 } else { 5 },
            round: Duration::from_millis(if quick { 500 } else { 1_000 }),
            largest: if quick { 10_000 } else { 1_000_000 },
            cache,
            only: value("--only").map(|parts| parts.split(',').map(str::to_owned).collect()),
            json: value("--json").map(PathBuf::from),
            write: value("--write").map(PathBuf::from),
        }
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == part))
    }
}

/// Returns the arguments without the program, and without those that cargo adds.
fn said(arguments: &[String]) -> String {
    arguments.iter().skip(1).filter(|argument| *argument != "--bench").cloned().collect::<Vec<_>>().join(" ")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // This process was started again as a server to measure.
    if let Some(code) = servers::as_server(&arguments) {
        return code;
    }
    let plan = Plan::read(&arguments);
    if let Some(at) = arguments.iter().position(|argument| argument == "--drive") {
        parts::drive(&plan, arguments.get(at + 1).map_or("repeat", String::as_str));
        return ExitCode::SUCCESS;
    }
    let mut report = Report::new(machine::described(), machine::sync_ms(&plan.cache), said(&arguments));
    for (name, part) in parts::ALL {
        if plan.wants(name) {
            eprintln!("measuring {name} …");
            part(&plan, &mut report);
        }
    }
    println!("{}", report.table());
    if let Some(path) = &plan.json {
        std::fs::write(path, report.json()).unwrap();
    }
    if let Some(path) = &plan.write {
        std::fs::write(path, report.document()).unwrap();
    }
    ExitCode::SUCCESS
}
