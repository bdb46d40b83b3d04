//! States of a job and its retry schedule, as pure functions.
//!
//! A job is one owed call of a hook. Its retries follow a fixed list of waits, so that an operator can reason about "5
//! s, 30 s, 2 min". A job that fails after the last wait is *dead*: a state that commands can list, instead of a number
//! of attempts to count.
//!
//! A redelivery or an operator can request an attempt ahead of schedule. Such an unscheduled attempt uses no step of
//! the schedule, and if it fails the job returns to its earlier step.

use jiff::Timestamp;
use serde::Serialize;

use crate::limits;
use spid_hook::id::Id;
use spid_hook::time::plus_millis;

spid_hook::words! {
    /// States of a job.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum JobState {
        /// The job waits for its due time, or for earlier jobs in the instance's queue.
        Queued = "queued",
        /// A hook runs for the job, under a lease.
        Running = "running",
        /// The hook accepted the job, and its result is reported later.
        Pending = "pending",
        /// The job waits for an operator.
        Held = "held",
        /// The retry schedule is used up.
        Dead = "dead",
        /// The hook carried out the job.
        Done = "done",
        /// The hook refused the job.
        Refused = "refused",
        /// An operator ended the job.
        Dropped = "dropped",
        /// A later event made the job unnecessary.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Returns true if the job still counts in its instance's queue.
    pub const fn is_live(self) -> bool {
        matches!(
            self,
            JobState::Queued | JobState::Running | JobState::Pending | JobState::Held | JobState::Dead
        )
    }
}

spid_hook::words! {
    /// Kind of the next attempt: scheduled or unscheduled.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
    #[serde(rename_all = "kebab-case")]
    pub enum Extra {
        /// Scheduled.
        #[default]
        No = "no",
        /// Unscheduled, requested while the job waited.
        Waiting = "waiting",
        /// Unscheduled, for a dead job.
        Dead = "dead",
    }
}

/// Retry schedule: the waits between attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Vec<i64>);

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule(limits::RETRY_SCHEDULE_S.iter().map(|seconds| *seconds as i64 * 1000).collect())
    }
}

/// Position of a job in its retry schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of steps already used.
    pub step: u32,
    /// Kind of the attempt that runs now or comes next.
    pub extra: Extra,
}

/// Result of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another attempt follows.
    Wait {
        /// Due time of the attempt.
        due_at: Timestamp,
        /// Position in the retry schedule.
        progress: Progress,
    },
    /// No further attempt, unless an operator or a redelivery asks for one.
    Dead,
}

impl Schedule {
    /// Number of waits. A job is dead after one more failed attempt than this.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if the first failed attempt is the last.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits, in milliseconds.
    pub fn millis(&self) -> &[i64] {
        &self.0
    }

    /// Creates a schedule from waits, in milliseconds.
    pub fn from_millis(waits: Vec<i64>) -> Schedule {
        Schedule(waits)
    }

    /// Returns the next step after an attempt that failed at `now`. `after` is the wait that the hook asked for, in
    /// milliseconds. It can only lengthen the wait of the schedule.
    pub fn failed(&self, id: Id, progress: Progress, after: Option<i64>, now: Timestamp) -> Next {
        // An unscheduled attempt of a waiting job uses no step: it gets the wait of the step before again.
        let spent = match progress.extra {
            // An unscheduled attempt of a dead job leaves the job dead.
            Extra::Dead => return Next::Dead,
            Extra::Waiting => progress.step.saturating_sub(1),
            Extra::No => progress.step,
        };
        let Some(wait) = self.0.get(spent as usize) else { return Next::Dead };
        // Limit the wait that the hook asks for, so that a hook cannot postpone a job forever.
        let asked = after.unwrap_or(0).clamp(0, limits::RETRY_AFTER_MAX_S as i64 * 1000);
        let wait = jittered((*wait).max(asked), id, spent);
        let progress = Progress { step: spent + 1, extra: Extra::No };
        Next::Wait { due_at: plus_millis(now, wait), progress }
    }

    /// Returns the next step after an attempt that ended with the daemon. The attempt is repeated at once, but it uses
    /// a step: a job that kills the daemon each time must not do so forever. An unscheduled attempt uses no step. The
    /// scheduled attempt that it preceded follows at once.
    pub fn lost(&self, progress: Progress, now: Timestamp) -> Next {
        let step = match progress.extra {
            Extra::Dead => return Next::Dead,
            Extra::Waiting => progress.step,
            Extra::No if progress.step as usize >= self.0.len() => return Next::Dead,
            Extra::No => progress.step + 1,
        };
        Next::Wait { due_at: now, progress: Progress { step, extra: Extra::No } }
    }
}

/// Returns the due time of an attempt that a redelivery requests: at least the gap after the last attempt. A last
/// attempt later than `now` means that the clock was set back, so the gap counts from `now`.
pub fn forward_due(last_attempt: Option<Timestamp>, now: Timestamp) -> Timestamp {
    let earliest = last_attempt.map_or(now, |ended| plus_millis(ended.min(now), limits::FORWARD_GAP_MS));
    earliest.max(now)
}

/// Lengthens a wait by a jitter that depends only on the job and the step. Jobs that failed together do not retry
/// together, and a simulation is reproducible.
fn jittered(wait: i64, id: Id, step: u32) -> i64 {
    let spread = wait * limits::RETRY_JITTER_PERCENT as i64 / 100;
    // The first half of an id holds its time, so only the random second half spreads well.
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
    use spid_hook::time::from_millis;

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
    fn lost_unscheduled_attempt_leaves_the_last_scheduled_one() {
        let schedule = Schedule::from_millis(vec![1000, 2000]);
        for step in [0, 1, 2] {
            let lost = schedule.lost(Progress { step, extra: Extra::Waiting }, from_millis(5));
            let progress = Progress { step, extra: Extra::No };
            assert_eq!(lost, Next::Wait { due_at: from_millis(5), progress });
        }
        assert_eq!(schedule.lost(Progress { step: 2, extra: Extra::No }, from_millis(5)), Next::Dead);
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
