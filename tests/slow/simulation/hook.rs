//! The seller's hooks with every fault: they hang, panic, lie, answer late, refuse, forget. They also record every
//! call, and check the daemon with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use spid::hook::{
    Context, CreateCall, ExpireCall, HookError, PaymentCall, Provisioned, ProvisioningHook, RefundRenewCall,
    ReleaseCall, RenewCall, Updated, UpgradeCall,
};
use spid::internals::store::JobRow;
use spid_core::lifecycle::schedule;
use spid_hook::callback::Action;
use spid_hook::instance::{Instance, State};
use tokio::time::sleep;

use crate::check::everything;
use crate::world::Sim;

/// Timeout of a hook.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(45);

/// An instance, by account and orderBizId.
pub(crate) type Lane = (String, String);

/// Facts about one idempotency key.
#[derive(Debug)]
pub(crate) struct Key {
    asked: Asked,
    attempts: u32,
    /// True if an attempt did the work.
    pub(crate) done: bool,
    /// Ids in the answers for this key.
    pub(crate) ids: BTreeSet<String>,
}

/// Meaning of a key. It must never have another meaning.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    lane: Lane,
    action: Action,
    parameters: Vec<(String, String)>,
}

/// Shared memory of all hooks.
#[derive(Default)]
pub(crate) struct Machines {
    pub(crate) keys: BTreeMap<String, Key>,
    /// The attempt in flight of each instance.
    running: BTreeMap<Lane, (String, u32)>,
    /// Attempts that lost their lease to another dispatcher, by key: up to this one.
    stolen: BTreeMap<String, u32>,
    /// Highest job called for each instance.
    latest: BTreeMap<Lane, i64>,
}

impl Machines {
    /// While another daemon takes over leases, every attempt in flight except one may have lost its lease. Its
    /// further work must be fenced off.
    pub(crate) fn steal(&mut self, job: &JobRow) {
        let lost = job.attempts - u32::from(job.state == schedule::JobState::Running);
        self.stolen.insert(job.id.to_string(), lost);
    }

    fn is_stolen(&self, key: &str, attempt: u32) -> bool {
        self.stolen.get(key).is_some_and(|stolen| attempt <= *stolen)
    }

    /// The hooks lose the connection to a daemon that died.
    pub(crate) fn forget_running(&mut self) {
        self.running.clear();
    }
}

/// The hook.
pub(crate) struct Machine(pub(crate) Sim);

/// An attempt in flight. Its end drops this.
struct Attempt {
    sim: Sim,
    key: String,
    attempt: u32,
    /// `None` if the call is not ordered.
    lane: Option<Lane>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut world = self.sim.world();
        if let Some(lane) = &self.lane
            && world.machines.running.get(lane) == Some(&(self.key.clone(), self.attempt))
        {
            world.machines.running.remove(lane);
        }
    }
}

/// Reaction of a hook to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AdminOperation {
    Good,
    Slow,
    HangsUndone,
    HangsDone,
    AnswersLate,
    PanicsUndone,
    PanicsDone,
    Fails,
    FailsDone,
    Busy,
    Refuses,
    Waits,
    Lies,
}

const DEEDS: [(u64, AdminOperation); 13] = [
    (46, AdminOperation::Good),
    (16, AdminOperation::Slow),
    (3, AdminOperation::HangsUndone),
    (4, AdminOperation::HangsDone),
    (3, AdminOperation::AnswersLate),
    (2, AdminOperation::PanicsUndone),
    (2, AdminOperation::PanicsDone),
    (8, AdminOperation::Fails),
    (4, AdminOperation::FailsDone),
    (3, AdminOperation::Busy),
    (4, AdminOperation::Refuses),
    (1, AdminOperation::Waits),
    (4, AdminOperation::Lies),
];

impl Machine {
    /// One call from begin to end. `id` is the answer of a correct create.
    async fn act(
        &self,
        context: &Context,
        action: Action,
        instance: Option<&Instance>,
        id: Option<String>,
    ) -> Result<Option<String>, HookError> {
        let sim = &self.0;
        let attempt = self.begin(context, action, instance);
        let operation =
            if sim.world().weather.fair { AdminOperation::Good } else { sim.world().random.weighted(&DEEDS) };
        sim.note(
            "hook",
            format_args!("{action} {} #{} {operation:?}", context.idempotency_key, context.attempt),
        );
        let answer = self.perform(&attempt, operation, id).await;
        sim.note(
            "hook ends",
            format_args!(
                "{} #{} {:?}",
                context.idempotency_key,
                context.attempt,
                answer.as_ref().map_err(HookError::kind)
            ),
        );
        answer
    }

    async fn perform(
        &self,
        attempt: &Attempt,
        operation: AdminOperation,
        id: Option<String>,
    ) -> Result<Option<String>, HookError> {
        let sim = &self.0;
        let wait = |low, high| sleep(Duration::from_millis(sim.between(low, high)));
        match operation {
            AdminOperation::Good => wait(0, 400).await,
            AdminOperation::Slow => wait(1_000, 40_000).await,
            AdminOperation::HangsUndone => std::future::pending().await,
            AdminOperation::HangsDone => {
                self.done(attempt, id.clone());
                std::future::pending().await
            }
            AdminOperation::AnswersLate => wait(44_990, 45_010).await,
            AdminOperation::PanicsUndone => std::panic::panic_any(Planned),
            AdminOperation::PanicsDone => {
                self.done(attempt, id.clone());
                std::panic::panic_any(Planned)
            }
            AdminOperation::Fails => return Err(HookError::retry("the machine is on fire")),
            AdminOperation::FailsDone => {
                self.done(attempt, id.clone());
                return Err(HookError::retry("the answer got lost"));
            }
            AdminOperation::Busy => {
                return Err(HookError::retry_after("busy", Duration::from_secs(sim.between(0, 90))));
            }
            AdminOperation::Refuses => return Err(HookError::refuse("not to this buyer")),
            AdminOperation::Waits => return Err(HookError::pending("somebody must sign")),
            AdminOperation::Lies => {}
        }
        let id = if operation == AdminOperation::Lies { self.lie(id) } else { id };
        self.done(attempt, id.clone());
        Ok(id)
    }

    /// An id that no correct hook gives.
    fn lie(&self, honest: Option<String>) -> Option<String> {
        let mut world = self.0.world();
        let other = world.random.next() as usize % world.orders.len();
        match world.random.between(0, 5) {
            0 => Some("0".to_owned()),
            1 => Some(String::new()),
            2 => Some(world.orders[other].biz.clone()),
            3 => Some(format!("other-{}", world.random.between(1, 3))),
            4 => Some("x".repeat(300)),
            _ => honest.xor(Some("i-changed".to_owned())),
        }
    }

    fn done(&self, attempt: &Attempt, id: Option<String>) {
        let mut world = self.0.world();
        if let Some(key) = world.machines.keys.get_mut(&attempt.key) {
            key.done = true;
            let biz = key.asked.lane.1.clone();
            key.ids.insert(id.unwrap_or(biz));
        }
    }

    fn begin(&self, context: &Context, action: Action, instance: Option<&Instance>) -> Attempt {
        let sim = &self.0;
        let biz = instance.and_then(|instance| instance.order_biz_id.clone());
        let named = || context.parameters.get("order_biz_id").unwrap_or_default().to_owned();
        let lane = (context.account.clone(), biz.unwrap_or_else(named));
        let key = context.idempotency_key.clone();
        if sim.world().machines.is_stolen(&key, context.attempt) {
            return Attempt { sim: sim.clone(), key, attempt: context.attempt, lane: None };
        }
        self.judge_key(context, action, &lane);
        let ordered = action.is_lifecycle();
        if ordered {
            self.judge_lane(context, action, &lane);
            let running = (key.clone(), context.attempt);
            let before = sim.world().machines.running.insert(lane.clone(), running);
            let before = before.filter(|(key, attempt)| !sim.world().machines.is_stolen(key, *attempt));
            sim.demand(before.is_none(), || {
                format!(
                    "two attempts at once in the lane {lane:?}: {before:?} and {key} #{}",
                    context.attempt
                )
            });
        }
        Attempt { sim: sim.clone(), key, attempt: context.attempt, lane: ordered.then_some(lane) }
    }

    /// The key always has the same meaning, and each attempt is later than the one before.
    fn judge_key(&self, context: &Context, action: Action, lane: &Lane) {
        let parameters = context.parameters.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let asked = Asked { lane: lane.clone(), action, parameters };
        let name = &context.idempotency_key;
        let mut world = self.0.world();
        let known = world.machines.keys.remove(name);
        let new = Key { asked, attempts: context.attempt, done: false, ids: BTreeSet::new() };
        let (kept, trouble) = match known {
            None => (new, None),
            Some(before) if before.asked != new.asked => {
                (before, Some(format!("the key {name} was used for another occurrence: {new:?}")))
            }
            Some(before) if before.attempts >= context.attempt => {
                (before, Some(format!("the attempt {} of {name} came twice or late", context.attempt)))
            }
            Some(before) => (Key { attempts: context.attempt, ..before }, None),
        };
        world.machines.keys.insert(name.clone(), kept);
        drop(world);
        trouble.into_iter().for_each(|trouble| self.0.violate(trouble));
    }

    /// The order: the call is committed, no earlier work is open, and no later work was called.
    fn judge_lane(&self, context: &Context, action: Action, lane: &Lane) {
        let (sim, reader) = (&self.0, self.0.disk.reader());
        let name = &context.idempotency_key;
        let Some(job) = reader.job(name.parse().unwrap()).unwrap() else {
            return sim.violate(format_args!("the hook is called for {name}, which was not committed"));
        };
        sim.demand(job.state == schedule::JobState::Running && job.attempts == context.attempt, || {
            format!("the hook is called for {name} #{}, which stands at {job:?}", context.attempt)
        });
        let earlier = reader.jobs(&everything()).unwrap().into_iter().find(|other| {
            other.instance == job.instance
                && other.ordered
                && other.number < job.number
                && other.state.is_live()
        });
        sim.demand(earlier.is_none(), || format!("{name} overtook {earlier:?}"));
        let instance = job.instance.and_then(|number| reader.instance(number).unwrap());
        let released = instance.is_some_and(|row| row.instance.state == State::Released);
        sim.demand(!released, || format!("{action} {name} is called for a released instance"));
        let latest = sim.world().machines.latest.insert(lane.clone(), job.number);
        sim.demand(latest.is_none_or(|latest| latest <= job.number), || {
            format!("{name} (job {}) is called after job {latest:?}", job.number)
        });
    }
}

/// Payload of an intended panic.
pub(crate) struct Planned;

impl ProvisioningHook for Machine {
    async fn create(&self, call: CreateCall) -> Result<Provisioned, HookError> {
        let biz = call.instance.order_biz_id.clone().unwrap_or_default();
        // Every second product names its instances itself.
        let id = biz.ends_with('1').then(|| format!("i-{biz}"));
        let id = self.act(&call.context, Action::Create, Some(&call.instance), id).await?;
        let made = Provisioned::new().admin("https://admin.example", "admin", "fake-password");
        Ok(match id {
            Some(id) => made.id(id),
            None => made,
        })
    }

    async fn renew(&self, call: RenewCall) -> Result<Updated, HookError> {
        self.0.demand(call.expires_on >= call.previous_expires_on, || {
            format!("a renewal lowers the expiry: {call:?}")
        });
        self.act(&call.context, Action::Renew, Some(&call.instance), None).await?;
        Ok(Updated::new())
    }

    async fn expire(&self, call: ExpireCall) -> Result<(), HookError> {
        self.act(&call.context, Action::Expire, Some(&call.instance), None).await.map(drop)
    }

    async fn release(&self, call: ReleaseCall) -> Result<(), HookError> {
        self.act(&call.context, Action::Release, Some(&call.instance), None).await.map(drop)
    }

    async fn upgrade(&self, call: UpgradeCall) -> Result<Updated, HookError> {
        self.act(&call.context, Action::Upgrade, Some(&call.instance), None).await?;
        Ok(Updated::new())
    }

    async fn refund_renew(&self, call: RefundRenewCall) -> Result<Updated, HookError> {
        self.act(&call.context, Action::RefundRenew, Some(&call.instance), None).await?;
        Ok(Updated::new())
    }

    async fn payment(&self, call: PaymentCall) -> Result<(), HookError> {
        self.act(&call.context, Action::Payment, call.instance.as_ref(), None).await.map(drop)
    }
}
