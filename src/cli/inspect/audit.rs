//! `audit`: the audit log.

use clap::Args;

use super::ListArguments;
use crate::cli::Done;
use crate::cli::output::{Column, Output, Row};
use crate::store::AuditEntry;

#[derive(Args)]
pub(crate) struct AuditArguments {
    #[command(flatten)]
    list: ListArguments,
}

pub(crate) fn audit(arguments: AuditArguments, output: &mut Output) -> Done {
    let rows = arguments.list.store.reader()?.acts(arguments.list.limit)?;
    if arguments.list.json {
        return output.json(&rows);
    }
    output.rows(&rows)
}

impl Row for AuditEntry {
    const COLUMNS: &'static [Column<AuditEntry>] = &[
        ("AT", |row| row.at.to_string()),
        ("WHO", |row| row.who.clone()),
        ("ACT", |row| row.act.clone()),
        ("TARGET", |row| row.target.clone()),
        ("WHY", |row| row.why.clone()),
    ];
}
