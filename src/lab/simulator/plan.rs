//! Plan of a simulation, made from a seed: the same seed gives the same plan.

/// SKUs of a product, with prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sku {
    /// The smallest SKU.
    Basic,
    /// The SKU that most buyers upgrade to.
    Pro,
    /// The largest SKU.
    Max,
}

impl Sku {
    /// Returns the `skuId`.
    pub const fn name(self) -> &'static str {
        match self {
            Sku::Basic => "yuncode0000100001",
            Sku::Pro => "yuncode0000100002",
            Sku::Max => "yuncode0000100003",
        }
    }

    /// Returns the simulated price for a month, in yuan.
    pub const fn price(self) -> u64 {
        match self {
            Sku::Basic => 99,
            Sku::Pro => 299,
            Sku::Max => 999,
        }
    }
}

/// Requests of the marketplace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// A purchase.
    Create,
    /// Notification that an order was paid.
    Pay,
    /// Change to another SKU.
    Upgrade,
    /// A longer term; also a payment of arrears.
    Renew,
    /// Refund of a renewal.
    RefundRenew,
    /// End of a term, or arrears.
    Expire,
    /// Release of the instance.
    Release,
    /// Repeat of the purchase after the release.
    LateCreate,
}

impl What {
    /// Every request.
    pub const ALL: [What; 8] = [
        What::Create,
        What::Pay,
        What::Upgrade,
        What::Renew,
        What::RefundRenew,
        What::Expire,
        What::Release,
        What::LateCreate,
    ];

    /// Returns the marketplace's name of the request.
    pub const fn word(self) -> &'static str {
        match self {
            What::Create | What::LateCreate => "createInstance",
            What::Pay => "orderPay",
            What::Upgrade => "upgradeInstance",
            What::Renew => "renewInstance",
            What::RefundRenew => "refundRenewInstance",
            What::Expire => "expiredInstance",
            What::Release => "releaseInstance",
        }
    }

    /// Returns the name in a ledger.
    pub const fn name(self) -> &'static str {
        match self {
            What::Create => "create",
            What::Pay => "payment",
            What::Upgrade => "upgrade",
            What::Renew => "renew",
            What::RefundRenew => "refund-renew",
            What::Expire => "expire",
            What::Release => "release",
            What::LateCreate => "late-create",
        }
    }
}

/// An event of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The request.
    pub what: What,
    /// Market days since the previous event.
    pub after_days: u32,
    /// End of the term after this event, in market days from the purchase.
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
pub struct Life {
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
    pub lives: Vec<Life>,
}

impl Plan {
    /// Plans `orders` purchases, on average `per_second` of them per second.
    pub fn new(seed: u64, orders: u32, per_second: f64) -> Plan {
        let mut arrivals = Chance::new(seed, 0);
        let gap_ms = if per_second > 0.0 { 1_000.0 / per_second } else { 0.0 };
        let mut at_ms = 0.0;
        let mut lives = Vec::new();
        for number in 1..=orders {
            lives.push(Life {
                number,
                arrives_ms: at_ms as u64,
                // Each order has a random stream of its own, so that a larger plan keeps the orders of a smaller one.
                events: Story::tell(Chance::new(seed, u64::from(number))),
            });
            // Between zero and twice the average gap, so that there are busy and quiet minutes.
            at_ms += gap_ms * (arrivals.below(2_001) as f64 / 1_000.0);
        }
        Plan { seed, lives }
    }
}

/// Days of a term.
const MONTH: u32 = 30;

/// Generator of the events of one order.
struct Story {
    chance: Chance,
    events: Vec<Event>,
    sku: Sku,
    until: u32,
    orders: u32,
    /// At most one refund per order. A second refund to the same expiry is byte for byte the first, so a careful SPI
    /// endpoint asks a person which one it is.
    refunded: bool,
}

impl Story {
    fn tell(chance: Chance) -> Vec<Event> {
        let mut story =
            Story { chance, events: Vec::new(), sku: Sku::Basic, until: MONTH, orders: 1, refunded: false };
        story.sku = if story.chance.percent(25) { Sku::Pro } else { Sku::Basic };
        if story.chance.percent(8) {
            story.trial()
        } else {
            story.sale()
        }
        story.events
    }

    fn add(&mut self, what: What, after_days: u32) -> Option<&mut Event> {
        // Both are drawn for every event, so that the random stream does not depend on `what`.
        let many = self.chance.percent(6);
        let twice = self.chance.percent(6);
        self.events.push(Event {
            what,
            after_days,
            until_days: self.until,
            order: self.orders,
            sku: self.sku,
            is_trial: false,
            is_refund: false,
            twins: many && what != What::LateCreate,
            again: twice && what != What::LateCreate,
        });
        self.events.last_mut()
    }

    fn trial(&mut self) {
        self.until = 7;
        if let Some(bought) = self.add(What::Create, 0) {
            bought.is_trial = true;
        }
        self.add(What::Expire, 7);
        self.release(5, false);
    }

    fn sale(&mut self) {
        self.add(What::Create, 0);
        if self.chance.percent(50) {
            self.add(What::Pay, 0);
        }
        if self.chance.percent(10) {
            let days = 1 + self.chance.below_u32(3);
            return self.release(days, true);
        }
        if self.chance.percent(25) {
            self.upgrade();
        }
        for _ in 0..self.chance.below(4) {
            self.renewal();
        }
        if self.chance.percent(40) {
            self.add(What::Expire, MONTH);
            let days = 7 + self.chance.below_u32(8);
            self.release(days, false);
        }
    }

    fn upgrade(&mut self) {
        self.orders += 1;
        self.sku = if self.sku == Sku::Basic { Sku::Pro } else { Sku::Max };
        let days = 2 + self.chance.below_u32(10);
        self.add(What::Upgrade, days);
    }

    /// Adds a renewal: before the end of the term, or after it, when the instance was frozen meanwhile.
    fn renewal(&mut self) {
        self.orders += 1;
        let late = self.chance.percent(30);
        if late {
            self.add(What::Expire, MONTH);
        }
        let before = self.until;
        self.until += MONTH;
        let days = if late { 1 + self.chance.below_u32(5) } else { 20 };
        self.add(What::Renew, days);
        if !late && !self.refunded && self.chance.percent(10) {
            self.refunded = true;
            self.until = before;
            self.add(What::RefundRenew, 1);
        }
    }

    fn release(&mut self, after_days: u32, is_refund: bool) {
        if let Some(release) = self.add(What::Release, after_days) {
            release.is_refund = is_refund;
        }
        // The repeat has the values of the purchase, not those after an upgrade or a renewal.
        if self.chance.percent(10) {
            let (until, sku) = (self.events.first().map_or(self.until, |bought| bought.until_days), self.sku);
            let (first_sku, is_trial) =
                self.events.first().map_or((sku, false), |bought| (bought.sku, bought.is_trial));
            if let Some(late) = self.add(What::LateCreate, 2) {
                *late = Event { until_days: until, order: 1, sku: first_sku, is_trial, ..late.clone() };
            }
        }
    }
}

/// Deterministic random numbers from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn new(seed: u64, stream: u64) -> Chance {
        // Mixing the stream first keeps neighboring streams independent.
        Chance(mixed(seed ^ mixed(stream.wrapping_add(1))))
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

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
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
        assert_ne!(plan.lives, Plan::new(8, 500, 50.0).lives);
        let longer = Plan::new(7, 600, 50.0);
        assert!(longer.lives.starts_with(&plan.lives), "more orders change nothing about the others");
    }

    #[test]
    fn everything_happens_and_in_an_order_that_makes_sense() {
        let plan = Plan::new(1, 2_000, 100.0);
        for what in What::ALL {
            let orders =
                plan.lives.iter().filter(|life| life.events.iter().any(|it| it.what == what)).count();
            assert!(orders > 20, "{what:?}: {orders}");
        }
        for life in &plan.lives {
            assert_eq!(life.events[0].what, What::Create);
            let release = life.events.iter().position(|event| event.what == What::Release);
            let behind = release.map_or(&[][..], |at| &life.events[at + 1..]);
            assert!(behind.iter().all(|event| event.what == What::LateCreate), "{life:?}");
        }
        let last = plan.lives.last().unwrap().arrives_ms;
        assert!((18_000..22_000).contains(&last), "2000 orders at 100 a second: {last} ms");
    }
}
