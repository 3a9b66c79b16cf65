//! How fast connections to a provider may be opened: `governor` over tokio's clock, so that paused time paces too.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

use crate::attempt::Rate;

/// tokio's monotonic clock as governor sees it: time since the limiter was made.
#[derive(Clone, Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Paces one provider.
#[derive(Debug)]
pub(super) struct Pace {
    rate: Rate,
    clock: TokioClock,
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>,
}

impl Pace {
    pub(super) fn new(rate: Rate, now: Instant) -> Pace {
        let clock = TokioClock(now);
        let limiter = RateLimiter::direct_with_clock(quota(rate), clock.clone());
        Pace { rate, clock, limiter }
    }

    /// What it was made from.
    pub(super) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one; else says when there is one.
    pub(super) fn take(&self) -> Result<(), Instant> {
        self.limiter.check().map_err(|not_until| {
            let now = self.clock.now();
            self.clock.0 + now + not_until.wait_time_from(now)
        })
    }
}

/// A tenth at once, the rest evenly, so that no stretch of one period sees more than `count`: what a receiver counts.
/// (`Quota::per_minute(100)` would let 200 through in its first minute.)
fn quota(rate: Rate) -> Quota {
    let count = rate.count.max(1);
    let burst = (count / 10).max(1);
    let interval = rate.period / (count - burst).max(1);
    let interval = interval.max(Duration::from_nanos(1));
    let quota = Quota::with_period(interval).expect("the interval is not zero");
    quota.allow_burst(NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_period_sees_more_than_the_rate_allows() {
        for (count, seconds) in [(1, 1), (2, 10), (15, 60), (100, 60), (1000, 3600)] {
            let pace = Pace::new(Rate { count, period: Duration::from_secs(seconds) }, Instant::now());
            let mut taken = Vec::new();
            while taken.len() < 3 * count as usize {
                match pace.take() {
                    Ok(()) => taken.push(Instant::now()),
                    Err(at) => tokio::time::sleep_until(at).await,
                }
            }
            for window in taken.windows(count as usize + 1) {
                let span = window[count as usize] - window[0];
                assert!(span + Duration::from_millis(2) >= Duration::from_secs(seconds), "{count}: {span:?}");
            }
            let average = (taken[taken.len() - 1] - taken[0]).as_secs_f64() / (taken.len() - 1) as f64;
            assert!(average < 2.01 * seconds as f64 / f64::from(count), "{count}: {average}");
        }
    }
}
