//! Comparison of a callback with the purchase that created an instance.

use spid_hook::callback::{Action, Callback};
use spid_hook::instance::Instance;

/// Returns true if the callback is about the purchase that created the instance. The marketplace may leave out the
/// order or the buyer. The SKU, the quantities and the expiry may change between two deliveries of one purchase.
pub fn is_same_purchase(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.order_biz_id, &callback.subject.order_biz_id)
        && agree(&instance.order_id, &callback.order_id)
        && !is_another_buyers(instance, callback)
}

/// Returns true unless instance and callback name different buyers.
pub fn is_by_the_same_buyer(instance: &Instance, callback: &Callback) -> bool {
    agree(&instance.buyer, &callback.buyer)
}

/// Returns true for a create by another buyer than that of the instance.
fn is_another_buyers(instance: &Instance, callback: &Callback) -> bool {
    callback.action == Action::Create && !agree(&instance.buyer, &callback.buyer)
}

/// Returns true unless both texts are set and differ.
fn agree(known: &Option<String>, said: &Option<String>) -> bool {
    match (known.as_deref(), said.as_deref()) {
        (None | Some(""), _) | (_, None | Some("")) => true,
        (known, said) => known == said,
    }
}

/// Returns true if the orderBizId of the callback led to the instance of another order, whose hook chose that name as
/// its id. Nothing was created for this order, so the callback must neither learn about that instance nor change it. A
/// callback that also names the instance id means that instance.
pub fn is_anothers(instance: &Instance, callback: &Callback) -> bool {
    let is_named_by_id = named(callback.subject.instance_id.as_deref()).is_some();
    if is_named_by_id && callback.action != Action::Create {
        return false;
    }
    match (named(callback.subject.order_biz_id.as_deref()), instance.order_biz_id.as_deref()) {
        (Some(asked), Some(known)) => asked != known,
        _ => false,
    }
}

/// Returns a name, unless it is empty or the `0` that means "not ready".
fn named(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty() && *name != "0")
}
