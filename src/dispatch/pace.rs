//! How much a provider gets at a time: its window (concurrency) and its configured rate.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, FakeRelativeClock};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::attempt::Rate;
use crate::clock::Tick;

/// A provider's current concurrency. Slow start: it begins small, grows by one with each success (so it doubles per
/// round trip) until the first trouble, and by one per window after that; trouble halves it. The configured ceiling
/// always holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    size: f64,
    /// Where growth turns from doubling to one per round.
    threshold: f64,
    ceiling: u32,
}

impl Window {
    pub(super) fn new(initial: u32, ceiling: u32) -> Window {
        let ceiling = ceiling.max(1);
        Window { size: f64::from(initial.clamp(1, ceiling)), threshold: f64::from(ceiling), ceiling }
    }

    /// Attempts that may be in flight.
    pub(super) fn size(&self) -> u32 {
        (self.size as u32).clamp(1, self.ceiling)
    }

    pub(super) fn set_ceiling(&mut self, ceiling: u32) {
        *self = Window { ceiling: ceiling.max(1), ..self.clone() };
        self.size = self.size.min(f64::from(self.ceiling));
    }

    pub(super) fn on_success(&mut self) {
        let step = if self.size < self.threshold { 1.0 } else { 1.0 / self.size };
        self.size = (self.size + step).min(f64::from(self.ceiling));
    }

    pub(super) fn on_trouble(&mut self) {
        self.threshold = (self.size / 2.0).max(1.0);
        self.size = self.threshold;
    }
}

/// Holds a configured [`Rate`], on the time line that `now` arguments come from.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: Rate,
    limiter: RateLimiter<NotKeyed, InMemoryState, FakeRelativeClock, NoOpMiddleware<Nanos>>,
    /// The limiter's clock: it stands still unless we move it.
    clock: FakeRelativeClock,
    at: Tick,
    burst: NonZeroU32,
}

impl Pacer {
    /// A pacer that lets `burst` pass at once, at most the rate's count.
    pub(super) fn new(rate: Rate, burst: u32, now: Tick) -> Pacer {
        let count = NonZeroU32::new(rate.count).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(burst.min(count.get())).unwrap_or(NonZeroU32::MIN);
        let interval = (rate.period / count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(interval).unwrap_or_else(|| Quota::per_second(count)).allow_burst(burst);
        let clock = FakeRelativeClock::default();
        Pacer { rate, limiter: RateLimiter::direct_with_clock(quota, clock.clone()), clock, at: now, burst }
    }

    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// The most that can ever pass at once.
    pub(super) fn burst(&self) -> u32 {
        self.burst.get()
    }

    /// Takes `count` (at most [`Pacer::burst`]) or says when they will be there.
    pub(super) fn admit(&mut self, count: u32, now: Tick) -> Result<(), Tick> {
        self.clock.advance(now.since(self.at));
        self.at = self.at.max(now);
        let count = NonZeroU32::new(count.min(self.burst.get())).unwrap_or(NonZeroU32::MIN);
        match self.limiter.check_n(count) {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(wait)) => Err(now + wait.wait_time_from(self.clock.now()).max(Duration::from_millis(1))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_doubles_per_round_until_trouble_and_then_grows_by_one() {
        let mut window = Window::new(5, 40);
        (0..5).for_each(|_| window.on_success());
        assert_eq!(window.size(), 10);
        window.on_trouble();
        assert_eq!(window.size(), 5);
        (0..5).for_each(|_| window.on_success());
        assert_eq!(window.size(), 5);
        (0..3).for_each(|_| window.on_success());
        assert_eq!(window.size(), 6);
    }

    #[test]
    fn a_window_never_passes_its_ceiling_nor_falls_below_one() {
        let mut window = Window::new(5, 2);
        assert_eq!(window.size(), 2);
        (0..100).for_each(|_| window.on_success());
        assert_eq!(window.size(), 2);
        (0..100).for_each(|_| window.on_trouble());
        assert_eq!(window.size(), 1);
    }

    #[test]
    fn a_pacer_holds_its_rate_over_any_minute() {
        let rate = Rate { count: 600, period: Duration::from_secs(60) };
        let mut now = Tick(1_000_000);
        let mut pacer = Pacer::new(rate, 50, now);
        let (mut passed, end) = (0, now + Duration::from_secs(60));
        while now < end {
            match pacer.admit(50, now) {
                Ok(()) => passed += 50,
                Err(until) => now = until,
            }
        }
        assert!((600..=650).contains(&passed), "{passed}");
    }

    #[test]
    fn a_pacer_says_when_to_come_again() {
        let rate = Rate { count: 10, period: Duration::from_secs(1) };
        let now = Tick(5_000);
        let mut pacer = Pacer::new(rate, 10, now);
        assert_eq!(pacer.admit(10, now), Ok(()));
        let until = pacer.admit(10, now).expect_err("used up");
        assert!((Tick(5_990)..=Tick(6_010)).contains(&until), "{until:?}");
        assert_eq!(pacer.admit(10, until), Ok(()));
    }
}
