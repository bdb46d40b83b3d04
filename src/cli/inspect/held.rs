//! `held`: commands on held callbacks, and the list of what waits for a decision.

use clap::Subcommand;

use super::callbacks::show_callback;
use super::{JOB_HINT, ListArguments, ShowArguments, text};
use crate::cli::Done;
use crate::cli::output::Output;
use crate::cli::repair;
use crate::store::HeldItem;

#[derive(Subcommand)]
pub(crate) enum HeldCommand {
    /// List held callbacks, and jobs that are held, dead or pending.
    List {
        #[command(flatten)]
        list: ListArguments,
    },
    /// Show a held callback with all its parameters.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        /// Number of the callback.
        number: i64,
    },
    /// Approve a held callback, so that it runs.
    Approve(repair::held::ApproveArguments),
    /// Reject a held callback and its redeliveries.
    Reject(repair::held::RejectArguments),
    /// Settle a held callback that repeats finished work: answer it with success, and run nothing.
    Settle(repair::held::RejectArguments),
}

pub(crate) fn held(command: HeldCommand, output: &mut Output) -> Done {
    match command {
        HeldCommand::List { list } => list_held(&list, output),
        HeldCommand::Show { show, number } => show_callback(&show, number, output),
        HeldCommand::Approve(arguments) => repair::held::approve(arguments, output),
        HeldCommand::Reject(arguments) => repair::held::reject(arguments, output),
        HeldCommand::Settle(arguments) => repair::held::settle(arguments, output),
    }
}

fn list_held(list: &ListArguments, output: &mut Output) -> Done {
    let (rows, left_out) = list.store.reader()?.held_items(list.limit)?;
    if left_out > 0 {
        output.print_error(&format!("{left_out} more are not shown; --limit shows more"));
    }
    if list.json {
        return output.json(&rows);
    }
    let cells = |row: &HeldItem| {
        vec![
            row.callback.to_string(),
            row.kind.to_owned(),
            row.action.to_owned(),
            text(row.instance.as_deref()),
            row.since.to_string(),
            row.tries.clone(),
            row.job.map_or_else(|| "-".to_owned(), |id| id.to_string()),
            row.reason.clone(),
        ]
    };
    let header = ["CALLBACK", "KIND", "ACTION", "INSTANCE", "SINCE", "DELIVERIES", "JOB", "REASON"];
    output.table(&header, &rows.iter().map(cells).collect::<Vec<_>>())?;
    // Print only the hints for kinds that are in the list.
    let any = |kinds: &[&str]| rows.iter().any(|row| kinds.contains(&row.kind));
    if any(&["held-callback"]) {
        output.print_error("hint: a held callback: `spid held show CALLBACK`, then `spid held approve CALLBACK --why …`, `spid held settle CALLBACK --why …` or `spid held reject CALLBACK --why …`");
    }
    if any(&["held-job", "dead-job"]) {
        output.print_error(JOB_HINT);
    }
    if any(&["pending-job"]) {
        output.print_error(
            "hint: a pending job: `spid jobs complete JOB --answer FILE --why …` once it is done",
        );
    }
    Ok(())
}
