//! The pace that a provider was found to allow, beside what the operator configured.
//!
//! **Rate.** It begins at the configured initial rate and grows by [`RAMP`] a second until the first recipient is
//! refused for our pace. What the provider accepted until then tells where its limit lies: the rate is cut below that,
//! nothing goes for a moment, so that what was under way is answered, and it grows again by [`CREEP`] a second, up to
//! the rate that failed and, after a while without refusal, beyond. A provider that accepts nobody any more is
//! *blocking*: one recipient after another asks, at growing intervals, whether it goes on, and the rate that led there
//! is never tried again for [`MEMORY`].
//!
//! **Connections** and **recipients per transaction** are learned likewise: from a connection that is refused while
//! others work, and from 452 in a transaction that holds somebody.

use std::collections::VecDeque;
use std::time::Duration;

use super::provider::backoff;
use crate::attempt::Limits;
use crate::clock::Tick;

/// Growth of the rate per second before the first refusal, and after it.
const RAMP: f64 = 0.25;
const CREEP: f64 = 0.02;
/// What is left of the rate that failed after the first refusal (the provider's own burst hid how far above its limit we
/// were), and after a later one.
const FIRST_CUT: f64 = 0.55;
const LATER_CUT: f64 = 0.85;
/// What is left of the rate that led to a block, as a ceiling.
const BLOCKED_CUT: f64 = 0.6;
/// Recipients that may go at once to a provider that has not refused any, so that what fits into one transaction is one.
const FIRST_BURST: f64 = 50.0;
/// Least recipients that further ones are gathered for, until somebody is refused.
const PORTION: f64 = 20.0;
/// How long nothing goes after a refusal: until what was under way is answered.
const PAUSE: Duration = Duration::from_millis(400);
/// How long accepted recipients are counted for the rate.
const WINDOW: Duration = Duration::from_secs(1);
/// First and longest interval between questions to a provider that blocks.
const ASKING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// How long a limit that was found is believed.
const MEMORY: Duration = Duration::from_secs(3600);
/// No slower than a recipient in two seconds: slower is what reactions and suspensions are for.
const RATE_MIN: f64 = 0.5;
/// First and longest time until one more connection is tried than was allowed.
const CONNECTION_PROBE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// Entries of the window in which accepted recipients are counted; beyond, neighbours are merged.
const ENTRIES_MAX: usize = 64;

/// What the end of an attempt says about the provider's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Recipients accepted.
    pub(super) accepted: usize,
    /// Recipients refused for our pace.
    pub(super) refused: usize,
    /// Recipients that a transaction may hold, if it held too many.
    pub(super) transaction_cap: Option<u32>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    /// Recipients per second; none: as fast as can be.
    rate: Option<f64>,
    grown: Tick,
    /// Since when it is used.
    since: Tick,
    tokens: f64,
    /// The rate that failed, and when.
    failed: Option<(f64, Tick)>,
    /// Whether somebody was refused ever: only small portions go from then on.
    careful: bool,
    blocks: u32,
    /// Nothing goes before then.
    paused_until: Tick,
    /// Questions asked in vain since it blocks.
    asked: u32,
    /// Attempts that were begun before this are answered for an older rate.
    cut: Tick,
    accepted: VecDeque<(Tick, usize)>,
    connections: Option<Crowding>,
    transaction_cap: Option<(u32, Tick)>,
}

/// More connections than this were refused.
#[derive(Clone, Copy, Debug)]
struct Crowding {
    allowed: u32,
    at: Tick,
    times: u32,
}

impl Learned {
    /// `initial`: recipients per second to begin with; none: not learned until somebody refuses.
    pub(super) fn new(initial: Option<f64>, now: Tick) -> Learned {
        Learned {
            rate: initial,
            grown: now,
            since: now,
            tokens: FIRST_BURST,
            failed: None,
            careful: false,
            blocks: 0,
            paused_until: Tick(0),
            asked: 0,
            cut: Tick(0),
            accepted: VecDeque::new(),
            connections: None,
            transaction_cap: None,
        }
    }

    /// Recipients per second that are allowed now, if that is known.
    pub(super) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Whether the provider blocks, as far as we know.
    pub(super) fn is_blocking(&self) -> bool {
        self.asked > 0
    }

    /// Recipients that may go now, of `wanted`; or when to come again.
    pub(super) fn admit(&mut self, wanted: u32, now: Tick) -> Result<u32, Tick> {
        if now < self.paused_until {
            return Err(self.paused_until);
        }
        if self.is_blocking() {
            // One question; the next when this one is answered, or has been waited for long enough.
            self.paused_until = now + ASKING.1;
            return Ok(1);
        }
        let Some(rate) = self.rate else { return Ok(wanted) };
        self.refill(rate, now);
        let batch = f64::from(wanted).min(self.portion(rate)).floor();
        if self.tokens >= batch {
            let count = f64::from(wanted).min(self.tokens).floor();
            self.tokens -= count;
            return Ok(count as u32);
        }
        let wait = Duration::from_secs_f64((batch - self.tokens) / rate).max(Duration::from_millis(1));
        Err(now + wait)
    }

    /// Recipients that are worth a transaction: many while nobody has complained, so that they share it; else a tenth of
    /// a second's worth, because a larger burst could meet an empty bucket at the other end.
    fn portion(&self, rate: f64) -> f64 {
        if self.careful { (rate / 10.0).max(1.0) } else { (rate / 4.0).max(PORTION) }
    }

    /// Takes back what could not be used.
    pub(super) fn give_back(&mut self, count: u32, now: Tick) {
        if self.is_blocking() {
            self.paused_until = now;
        } else {
            self.tokens += f64::from(count);
        }
    }

    /// Lets time pass: tokens come, and the rate grows while it is used.
    fn refill(&mut self, rate: f64, now: Tick) {
        let elapsed = now.since(self.grown).as_secs_f64();
        self.grown = now;
        let most = if self.careful { (rate / 4.0).max(1.0) } else { (rate / 4.0).max(FIRST_BURST) };
        let idle = self.tokens >= most;
        self.tokens = (self.tokens + elapsed * rate).min(most);
        if idle {
            return; // what is not used says nothing about what would be allowed
        }
        let growth = match self.failed {
            Some((_, at)) if now.since(at) > MEMORY => {
                (self.failed, self.blocks) = (None, 0);
                RAMP
            }
            // Near the rate that failed with care; far below it, or well above (it failed for another reason), faster.
            Some((failed, _)) if (0.75..1.1).contains(&(rate / failed)) => CREEP,
            _ => RAMP,
        };
        let grown = rate * (1.0 + growth * elapsed.min(1.0));
        let ceiling = match self.failed {
            Some((failed, _)) if self.blocks > 0 => rate.max(failed * BLOCKED_CUT),
            _ => f64::MAX,
        };
        let grown = grown.min(ceiling);
        self.rate = Some(grown);
    }

    /// Takes account of an attempt that was begun at `begun`. Whether the pace changed.
    pub(super) fn answered(&mut self, answer: Answer, begun: Tick, now: Tick) -> bool {
        if answer.accepted > 0 {
            self.count(answer.accepted, now);
        }
        if let Some(cap) = answer.transaction_cap {
            self.transaction_cap = Some((cap.max(1), now));
        }
        if answer.refused == 0 {
            if answer.accepted > 0 && self.is_blocking() {
                (self.asked, self.paused_until) = (0, now);
            }
            return answer.transaction_cap.is_some();
        }
        if self.is_blocking() {
            self.asked += 1;
            self.paused_until = now + backoff(ASKING.0, ASKING.1, self.asked);
        } else if begun >= self.cut {
            self.cut(answer, now);
        } else if answer.accepted == 0 && now < self.paused_until && self.accepted_since(self.cut) == 0 {
            // Nobody got in since the cut: it blocks.
            self.block(now);
        }
        true
    }

    fn cut(&mut self, answer: Answer, now: Tick) {
        let is_mild = self.failed.is_some() && answer.refused <= answer.accepted;
        // A rate that has not been in use for a window cannot have failed: the first transactions were too large.
        if now.since(self.since) >= WINDOW {
            let measured = self.measured(now).max(RATE_MIN);
            let failed = self.rate.map_or(measured, |rate| rate.min(measured));
            let factor = if self.failed.is_none() { FIRST_CUT } else { LATER_CUT };
            self.failed = Some((failed, now));
            self.rate = Some((failed * factor).max(RATE_MIN));
        }
        let pause = if is_mild { Duration::ZERO } else { PAUSE };
        (self.careful, self.cut, self.tokens, self.grown) = (true, now, 0.0, now + pause);
        self.paused_until = now + pause;
        if answer.accepted == 0 {
            self.block(now);
        }
    }

    fn block(&mut self, now: Tick) {
        self.blocks += 1;
        self.asked = 1;
        let failed = self.failed.map_or(RATE_MIN, |(failed, _)| failed);
        self.rate = Some((failed * BLOCKED_CUT).max(RATE_MIN).min(self.rate.unwrap_or(f64::MAX)));
        self.paused_until = now + ASKING.0;
    }

    fn count(&mut self, accepted: usize, now: Tick) {
        while self.accepted.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.accepted.pop_front();
        }
        let is_full = self.accepted.len() >= ENTRIES_MAX;
        match self.accepted.back_mut() {
            Some((at, count)) if *at == now || is_full => {
                *at = now;
                *count += accepted;
            }
            _ => self.accepted.push_back((now, accepted)),
        }
    }

    fn accepted_since(&self, since: Tick) -> usize {
        self.accepted.iter().filter(|(at, _)| *at > since).map(|(_, count)| count).sum()
    }

    /// Recipients per second that were accepted lately.
    fn measured(&self, now: Tick) -> f64 {
        self.accepted_since(now - WINDOW) as f64 / WINDOW.as_secs_f64()
    }

    /// Whether connections were refused.
    pub(super) fn is_crowded(&self) -> bool {
        self.connections.is_some()
    }

    /// A connection was refused while `others` were open.
    pub(super) fn crowded(&mut self, others: u32, now: Tick) {
        let known = self.connections.filter(|known| known.allowed <= others);
        let times = known.map_or(1, |known| known.times + 1);
        let allowed = known.map_or(others, |known| known.allowed.min(others)).max(1);
        self.connections = Some(Crowding { allowed, at: now, times });
    }

    /// `limits` as what was learned leaves them.
    pub(super) fn restrain(&mut self, limits: &mut Limits, now: Tick) {
        if let Some(crowding) = &mut self.connections {
            let patience = backoff(CONNECTION_PROBE.0, CONNECTION_PROBE.1, crowding.times);
            let more = now.since(crowding.at) >= patience;
            limits.connections = limits.connections.min(crowding.allowed + u32::from(more)).max(1);
        }
        if self.transaction_cap.is_some_and(|(_, at)| now.since(at) >= MEMORY) {
            self.transaction_cap = None;
        }
        if let Some((cap, _)) = self.transaction_cap {
            limits.recipients_per_transaction = limits.recipients_per_transaction.min(cap);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// A provider with a limit that the code does not know: a bucket of `burst`, refilled at `rate` a second, and a time
    /// for which every excess blocks.
    struct Hidden {
        rate: f64,
        burst: f64,
        block: Duration,
        tokens: f64,
        at: Tick,
        blocked_until: Tick,
        blocks: Vec<Tick>,
    }

    impl Hidden {
        fn new(rate: f64, burst: f64, block: Duration) -> Hidden {
            Hidden { rate, burst, block, tokens: burst, at: START, blocked_until: Tick(0), blocks: Vec::new() }
        }

        fn take(&mut self, count: u32, now: Tick) -> (usize, usize) {
            self.tokens = (self.tokens + now.since(self.at).as_secs_f64() * self.rate).min(self.burst);
            self.at = now;
            if now < self.blocked_until {
                return (0, count as usize);
            }
            let accepted = (self.tokens.floor() as usize).min(count as usize);
            self.tokens -= accepted as f64;
            let refused = count as usize - accepted;
            if refused > 0 && !self.block.is_zero() {
                self.blocked_until = now + self.block;
                self.blocks.push(now);
            }
            (accepted, refused)
        }
    }

    const START: Tick = Tick(1_000_000_000);
    const RTT: Duration = Duration::from_millis(100);

    /// What came of a run: accepted and refused in each second.
    fn run(hidden: &mut Hidden, seconds: u64) -> Vec<(usize, usize)> {
        let mut learned = Learned::new(Some(50.0), START);
        let mut under_way: BinaryHeap<Reverse<(Tick, Tick, u32)>> = BinaryHeap::new();
        let mut result = vec![(0, 0); seconds as usize];
        let mut now = START;
        while now < START + Duration::from_secs(seconds) {
            while under_way.peek().is_some_and(|Reverse((end, ..))| *end <= now) {
                let Some(Reverse((end, begun, count))) = under_way.pop() else { break };
                let (accepted, refused) = hidden.take(count, end);
                let second = &mut result[(end.since(START).as_secs() as usize).min(seconds as usize - 1)];
                *second = (second.0 + accepted, second.1 + refused);
                learned.answered(Answer { accepted, refused, transaction_cap: None }, begun, end);
            }
            match learned.admit(50, now) {
                Ok(count) if under_way.len() < 50 => under_way.push(Reverse((now + RTT, now, count))),
                _ => now = now + Duration::from_millis(2),
            }
        }
        result
    }

    #[test]
    fn a_tolerant_provider_is_used_to_nine_tenths_within_twenty_seconds_and_refuses_less_than_one_percent() {
        for (rate, burst) in
            [(80.0, 80.0), (150.0, 150.0), (400.0, 400.0), (100.0, 20.0), (300.0, 30.0), (200.0, 400.0)]
        {
            let result = run(&mut Hidden::new(rate, burst, Duration::ZERO), 60);
            let sum = |part: &[(usize, usize)]| part.iter().fold((0, 0), |sum, x| (sum.0 + x.0, sum.1 + x.1));
            let (settled, _) = sum(&result[20..]);
            let share = settled as f64 / (rate * 40.0);
            let (accepted, refused) = sum(&result);
            let lost = refused as f64 / (accepted + refused) as f64;
            assert!(share >= 0.9 && lost < 0.01, "{rate}/{burst}: {share:.3} used, {lost:.4} refused; {result:?}");
        }
    }

    #[test]
    fn a_provider_that_punishes_every_excess_does_so_three_times_at_most() {
        for (rate, burst, block) in [(80.0, 80.0, 10), (200.0, 100.0, 30), (300.0, 600.0, 20), (20.0, 5.0, 10)] {
            let mut hidden = Hidden::new(rate, burst, Duration::from_secs(block));
            let result = run(&mut hidden, 900);
            let late: usize = result[600..].iter().map(|second| second.0).sum();
            let share = late as f64 / (rate * 300.0);
            assert!(hidden.blocks.len() <= 3 && share > 0.15, "{rate}/{burst}: {:?}, {share:.2}", hidden.blocks.len());
        }
    }

    #[test]
    fn connections_stay_where_they_were_refused_and_ask_for_one_more_ever_more_rarely() {
        let limits = |learned: &mut Learned, now| {
            let mut limits = Limits {
                connections: 50,
                connection_rate: None,
                recipient_rate: None,
                recipients_per_transaction: 50,
                messages_per_connection: 100,
                idle_timeout: Duration::from_secs(5),
            };
            learned.restrain(&mut limits, now);
            (limits.connections, limits.recipients_per_transaction)
        };
        let mut learned = Learned::new(None, START);
        assert_eq!(limits(&mut learned, START), (50, 50));
        learned.crowded(12, START);
        learned.answered(Answer { accepted: 10, refused: 0, transaction_cap: Some(10) }, START, START);
        assert_eq!(limits(&mut learned, START), (12, 10));
        let probe = START + CONNECTION_PROBE.0;
        assert_eq!(limits(&mut learned, probe).0, 13);
        learned.crowded(12, probe);
        assert_eq!(limits(&mut learned, probe + CONNECTION_PROBE.0).0, 12, "twice as long now");
    }
}
