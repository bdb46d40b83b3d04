//! Actions of a callback.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Actions that a callback can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Create an instance.
    Create,
    /// Extend the term of an instance; unfreezes a frozen one.
    Renew,
    /// Take back a renewal: the only action that may lower the expiry.
    RefundRenew,
    /// Change the SKU or the billed quantities; the expiry stays.
    Upgrade,
    /// Freeze: the term ended or payment is in arrears. Data stays.
    Expire,
    /// Give up the instance for good.
    Release,
    /// Sign on the browser of a buyer.
    SignOn,
    /// Report a paid order: a message, so there is nothing to create.
    Payment,
    /// Query the result of an earlier request.
    Query,
    /// Any other action, known to the dialect or not.
    Other,
}

impl Action {
    /// All actions; the index of an action is the number that is stored.
    pub const ALL: [Action; 10] = [
        Action::Create,
        Action::Renew,
        Action::RefundRenew,
        Action::Upgrade,
        Action::Expire,
        Action::Release,
        Action::SignOn,
        Action::Payment,
        Action::Query,
        Action::Other,
    ];

    /// Word for the action in files, logs and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Renew => "renew",
            Action::RefundRenew => "refund-renew",
            Action::Upgrade => "upgrade",
            Action::Expire => "expire",
            Action::Release => "release",
            Action::SignOn => "sign-on",
            Action::Payment => "payment",
            Action::Query => "query",
            Action::Other => "other",
        }
    }

    /// Returns the action with this word.
    pub fn from_word(word: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == word)
    }

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

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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
