//! `instances`: commands on instances, and the output of those that show them.

use clap::Subcommand;

use super::callbacks::callbacks_table;
use super::decrypt::{self, RevealArguments, WithSecrets};
use super::export;
use super::{ListArguments, ShowArguments, or_dash, text};
use crate::cli::Done;
use crate::cli::output::{Column, Output, Row, shown};
use crate::cli::repair;
use crate::cli::words;
use crate::store::{Filter, InstanceHistory, InstanceRow};
use spid_hook::instance::State;

#[derive(Subcommand)]
pub(crate) enum InstancesCommand {
    /// List instances, the newest first.
    List {
        #[command(flatten)]
        list: ListArguments,
        /// List only instances in this state.
        #[arg(long, value_parser = words::instance_state())]
        state: Option<State>,
        /// List only instances of this account.
        #[arg(long)]
        account: Option<String>,
    },
    /// Show one instance and everything that happened to it.
    Show {
        #[command(flatten)]
        show: ShowArguments,
        #[command(flatten)]
        reveal: RevealArguments,
        /// Id or orderBizId of the instance.
        id: String,
        /// Seller account. Needed only if several accounts have an instance with this id.
        #[arg(long)]
        account: Option<String>,
    },
    /// Export an instance's history as a scenario that can be replayed, without personal data.
    Export(export::ExportInstanceArguments),
    /// Complete the job that an instance waits for: the hook left it pending, or you did the work by hand.
    Complete(repair::instances::CompleteArguments),
    /// Record that the buyer has claimed the instance: signed up, or chose a tenant.
    Claim(repair::instances::ClaimArguments),
    /// Release an instance, as if the marketplace had asked for it.
    Release(repair::instances::ReleaseArguments),
    /// Import instances that existed before spid did.
    Import(repair::instances::ImportArguments),
}

pub(crate) fn instances(command: InstancesCommand, output: &mut Output) -> Done {
    match command {
        InstancesCommand::List { list, state, account } => {
            let accounts = account.into_iter().collect();
            let filter = Filter { state, accounts, limit: list.limit, ..Filter::default() };
            let rows = list.store.reader()?.instances(&filter)?;
            if list.json { output.json(&rows) } else { output.rows(&rows) }
        }
        InstancesCommand::Show { show, reveal, id, account } => {
            let life = show.store.reader()?.life(&id, account.as_deref())?;
            let target = life.instance.audit_target();
            // The audit entry is written here, before anything is printed.
            let secrets = reveal.secrets(&show.store, &target, life.jobs.iter().map(|job| &job.row))?;
            if show.json {
                return output.json(&WithSecrets { shown: &life, secrets });
            }
            print_life(&life, output)?;
            decrypt::print(secrets, output)
        }
        InstancesCommand::Export(arguments) => export::instance(arguments, output),
        InstancesCommand::Complete(arguments) => repair::instances::complete(arguments, output),
        InstancesCommand::Claim(arguments) => repair::instances::claim(arguments, output),
        InstancesCommand::Release(arguments) => repair::instances::release(arguments, output),
        InstancesCommand::Import(arguments) => repair::instances::import(arguments, output),
    }
}

impl Row for InstanceRow {
    const COLUMNS: &'static [Column<InstanceRow>] = &[
        ("ID", |row| text(row.name())),
        ("STATE", |row| row.instance.state.to_string()),
        ("ACCOUNT", |row| row.instance.account.clone()),
        ("BUYER", |row| text(row.instance.buyer.as_deref())),
        ("PRODUCT", |row| text(row.instance.product.as_deref())),
        ("SKU", |row| text(row.instance.sku.as_deref())),
        ("EXPIRES", |row| or_dash(row.instance.expires_on)),
        ("CLAIMED", |row| or_dash(row.instance.claimed_at)),
    ];
}

fn print_life(life: &InstanceHistory, output: &mut Output) -> Done {
    let instance = &life.instance.instance;
    let items: Vec<String> = instance.items.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let facts = [
        ("id", text(instance.id.as_deref())),
        ("public_id", text(life.instance.marketplace_instance_id.as_deref())),
        ("state", instance.state.to_string()),
        ("account", instance.account.clone()),
        ("order_biz_id", text(instance.order_biz_id.as_deref())),
        ("order_id", text(instance.order_id.as_deref())),
        ("buyer", text(instance.buyer.as_deref())),
        ("product", text(instance.product.as_deref())),
        ("sku", text(instance.sku.as_deref())),
        ("items", if items.is_empty() { "-".to_owned() } else { items.join(", ") }),
        ("trial", instance.trial.map_or_else(|| "-".to_owned(), |trial| trial.to_string())),
        ("expires_on", or_dash(instance.expires_on)),
        ("created_at", instance.created_at.to_string()),
        ("claimed_at", or_dash(instance.claimed_at)),
        ("tenant", text(instance.tenant.as_deref())),
    ];
    for (name, value) in facts {
        output.line(&format!("{name:<13} {}", shown(&value)))?;
    }
    output.line("")?;
    callbacks_table(&life.callbacks, output)?;
    output.line("")?;
    output.rows(&life.jobs)?;
    if life.operations.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.rows(&life.operations)
}
