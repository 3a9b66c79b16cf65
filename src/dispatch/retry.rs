//! The retry schedule and the lifetime of queued mail (RFC 5321 section 4.5.4.1).

use std::time::Duration;

use super::RetrySchedule;
use crate::clock::Tick;
use crate::mail::{Destination, Queued};

/// The hard cap: whatever holds a recipient, this many lifetimes after its acceptance it is expired without an attempt.
const HARD_CAP_LIFETIMES: u32 = 2;

impl RetrySchedule {
    /// The delay after attempt number `attempts` (from 1), varied by `chance` in 0.0..1.0. The chance is drawn once per
    /// attempt, so that what was deferred together comes due together.
    pub fn delay(&self, attempts: u32, chance: f64) -> Duration {
        let index = (attempts.max(1) as usize - 1).min(self.delays.len().saturating_sub(1));
        let delay = self.delays.get(index).copied().unwrap_or(Duration::from_secs(300));
        let spread = f64::from(self.jitter_percent.min(100)) / 100.0;
        delay.mul_f64(1.0 + spread * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
    }

    /// How long a recipient of that destination is tried.
    pub fn lifetime(&self, destination: &Destination) -> Duration {
        match destination {
            Destination::Domain(_) => self.expire_after,
            Destination::ListHost(_) => self.reports_expire_after,
        }
    }

    /// Whether the recipient's lifetime is over, so that its next attempt is its last.
    pub fn is_overdue(&self, queued: &Queued, now: Tick) -> bool {
        now.since(queued.batch.accepted) >= self.lifetime(&queued.destination)
    }

    /// Whether the recipient is so old that it gets no attempt any more.
    pub fn is_past_hard_cap(&self, queued: &Queued, now: Tick) -> bool {
        now.since(queued.batch.accepted) >= self.lifetime(&queued.destination) * HARD_CAP_LIFETIMES
    }

    /// When a recipient is due again that was deferred at `now` by its attempt number `attempts`: by schedule, but not
    /// after its deadline, which is when it gets its last attempt.
    pub fn due(&self, queued: &Queued, attempts: u32, chance: f64, now: Tick) -> Tick {
        let deadline = queued.batch.accepted + self.lifetime(&queued.destination);
        (now + self.delay(attempts, chance)).min(deadline.max(now + Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::tests::Lists;

    const MINUTE: Duration = Duration::from_secs(60);

    fn schedule() -> RetrySchedule {
        let minutes = [5, 10, 20, 40, 60, 120, 240];
        let delays = minutes.iter().map(|&m| MINUTE * m).collect();
        let (expire_after, reports_expire_after) = (MINUTE * 60 * 24 * 5, MINUTE * 60 * 24 * 14);
        RetrySchedule { delays, jitter_percent: 20, expire_after, reports_expire_after }
    }

    #[test]
    fn the_last_delay_repeats() {
        let minutes: Vec<_> = (1..=9).map(|n| schedule().delay(n, 0.5).as_secs() / 60).collect();
        assert_eq!(minutes, [5, 10, 20, 40, 60, 120, 240, 240, 240]);
    }

    #[test]
    fn jitter_stays_within_its_percentage() {
        assert_eq!(schedule().delay(1, 0.0), MINUTE * 4);
        assert_eq!(schedule().delay(1, 1.0), MINUTE * 6);
    }

    #[test]
    fn a_week_of_retries_ends_with_a_last_attempt_at_the_deadline() {
        let queued = Lists::new().many(1, "a.test", 1).remove(0);
        let accepted = queued.batch.accepted;
        let (mut now, mut attempts) = (accepted, 0);
        while !schedule().is_overdue(&queued, now) {
            attempts += 1;
            now = schedule().due(&queued, attempts, 0.5, now);
        }
        assert_eq!(now, accepted + MINUTE * 60 * 24 * 5);
        assert!((30..=40).contains(&attempts), "{attempts}");
    }
}
