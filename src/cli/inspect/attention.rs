//! `attention`: everything that needs a person.

use clap::{Args, Subcommand};

use super::{ListArguments, text};
use crate::cli::Done;
use crate::cli::output::Output;
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
        return repair::held::dismiss(arguments, output);
    }
    let attention = list.store.reader()?.attention(Clock::System.now(), list.limit)?;
    if attention.left_out > 0 {
        output.print_error(&format!("{} more are not shown; --limit shows more", attention.left_out));
    }
    if list.json {
        return output.json(&attention.items);
    }
    let tries = |item: &AttentionItem| match item.delivery_limit {
        Some(limit) => format!("{}/{limit}", item.deliveries),
        None => item.deliveries.to_string(),
    };
    let cells = |item: &AttentionItem| {
        vec![
            item.reason.as_str().to_owned(),
            item.callback.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            text(item.action.map(Action::as_str)),
            text(item.instance.as_deref()),
            text(item.order.as_deref()),
            text(item.buyer.as_deref()),
            tries(item),
            item.since.to_string(),
            item.deadline.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            item.detail.clone(),
        ]
    };
    let header = [
        "REASON",
        "CALLBACK",
        "ACTION",
        "INSTANCE",
        "ORDER",
        "BUYER",
        "DELIVERIES",
        "SINCE",
        "DEADLINE",
        "DETAIL",
    ];
    output.table(&header, &attention.items.iter().map(cells).collect::<Vec<_>>())?;
    for item in &attention.items {
        let then = item.then.map(|then| format!(" (otherwise {then})")).unwrap_or_default();
        let subject = match (item.callback, &item.instance) {
            (Some(callback), _) => format!("callback {callback}"),
            (None, instance) => format!("instance {}", text(instance.as_deref())),
        };
        output.print_error(&format!("hint: {subject}: {}{then}", item.todo));
    }
    Ok(())
}
