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
    let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    filled(known).zip(filled(said)).is_none_or(|(known, said)| known == said)
}

/// Returns true if the orderBizId of the callback led to the instance of another order, whose hook chose that name as
/// its id. Nothing was created for this order, so the callback must neither learn about that instance nor change it. A
/// callback that also names the instance id means that instance.
pub fn is_anothers(instance: &Instance, callback: &Callback) -> bool {
    let says = |name: &&str| !name.is_empty() && *name != "0";
    let asked = callback.subject.order_biz_id.as_deref().filter(says);
    let named_by_id = callback.subject.instance_id.as_deref().filter(says).is_some();
    (callback.action == Action::Create || !named_by_id)
        && asked.is_some()
        && instance.order_biz_id.is_some()
        && asked != instance.order_biz_id.as_deref()
}
