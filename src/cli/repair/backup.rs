//! `backup` and `restore`.

use std::borrow::Cow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Detailed, OperationArguments};
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

/// Values of a backup, as JSON.
#[derive(Serialize)]
struct BackupDetails<'a> {
    file: Cow<'a, str>,
    database: Cow<'a, str>,
}

/// Values of a restore, as JSON.
#[derive(Serialize)]
struct RestoreDetails<'a> {
    database: Cow<'a, str>,
    /// Number of held jobs.
    held: usize,
    /// Path at which the old sealing key is missing.
    missing_key: Option<Cow<'a, str>>,
}

pub(crate) fn backup(arguments: BackupArguments, output: &mut Output) -> Done {
    let (path, _) = arguments.store.location()?;
    crate::store::backup(&path, &arguments.file).map_err(not_there)?;
    let message = format!(
        "{} is a copy of {}; store a copy of the sealing key in another place",
        arguments.file.display(),
        path.display()
    );
    if !arguments.json {
        return output.line(&message);
    }
    let details = BackupDetails { file: arguments.file.to_string_lossy(), database: path.to_string_lossy() };
    output.json(&Detailed { report: OperationReport::new("backup", message), details: &details })
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
    if arguments.operation.json {
        let report = OperationReport::new("restore", message);
        let missing_key = missing_key.as_ref().map(|key| key.to_string_lossy());
        let details = RestoreDetails { database: path.to_string_lossy(), held, missing_key };
        output.json(&Detailed { report, details: &details })?;
    } else {
        output.line(&message)?;
    }
    // The backup may be old: the marketplace's or the seller's side may have moved on since.
    if held > 0 {
        output.print_error("hint: look at each with `spid held list`, then `spid jobs retry`, `spid jobs drop` or `spid instances complete`");
    }
    if let Some(key) = missing_key {
        output.print_error(&format!(
            "warning: no sealing key at {}: put the old key there before the daemon starts and creates a new one; without it the stored passwords and license keys cannot be repeated",
            key.display()
        ));
    }
    Ok(())
}
