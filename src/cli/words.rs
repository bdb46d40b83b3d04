//! Arguments that are one word of a list: the help names the words, and an error suggests the nearest.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::store::{Instead, JobKind};
use spid_core::dialect::{self, Dialect};
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Action;
use spid_hook::instance::State;

/// Parser of one of these words.
fn one_of<T: Clone + Send + Sync + 'static>(
    words: impl IntoIterator<Item = &'static str>,
    find: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    // Every word of the list is found.
    PossibleValuesParser::new(words).try_map(move |word| find(&word).ok_or("this word is not in the list"))
}

pub(super) fn dialect() -> impl TypedValueParser<Value = &'static dyn Dialect> {
    one_of(dialect::names(), dialect::by_name)
}

pub(super) fn action() -> impl TypedValueParser<Value = Action> {
    one_of(Action::ALL.map(Action::as_str), Action::from_word)
}

pub(super) fn job_state() -> impl TypedValueParser<Value = JobState> {
    one_of(JobState::ALL.map(JobState::as_str), JobState::from_word)
}

pub(super) fn job_kind() -> impl TypedValueParser<Value = JobKind> {
    one_of(JobKind::all().map(JobKind::as_str), JobKind::from_word)
}

pub(super) fn instance_state() -> impl TypedValueParser<Value = State> {
    one_of(State::ALL.map(State::as_str), State::from_word)
}

pub(super) fn approve_as() -> impl TypedValueParser<Value = Instead> {
    one_of(Instead::ALL.map(Instead::as_str), Instead::from_word)
}
