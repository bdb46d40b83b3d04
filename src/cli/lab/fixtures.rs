//! `fixtures`: checks scenarios without sending anything, and prints the JSON Schema of their format.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure};
use crate::lab::scenario::{SCHEMA, Scenario, ScenarioError};

#[derive(Subcommand)]
pub(crate) enum FixturesCommand {
    /// Check files, and all files in folders; every mistake is reported with its line.
    Check(CheckArguments),
    /// Print the JSON Schema of the format, for editors.
    Schema,
}

#[derive(Args)]
pub(crate) struct CheckArguments {
    /// Fixtures, or folders that contain them.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print nothing for files without mistakes.
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn fixtures(command: FixturesCommand, output: &mut Output) -> Done {
    match command {
        FixturesCommand::Check(arguments) => check(&arguments, output),
        FixturesCommand::Schema => output.line(SCHEMA.trim_end()),
    }
}

fn check(arguments: &CheckArguments, output: &mut Output) -> Done {
    let mut files = Vec::new();
    for path in &arguments.files {
        collect(path, &mut files)?;
    }
    let (mut wrong, mut missing) = (0, false);
    for file in &files {
        match Scenario::load(file) {
            Ok(scenario) if !arguments.quiet => {
                let (steps, title) = (scenario.steps().len(), shown(scenario.title()));
                output.line(&format!("{}: {steps} steps: {title}", file.display()))?;
            }
            Ok(_) => {}
            Err(error) => {
                wrong += 1;
                missing |= matches!(error, ScenarioError::Unreadable { .. });
                output.line(&error.to_string().lines().map(shown).collect::<Vec<_>>().join("\n"))?;
            }
        }
    }
    match (wrong, missing) {
        (0, _) => Ok(()),
        (_, true) => Err(Failure::new(Exit::NoInput, "a file cannot be read")),
        (wrong, false) => {
            Err(Failure::new(Exit::Data, format!("{wrong} of {} files have mistakes", files.len())))
        }
    }
}

/// Collects the file, or all scenarios in the folder and its subfolders, ordered by name.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Done {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let failed = |error: std::io::Error| Failure::new(Exit::NoInput, format!("{}: {error}", path.display()));
    let mut inside = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        inside.push(entry.map_err(failed)?.path());
    }
    // The system lists a folder in no particular order.
    inside.sort();
    for path in &inside {
        if path.is_dir() || path.extension().is_some_and(|it| it == "toml") {
            collect(path, files)?;
        }
    }
    Ok(())
}
