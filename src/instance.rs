//! The lifecycle of one sold instance. wip
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What has been applied to an instance so far. What is still coming is in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Bought, not yet provisioned.
    Pending,
    /// In use.
    Active,
    /// Expired or in arrears: data kept, no use.
    Frozen,
    /// Given up for good; a tombstone.
    Released,
}

impl State {
    /// The word used in files, logs and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Active => "active",
            State::Frozen => "frozen",
            State::Released => "released",
        }
    }

    /// The state with this word.
    pub fn from_word(word: &str) -> Option<State> {
        [State::Pending, State::Active, State::Frozen, State::Released]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One sold instance, as far as it has been applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The id the marketplace knows it by; `None` until the create hook has finished.
    pub id: Option<String>,
    /// The marketplace's own id of what was sold.
    pub order_biz_id: Option<String>,
    /// What has been applied.
    pub state: State,
    /// The account it belongs to.
    pub account: String,
    /// The endpoint its first callback came through.
    pub endpoint: String,
    /// The buyer's account at the marketplace.
    pub buyer: Option<String>,
    /// The product sold.
    pub product: Option<String>,
    /// The SKU in force.
    pub sku: Option<String>,
    /// The order it was created by.
    pub order_id: Option<String>,
    /// Whether it was bought as a trial; `None` when the marketplace did not say.
    pub trial: Option<bool>,
    /// When its term ends, `None` when there is no end or it could not be read.
    pub expires_on: Option<Timestamp>,
    /// The expiry as it was last sent.
    pub expires_on_raw: Option<String>,
    /// The billed quantities in force.
    pub items: BTreeMap<String, String>,
    /// Whether a create attempt ever began: something may exist at the ISV's side.
    pub began: bool,
    /// Whether its release came before anything that would have made it.
    pub tombstone: bool,
    /// Whether it was not created through us but taken over (`adopt`, `import`).
    pub adopted: bool,
    /// When its first callback came.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}
