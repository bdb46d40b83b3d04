//! `prune`: deletes old, finished data; and the progress line of long operations.

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::cli::output::Output;
use crate::cli::repair::{self, print_report};
use crate::cli::{Done, Exit, Failure, StoreArguments};
use crate::store::{AuditNote, OperationReport, PruneOptions, Pruned};
use spid_core::span::Span;

/// Progress line of a long operation; drawn only on a terminal.
pub(crate) struct Ticker(ProgressBar, &'static str);

impl Ticker {
    pub(crate) fn new(what: &'static str) -> Ticker {
        Ticker(ProgressBar::new_spinner(), what)
    }

    pub(crate) fn tell(&mut self, count: u64) {
        self.0.set_message(format!("{count} {}", self.1));
        self.0.tick();
    }

    pub(crate) fn end(self) {
        self.0.finish_and_clear();
    }
}

#[derive(Args)]
pub(crate) struct PruneArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Delete records with no activity for longer than this, like 400d. The minimum is 30d.
    #[arg(long, value_name = "AGE")]
    older_than: Span,
    /// Also delete passwords and license keys that were reported before then. Requires a configuration, which says
    /// how long they are repeated.
    #[arg(long)]
    secrets: bool,
    /// Only count the records that would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// Rewrite the file at the end, to return free space to the disk. The rewrite temporarily needs the same space
    /// again, and marketplaces are told to call again meanwhile.
    #[arg(long, conflicts_with = "dry_run")]
    vacuum: bool,
    /// Reason, for the audit log. Required without --dry-run.
    #[arg(long, value_name = "TEXT", required_unless_present = "dry_run")]
    why: Option<String>,
    /// Name of the person who acts; the default is your user name, under sudo the name of the user who called it.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Values of a prune, as JSON, and true for `dry_run` if nothing was deleted.
#[derive(Serialize)]
struct PruneDetails<'a> {
    dry_run: bool,
    #[serde(flatten)]
    pruned: &'a Pruned,
}

impl PruneArguments {
    fn note(&self) -> Result<AuditNote, Failure> {
        match (&self.why, self.dry_run) {
            // A dry run changes nothing, so it needs no reason and no audit entry.
            (None, true) => Ok(AuditNote { who: String::new(), why: String::new() }),
            (why, _) => repair::audit_note(self.who.as_deref(), why.as_deref().unwrap_or_default()),
        }
    }

    fn options(&self) -> Result<PruneOptions, Failure> {
        // Only the configuration knows `policy.secrets_window`: the default could be too short.
        if self.secrets && !self.store.is_configured() {
            let message = "`--secrets` needs a configuration: without it, passwords that are still repeated could be deleted";
            let hint = "use --config FILE instead of --db: `policy.secrets_window` says how long passwords are repeated";
            return Err(Failure::new(Exit::Usage, message).hint(hint));
        }
        Ok(PruneOptions {
            older_than_ms: millis(self.older_than.0)?,
            secrets: self.secrets,
            dry_run: self.dry_run,
            rewrite: self.vacuum,
        })
    }
}

/// Age in milliseconds, limited to a thousand years: a larger one would reach back before any record.
fn millis(age: Duration) -> Result<i64, Failure> {
    let most = 1_000 * 365 * 24 * 60 * 60 * 1000;
    let millis = i64::try_from(age.as_millis()).ok().filter(|millis| *millis <= most);
    millis.ok_or_else(|| Failure::new(Exit::Usage, "`--older-than` is longer than a thousand years"))
}

pub(crate) fn prune(arguments: &PruneArguments, output: &mut Output) -> Done {
    let (act, options) = (arguments.note()?, arguments.options()?);
    let mut operations = repair::operations(&arguments.store)?;
    let mut ticker = Ticker::new("rows examined");
    let pruned = operations.prune(options, &act, &mut |count| ticker.tell(count));
    // Clear the progress line before the result or an error is printed.
    ticker.end();
    let pruned = pruned?;
    let would = if arguments.dry_run { "would be: " } else { "" };
    let message = format!("{would}{pruned}");
    let changed = !arguments.dry_run;
    let report = OperationReport { changed, ..OperationReport::new("prune", message) };
    let details = PruneDetails { dry_run: arguments.dry_run, pruned: &pruned };
    print_report(report, &details, arguments.json, output)?;
    if !arguments.json {
        output.line(&format!(
            "the database has {} bytes (before: {}), {} of them unused",
            pruned.bytes_after, pruned.bytes_before, pruned.bytes_unused
        ))?;
    }
    // The prune itself succeeded; only the promise to leave no trace is not kept.
    if arguments.vacuum && !pruned.traceless {
        return Err(Failure::new(
            Exit::TryAgain,
            "the write-ahead log could not be truncated because a reader is active; it may still contain pruned data",
        )
        .hint("run the command again when no long read of the database is active"));
    }
    Ok(())
}
