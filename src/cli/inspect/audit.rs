//! `audit`: the audit log.

use clap::Args;

use super::ListArguments;
use crate::cli::Done;
use crate::cli::output::{Output, Row};
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
    const HEADER: &'static [&'static str] = &["AT", "WHO", "ACT", "TARGET", "WHY"];

    fn cells(&self) -> Vec<String> {
        let AuditEntry { at, who, act, target, why } = self;
        vec![at.to_string(), who.clone(), act.clone(), target.clone(), why.clone()]
    }
}
