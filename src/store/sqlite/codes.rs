//! Numbers of states, dispositions and actions in SQL text. A test compares them with the enums.

/// Number of a state of an instance or a job, of a disposition, or of an action, as SQL text.
///
/// SQLite uses a partial index only if the query has the same literal as the index, so these numbers are no parameters.
macro_rules! code {
    (instance Released) => {
        "3"
    };
    (job Queued) => {
        "0"
    };
    (job Running) => {
        "1"
    };
    (job Done) => {
        "5"
    };
    (job Refused) => {
        "6"
    };
    (disposition Job) => {
        "0"
    };
    (disposition Held) => {
        "1"
    };
    (disposition Refused) => {
        "2"
    };
    (disposition Recorded) => {
        "3"
    };
    (action SignOn) => {
        "6"
    };
    (action Payment) => {
        "7"
    };
    (action Query) => {
        "8"
    };
}

/// SQL condition for a job that has not ended: all such states come before `Done`.
macro_rules! is_live {
    () => {
        concat!("state < ", code!(job Done))
    };
    ($table:literal) => {
        concat!($table, ".state < ", code!(job Done))
    };
}

#[cfg(test)]
mod tests {
    use super::super::read::{STATES, position};
    use crate::store::rows::Disposition;
    use spid_core::lifecycle::schedule::JobState;
    use spid_hook::callback::Action;
    use spid_hook::instance::State;

    #[test]
    fn the_numbers_in_sql_are_those_of_the_enums() {
        for (code, state) in [
            (code!(job Queued), JobState::Queued),
            (code!(job Running), JobState::Running),
            (code!(job Done), JobState::Done),
            (code!(job Refused), JobState::Refused),
        ] {
            assert_eq!(code, position(&JobState::ALL, &state).to_string(), "{state:?}");
        }
        for (code, disposition) in [
            (code!(disposition Job), Disposition::Job),
            (code!(disposition Held), Disposition::Held),
            (code!(disposition Refused), Disposition::Refused),
            (code!(disposition Recorded), Disposition::Recorded),
        ] {
            assert_eq!(code, position(&Disposition::ALL, &disposition).to_string(), "{disposition:?}");
        }
        for (code, action) in [
            (code!(action SignOn), Action::SignOn),
            (code!(action Payment), Action::Payment),
            (code!(action Query), Action::Query),
        ] {
            assert_eq!(code, position(&Action::ALL, &action).to_string(), "{action:?}");
        }
        assert_eq!(code!(instance Released), position(&STATES, &State::Released).to_string());
        let done = position(&JobState::ALL, &JobState::Done);
        for state in JobState::ALL {
            assert_eq!(state.is_live(), position(&JobState::ALL, &state) < done, "{state:?}");
        }
    }
}
