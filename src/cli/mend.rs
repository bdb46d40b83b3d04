//! Admin operations: changes that a person makes by hand. Each needs a reason, and is recorded in the audit log.
//!
//! The commands open the database themselves, so they work with and without a running daemon. A running daemon starts
//! jobs that became due within a few seconds.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::keys::KeyArguments;
use super::lines::InstanceLine;
use super::output::{Output, shown};
use super::scenario::briefly;
use super::sign::dialect_named;
use super::{Done, Exit, Failure, StoreArguments, not_there, runtime};
use crate::config::{self, Environment, ProcessEnvironment};
use crate::lab::exchange;
use crate::net::{Client, ClientOptions, Url};
use crate::store::{
    Approved, AuditNote, Claim, Claimed, Import, Imported, Instead, OperationError, Operations, Restored,
};
use spid_core::dialect::Sending;
use spid_hook::callback::Answer;
use spid_hook::id::Id;
use spid_hook::time::Clock;

/// Arguments of every admin operation.
#[derive(Args)]
pub(super) struct ActArguments {
    #[command(flatten)]
    pub(super) store: StoreArguments,
    /// Reason, for the audit log.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Name of the person who acts; the default is your user name, under sudo the name of the user who called it.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

impl ActArguments {
    pub(super) fn begin(&self) -> Result<(Operations, AuditNote), Failure> {
        let act = self.act()?;
        Ok((operations(&self.store)?, act))
    }

    fn act(&self) -> Result<AuditNote, Failure> {
        act(self.who.as_deref(), &self.why)
    }
}

/// Audit information of an operation: the acting person and the reason.
pub(super) fn act(who: Option<&str>, why: &str) -> Result<AuditNote, Failure> {
    if why.trim().is_empty() {
        return Err(Failure::new(Exit::Usage, "`--why` is empty: give a reason for the audit log"));
    }
    // Under sudo the user who called sudo is the person who acts, not root.
    let known = || ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| ProcessEnvironment.get(name));
    let who = who.map(str::to_owned).or_else(known).unwrap_or_else(|| "unknown".to_owned());
    Ok(AuditNote { who, why: why.to_owned() })
}

/// Opens the database for admin operations.
pub(super) fn operations(store: &StoreArguments) -> Result<Operations, Failure> {
    let (path, options) = store.place()?;
    Operations::open(&path, &options, Clock::System).map_err(not_there)
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Failure {
        match error {
            OperationError::Store(error) => error.into(),
            OperationError::NotFound(text) => Failure::new(Exit::NoInput, text),
            OperationError::Impossible(text) => Failure::new(Exit::Data, text),
        }
    }
}

#[derive(Args)]
pub(super) struct JobArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Id of the job.
    id: Id,
}

pub(super) fn retry(arguments: JobArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    let id = arguments.id;
    match operations.retry(id, &act)? {
        None => output.line(&format!("job {id} is due now")),
        // The jobs of an instance run in order.
        Some(ahead) => {
            output.line(&format!("job {id} is due when job {ahead}, which is before it, has ended"))
        }
    }
}

pub(super) fn drop_job(arguments: JobArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    operations.drop_job(arguments.id, &act)?;
    output
        .line(&format!("job {} is dropped; another delivery of the callback creates a new job", arguments.id))
}

#[derive(Args)]
pub(super) struct ApproveArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Run a conflicting create as renew, upgrade or conversion (of a trial).
    #[arg(long = "as", value_name = "WHAT")]
    instead: Option<String>,
    /// Number of the callback, from `held list`.
    number: i64,
}

#[derive(Args)]
pub(super) struct RejectArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Number of the callback, from `held list`.
    number: i64,
}

pub(super) fn approve(arguments: ApproveArguments, output: &mut Output) -> Done {
    let instead = arguments
        .instead
        .map(|word| {
            Instead::from_word(&word).ok_or_else(|| {
                Failure::new(Exit::Usage, format!("`--as {word}`: use renew, upgrade or conversion"))
            })
        })
        .transpose()?;
    let (mut operations, act) = arguments.act.begin()?;
    let approved = operations.approve(arguments.number, instead, &act)?;
    say_approved(&approved, output)
}

fn say_approved(approved: &Approved, output: &mut Output) -> Done {
    match &approved.job {
        Some(job) => output.line(&format!("callback {}: job {job} is queued", approved.callback)),
        None => output.line(&format!("callback {}: done, there was nothing to run", approved.callback)),
    }
}

pub(super) fn reject(arguments: RejectArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    operations.reject(arguments.number, &act)?;
    output.line(&format!("callback {} is rejected, and so are its redeliveries", arguments.number))
}

pub(super) fn settle(arguments: RejectArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    operations.settle(arguments.number, &act)?;
    output.line(&format!(
        "callback {} is settled: its next delivery is answered with success, and nothing runs",
        arguments.number
    ))
}

#[derive(Args)]
pub(super) struct DismissArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Numbers of the callbacks, from `attention`.
    #[arg(required = true)]
    numbers: Vec<i64>,
}

pub(super) fn dismiss(arguments: DismissArguments, output: &mut Output) -> Done {
    let (mut operations, act) = arguments.act.begin()?;
    for number in arguments.numbers {
        operations.dismiss(number, &act)?;
        output.line(&format!("callback {number} is removed from the attention list"))?;
    }
    Ok(())
}

#[derive(Args)]
pub(super) struct CompleteJobArguments {
    #[command(flatten)]
    act: ActArguments,
    /// File with the answer, in the JSON of docs/hooks.md; `-` for standard input. The default is an empty answer.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Id of the job, from `jobs list` or `held list`.
    id: Id,
}

pub(super) fn complete_job(arguments: CompleteJobArguments, output: &mut Output) -> Done {
    let answer = arguments.answer.as_deref().map_or_else(|| Ok(Answer::default()), answer)?;
    let (mut operations, act) = arguments.act.begin()?;
    let action = operations.complete_job(arguments.id, &answer, &act)?;
    output.line(&format!("job {} ({action}) is complete; spid reports it at the next delivery", arguments.id))
}

#[derive(Args)]
pub(super) struct CompleteArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Seller account. Needed only if several accounts have an instance with this id.
    #[arg(long)]
    account: Option<String>,
    /// File with the answer, in the JSON of docs/hooks.md; `-` for standard input. The default is an empty answer.
    #[arg(long, value_name = "FILE")]
    answer: Option<PathBuf>,
    /// Id or orderBizId of the instance.
    id: String,
}

pub(super) fn complete(arguments: CompleteArguments, output: &mut Output) -> Done {
    // The reader finds the instance; `begin` then opens the database for writing.
    let row = arguments.act.store.reader()?.find(&arguments.id, arguments.account.as_deref())?;
    let answer = match &arguments.answer {
        Some(path) => answer(path)?,
        None => Answer::default(),
    };
    let (mut operations, act) = arguments.act.begin()?;
    let action = operations.complete(row.number, &answer, &act)?;
    output.line(&format!(
        "the {action} of {} is complete; spid reports it at the next delivery",
        shown(&arguments.id)
    ))
}

fn answer(path: &Path) -> Result<Answer, Failure> {
    let text = read_input(path)?;
    spid_hook::read_answer(&text)
        .map_err(|error| Failure::new(Exit::Data, format!("{}: {error}", path.display())))
}

fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure::new(Exit::NoInput, format!("{}: {error}", path.display()));
    if path != Path::new("-") {
        return std::fs::read(path).map_err(unreadable);
    }
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}

#[derive(Args)]
pub(super) struct ClaimArguments {
    #[command(flatten)]
    act: ActArguments,
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

pub(super) fn claim(arguments: ClaimArguments, output: &mut Output) -> Done {
    let row = arguments.act.store.reader()?.find(&arguments.id, arguments.account.as_deref())?;
    let (mut operations, act) = arguments.act.begin()?;
    let claim = Claim { tenant: arguments.tenant, replace: arguments.replace };
    let id = shown(&arguments.id);
    match operations.claim(row.number, &claim, &act)? {
        Claimed::Now => output.line(&format!("{id} is claimed")),
        Claimed::Before(at) => output.line(&format!("{id} was claimed at {at}; nothing was changed")),
    }
}

#[derive(Args)]
pub(super) struct ReleaseArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Seller account. Needed only if several accounts have an instance with this id.
    #[arg(long)]
    account: Option<String>,
    /// Id or orderBizId of the instance.
    id: String,
}

pub(super) fn release(arguments: ReleaseArguments, output: &mut Output) -> Done {
    let row = arguments.act.store.reader()?.find(&arguments.id, arguments.account.as_deref())?;
    let (mut operations, act) = arguments.act.begin()?;
    let approved = operations.release(row.number, &act)?;
    say_approved(&approved, output)
}

#[derive(Args)]
pub(super) struct ImportArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Accept accounts that are not configured. Required without a configuration, because accounts cannot be checked
    /// then.
    #[arg(long)]
    any_account: bool,
    /// File with one JSON object per line: account and id, and as far as known endpoint, order_biz_id, state, buyer,
    /// product, sku, order_id, trial, expires_on, items, claimed_at, tenant, and all other members of an export; `-`
    /// for standard input.
    file: PathBuf,
}

pub(super) fn import(arguments: ImportArguments, output: &mut Output) -> Done {
    let text = read_input(&arguments.file)?;
    let text = String::from_utf8(text)
        .map_err(|_| Failure::new(Exit::Data, format!("{} is not UTF-8", arguments.file.display())))?;
    let imports = imports(&text, &arguments.file)?;
    // Check the accounts before the database is opened for writing.
    if !arguments.any_account {
        check_accounts(&imports, arguments.act.store.accounts()?.as_deref())?;
    }
    let (mut operations, act) = arguments.act.begin()?;
    // A release before the import has left a tombstone, and no hook has run for it.
    let Imported { released_before } = operations.import(&imports, &act)?;
    output.line(&format!("{} instances imported", imports.len()))?;
    for name in released_before {
        let name = shown(&name);
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
    let wrong = |import: &Import| {
        let (origin, account) = (&import.origin, import.instance.account.as_str());
        let is_known = known.contains(&account);
        let meant = config::unknown(account, &known);
        (!is_known).then(|| format!("{origin}: account `{account}` is not configured; {meant}"))
    };
    let wrong: Vec<String> = imports.iter().filter_map(wrong).collect();
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

#[derive(Args)]
pub(super) struct ResendArguments {
    #[command(flatten)]
    act: ActArguments,
    #[command(flatten)]
    key: KeyArguments,
    /// Dialect, if the callback does not name it (an older spid did not store it). The default is alibaba.
    #[arg(long)]
    dialect: Option<String>,
    /// URL of the endpoint.
    #[arg(long, value_name = "URL")]
    to: Url,
    /// Allow an address that is not this machine.
    #[arg(long)]
    yes: bool,
    /// Number of the callback.
    number: i64,
}

pub(super) fn resend(arguments: ResendArguments, output: &mut Output) -> Done {
    if !arguments.to.is_loopback() && !arguments.yes {
        return Err(Failure::new(Exit::Usage, format!("{} is not this machine", arguments.to.authority()))
            .hint("add --yes to allow it"));
    }
    let found = arguments.act.store.reader()?.callback(arguments.number)?;
    let (_, callback) = found
        .ok_or_else(|| Failure::new(Exit::NoInput, format!("there is no callback {}", arguments.number)))?;
    // The dialect adds `action` itself when it signs the request.
    let parameters: Vec<(String, String)> = callback
        .parameters
        .iter()
        .filter(|(name, _)| *name != "action")
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if let Some(at) = callback.pruned_at {
        let text = format!(
            "the content of callback {} was pruned at {at}; there is nothing to send",
            arguments.number
        );
        return Err(Failure::new(Exit::Data, text));
    }
    // The option overrides the stored dialect.
    let said = arguments.dialect.as_deref().or(callback.dialect.as_deref());
    let dialect = dialect_named(said.unwrap_or("alibaba"))?;
    let sending = Sending::at(Clock::System.now());
    let request = dialect.request(&callback.action_name, &parameters, &arguments.key.keys()?, &sending);
    let sent = exchange::addressed(&request, &arguments.to)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    // The audit entry comes before the request: a request that was sent must never be missing from the audit log.
    let (mut operations, act) = arguments.act.begin()?;
    let target = format!("callback {} to {}", arguments.number, arguments.to.authority());
    operations.record("resend", &target, &act)?;
    let answer = runtime()?
        .block_on(Client::new(ClientOptions::default()).send(sent))
        .map_err(|error| Failure::new(Exit::Unavailable, error.to_string()))?;
    let body = exchange::body(&answer.body);
    output.line(&format!("{} {}", answer.status, shown(briefly(body.trim()))))
}

#[derive(Args)]
pub(super) struct BackupArguments {
    #[command(flatten)]
    store: StoreArguments,
    /// File to create. It must not exist yet.
    file: PathBuf,
}

pub(super) fn backup(arguments: BackupArguments, output: &mut Output) -> Done {
    let (path, _) = arguments.store.place()?;
    crate::store::backup(&path, &arguments.file).map_err(not_there)?;
    output.line(&format!(
        "{} is a copy of {}; store a copy of the sealing key in another place",
        arguments.file.display(),
        path.display()
    ))
}

#[derive(Args)]
pub(super) struct RestoreArguments {
    #[command(flatten)]
    act: ActArguments,
    /// Backup file.
    file: PathBuf,
}

pub(super) fn restore(arguments: RestoreArguments, output: &mut Output) -> Done {
    let act = arguments.act.act()?;
    let (path, options) = arguments.act.store.place()?;
    let Restored { held, missing_key } =
        crate::store::restore(&arguments.file, &path, &options, Clock::System, &act)?;
    output.line(&format!("{} is restored; {held} unfinished jobs are held", path.display()))?;
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
