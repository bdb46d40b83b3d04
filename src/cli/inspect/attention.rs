//! `attention`: everything that needs a person.

use clap::{Args, Subcommand};

use super::{ListArguments, text};
use crate::cli::Done;
use crate::cli::output::{Output, Row};
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
        let subject = match (item.callback, &item.instance) {
            (Some(callback), _) => format!("callback {callback}"),
            (None, instance) => format!("instance {}", text(instance.as_deref())),
        };
        output.print_error(&format!("hint: {subject}: {}{then}", item.todo));
    }
    Ok(())
}

impl Row for AttentionItem {
    const HEADER: &'static [&'static str] = &[
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

    fn cells(&self) -> Vec<String> {
        let deliveries = match self.delivery_limit {
            Some(limit) => format!("{}/{limit}", self.deliveries),
            None => self.deliveries.to_string(),
        };
        vec![
            self.reason.as_str().to_owned(),
            self.callback.map_or_else(|| "-".to_owned(), |number| number.to_string()),
            text(self.action.map(Action::as_str)),
            text(self.instance.as_deref()),
            text(self.order.as_deref()),
            text(self.buyer.as_deref()),
            deliveries,
            self.since.to_string(),
            self.deadline.map_or_else(|| "-".to_owned(), |at| at.to_string()),
            self.detail.clone(),
        ]
    }
}
