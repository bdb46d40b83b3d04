//! The states of a job and its retry schedule, pure.
//!
//! A job is one hook invocation owed. It is retried along a written list of waits, so that an
//! operator can reason about "5 s, 30 s, 2 min"; behind the last entry it is *dead*, a state that
//! can be listed, and not a number of tries that must be counted.
//!
//! Redeliveries and operators may bring an attempt forward. Such an attempt is extra: it spends no
//! step of the schedule, and when it fails the job goes back to where it stood.

use jiff::Timestamp;
use serde::Serialize;

use crate::hook::clock::{Id, plus_millis};
use crate::observe::limits;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It waits: for its time, or for those before it in the lane.
    Queued,
    /// A hook is running for it, under a lease.
    Running,
    /// The hook accepted it and will be told finished later.
    Pending,
    /// An operator must look.
    Held,
    /// The schedule is spent.
    Dead,
    /// The hook has done it.
    Done,
    /// The hook refused it.
    Refused,
    /// An operator ended it.
    Dropped,
    /// Something later made it unnecessary.
    Cancelled,
}

impl JobState {
    /// Every state; the position is the number that is stored.
    pub const ALL: [JobState; 9] = [
        JobState::Queued,
        JobState::Running,
        JobState::Pending,
        JobState::Held,
        JobState::Dead,
        JobState::Done,
        JobState::Refused,
        JobState::Dropped,
        JobState::Cancelled,
    ];

    /// Whether it still has a place in its lane.
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            JobState::Queued | JobState::Running | JobState::Pending | JobState::Held | JobState::Dead
        )
    }

    /// The word used in logs and `--json`.
    pub const fn as_str(self) -> &'static str {
        match self {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Pending => "pending",
            JobState::Held => "held",
            JobState::Dead => "dead",
            JobState::Done => "done",
            JobState::Refused => "refused",
            JobState::Dropped => "dropped",
            JobState::Cancelled => "cancelled",
        }
    }
}

/// Whether the next attempt is one of the schedule's, or extra.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extra {
    /// One of the schedule's.
    #[default]
    No,
    /// Brought forward while it waited.
    Waiting,
    /// One more for a dead job.
    Dead,
}

impl Extra {
    /// Every value; the position is the number that is stored.
    pub const ALL: [Extra; 3] = [Extra::No, Extra::Waiting, Extra::Dead];
}

/// The waits between attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Vec<i64>);

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule(limits::RETRY_SCHEDULE_S.iter().map(|seconds| *seconds as i64 * 1000).collect())
    }
}

/// How far a job has come, and what its next attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps of the schedule that are spent.
    pub step: u32,
    /// Whether the attempt that runs or comes next is extra.
    pub extra: Extra,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again then.
    Wait {
        /// When.
        due_at: Timestamp,
        /// How far the job has come.
        progress: Progress,
    },
    /// Never, unless somebody asks for it.
    Dead,
}

impl Schedule {
    /// How many waits there are: one attempt more can fail before the job is dead.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the first failure is the last.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The waits, in milliseconds.
    pub fn millis(&self) -> &[i64] {
        &self.0
    }

    /// A schedule of these waits, in milliseconds.
    pub fn from_millis(waits: Vec<i64>) -> Schedule {
        Schedule(waits)
    }

    /// What follows an attempt that failed at `now`. `after` is the wait the hook asked for, in
    /// milliseconds; it never shortens the schedule's.
    pub fn failed(&self, id: Id, progress: Progress, after: Option<i64>, now: Timestamp) -> Next {
        let spent = match progress.extra {
            Extra::Dead => return Next::Dead,
            Extra::Waiting => progress.step.saturating_sub(1),
            Extra::No => progress.step,
        };
        let Some(wait) = self.0.get(spent as usize) else { return Next::Dead };
        let asked = after.unwrap_or(0).clamp(0, limits::RETRY_AFTER_MAX_S as i64 * 1000);
        let wait = jittered((*wait).max(asked), id, spent);
        let progress = Progress { step: spent + 1, extra: Extra::No };
        Next::Wait { due_at: plus_millis(now, wait), progress }
    }

    /// What follows an attempt whose daemon died. It is made up for at once, but it spends a step: a
    /// job that kills the daemon each time must not do so for ever.
    pub fn lost(&self, progress: Progress, now: Timestamp) -> Next {
        if progress.extra == Extra::Dead || progress.step as usize >= self.0.len() {
            return Next::Dead;
        }
        Next::Wait { due_at: now, progress: Progress { step: progress.step + 1, extra: Extra::No } }
    }
}

/// When an attempt that a redelivery brings forward may run: not sooner than the gap after the last. A
/// last attempt that lies ahead of `now` says that the clock was set back since: the gap counts from now.
pub fn forward_due(last_attempt: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let earliest = last_attempt.map_or(now, |ended| plus_millis(ended.min(now), limits::FORWARD_GAP_MS));
    earliest.max(now)
}

/// Longer by up to the jitter, by an amount that depends on the job alone: no two jobs that failed
/// together come back together, and a simulation repeats itself.
fn jittered(wait: i64, id: Id, step: u32) -> i64 {
    let spread = wait * limits::RETRY_JITTER_PERCENT as i64 / 100;
    let tail = id
        .as_bytes()
        .iter()
        .skip(8)
        .fold(u64::from(step), |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    if spread == 0 { wait } else { wait + (tail % spread as u64) as i64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::clock::from_millis;

    fn id() -> Id {
        Id::from_parts(from_millis(1), [7; 16])
    }

    fn walk(schedule: &Schedule, mut progress: Progress) -> Vec<i64> {
        let mut waits = Vec::new();
        let now = from_millis(0);
        while let Next::Wait { due_at, progress: next } = schedule.failed(id(), progress, None, now) {
            waits.push(due_at.as_millisecond());
            progress = next;
        }
        waits
    }

    #[test]
    fn the_schedule_is_walked_once_and_ends_dead() {
        let waits = walk(&Schedule::default(), Progress { step: 0, extra: Extra::No });
        assert_eq!(waits.len(), limits::RETRY_SCHEDULE_S.len());
        for (wait, seconds) in waits.iter().zip(limits::RETRY_SCHEDULE_S) {
            let written = seconds as i64 * 1000;
            assert!((written..=written + written / 10).contains(wait), "{wait} for {written}");
        }
    }

    #[test]
    fn an_extra_attempt_spends_no_step() {
        let schedule = Schedule::from_millis(vec![1000, 2000]);
        let waiting = Progress { step: 1, extra: Extra::Waiting };
        let Next::Wait { progress, .. } = schedule.failed(id(), waiting, None, from_millis(0)) else {
            panic!("dead too early");
        };
        assert_eq!(progress, Progress { step: 1, extra: Extra::No });
        let last = Progress { step: 2, extra: Extra::Waiting };
        assert!(matches!(schedule.failed(id(), last, None, from_millis(0)), Next::Wait { .. }));
    }

    #[test]
    fn one_more_attempt_of_a_dead_job_leaves_it_dead() {
        let dead = Progress { step: 9, extra: Extra::Dead };
        assert_eq!(Schedule::default().failed(id(), dead, None, from_millis(0)), Next::Dead);
        assert_eq!(Schedule::default().lost(dead, from_millis(0)), Next::Dead);
    }

    #[test]
    fn a_job_that_kills_the_daemon_ends_dead() {
        let schedule = Schedule::from_millis(vec![1000, 2000]);
        let mut progress = Progress { step: 0, extra: Extra::No };
        let mut starts = 0;
        while let Next::Wait { due_at, progress: next } = schedule.lost(progress, from_millis(5)) {
            assert_eq!(due_at, from_millis(5));
            progress = next;
            starts += 1;
        }
        assert_eq!(starts, 2);
    }

    #[test]
    fn what_the_hook_asks_for_never_shortens_and_is_clamped() {
        let schedule = Schedule::from_millis(vec![10_000]);
        let first = Progress { step: 0, extra: Extra::No };
        let due = |after| match schedule.failed(id(), first, Some(after), from_millis(0)) {
            Next::Wait { due_at, .. } => due_at.as_millisecond(),
            Next::Dead => panic!("dead"),
        };
        assert!(due(1) >= 10_000);
        assert!((60_000..=66_000).contains(&due(60_000)));
        assert!(due(i64::MAX) <= limits::RETRY_AFTER_MAX_S as i64 * 1100);
    }

    #[test]
    fn a_redelivery_waits_for_the_gap() {
        let ended = from_millis(1_000);
        assert_eq!(forward_due(None, from_millis(5)), from_millis(5));
        assert_eq!(forward_due(Some(ended), from_millis(2_000)), from_millis(31_000));
        assert_eq!(forward_due(Some(ended), from_millis(99_000)), from_millis(99_000));
    }

    #[test]
    fn a_clock_set_back_does_not_stretch_the_gap() {
        let ended = from_millis(3_600_000);
        assert_eq!(forward_due(Some(ended), from_millis(5)), from_millis(30_005));
    }
}
