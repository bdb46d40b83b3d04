//! `completions`, `man` and `config default`: output that is generated from the definitions of the program.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::Shell;

use super::output::Output;
use super::{Done, Exit, Failure, Program};
use crate::config;

#[derive(Args)]
pub(super) struct CompletionsArguments {
    /// Name of the shell.
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArguments {
    /// Write the page of every command into this folder, instead of the page of `spid` to stdout.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Print the commented default file: every key there is.
    Default,
}

pub(super) fn completions(arguments: CompletionsArguments, program: Program, output: &mut Output) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut program.command(), program.name(), &mut script);
    output.text(&String::from_utf8_lossy(&script))
}

pub(super) fn man(arguments: ManArguments, program: Program, output: &mut Output) -> Done {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Io, format!("the pages cannot be written: {error}"));
    match arguments.dir {
        Some(folder) => {
            std::fs::create_dir_all(&folder).map_err(failed)?;
            clap_mangen::generate_to(program.command(), folder).map_err(failed)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(program.command()).render(&mut page).map_err(failed)?;
            output.text(&String::from_utf8_lossy(&page))
        }
    }
}

pub(super) fn config(command: ConfigCommand, output: &mut Output) -> Done {
    match command {
        ConfigCommand::Default => output.text(config::DEFAULT_FILE),
    }
}
