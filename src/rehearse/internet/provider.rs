//! A provider at work: its hosts share one [`Provider`], which counts what the policy limits and says what was broken.
//!
//! Time is an argument, so that a limit can be tested to trip exactly where it stands.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::policy::{Policy, Rate, Scripted, Stage};

/// (Domain, reverse-path) pairs that a provider's greylist remembers; beyond, everything new is let in.
const GREYLIST_MAX: usize = 1 << 20;

/// The shared state of a provider's hosts.
#[derive(Debug)]
pub struct Provider {
    /// Its name in reports.
    pub name: String,
    /// Its rules.
    pub policy: Policy,
    /// Whether there is a script at all, so that sessions without one take no lock.
    is_scripted: AtomicBool,
    state: Mutex<State>,
}

/// What a provider counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Recipients of accepted transactions.
    pub delivered: u64,
    /// Accepted transactions.
    pub transactions: u64,
    /// Connections met, refused ones included.
    pub connections: u64,
    /// Most connections at a time.
    pub peak_connections: u32,
    /// Replies of class 4.
    pub deferrals: u64,
    /// Replies of class 5.
    pub refusals: u64,
    /// When the last delivery was.
    pub last_delivery: Option<Instant>,
    /// How often each limit was broken, with the worst case in words.
    pub broken: Vec<Broken>,
}

/// A limit that a client broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which limit.
    pub limit: &'static str,
    /// How often.
    pub times: u64,
    /// The first case in words.
    pub example: String,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    open: u32,
    connection_bucket: Bucket,
    recipient_bucket: Bucket,
    greylist: HashMap<u64, Instant>,
    mails: u64,
    dots: u64,
    script: Vec<Scripted>,
}

/// A token bucket that starts full.
#[derive(Debug, Default)]
struct Bucket {
    spent: f64,
    since: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let elapsed = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let refill = elapsed.as_secs_f64() / rate.per.as_secs_f64() * f64::from(rate.count);
        self.spent = (self.spent - refill).max(0.0);
        self.since = Some(now);
        let free = self.spent + 1.0 <= f64::from(rate.count) + 1e-6;
        if free {
            self.spent += 1.0;
        }
        free
    }
}

impl Provider {
    /// A provider that nobody has met yet.
    pub fn new(name: &str, policy: Policy) -> Provider {
        let state = State { script: policy.script.clone(), ..State::default() };
        let is_scripted = AtomicBool::new(!policy.script.is_empty());
        Provider { name: name.to_owned(), policy, is_scripted, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.state().counts.clone()
    }

    /// Adds to the script while the provider runs.
    pub fn script(&self, scripted: Scripted) {
        self.state().script.push(scripted);
        self.is_scripted.store(true, Ordering::Release);
    }

    /// Ends the script; regular replies follow.
    pub fn end_script(&self) {
        self.state().script.clear();
    }

    /// The scripted reply at `stage`, if one is left.
    pub(super) fn scripted(&self, stage: Stage) -> Option<String> {
        if !self.is_scripted.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        let line = state.script.iter_mut().find(|line| line.stage == stage && line.times > 0)?;
        if line.times != u32::MAX {
            line.times -= 1;
        }
        Some(line.reply.clone())
    }

    /// A connection came. It counts until [`Provider::leave`], whatever the other answers are.
    pub(super) fn enter(&self) {
        let mut state = self.state();
        state.open += 1;
        state.counts.connections += 1;
        state.counts.peak_connections = state.counts.peak_connections.max(state.open);
    }

    /// A connection ended.
    pub(super) fn leave(&self) {
        self.state().open -= 1;
    }

    /// Whether more connections are open than allowed.
    pub(super) fn is_overcrowded(&self) -> bool {
        self.policy.connections.is_some_and(|max| self.state().open > max)
    }

    /// Counts a connection beyond the limit.
    pub(super) fn overcrowded(&self) {
        let mut state = self.state();
        let (open, max) = (state.open, self.policy.connections.unwrap_or(0));
        state.breaks("connections", || format!("{open} connections at a time, {max} allowed"));
    }

    /// Takes a token for a new connection; `false` is counted as a broken limit.
    pub(super) fn admits_connection(&self, now: Instant) -> bool {
        let Some(rate) = self.policy.connection_rate else { return true };
        let mut state = self.state();
        let free = state.connection_bucket.take(rate, now);
        if !free {
            state.breaks("connection rate", || format!("more than {} connections in {:?}", rate.count, rate.per));
        }
        free
    }

    /// Takes a token for a recipient; `false` is counted as a broken limit.
    pub(super) fn admits_recipient(&self, now: Instant) -> bool {
        let Some(rate) = self.policy.recipient_rate else { return true };
        let mut state = self.state();
        let free = state.recipient_bucket.take(rate, now);
        if !free {
            state.breaks("recipient rate", || format!("more than {} recipients in {:?}", rate.count, rate.per));
        }
        free
    }

    /// Counts a limit that the session itself noticed.
    pub(super) fn breaks(&self, limit: &'static str, example: impl FnOnce() -> String) {
        self.state().breaks(limit, example);
    }

    /// Whether the pair hashed to `key` may pass: not the first time, and not before `delay` has passed since then.
    pub(super) fn greylist_passes(&self, key: u64, delay: Duration, now: Instant) -> bool {
        let mut state = self.state();
        if state.greylist.len() >= GREYLIST_MAX && !state.greylist.contains_key(&key) {
            return true;
        }
        let first = *state.greylist.entry(key).or_insert(now);
        first != now && now.saturating_duration_since(first) >= delay
    }

    /// Whether this MAIL is one of those that a busy host turns away.
    pub(super) fn is_busy(&self) -> bool {
        let Some(every) = self.policy.busy_every else { return false };
        let mut state = self.state();
        state.mails += 1;
        state.mails.is_multiple_of(u64::from(every.max(1)))
    }

    /// Whether this final dot is the n-th.
    pub(super) fn nth_dot(&self, every: u32) -> bool {
        let mut state = self.state();
        state.dots += 1;
        state.dots.is_multiple_of(u64::from(every.max(1)))
    }

    /// Counts an accepted transaction.
    pub(super) fn delivered(&self, recipients: u64, now: Instant) {
        let counts = &mut self.state().counts;
        counts.delivered += recipients;
        counts.transactions += 1;
        counts.last_delivery = Some(now);
    }

    /// Counts a reply of class 4 or 5.
    pub(super) fn turned_away(&self, class: u8) {
        let counts = &mut self.state().counts;
        match class {
            b'4' => counts.deferrals += 1,
            b'5' => counts.refusals += 1,
            _ => {}
        }
    }
}

impl State {
    fn breaks(&mut self, limit: &'static str, example: impl FnOnce() -> String) {
        match self.counts.broken.iter_mut().find(|broken| broken.limit == limit) {
            Some(broken) => broken.times += 1,
            None => self.counts.broken.push(Broken { limit, times: 1, example: example() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_trips_exactly_at_its_limit_and_refills_with_time() {
        let provider = Provider::new("p", Policy::new().recipient_rate(3, Duration::from_secs(3)));
        let start = Instant::now();
        assert!((0..3).all(|_| provider.admits_recipient(start)));
        assert!(!provider.admits_recipient(start));
        assert!(!provider.admits_recipient(start + Duration::from_millis(990)));
        assert!(provider.admits_recipient(start + Duration::from_secs(1)));
        assert_eq!(provider.counts().broken[0].times, 2);
    }

    #[test]
    fn a_connection_over_the_limit_is_seen_until_another_leaves() {
        let provider = Provider::new("p", Policy::new().connections(2));
        (0..2).for_each(|_| provider.enter());
        assert!(!provider.is_overcrowded());
        provider.enter();
        assert!(provider.is_overcrowded());
        provider.leave();
        assert!(!provider.is_overcrowded());
        assert_eq!(provider.counts().peak_connections, 3);
    }

    #[test]
    fn a_greylist_passes_a_pair_only_after_its_delay() {
        let (provider, delay) = (Provider::new("p", Policy::new()), Duration::from_secs(1));
        let start = Instant::now();
        assert!(!provider.greylist_passes(1, delay, start));
        assert!(!provider.greylist_passes(1, delay, start + Duration::from_millis(999)));
        assert!(provider.greylist_passes(1, delay, start + delay));
        assert!(!provider.greylist_passes(2, delay, start + delay));
    }

    #[test]
    fn a_scripted_reply_is_used_up() {
        let provider = Provider::new("p", Policy::new().answer_times(Stage::Mail, 2, "451 4.3.0 later"));
        assert_eq!(provider.scripted(Stage::Rcpt), None);
        assert_eq!(provider.scripted(Stage::Mail).as_deref(), Some("451 4.3.0 later"));
        assert!(provider.scripted(Stage::Mail).is_some());
        assert_eq!(provider.scripted(Stage::Mail), None);
    }
}
