//! `fixtures`: checks scenarios without sending anything, and prints the JSON Schema of their format.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

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
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

/// A checked file, as JSON.
#[derive(Serialize)]
struct CheckedFile {
    file: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<usize>,
    /// Mistakes, one on each line.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
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
    let mut checked = Vec::new();
    for path in &files {
        let file = path.display().to_string();
        checked.push(match Scenario::load(path) {
            Ok(scenario) => {
                let (title, steps) = (Some(scenario.title().to_owned()), Some(scenario.steps().len()));
                CheckedFile { file, title, steps, error: None }
            }
            Err(error) => {
                wrong += 1;
                missing |= matches!(error, ScenarioError::Unreadable { .. });
                CheckedFile { file, title: None, steps: None, error: Some(error.to_string()) }
            }
        });
    }
    if arguments.json {
        output.json(&checked)?;
    } else {
        print(&checked, arguments.quiet, output)?;
    }
    match (wrong, missing) {
        (0, _) => Ok(()),
        (_, true) => Err(Failure::new(Exit::NoInput, "a file cannot be read")),
        (wrong, false) => {
            Err(Failure::new(Exit::Data, format!("{wrong} of {} files have mistakes", files.len())))
        }
    }
}

fn print(checked: &[CheckedFile], quiet: bool, output: &mut Output) -> Done {
    for CheckedFile { file, title, steps, error } in checked {
        match (error, title, steps) {
            (Some(error), ..) => {
                output.line(&error.lines().map(shown).collect::<Vec<_>>().join("\n"))?;
            }
            (None, Some(title), Some(steps)) if !quiet => {
                output.line(&format!("{file}: {steps} steps: {}", shown(title)))?;
            }
            _ => {}
        }
    }
    Ok(())
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
