//! Room for taken jobs that wait for what runs them: a hook that is busy, or a marketplace that is asked what was
//! ordered. Each of these has room of its own, so that none takes the room of another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::observe::limits;

/// What a job waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Server {
    /// The hook with this name.
    Hook(String),
    /// The marketplace behind this endpoint, which is asked what was ordered.
    Orders(String),
}

/// The rooms, made as they are needed. Clones share them; they outlive a reload, as the names do.
#[derive(Debug, Clone)]
pub(super) struct Rooms {
    /// How many jobs have room in each.
    capacity: usize,
    /// The shortest time for which a job is left in the store that finds no room.
    pause: Duration,
    rooms: Arc<Mutex<BTreeMap<Server, Arc<Room>>>>,
}

#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    /// Questions to a marketplace that may be under way at once.
    questions: Semaphore,
    left: Mutex<Left>,
}

/// The last job that left a room.
#[derive(Debug)]
struct Left {
    at: Instant,
    /// How long it had waited.
    waited: Duration,
}

/// A job's place in a room; given back when dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    room: Arc<Room>,
    since: Instant,
    _place: OwnedSemaphorePermit,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        *self.room.left() = Left { at: Instant::now(), waited: self.since.elapsed() };
    }
}

impl Rooms {
    pub(super) fn new(capacity: usize, pause: Duration) -> Rooms {
        Rooms { capacity: capacity.clamp(1, Semaphore::MAX_PERMITS), pause, rooms: Arc::default() }
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeMap<Server, Arc<Room>>> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, server: Server) -> Arc<Room> {
        self.all().entry(server).or_insert_with(|| Arc::new(Room::new(self.capacity))).clone()
    }

    pub(super) fn is_any_full(&self) -> bool {
        self.all().values().any(|room| room.is_full())
    }

    /// How long a job is left in the store that would wait for this server; `None` when there is room for it.
    /// Rooms are left in the order they are entered, so the last wait says how long a full room takes to empty.
    pub(super) fn pause(&self, server: &Server) -> Option<Duration> {
        let room = self.all().get(server).filter(|room| room.is_full())?.clone();
        let left = room.left();
        let pause = (left.waited / 2).max(left.at.elapsed());
        Some(pause.clamp(self.pause, self.pause * limits::ROOM_PAUSES_MAX_COUNT))
    }
}

impl Room {
    fn new(capacity: usize) -> Room {
        Room {
            free: Arc::new(Semaphore::new(capacity)),
            questions: Semaphore::new(limits::ENQUIRIES_MAX_COUNT),
            left: Mutex::new(Left { at: Instant::now(), waited: Duration::ZERO }),
        }
    }

    fn is_full(&self) -> bool {
        self.free.available_permits() == 0
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the room. `None`: it is full.
    pub(super) fn enter(self: &Arc<Room>) -> Option<Waiter> {
        let place = self.free.clone().try_acquire_owned().ok()?;
        Some(Waiter { room: self.clone(), since: Instant::now(), _place: place })
    }

    /// Waits for the turn to ask a question.
    pub(super) async fn turn(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        // Never closed; if it were, asking unbounded beats not asking.
        self.questions.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_full_room_is_nobody_elses_and_says_how_long_it_takes_to_empty() {
        let rooms = Rooms::new(2, PAUSE);
        let (slow, quick) = (Server::Hook("slow".into()), Server::Hook("quick".into()));
        let first = rooms.of(slow.clone()).enter().unwrap();
        assert_eq!(rooms.pause(&slow), None);
        let second = rooms.of(slow.clone()).enter().unwrap();
        assert!(rooms.of(slow.clone()).enter().is_none());
        assert!(rooms.of(quick.clone()).enter().is_some());
        assert_eq!((rooms.pause(&quick), rooms.pause(&slow)), (None, Some(PAUSE)));
        // Nobody leaves: the longer that lasts, the longer it is left alone, within bounds.
        tokio::time::advance(PAUSE * 4).await;
        assert_eq!(rooms.pause(&slow), Some(PAUSE * 4));
        tokio::time::advance(PAUSE * 1_000).await;
        assert_eq!(rooms.pause(&slow), Some(PAUSE * limits::ROOM_PAUSES_MAX_COUNT));
        drop(first);
        assert_eq!(rooms.pause(&slow), None);
        tokio::time::advance(PAUSE).await;
        let _third = rooms.of(slow.clone()).enter().unwrap();
        drop(second);
        let _fourth = rooms.of(slow.clone()).enter().unwrap();
        assert_eq!(rooms.pause(&slow), Some(PAUSE * limits::ROOM_PAUSES_MAX_COUNT), "it waited for long");
    }
}
