//! Numbers under which states, dispositions and actions are stored, for SQL text. They are the order of the enums.
//!
//! SQLite uses a partial index only if the query has the same literal as the index, so these numbers are no parameters.

use crate::store::rows::Disposition;
use spid_core::lifecycle::schedule::JobState;
use spid_hook::callback::Action;
use spid_hook::instance::State;

pub(super) const RELEASED: i64 = State::Released as i64;

pub(super) const QUEUED: i64 = JobState::Queued as i64;
pub(super) const RUNNING: i64 = JobState::Running as i64;
pub(super) const JOB_HELD: i64 = JobState::Held as i64;
/// The first state of a job that has ended. A job that has not ended has a lower number.
pub(super) const DONE: i64 = JobState::Done as i64;
pub(super) const JOB_REFUSED: i64 = JobState::Refused as i64;
/// The highest state of a job. A higher number comes from a newer spid.
pub(super) const CANCELLED: i64 = JobState::Cancelled as i64;

pub(super) const WITH_JOB: i64 = Disposition::Job as i64;
pub(super) const HELD: i64 = Disposition::Held as i64;
pub(super) const REFUSED: i64 = Disposition::Refused as i64;
pub(super) const RECORDED: i64 = Disposition::Recorded as i64;

pub(super) const SIGN_ON: i64 = Action::SignOn as i64;
pub(super) const PAYMENT: i64 = Action::Payment as i64;
pub(super) const QUERY: i64 = Action::Query as i64;

#[cfg(test)]
mod tests {
    use super::*;
    use spid_core::lifecycle::schedule::Extra;

    /// Databases hold these numbers, so they must never change.
    #[test]
    fn the_stored_numbers_are_the_order_of_the_enums() {
        assert_eq!(State::ALL.map(|state| state as i64), [0, 1, 2, 3]);
        assert_eq!(JobState::ALL.map(|state| state as i64), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Extra::ALL.map(|extra| extra as i64), [0, 1, 2]);
        assert_eq!(Disposition::ALL.map(|disposition| disposition as i64), [0, 1, 2, 3]);
        assert_eq!(Action::ALL.map(|action| action as i64), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(
            (JobState::ALL.last(), JobState::Cancelled as i64),
            (Some(&JobState::Cancelled), CANCELLED)
        );
        for state in JobState::ALL {
            assert_eq!(state.is_live(), (state as i64) < DONE, "{state:?}");
        }
    }
}
