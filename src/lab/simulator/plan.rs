//! Plan of a simulation, made from a seed: the same seed gives the same plan.

spid_hook::words! {
    /// SKUs of a product. Their words are the `skuId`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Sku {
        /// The smallest SKU.
        Basic = "yuncode0000100001",
        /// The SKU that most buyers upgrade to.
        Pro = "yuncode0000100002",
        /// The largest SKU.
        Max = "yuncode0000100003",
    }
}

impl Sku {
    /// Returns the simulated price for a month, in yuan.
    pub const fn price(self) -> u64 {
        match self {
            Sku::Basic => 99,
            Sku::Pro => 299,
            Sku::Max => 999,
        }
    }
}

spid_hook::words! {
    /// Requests of the marketplace.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum RequestKind {
        /// A purchase.
        Create = "create",
        /// Notification that an order was paid.
        Pay = "payment",
        /// Change to another SKU.
        Upgrade = "upgrade",
        /// A longer term; also a payment of arrears.
        Renew = "renew",
        /// Refund of a renewal.
        RefundRenew = "refund-renew",
        /// End of a term, or arrears.
        Expire = "expire",
        /// Release of the instance.
        Release = "release",
        /// Repeat of the purchase after the release.
        LateCreate = "late-create",
    }
}

impl RequestKind {
    /// Returns the marketplace's name of the request.
    pub const fn word(self) -> &'static str {
        match self {
            RequestKind::Create | RequestKind::LateCreate => "createInstance",
            RequestKind::Pay => "orderPay",
            RequestKind::Upgrade => "upgradeInstance",
            RequestKind::Renew => "renewInstance",
            RequestKind::RefundRenew => "refundRenewInstance",
            RequestKind::Expire => "expiredInstance",
            RequestKind::Release => "releaseInstance",
        }
    }
}

/// An event of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The request.
    pub what: RequestKind,
    /// Simulated days since the previous event.
    pub after_days: u32,
    /// End of the term after this event, in simulated days from the purchase.
    pub until_days: u32,
    /// Number of the order at the marketplace; requests of the same order share it.
    pub order: u32,
    /// The SKU that is bought, or changed to.
    pub sku: Sku,
    /// True if the purchase is a trial.
    pub is_trial: bool,
    /// True if the order was refunded before.
    pub is_refund: bool,
    /// True if the first request is sent twice at the same time.
    pub twins: bool,
    /// True if the request is sent once more after its success.
    pub again: bool,
}

/// All events of one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderPlan {
    /// Number of the order in the plan, from 1.
    pub number: u32,
    /// Time of the purchase, in milliseconds from the start.
    pub arrives_ms: u64,
    /// The events, in order.
    pub events: Vec<Event>,
}

/// The planned orders of a simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Seed of the plan.
    pub seed: u64,
    /// The orders, by time of purchase.
    pub orders: Vec<OrderPlan>,
}

impl Plan {
    /// Plans `orders` purchases, on average `per_second` of them per second.
    pub fn new(seed: u64, orders: u32, per_second: f64) -> Plan {
        let mut arrivals = Random::new(seed, 0);
        let gap_ms = if per_second > 0.0 { 1_000.0 / per_second } else { 0.0 };
        let mut at_ms = 0.0;
        let mut planned = Vec::new();
        for number in 1..=orders {
            planned.push(OrderPlan {
                number,
                arrives_ms: at_ms as u64,
                // Each order has a random stream of its own, so that a larger plan keeps the orders of a smaller one.
                events: OrderPlanner::plan(Random::new(seed, u64::from(number))),
            });
            // Between zero and twice the average gap, so that there are busy and quiet minutes.
            at_ms += gap_ms * (arrivals.below(2_001) as f64 / 1_000.0);
        }
        Plan { seed, orders: planned }
    }
}

/// Days of a term.
const MONTH: u32 = 30;

/// Generator of the events of one order.
struct OrderPlanner {
    random: Random,
    events: Vec<Event>,
    sku: Sku,
    until: u32,
    orders: u32,
    /// At most one refund per order. A second refund to the same expiry is byte for byte the first, so a careful SPI
    /// endpoint asks a person which one it is.
    refunded: bool,
}

impl OrderPlanner {
    fn plan(random: Random) -> Vec<Event> {
        let mut planner = OrderPlanner {
            random,
            events: Vec::new(),
            sku: Sku::Basic,
            until: MONTH,
            orders: 1,
            refunded: false,
        };
        planner.sku = if planner.random.percent(25) { Sku::Pro } else { Sku::Basic };
        if planner.random.percent(8) {
            planner.trial()
        } else {
            planner.sale()
        }
        planner.events
    }

    fn add(&mut self, what: RequestKind, after_days: u32) -> Option<&mut Event> {
        // Both are drawn for every event, so that the random stream does not depend on `what`.
        let many = self.random.percent(6);
        let twice = self.random.percent(6);
        self.events.push(Event {
            what,
            after_days,
            until_days: self.until,
            order: self.orders,
            sku: self.sku,
            is_trial: false,
            is_refund: false,
            twins: many && what != RequestKind::LateCreate,
            again: twice && what != RequestKind::LateCreate,
        });
        self.events.last_mut()
    }

    fn trial(&mut self) {
        self.until = 7;
        if let Some(purchase) = self.add(RequestKind::Create, 0) {
            purchase.is_trial = true;
        }
        self.add(RequestKind::Expire, 7);
        self.release(5, false);
    }

    fn sale(&mut self) {
        self.add(RequestKind::Create, 0);
        if self.random.percent(50) {
            self.add(RequestKind::Pay, 0);
        }
        if self.random.percent(10) {
            let days = 1 + self.random.below_u32(3);
            return self.release(days, true);
        }
        if self.random.percent(25) {
            self.upgrade();
        }
        for _ in 0..self.random.below(4) {
            self.renewal();
        }
        if self.random.percent(40) {
            self.add(RequestKind::Expire, MONTH);
            let days = 7 + self.random.below_u32(8);
            self.release(days, false);
        }
    }

    fn upgrade(&mut self) {
        self.orders += 1;
        self.sku = if self.sku == Sku::Basic { Sku::Pro } else { Sku::Max };
        let days = 2 + self.random.below_u32(10);
        self.add(RequestKind::Upgrade, days);
    }

    /// Adds a renewal: before the end of the term, or after it, when the instance was frozen meanwhile.
    fn renewal(&mut self) {
        self.orders += 1;
        let late = self.random.percent(30);
        if late {
            self.add(RequestKind::Expire, MONTH);
        }
        let before = self.until;
        self.until += MONTH;
        let days = if late { 1 + self.random.below_u32(5) } else { 20 };
        self.add(RequestKind::Renew, days);
        if !late && !self.refunded && self.random.percent(10) {
            self.refunded = true;
            self.until = before;
            self.add(RequestKind::RefundRenew, 1);
        }
    }

    fn release(&mut self, after_days: u32, is_refund: bool) {
        if let Some(release) = self.add(RequestKind::Release, after_days) {
            release.is_refund = is_refund;
        }
        // The repeat has the values of the purchase, not those after an upgrade or a renewal.
        if self.random.percent(10) {
            let (until, sku) =
                (self.events.first().map_or(self.until, |purchase| purchase.until_days), self.sku);
            let (first_sku, is_trial) =
                self.events.first().map_or((sku, false), |purchase| (purchase.sku, purchase.is_trial));
            if let Some(late) = self.add(RequestKind::LateCreate, 2) {
                *late = Event { until_days: until, order: 1, sku: first_sku, is_trial, ..late.clone() };
            }
        }
    }
}

/// Deterministic random numbers from a seed (splitmix64).
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Random {
        // Mixing the stream first keeps neighboring streams independent.
        Random(mixed(seed ^ mixed(stream.wrapping_add(1))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// Returns a number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn below_u32(&mut self, end: u32) -> u32 {
        u32::try_from(self.below(u64::from(end))).unwrap_or_default()
    }

    fn percent(&mut self, random: u64) -> bool {
        self.below(100) < random
    }
}

fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_market() {
        let plan = Plan::new(7, 500, 50.0);
        assert_eq!(plan, Plan::new(7, 500, 50.0));
        assert_ne!(plan.orders, Plan::new(8, 500, 50.0).orders);
        let longer = Plan::new(7, 600, 50.0);
        assert!(longer.orders.starts_with(&plan.orders), "more orders change nothing about the others");
    }

    #[test]
    fn everything_happens_and_in_an_order_that_makes_sense() {
        let plan = Plan::new(1, 2_000, 100.0);
        use RequestKind::{Create, Expire, LateCreate, Pay, RefundRenew, Release, Renew, Upgrade};
        for what in [Create, Pay, Upgrade, Renew, RefundRenew, Expire, Release, LateCreate] {
            let orders =
                plan.orders.iter().filter(|order| order.events.iter().any(|it| it.what == what)).count();
            assert!(orders > 20, "{what:?}: {orders}");
        }
        for order in &plan.orders {
            assert_eq!(order.events[0].what, RequestKind::Create);
            let release = order.events.iter().position(|event| event.what == RequestKind::Release);
            let behind = release.map_or(&[][..], |at| &order.events[at + 1..]);
            assert!(behind.iter().all(|event| event.what == RequestKind::LateCreate), "{order:?}");
        }
        let last = plan.orders.last().unwrap().arrives_ms;
        assert!((18_000..22_000).contains(&last), "2000 orders at 100 a second: {last} ms");
    }
}
