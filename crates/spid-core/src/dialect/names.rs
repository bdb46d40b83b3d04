//! The parameters that every dialect has, under the dialect's own names.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{Options, text_of};
use crate::limits::NAME_MAX_BYTES;
use spid_hook::callback::{Action, Callback, Expiry, InstanceRef, Parameters, ValidationIssue};

/// A dialect's names for the parameters that every dialect has.
pub(super) struct Names {
    pub(super) instance_id: &'static str,
    pub(super) order_biz_id: &'static str,
    pub(super) order_id: &'static str,
    pub(super) request_id: &'static str,
    pub(super) buyer: &'static str,
    pub(super) product: &'static str,
    pub(super) sku: &'static str,
    pub(super) trial: &'static str,
    pub(super) refund: &'static str,
    pub(super) expires_on: &'static str,
    pub(super) read_date: fn(&str, &TimeZone) -> Option<Timestamp>,
    /// Actions whose order id is new for every event, so that it identifies the callback.
    pub(super) ordered: &'static [Action],
}

impl Names {
    /// Builds the callback, without its billing items and without validation issues of this dialect only.
    pub(super) fn read(
        &self,
        action: Action,
        word: &str,
        parameters: Parameters,
        options: &Options,
    ) -> Callback {
        let mut callback = self.fill(action, word, parameters, options);
        self.check(&mut callback, matches!(action, Action::Renew | Action::RefundRenew));
        callback
    }

    /// Builds the callback from its parameters, without any validation.
    pub(super) fn fill(
        &self,
        action: Action,
        word: &str,
        parameters: Parameters,
        options: &Options,
    ) -> Callback {
        let expires_on = text_of(&parameters, self.expires_on).map(|raw| {
            let at = (self.read_date)(&raw, &options.timezone);
            Expiry { raw, at }
        });
        let mut callback = Callback {
            subject: InstanceRef {
                // A create is identified by its order: an instance id in it belongs to no instance yet.
                instance_id: text_of(&parameters, self.instance_id).filter(|_| action != Action::Create),
                order_biz_id: text_of(&parameters, self.order_biz_id),
            },
            order_id: text_of(&parameters, self.order_id),
            request_id: text_of(&parameters, self.request_id),
            buyer: text_of(&parameters, self.buyer),
            product: text_of(&parameters, self.product),
            sku: text_of(&parameters, self.sku),
            trial: parameters.filled(self.trial).and_then(read_bool),
            refund: parameters.filled(self.refund).and_then(read_bool),
            expires_on,
            ..Callback::new(action, word)
        }
        .ordering(self.ordered);
        callback.parameters = parameters;
        callback
    }

    /// Adds a validation issue for each value that is needed and missing.
    /// A date is required only if the callback is `dated`. The lifecycle checks the rest.
    pub(super) fn check(&self, callback: &mut Callback, dated: bool) {
        let unnamed = callback.subject.names().next().is_none();
        let missing = match callback.action {
            // Without a name we cannot recognize a redelivery, so every delivery would create another instance.
            Action::Create => unnamed.then_some(self.order_biz_id),
            Action::Renew | Action::RefundRenew | Action::Upgrade | Action::Expire | Action::Release => {
                (unnamed && callback.order_id.is_none()).then_some(self.instance_id)
            }
            Action::SignOn => unnamed.then_some(self.instance_id),
            Action::Payment => {
                // A payment is identified by its request or its order.
                (callback.request_id.is_none() && callback.order_id.is_none()).then_some(self.request_id)
            }
            Action::Query | Action::Other => None,
        };
        let undated = dated && callback.expires_on.as_ref().is_none_or(|expiry| expiry.at.is_none());
        if let Some(name) = missing {
            callback.issues.push(ValidationIssue::MissingParameter { name: name.to_owned() });
        }
        if undated {
            callback.issues.push(ValidationIssue::UnreadableDate { name: self.expires_on.to_owned() });
        }
        let InstanceRef { instance_id, order_biz_id } = &callback.subject;
        for (name, value) in [(self.instance_id, instance_id), (self.order_biz_id, order_biz_id)] {
            if value.as_ref().is_some_and(|value| value.len() > NAME_MAX_BYTES) {
                callback.issues.push(ValidationIssue::UnknownValue { name: name.to_owned() });
            }
        }
    }
}

/// Reads `true` or `false`, in any case. Any other text is unknown (`None`), which is not `false`.
fn read_bool(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_is_not_no() {
        assert_eq!(
            ["true", "TRUE", "false", "False"].map(read_bool),
            [Some(true), Some(true), Some(false), Some(false)]
        );
        assert_eq!(["", "1", "0", "yes", "否"].map(read_bool), [None; 5]);
    }
}
