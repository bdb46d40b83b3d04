//! `audit`: the audit log.

use clap::Args;

use super::ListArguments;
use crate::cli::Done;
use crate::cli::output::Output;
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
    let cells = |row: &AuditEntry| {
        vec![row.at.to_string(), row.who.clone(), row.act.clone(), row.target.clone(), row.why.clone()]
    };
    output.table(&["AT", "WHO", "ACT", "TARGET", "WHY"], &rows.iter().map(cells).collect::<Vec<_>>())
}
