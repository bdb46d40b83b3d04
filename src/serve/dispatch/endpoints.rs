//! The endpoints that are configured now, for jobs that came through one which may have another name by then, or
//! may be gone.
//!
//! A job outlives the configuration it came under. A question that needs its endpoint (which hook, what was ordered,
//! which dialect) must not be answered by "there is none": that is not the same as "there is nothing to ask".

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::core::dialect::Dialect;

/// The endpoints that are configured, by name. Clones share them. The default knows none and takes every name as it is:
/// for a dispatcher that nobody told.
#[derive(Clone, Default)]
pub struct KnownEndpoints(Option<Arc<BTreeMap<String, KnownEndpoint>>>);

/// One endpoint, as far as its jobs need it.
#[derive(Clone)]
pub struct KnownEndpoint {
    /// The account its instances are kept under.
    pub account: Arc<str>,
    /// The dialect of its marketplace.
    pub dialect: &'static dyn Dialect,
}

/// The endpoints that stand for the one a callback came through.
#[derive(Clone)]
pub enum Successors {
    /// Itself, or the one that has its account now.
    One(String),
    /// Several of its account: any of them may ask, none of them decides a route.
    Several(Vec<String>),
    /// None: nothing of its account is configured.
    None,
}

impl Successors {
    /// Their names.
    pub fn names(&self) -> &[String] {
        match self {
            Successors::One(name) => std::slice::from_ref(name),
            Successors::Several(names) => names,
            Successors::None => &[],
        }
    }

    /// The name that a route by endpoint is decided by; `None` when it cannot be decided.
    pub fn name(&self) -> Option<&str> {
        match self {
            Successors::One(name) => Some(name),
            Successors::Several(_) | Successors::None => None,
        }
    }
}

impl KnownEndpoints {
    /// These endpoints, by name.
    pub fn new(endpoints: impl IntoIterator<Item = (String, KnownEndpoint)>) -> KnownEndpoints {
        KnownEndpoints(Some(Arc::new(endpoints.into_iter().collect())))
    }

    /// Finds what stands for the endpoint `name` of this account now. A name counts only together with its account,
    /// because another seller's endpoint may have it by now; a `dialect`, if one is known, has to be the same.
    pub fn successors(&self, name: &str, account: &str, dialect: Option<&str>) -> Successors {
        let Some(known) = &self.0 else { return Successors::One(name.to_owned()) };
        if known.get(name).is_some_and(|known| *known.account == *account) {
            return Successors::One(name.to_owned());
        }
        let fits = |known: &KnownEndpoint| {
            *known.account == *account && dialect.is_none_or(|dialect| known.dialect.name() == dialect)
        };
        let mut names: Vec<String> =
            known.iter().filter(|(_, known)| fits(known)).map(|(name, _)| name.clone()).collect();
        match names.len() {
            0 => Successors::None,
            1 => Successors::One(names.remove(0)),
            _ => Successors::Several(names),
        }
    }

    /// The dialect that all of these speak; `None` when they do not speak the same one.
    pub fn dialect_of(&self, successors: &Successors) -> Option<&'static dyn Dialect> {
        let known = self.0.as_ref()?;
        let mut dialects =
            successors.names().iter().filter_map(|name| known.get(name)).map(|known| known.dialect);
        let first = dialects.next()?;
        dialects.all(|other| other.name() == first.name()).then_some(first)
    }
}
