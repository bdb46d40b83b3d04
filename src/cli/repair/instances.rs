//! Admin operations on instances: complete, claim, release, import.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{OperationArguments, answer, print_report, read_input};
use crate::cli::inspect::lines::InstanceLine;
use crate::cli::output::{Output, shown};
use crate::cli::{Done, Exit, Failure};
use crate::config;
use crate::store::{AdminOperation, Claim, Import, Imported, NamedInstance, OperationReport};

#[derive(Args)]
pub(crate) struct CompleteArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Seller account. Needed only if several accounts have an instance with this id.
    #[arg(long)]
    account: Option<String>,
    /// File with the answer, in the JSON of docs/hooks.md; `-` for standard input. The default is an empty answer.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Id or orderBizId of the instance.
    id: String,
}

pub(crate) fn complete(arguments: CompleteArguments, output: &mut Output) -> Done {
    let CompleteArguments { operation, account, answer: file, id } = arguments;
    let answer = answer(file.as_deref())?;
    operation.run(&AdminOperation::Complete { instance: NamedInstance { name: id, account }, answer }, output)
}

#[derive(Args)]
pub(crate) struct ClaimArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Seller account. Needed only if several accounts have an instance with this id.
    #[arg(long)]
    account: Option<String>,
    /// Name of the tenant that has the instance now, in your words. The name is shown, and passed to the hook.
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Replace the claim of another tenant.
    #[arg(long)]
    replace: bool,
    /// Id or orderBizId of the instance.
    id: String,
}

pub(crate) fn claim(arguments: ClaimArguments, output: &mut Output) -> Done {
    let ClaimArguments { operation, account, tenant, replace, id } = arguments;
    let instance = NamedInstance { name: id, account };
    operation.run(&AdminOperation::Claim { instance, claim: Claim { tenant, replace } }, output)
}

#[derive(Args)]
pub(crate) struct ReleaseArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Seller account. Needed only if several accounts have an instance with this id.
    #[arg(long)]
    account: Option<String>,
    /// Id or orderBizId of the instance.
    id: String,
}

pub(crate) fn release(arguments: ReleaseArguments, output: &mut Output) -> Done {
    let ReleaseArguments { operation, account, id } = arguments;
    operation.run(&AdminOperation::Release(NamedInstance { name: id, account }), output)
}

#[derive(Args)]
pub(crate) struct ImportArguments {
    #[command(flatten)]
    operation: OperationArguments,
    /// Accept accounts that are not configured. Required without a configuration, because accounts cannot be checked
    /// then.
    #[arg(long)]
    any_account: bool,
    /// File with one JSON object per line: account and id, and as far as known endpoint, order_biz_id, state, buyer,
    /// product, sku, order_id, trial, expires_on, items, claimed_at, tenant, and all other members of an export; `-`
    /// for standard input.
    file: PathBuf,
}

pub(crate) fn import(arguments: ImportArguments, output: &mut Output) -> Done {
    let text = read_input(&arguments.file)?;
    let text = String::from_utf8(text)
        .map_err(|_| Failure::new(Exit::Data, format!("{} is not UTF-8", arguments.file.display())))?;
    let imports = imports(&text, &arguments.file)?;
    // Check the accounts before the database is opened for writing.
    if !arguments.any_account {
        check_accounts(&imports, arguments.operation.store.accounts()?.as_deref())?;
    }
    let (mut operations, act) = arguments.operation.begin()?;
    // A release before the import has left a tombstone, and no hook has run for it.
    let Imported { released_before } = operations.import(&imports, &act)?;
    let count = imports.len();
    let report = OperationReport::new("import", format!("{count} instances imported"));
    let details = json!({"instances": count, "released_before": released_before});
    print_report(report, &details, arguments.operation.json, output)?;
    for name in &released_before {
        let name = shown(name);
        output.print_error(&format!(
            "note: the marketplace released {name} before it was imported, so no hook ran; the instance is live now. Its next release runs, or release it with `spid instances release {name} --why …`"
        ));
    }
    Ok(())
}

/// Refuses unknown accounts: no callback would ever find an instance that is stored under a mistyped account.
fn check_accounts(imports: &[Import], known: Option<&[String]>) -> Result<(), Failure> {
    let Some(known) = known else {
        return Err(Failure::new(Exit::Usage, "the accounts cannot be checked without a configuration")
            .hint("give --config FILE, or --any-account"));
    };
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let mut wrong = Vec::new();
    for Import { origin, instance, .. } in imports {
        let account = instance.account.as_str();
        if !known.contains(&account) {
            let meant = config::unknown(account, &known);
            wrong.push(format!("{origin}: account `{account}` is not configured; {meant}"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Data, wrong.join("\n"))
        .hint("nothing was imported; --any-account imports them without this check"))
}

fn imports(text: &str, file: &Path) -> Result<Vec<Import>, Failure> {
    // Collect all wrong lines, so that one run shows all of them.
    let mut imports = Vec::new();
    let mut wrong = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let origin = format!("{}:{}", file.display(), index + 1);
        match serde_json::from_str::<InstanceLine>(line) {
            Ok(line) if line.is_pending() => {
                wrong.push(format!(
                    "{origin}: the instance is pending, and its create is not in this database"
                ));
            }
            Ok(line) => imports.push(line.import(origin)),
            Err(error) => wrong.push(format!("{origin}: {error}")),
        }
    }
    if wrong.is_empty() { Ok(imports) } else { Err(Failure::new(Exit::Data, wrong.join("\n"))) }
}
