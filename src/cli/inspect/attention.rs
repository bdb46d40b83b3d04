//! `attention`: everything that needs a person.

use clap::{Args, Subcommand};

use super::{ListArguments, or_dash, text};
use crate::cli::Done;
use crate::cli::output::{Column, Output, Row, shown};
use crate::cli::repair;
use crate::store::AttentionItem;
use spid_hook::callback::Action;
use spid_hook::time::Clock;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AttentionArguments {
    #[command(subcommand)]
    command: Option<AttentionCommand>,
    #[command(flatten)]
    list: ListArguments,
}

#[derive(Subcommand)]
enum AttentionCommand {
    /// Dismiss callbacks from the list after you have handled them. Nothing else changes.
    Dismiss(repair::held::DismissArguments),
}

pub(crate) fn attention(arguments: AttentionArguments, output: &mut Output) -> Done {
    let AttentionArguments { command, list } = arguments;
    if let Some(AttentionCommand::Dismiss(arguments)) = command {
        return repair::held::dismiss(&arguments, output);
    }
    let attention = list.store.reader()?.attention(Clock::System.now(), list.limit, usize::MAX)?;
    if attention.left_out > 0 {
        output.print_error(&format!("{} more are not shown; --limit shows more", attention.left_out));
    }
    if list.json {
        return output.json(&attention.items);
    }
    output.rows(&attention.items)?;
    for item in &attention.items {
        let then = item.then.map(|then| format!(" (otherwise {then})")).unwrap_or_default();
        let subject = match (item.callback, &item.market) {
            (Some(callback), _) => format!("callback {callback}"),
            (None, Some(market)) => format!("market {}", shown(market)),
            (None, None) => format!("instance {}", text(item.instance.as_deref())),
        };
        output.print_error(&format!("hint: {subject}: {}{then}", item.todo));
    }
    Ok(())
}

impl Row for AttentionItem {
    const COLUMNS: &'static [Column<AttentionItem>] = &[
        ("REASON", |item| item.reason.to_string()),
        ("CALLBACK", |item| or_dash(item.callback)),
        ("ACTION", |item| text(item.action.map(Action::as_str))),
        ("INSTANCE", |item| text(item.instance.as_deref())),
        ("ORDER", |item| text(item.order.as_deref())),
        ("BUYER", |item| text(item.buyer.as_deref())),
        ("DELIVERIES", deliveries),
        ("SINCE", |item| item.since.to_string()),
        ("DEADLINE", |item| or_dash(item.deadline)),
        ("DETAIL", |item| item.detail.clone()),
    ];
}

fn deliveries(item: &AttentionItem) -> String {
    match item.delivery_limit {
        Some(limit) => format!("{}/{limit}", item.deliveries),
        None => item.deliveries.to_string(),
    }
}
