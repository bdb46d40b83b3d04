//! The world beside the daemon: time, faults, disk, marketplace and hooks; and the trace of all events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use spid::internals::store::StoreOptions;
use spid_core::lifecycle::schedule::Schedule;
use spid_hook::id::Ids;
use spid_hook::time::{Clock, from_millis};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::check::Seen;
use crate::disk::{Disk, Fault, FaultChooser, PlantedBug, Point};
use crate::hook::Machines;
use crate::market::{BEGIN_MS, Order};
use crate::support::random::Random;

/// The wall clock. It follows the runtime's simulated time, and can jump.
#[derive(Clone)]
pub(crate) struct Time(Arc<Mutex<Wall>>);

struct Wall {
    at_ms: i64,
    began: Option<Instant>,
    latest_ms: i64,
}

impl Time {
    fn new() -> Time {
        Time(Arc::new(Mutex::new(Wall { at_ms: BEGIN_MS, began: None, latest_ms: BEGIN_MS })))
    }

    pub(crate) fn now_ms(&self) -> i64 {
        let mut wall = self.0.lock().unwrap();
        let now = wall.at_ms + wall.began.map_or(0, |began| began.elapsed().as_millis() as i64);
        wall.latest_ms = wall.latest_ms.max(now);
        now
    }

    pub(crate) fn jump(&self, by_ms: i64) {
        self.0.lock().unwrap().at_ms += by_ms;
    }

    /// Moves the clock one hour beyond its latest time: every due time has come.
    pub(crate) fn catch_up(&self) {
        let now = self.now_ms();
        let latest = self.0.lock().unwrap().latest_ms;
        self.jump(latest - now + 3_600_000);
    }

    /// A runtime begins: its time is zero.
    pub(crate) fn begin_life(&self) {
        self.0.lock().unwrap().began = Some(Instant::now());
    }

    /// A runtime ends; the wall clock keeps its time.
    pub(crate) fn end_life(&self) {
        let now = self.now_ms();
        let mut wall = self.0.lock().unwrap();
        (wall.at_ms, wall.began) = (now, None);
    }

    pub(crate) fn clock(&self) -> Clock {
        let time = self.clone();
        Clock::given(move || from_millis(time.now_ms()))
    }
}

/// Level of faults.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// No faults.
    pub(crate) fair: bool,
    /// The disk fails at every write.
    pub(crate) outage: bool,
    /// A commit takes seconds.
    pub(crate) slow: bool,
}

pub(crate) const FAIR: Weather = Weather { fair: true, outage: false, slow: false };
pub(crate) const FOUL: Weather = Weather { fair: false, outage: false, slow: false };

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) weather: Weather,
    pub(crate) orders: Vec<Order>,
    pub(crate) machines: Machines,
    pub(crate) seen: Seen,
    pub(crate) in_flight: usize,
    /// True if another daemon looks for lost leases.
    pub(crate) rival: bool,
    /// Number of events of each kind, to see that a simulation is not idle.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
    pub(crate) violation: Option<String>,
}

/// The world, and the handles on it. Clones share it.
#[derive(Clone)]
pub(crate) struct Sim {
    world: Arc<Mutex<World>>,
    pub(crate) time: Time,
    pub(crate) disk: Disk,
    pub(crate) planted: PlantedBug,
    pub(crate) crash: Arc<Notify>,
    pub(crate) store: StoreOptions,
}

impl Sim {
    pub(crate) fn new(seed: u64, planted: PlantedBug) -> Sim {
        let mut random = Random::new(seed);
        let orders =
            (0..random.between(1, 3) as usize).map(|number| Order::new(&mut random, number)).collect();
        let waits = (0..random.between(1, 4)).map(|_| 1000 * random.between(1, 60) as i64).collect();
        let store = StoreOptions {
            schedules: Schedule::from_millis(waits).into(),
            ids: Ids::seeded(random.next()),
            ..StoreOptions::default()
        };
        let world = World {
            random,
            weather: FOUL,
            orders,
            machines: Machines::default(),
            seen: Seen::default(),
            in_flight: 0,
            rival: false,
            counts: BTreeMap::new(),
            trace: Vec::new(),
            violation: None,
        };
        Sim {
            world: Arc::new(Mutex::new(world)),
            time: Time::new(),
            disk: Disk::empty().unwrap(),
            planted,
            crash: Arc::new(Notify::new()),
            store,
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Records an event. `what` is counted; the rest distinguishes it.
    pub(crate) fn note(&self, what: &'static str, detail: impl std::fmt::Display) {
        let at = self.time.now_ms() - BEGIN_MS;
        let mut world = self.world();
        *world.counts.entry(what).or_default() += 1;
        world.trace.push(format!("{:>10}.{:03} {what} {detail}", at.div_euclid(1000), at.rem_euclid(1000)));
    }

    /// Records a broken promise. The first one counts.
    pub(crate) fn violate(&self, what: impl std::fmt::Display) {
        self.note("BROKEN", &what);
        self.world().violation.get_or_insert_with(|| what.to_string());
    }

    pub(crate) fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violate(what());
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.world().violation.is_some()
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.world().trace)
    }

    pub(crate) fn percent(&self, chance: u64) -> bool {
        self.world().random.percent(chance)
    }

    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        self.world().random.between(low, high)
    }

    /// Returns true with this chance in percent. Without faults it is always false.
    pub(crate) fn mishap(&self, chance: u64) -> bool {
        let mut world = self.world();
        !world.weather.fair && world.random.percent(chance)
    }

    /// The disk, with the current faults.
    pub(crate) fn fault_chooser(&self) -> FaultChooser {
        let sim = self.clone();
        Arc::new(move |point| {
            let weather = sim.world().weather;
            let chance = match point {
                Point::Begin | Point::Commit => 2,
                Point::Write => 1,
            };
            if weather.fair || !(weather.outage || sim.percent(chance)) {
                return None;
            }
            let fault =
                sim.world().random.weighted(&[(5, Fault::Error), (3, Fault::Aborts), (3, Fault::Unheard)]);
            sim.note("disk fails", format_args!("{point:?} {fault:?}"));
            Some(fault)
        })
    }
}
