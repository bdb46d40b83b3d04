//! Operations on instances: claim and import.

use jiff::Timestamp;

use super::{AuditNote, OperationDone, OperationError, Operations, impossible, no_instance};
use crate::observe::limits;
use crate::store::rows::{InstanceRow, Read};
use crate::store::work::Work;
use spid_hook::instance::fault_of_id;
use spid_hook::instance::{Instance, State};
use spid_hook::text::{fault_of_name, fault_of_text};

/// A buyer's claim: the buyer has come and taken an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// Name of the buyer in the seller's words, for example of a tenant.
    pub tenant: Option<String>,
    /// True if this claim may replace the claim of another tenant.
    pub replace: bool,
}

/// Result of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The claim is recorded now.
    Now,
    /// The instance was claimed at this time, and the new claim names no other tenant. Nothing was changed.
    Before(Timestamp),
}

/// An instance that existed before spid was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// Source of the data, for messages: a file and a line.
    pub origin: String,
    /// Data of the instance. `created_at` and `updated_at` count only if [`Import::dated`] is true.
    pub instance: Instance,
    /// True if the times of creation and change are known. Otherwise both are the time of the import.
    pub dated: bool,
    /// Id that the marketplace uses for the instance, if it differs from the instance's own.
    pub marketplace_instance_id: Option<String>,
    /// More names that find the instance.
    pub names: Vec<String>,
    /// More orders that were carried out for the instance.
    pub orders: Vec<String>,
}

impl Import {
    /// Returns a name of the instance for messages.
    fn name(&self) -> &str {
        let names = [&self.instance.id, &self.instance.order_biz_id, &self.marketplace_instance_id];
        names.into_iter().flatten().next().map_or("-", String::as_str)
    }
}

/// Result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Live instances whose release came before they were known here. That release was not carried out.
    pub released_before: Vec<String>,
}

impl Operations {
    /// Records that the buyer has come and taken the instance.
    ///
    /// The same claim again changes nothing, so a caller that does not know the result may repeat it.
    ///
    /// # Errors
    /// Fails if there is no such instance, it is not created yet or already released, or another tenant has it.
    pub fn claim(&mut self, instance: i64, claim: &Claim, note: &AuditNote) -> OperationDone<Claimed> {
        let target = self.target(instance)?;
        self.run_audited(note, "claim", &target, |rows, now| claim_instance(rows, instance, claim, now))
    }

    /// Imports instances that existed before spid was installed: all of them or none.
    ///
    /// A release that came before its instance was known has left a tombstone. If no hook ran for it, it becomes the
    /// imported instance.
    ///
    /// # Errors
    /// Fails if names are taken, missing or unusable. The error lists each fault with its source.
    pub fn import(&mut self, imports: &[Import], note: &AuditNote) -> OperationDone<Imported> {
        let target = format!("{} instances", imports.len());
        self.run_audited(note, "import", &target, |rows, now| {
            // Collect all faults, so that one run shows them all. Any fault undoes the whole import.
            let mut wrong = Vec::new();
            let mut imported = Imported::default();
            for import in imports {
                match import_instance(rows, import, now) {
                    Ok(was_tombstone) => {
                        imported.released_before.extend(was_tombstone.then(|| import.name().to_owned()));
                    }
                    Err(OperationError::Impossible(fault)) => {
                        wrong.push(format!("{}: {fault}", import.origin))
                    }
                    Err(error) => return Err(error),
                }
            }
            if wrong.is_empty() { Ok(imported) } else { impossible(wrong.join("\n")) }
        })
    }
}

fn claim_instance(rows: &mut Work<'_>, number: i64, claim: &Claim, now: Timestamp) -> OperationDone<Claimed> {
    let mut row = rows.instance(number)?.ok_or_else(|| no_instance(number))?;
    if let Some(fault) = claim.tenant.as_deref().and_then(fault_of_tenant) {
        return impossible(format!("the tenant's name is not usable: {fault}"));
    }
    match row.instance.state {
        State::Pending => return impossible("the instance is not created yet, so it cannot be claimed"),
        State::Released => return impossible("the instance is released for good, so it cannot be claimed"),
        State::Active | State::Frozen => {}
    }
    // A claim without a name confirms the existing claim.
    let same = claim.tenant.is_none() || claim.tenant == row.instance.tenant;
    match row.instance.claimed_at {
        Some(before) if same => return Ok(Claimed::Before(before)),
        Some(before) if !claim.replace => {
            let tenant = row.instance.tenant.as_ref();
            let by = tenant.map_or_else(|| "another buyer".to_owned(), |tenant| format!("`{tenant}`"));
            return impossible(format!("{by} claimed the instance at {before}"));
        }
        Some(_) | None => {}
    }
    // Leave `updated_at`: it decides if a request is superseded, and a claim must not supersede earlier requests.
    row.instance.claimed_at = Some(now);
    row.instance.tenant = claim.tenant.clone();
    rows.put_instance(&row);
    Ok(Claimed::Now)
}

fn fault_of_tenant(tenant: &str) -> Option<String> {
    let most = limits::NAME_MAX_BYTES;
    match tenant {
        empty if empty.trim().is_empty() => Some("the name is empty".to_owned()),
        long if long.len() > most => Some(format!("the name is longer than {most} bytes")),
        name => fault_of_name(name),
    }
}

/// Returns the first text of an imported instance that is unusable. Its names are checked on their own.
fn fault_of_instance(instance: &Instance) -> Option<(&'static str, String)> {
    let tenant = instance.tenant.as_deref().and_then(fault_of_tenant);
    let texts = [
        ("account", Some(&instance.account)),
        ("endpoint", Some(&instance.endpoint)),
        ("buyer", instance.buyer.as_ref()),
        ("product", instance.product.as_ref()),
        ("sku", instance.sku.as_ref()),
        ("order_id", instance.order_id.as_ref()),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text?)));
    let items = instance.items.iter().flat_map(|(name, value)| [("items", name), ("items", value)]);
    let odd = texts.chain(items).find_map(|(name, text)| Some((name, fault_of_text(text)?)));
    tenant.map(|fault| ("tenant", fault)).or(odd)
}

/// Returns the number of the tombstone that has these names, if there is exactly one and no hook was tried for it.
fn bare_tombstone(rows: &dyn Read, account: &str, names: &[&String]) -> OperationDone<Option<i64>> {
    let mut found = None;
    for name in names {
        let Some((row, _)) = rows.instance_by_name(account, name)? else { continue };
        let is_bare = row.instance.tombstone && !row.instance.began;
        // All names must belong to the same tombstone.
        if !is_bare || found.is_some_and(|number| number != row.number) {
            return Ok(None);
        }
        found = Some(row.number);
    }
    let Some(number) = found else { return Ok(None) };
    let was_tried = rows.instance_jobs(number)?.iter().any(|job| job.attempts > 0 || job.state.is_live());
    Ok(Some(number).filter(|_| !was_tried))
}

/// Imports one instance. Returns true if it is live and replaced a tombstone, so its release came before.
fn import_instance(rows: &mut Work<'_>, import: &Import, now: Timestamp) -> OperationDone<bool> {
    let mut instance = Instance { adopted: true, ..import.instance.clone() };
    if !import.dated {
        (instance.created_at, instance.updated_at) = (now, now);
    }
    if let Some((name, fault)) = fault_of_instance(&instance) {
        return impossible(format!("`{name}` cannot be used: {fault}"));
    }
    let own = [&instance.id, &instance.order_biz_id, &import.marketplace_instance_id].into_iter().flatten();
    let names: Vec<&String> = own.chain(&import.names).collect();
    // An instance that was released before anything was created has no id.
    if names.is_empty() || instance.id.is_none() && instance.state != State::Released {
        return impossible("an instance without an id cannot be imported");
    }
    if instance.tombstone && instance.state != State::Released {
        return impossible("a tombstone must be in state released");
    }
    // Only an instance takes the place of a tombstone, not another tombstone.
    let tombstone = match instance.tombstone {
        true => None,
        false => bare_tombstone(rows, &instance.account, &names)?,
    };
    let number = match tombstone {
        Some(number) => number,
        None => rows.add_instance(&instance)?,
    };
    for name in names {
        add_own_name(rows, &instance.account, name, number)?;
    }
    for order in instance.order_id.iter().chain(&import.orders) {
        rows.add_order(&instance.account, order, number);
    }
    let was_released = tombstone.is_some() && instance.state != State::Released;
    // The row of a tombstone is replaced as a whole.
    if tombstone.is_some() || import.marketplace_instance_id.is_some() {
        let marketplace_instance_id = import.marketplace_instance_id.clone();
        rows.put_instance(&InstanceRow {
            number,
            created_by: None,
            marketplace_instance_id,
            known_as: None,
            instance,
        });
    }
    Ok(was_released)
}

fn add_own_name(rows: &mut Work<'_>, account: &str, name: &str, number: i64) -> OperationDone<()> {
    if let Some(fault) = fault_of_id(name) {
        return impossible(format!("`{name}` cannot be an instance's name: {fault}"));
    }
    if !rows.add_name(account, name, number)? {
        return impossible(format!("account `{account}` already has an instance with the name `{name}`"));
    }
    Ok(())
}
