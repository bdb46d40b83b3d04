//! `backup` and `restore`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{OperationArguments, print_report};
use crate::cli::output::Output;
use crate::cli::{Done, StoreArguments, not_there};
use crate::store::{OperationReport, Restored};
use spid_hook::time::Clock;

#[derive(Args)]
pub(crate) struct BackupArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// File to create. It must not exist yet.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn backup(arguments: BackupArguments, output: &mut Output) -> Done {
    let (path, _) = arguments.store.location()?;
    crate::store::backup(&path, &arguments.file).map_err(not_there)?;
    let message = format!(
        "{} is a copy of {}; store a copy of the sealing key in another place",
        arguments.file.display(),
        path.display()
    );
    let details =
        json!({"file": arguments.file.display().to_string(), "database": path.display().to_string()});
    print_report(OperationReport::new("backup", message), &details, arguments.json, output)
}

#[derive(Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Backup, or a copy of another machine's database, with its -wal beside it.
    file: PathBuf,
}

pub(crate) fn restore(arguments: RestoreArguments, output: &mut Output) -> Done {
    let act = arguments.operation.note()?;
    let (path, options) = arguments.operation.store.location()?;
    let Restored { held, missing_key } =
        crate::store::restore(&arguments.file, &path, &options, Clock::System, &act)?;
    let message = format!("{} is restored; {held} unfinished jobs are held", path.display());
    let missing_key = missing_key.map(|key| key.display().to_string());
    let details = json!({"database": path.display().to_string(), "held": held, "missing_key": missing_key});
    print_report(OperationReport::new("restore", message), &details, arguments.operation.json, output)?;
    // The backup may be old: the marketplace's or the seller's side may have moved on since.
    if held > 0 {
        output.print_error("hint: look at each with `spid held list`, then `spid jobs retry`, `spid jobs drop` or `spid instances complete`");
    }
    if let Some(key) = missing_key {
        output.print_error(&format!(
            "warning: no sealing key at {key}: put the old key there before the daemon starts and creates a new one; without it the stored passwords and license keys cannot be repeated"
        ));
    }
    Ok(())
}
