//! Policy of the seller.

use jiff::Timestamp;

use crate::limits;
use spid_hook::time::plus_millis;

spid_hook::words! {
    /// Policies for a callback about an instance that spid did not create.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub enum UnknownInstance {
        /// Refuse. The marketplace calls again, so the problem is noticed.
        #[default]
        Refuse = "refuse",
        /// Report success and do nothing: for sellers who moved to spid and serve earlier customers elsewhere.
        Succeed = "succeed",
        /// Create a record and run the hook.
        Adopt = "adopt",
    }
}

/// Policy of the seller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Policy for an instance that spid did not create.
    pub unknown_instance: UnknownInstance,
    /// Largest allowed difference between the date of a sign-on and now, in milliseconds.
    pub sign_on_window_ms: i64,
}

impl Policy {
    /// Returns true if a sign-on with this date is neither too old nor from the future.
    pub fn is_fresh(&self, sent_at: Option<Timestamp>, now: Timestamp) -> bool {
        let window = self.sign_on_window_ms;
        sent_at.is_some_and(|sent| sent >= plus_millis(now, -window) && sent <= plus_millis(now, window))
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { unknown_instance: UnknownInstance::default(), sign_on_window_ms: limits::DATED_WINDOW_MS }
    }
}
