//! `seal`: shows how many answers each sealing key encrypts, and encrypts them again with the current key.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::cli::inspect::or_dash;
use crate::cli::output::{Column, Output, Row};
use crate::cli::repair::prune::Ticker;
use crate::cli::repair::{self, print_report};
use crate::cli::{Done, Exit, Failure, StoreArguments};
use crate::store::OperationReport;
use crate::store::encryption::KeyId;

#[derive(Subcommand)]
pub(crate) enum SealCommand {
    /// List the sealing keys, and the number of answers that each encrypts.
    Status(StatusArguments),
    /// Re-encrypt all answers of old sealing keys with the current key, so that the old keys can be destroyed.
    Rotate(RotateArguments),
}

#[derive(Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct RotateArguments {
    #[command(flatten)]
    operation: repair::OperationArguments,
    /// Do not rewrite the file at the end. Unused space in it may then contain data that the old key decrypts: run
    /// the command again without this option before you destroy the key.
    #[arg(long)]
    keep_traces: bool,
}

pub(crate) fn seal(command: SealCommand, output: &mut Output) -> Done {
    match command {
        SealCommand::Status(arguments) => status(&arguments, output),
        SealCommand::Rotate(arguments) => rotate(&arguments, output),
    }
}

/// Sealing key and its use, as JSON.
#[derive(Serialize)]
struct KeyLine {
    /// Id of the key; `None` for data of an older spid, which does not store the key's id.
    key: Option<KeyId>,
    /// Status of the key: `current`, `previous`, `unknown` to the configuration, or `unnamed`.
    which: &'static str,
    /// Number of answers that the key encrypts.
    sealed: u64,
}

impl Row for KeyLine {
    const COLUMNS: &'static [Column<KeyLine>] = &[
        ("KEY", |line| or_dash(line.key)),
        ("WHICH", |line| line.which.to_owned()),
        ("SEALED", |line| line.sealed.to_string()),
    ];
}

fn status(arguments: &StatusArguments, output: &mut Output) -> Done {
    let (path, options) = arguments.store.location()?;
    let sealed = repair::operations(&arguments.store)?.sealed()?;
    // A key that cannot be read is only a warning here: the status helps to find the problem.
    let known = options.encryptor(&path).map(|encryptor| encryptor.ids()).unwrap_or_else(|error| {
        output.print_error(&format!("warning: {error}"));
        Vec::new()
    });
    let lines = key_lines(&known, sealed);
    if arguments.json {
        return output.json(&lines);
    }
    output.rows(&lines)?;
    if lines.iter().any(|line| line.which == "unknown") {
        output.print_error("warning: answers of an unknown key cannot be decrypted; add the key to `store.sealing_keys` if you still have it");
    }
    if lines.iter().any(|line| line.which == "unnamed") {
        output.print_error("warning: unnamed answers were stored by an older spid without a key id, so each listed key is tried. Keep every used key listed until `spid seal rotate` has re-encrypted them; answers that stay unnamed need a key that is not listed");
    }
    Ok(())
}

fn key_lines(known: &[KeyId], mut sealed: BTreeMap<Option<KeyId>, u64>) -> Vec<KeyLine> {
    let configured = known.iter().enumerate().map(|(index, key)| {
        // The first configured key encrypts; the others only decrypt.
        let which = if index == 0 { "current" } else { "previous" };
        (Some(*key), which, sealed.remove(&Some(*key)).unwrap_or(0))
    });
    let mut lines: Vec<_> = configured.collect();
    lines.extend(sealed.into_iter().map(|(key, count)| {
        let which = if key.is_some() { "unknown" } else { "unnamed" };
        (key, which, count)
    }));
    lines.into_iter().map(|(key, which, sealed)| KeyLine { key, which, sealed }).collect()
}

fn rotate(arguments: &RotateArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.operation.begin()?;
    let mut ticker = Ticker::new("answers re-encrypted");
    let done = operations.reencrypt(!arguments.keep_traces, &act, &mut |count| ticker.tell(count));
    ticker.end();
    let done = done?;
    let message = format!(
        "{} answers re-encrypted with key {}; {} still need another key",
        done.reencrypted, done.key, done.remaining
    );
    let report = OperationReport::new("rotate", message);
    print_report(report, &done, arguments.operation.json, output)?;
    // The old key must not be destroyed while answers depend on it.
    if done.remaining > 0 {
        return Err(Failure::new(
            Exit::NotMet,
            format!("{} answers still need another key: do not remove it", done.remaining),
        )
        .hint("`spid seal status` lists the keys: add the missing one to `store.sealing_keys` after the current one, and run the command again"));
    }
    if done.traceless {
        output.print_error("hint: the database does not need the old key any more; older backups still do");
    } else if arguments.keep_traces {
        output.print_error("hint: unused space in the file may contain data that the old key decrypts; run again without --keep-traces to rewrite the file");
    } else {
        return Err(Failure::new(
            Exit::TryAgain,
            "the write-ahead log could not be truncated because a reader is active, so it may contain data that the old key decrypts; run the command again",
        ));
    }
    Ok(())
}
