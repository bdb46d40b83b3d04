//! Actions of a callback.

use serde::{Deserialize, Serialize};

crate::words! {
    /// Actions that a callback can ask for.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Action {
        /// Create an instance.
        Create = "create",
        /// Extend the term of an instance; unfreezes a frozen one.
        Renew = "renew",
        /// Take back a renewal: the only action that may lower the expiry.
        RefundRenew = "refund-renew",
        /// Change the SKU or the billed quantities; the expiry stays.
        Upgrade = "upgrade",
        /// Freeze: the term ended or payment is in arrears. Data stays.
        Expire = "expire",
        /// Give up the instance for good.
        Release = "release",
        /// Sign on the browser of a buyer.
        SignOn = "sign-on",
        /// Report a paid order: a message, so there is nothing to create.
        Payment = "payment",
        /// Query the result of an earlier request.
        Query = "query",
        /// Any other action, known to the dialect or not.
        #[default]
        Other = "other",
    }
}

impl Action {
    /// Returns true if the action changes the lifecycle of an instance, so its job belongs in the instance's queue.
    pub const fn is_lifecycle(self) -> bool {
        matches!(
            self,
            Action::Create
                | Action::Renew
                | Action::RefundRenew
                | Action::Upgrade
                | Action::Expire
                | Action::Release
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_its_word() {
        for action in Action::ALL {
            assert_eq!(Action::from_word(action.as_str()), Some(action));
        }
        assert_eq!(Action::from_word("nonsense"), None);
    }
}
