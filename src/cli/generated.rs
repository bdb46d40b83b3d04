//! `completions`, `man` and `config default`: output that is generated from the definitions of the program.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;

use super::output::Output;
use super::{Arguments, Done, Exit, Failure};
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

pub(super) fn completions(arguments: CompletionsArguments, output: &mut Output) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "spid", &mut script);
    output.text(&String::from_utf8_lossy(&script))
}

pub(super) fn man(arguments: ManArguments, output: &mut Output) -> Done {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Io, format!("the pages cannot be written: {error}"));
    match arguments.dir {
        Some(folder) => {
            std::fs::create_dir_all(&folder).map_err(failed)?;
            clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).map_err(failed)?;
            output.text(&String::from_utf8_lossy(&page))
        }
    }
}

pub(super) fn config(command: ConfigCommand, output: &mut Output) -> Done {
    match command {
        ConfigCommand::Default => output.text(config::DEFAULT_FILE),
    }
}
