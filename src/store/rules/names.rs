//! Names of instances: the instance that a callback names, and the ids that name a new instance.

use crate::store::StoreError;
use crate::store::rows::{InstanceAndQueue, InstanceRow, JobRow, Read, Result, Unreadable};
use crate::store::work::Work;
use spid_hook::callback::{Action, Callback};
use spid_hook::instance::{fault_of_any_id, fault_of_id};

pub(super) fn find_instance(
    rows: &dyn Read,
    account: &str,
    callback: &Callback,
) -> Result<Option<InstanceAndQueue>> {
    // Names decide first. An order id finds an instance only for a callback without any name.
    for name in callback.subject.names() {
        if let Some(known) = rows.instance_by_name(account, name)? {
            return Ok(Some(known));
        }
    }
    if callback.subject.names().next().is_some() {
        return refuse_missing_name(rows, account, callback).map(|()| None);
    }
    let Some(order) = callback.order_id.as_deref().filter(|order| !order.is_empty()) else {
        return Ok(None);
    };
    // An order with several instances does not say which one is meant.
    match rows.instances_by_order(account, order)?.as_slice() {
        [only] => match rows.instance(*only)? {
            Some(row) => Ok(Some((row, rows.queue(*only)?))),
            None => Ok(None),
        },
        _ => Ok(None),
    }
}

/// Fails if the order already has an instance with this `orderBizId`.
///
/// Then the row in table `name` is missing or damaged, and a known order would look new and run twice.
fn refuse_missing_name(rows: &dyn Read, account: &str, callback: &Callback) -> Result<()> {
    let (Some(order), Some(name)) = (callback.order_id.as_deref(), callback.subject.order_biz_id.as_deref())
    else {
        return Ok(());
    };
    match rows.instance_bought(account, order, name)? {
        Some(number) => Err(StoreError::Unreadable(Box::new(Unreadable {
            table: "name",
            row: format!("{account}/{name}"),
            fault: format!("instance {number} has this name, but the row is missing"),
            newer: false,
        }))),
        None => Ok(()),
    }
}

/// Gives an instance the id that its marketplace wants to use. The first such id stays for good.
///
/// An id that another instance already has is not used. Then the instance's own id is reported.
pub(super) fn set_marketplace_id(
    rows: &mut Work<'_>,
    row: &mut InstanceRow,
    callback: &Callback,
) -> Result<()> {
    if let (Action::Create, Some(id), None) =
        (callback.action, &callback.marketplace_instance_id, &row.marketplace_instance_id)
        && rows.add_name(&row.instance.account, id, row.number)?
    {
        row.marketplace_instance_id = Some(id.clone());
    }
    Ok(())
}

/// Names the instance: by the hook's id, else the marketplace's id, else the `orderBizId`. Returns the fault of the id.
pub(super) fn name_instance(
    rows: &mut Work<'_>,
    job: &mut JobRow,
    row: &mut InstanceRow,
    answer_id: Option<&str>,
) -> Result<Option<String>> {
    let given = row.marketplace_instance_id.as_deref().or(row.instance.order_biz_id.as_deref());
    let Some(id) = answer_id.or(given).map(str::to_owned) else {
        return Ok(Some(
            "the instance has no id: the answer has none, and the marketplace gave none".to_owned(),
        ));
    };
    // The marketplace's own id is used as it is. A paid order must not fail for its spelling.
    let fault = if answer_id.is_some() { fault_of_id(&id) } else { fault_of_any_id(&id) };
    if let Some(fault) = fault {
        return Ok(Some(format!("the id in the answer cannot be used: {fault}")));
    }
    // An earlier attempt may have created a resource under its id, so a second id is a fault.
    if let Some(before) = job.proposed_id.as_ref().filter(|before| **before != id) {
        return Ok(Some(format!("the id in the answer is `{id}`, but an earlier attempt gave `{before}`")));
    }
    if !rows.add_name(&row.instance.account, &id, row.number)? {
        return Ok(Some(format!("the id in the answer, `{id}`, belongs to another instance")));
    }
    job.proposed_id = Some(id.clone());
    row.instance.id = Some(id);
    Ok(None)
}
