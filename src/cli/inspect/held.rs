//! `held`: commands on held callbacks, and the list of what waits for a decision.

use std::collections::BTreeSet;

use clap::Subcommand;

use super::callbacks::show_callback;
use super::{JOB_HINT, ListArguments, ShowArguments, or_dash, text};
use crate::cli::Done;
use crate::cli::output::{Column, Output, Row};
use crate::cli::repair;
use crate::store::HeldItem;

#[derive(Subcommand)]
pub(crate) enum HeldCommand {
    /// List held callbacks, and jobs that are held, dead or pending.
    List {
        #[command(flatten)]
        list: ListArguments,
    },
    /// Show a held callback: the reason, and all parameters.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        /// Number of the callback.
        number: i64,
    },
    /// Approve a held callback, so that it runs. A second purchase of an instance needs --as.
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
        HeldCommand::Approve(arguments) => repair::held::approve(&arguments, output),
        HeldCommand::Reject(arguments) => repair::held::reject(&arguments, output),
        HeldCommand::Settle(arguments) => repair::held::settle(&arguments, output),
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
    output.rows(&rows)?;
    // Print only the hints for kinds that are in the list.
    let kinds: BTreeSet<&str> = rows.iter().map(|row| row.kind).collect();
    if kinds.contains("held-callback") {
        output.print_error("hint: a held callback: `spid held show CALLBACK`, then `spid held approve CALLBACK --why …`, `spid held settle CALLBACK --why …` or `spid held reject CALLBACK --why …`");
    }
    if kinds.contains("held-job") || kinds.contains("dead-job") {
        output.print_error(JOB_HINT);
    }
    if kinds.contains("pending-job") {
        output.print_error(
            "hint: a pending job: `spid jobs complete JOB --answer FILE --why …` once it is done",
        );
    }
    Ok(())
}

impl Row for HeldItem {
    const COLUMNS: &'static [Column<HeldItem>] = &[
        ("CALLBACK", |row| row.callback.to_string()),
        ("KIND", |row| row.kind.to_owned()),
        ("ACTION", |row| row.action.to_owned()),
        ("INSTANCE", |row| text(row.instance.as_deref())),
        ("ORDER", |row| text(row.order.as_deref())),
        ("BUYER", |row| text(row.buyer.as_deref())),
        ("SINCE", |row| row.since.to_string()),
        ("DELIVERIES", |row| row.tries.clone()),
        ("JOB", |row| or_dash(row.job)),
        ("REASON", |row| row.reason.clone()),
    ];
}
