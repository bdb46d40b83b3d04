//! `callbacks`: commands on callbacks, and the output of those that show them.

use clap::Subcommand;

use super::export;
use super::{ListArguments, ShowArguments, or_dash, text};
use crate::cli::Done;
use crate::cli::output::{Column, Output, Row, shown};
use crate::cli::repair;
use crate::store::{CallbackDetail, Filter, ListedCallback};

const RESET_HINT: &str = "hint: the marketplace stops after its delivery limit; reset the count on the seller's production message retry page";

#[derive(Subcommand)]
pub(crate) enum CallbacksCommand {
    /// List callbacks with results and reasons, the newest first. Redeliveries are counted, not listed.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only callbacks with an unreported result: the hook is done, but the marketplace has not called again.
        #[arg(long, alias = "untold")]
        unreported: bool,
    },
    /// Show one callback: its result, the reason, its job, and all parameters.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        /// Number of the callback.
        number: i64,
    },
    /// Export callbacks as a scenario that can be replayed, without personal data.
    Export(export::ExportCallbacksArguments),
    /// Resend a callback to a URL, with a new signature. A daemon treats it like any delivery, so a result in the
    /// answer counts as reported to the marketplace.
    Resend(Box<repair::resend::ResendArguments>),
}

pub(crate) fn callbacks(command: CallbacksCommand, output: &mut Output) -> Done {
    match command {
        CallbacksCommand::List { list, unreported } => {
            let filter = Filter { unreported, limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.listed_callbacks(&filter)?;
            if list.json {
                return output.json(&rows);
            }
            callbacks_table(&rows, output)?;
            // The marketplace does not call again by itself after its last delivery.
            if unreported && !rows.is_empty() {
                output.print_error(RESET_HINT);
            }
            Ok(())
        }
        CallbacksCommand::Show { show, number } => show_callback(&show, number, output),
        CallbacksCommand::Export(arguments) => export::callbacks(arguments, output),
        CallbacksCommand::Resend(arguments) => repair::resend::resend(*arguments, output),
    }
}

pub(super) fn show_callback(show: &ShowArguments, number: i64, output: &mut Output) -> Done {
    let detail = show.store.reader()?.callback_detail(number)?;
    if show.json { output.json(&detail) } else { print_callback(&detail, output) }
}

/// Warns of unreported callbacks for which the marketplace has used at least half of its deliveries. A reported
/// callback needs no warning, because the marketplace does not call again.
fn warn_of_delivery_limit(rows: &[ListedCallback], output: &mut Output) {
    for row in rows.iter().map(|listed| &listed.row).filter(|row| row.reported_at.is_none()) {
        let Some(delivery_limit) = row.delivery_limit.map(u64::from) else { continue };
        // Half is early enough to act before the marketplace gives up.
        if row.deliveries >= delivery_limit.div_ceil(2) {
            output.print_error(&format!(
                "warning: callback {} ({}): {} of the marketplace's {delivery_limit} deliveries are used",
                row.number, row.action, row.deliveries
            ));
        }
    }
}

pub(super) fn callbacks_table(rows: &[ListedCallback], output: &mut Output) -> Done {
    output.rows(rows)?;
    warn_of_delivery_limit(rows, output);
    Ok(())
}

impl Row for ListedCallback {
    const COLUMNS: &'static [Column<ListedCallback>] = &[
        ("CALLBACK", |listed| listed.row.number.to_string()),
        ("ACTION", |listed| listed.row.action.to_string()),
        ("ENDPOINT", |listed| listed.row.endpoint.clone()),
        ("INSTANCE", instance),
        ("ORDER", |listed| text(listed.order.as_deref())),
        ("BUYER", |listed| text(listed.buyer.as_deref())),
        ("RESULT", |listed| listed.row.disposition.to_string()),
        ("DELIVERIES", |listed| listed.row.tries()),
        ("FIRST", |listed| listed.row.received_at.to_string()),
        ("REPORTED", |listed| or_dash(listed.row.reported_at)),
        ("REASON", |listed| text(listed.row.reason.as_deref())),
    ];
}

/// Name of the instance. If only the callback gives the instance a name, all of its names are shown.
fn instance(listed: &ListedCallback) -> String {
    match &listed.instance {
        Some(name) if !listed.names.contains(name) => name.clone(),
        None => "-".to_owned(),
        Some(_) => listed.names.join(", "),
    }
}

fn print_callback(detail: &CallbackDetail, output: &mut Output) -> Done {
    callbacks_table(std::slice::from_ref(&detail.listed), output)?;
    output.line(&format!("signed with key `{}`", shown(&detail.listed.row.key_label)))?;
    if let (Some(job), Some(trace)) = (detail.listed.job, detail.trace_id) {
        output.line(&format!("job {job}, trace {trace}"))?;
    }
    if let Some(at) = detail.callback.pruned_at {
        output.line(&format!("the content was pruned at {at}"))?;
    }
    for (name, value) in detail.callback.parameters.iter() {
        output.line(&format!("  {} = {}", shown(name), shown(value)))?;
    }
    Ok(())
}
