//! The endpoints configured now, for jobs whose own endpoint may have been renamed or removed.
//!
//! A job outlives the configuration it was created under. It needs its endpoint to choose the hook, the order lookup
//! and the dialect. A missing endpoint must not be read as "no lookup is needed".

use std::collections::BTreeMap;
use std::sync::Arc;

use spid_core::dialect::Dialect;

/// The configured endpoints by name. Clones share them. The default has no list and accepts every name, for a
/// dispatcher that was given no endpoints.
#[derive(Clone, Default)]
pub struct KnownEndpoints(Option<Arc<BTreeMap<String, KnownEndpoint>>>);

/// The facts about one endpoint that its jobs need.
#[derive(Clone)]
pub struct KnownEndpoint {
    /// Account of its instances.
    pub account: Arc<str>,
    /// Dialect of its marketplace.
    pub dialect: &'static dyn Dialect,
}

/// The configured endpoints that replace the one a callback came through.
#[derive(Clone)]
pub enum Successors {
    /// The endpoint itself, or the only endpoint of its account.
    One(String),
    /// Several endpoints of its account. Any of them may look up an order, but none decides a route.
    Several(Vec<String>),
    /// No endpoint of its account is configured.
    None,
}

impl Successors {
    /// Returns their names.
    pub fn names(&self) -> &[String] {
        match self {
            Successors::One(name) => std::slice::from_ref(name),
            Successors::Several(names) => names,
            Successors::None => &[],
        }
    }

    /// Returns the name that decides a route by endpoint; `None` if no single endpoint can decide it.
    pub fn name(&self) -> Option<&str> {
        match self {
            Successors::One(name) => Some(name),
            Successors::Several(_) | Successors::None => None,
        }
    }
}

impl KnownEndpoints {
    /// Creates the list from these endpoints, by name.
    pub fn new(endpoints: impl IntoIterator<Item = (String, KnownEndpoint)>) -> KnownEndpoints {
        KnownEndpoints(Some(Arc::new(endpoints.into_iter().collect())))
    }

    /// Finds the endpoints that now replace the endpoint `name` of this account. A name counts only together with its
    /// account, because an endpoint of another seller may have the name now. A known `dialect` must match as well.
    pub fn successors(&self, name: &str, account: &str, dialect: Option<&str>) -> Successors {
        // Without a list, every endpoint counts as configured.
        let Some(known) = &self.0 else { return Successors::One(name.to_owned()) };
        if known.get(name).is_some_and(|known| *known.account == *account) {
            return Successors::One(name.to_owned());
        }
        let mut names = Vec::new();
        for (name, known) in known.iter() {
            if *known.account == *account && dialect.is_none_or(|dialect| known.dialect.name() == dialect) {
                names.push(name.clone());
            }
        }
        match names.len() {
            0 => Successors::None,
            1 => Successors::One(names.remove(0)),
            _ => Successors::Several(names),
        }
    }

    /// Returns the dialect that all of these endpoints use; `None` if they use different ones.
    pub fn dialect_of(&self, successors: &Successors) -> Option<&'static dyn Dialect> {
        let known = self.0.as_ref()?;
        let mut dialects =
            successors.names().iter().filter_map(|name| known.get(name)).map(|known| known.dialect);
        let first = dialects.next()?;
        // Different dialects give no answer rather than that of the first one.
        dialects.all(|other| other.name() == first.name()).then_some(first)
    }
}
