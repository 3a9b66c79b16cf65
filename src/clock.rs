//! Time, in one place: a monotonic line for scheduling, and the wall clock for dates that people read.
//!
//! [`Tick`] is the spool's own time line in milliseconds. It starts at the wall time at which the spool was made, runs
//! with the monotonic clock, and is journaled, so it goes on after a restart. It never jumps: a wall clock that is ten
//! years off, in either direction, neither expires mail nor parks the queue (design 7, expiry).
//!
//! Sans-I/O parts take a `Tick` as an argument. The parts that ask [`Clock`] run under tokio's paused time in tests,
//! because it is built on `tokio::time::Instant`.

use std::fmt;
use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// A moment on the spool's time line, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

impl Tick {
    /// The end of time: what is due then is never due.
    pub const NEVER: Tick = Tick(u64::MAX);

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Tick) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Tick {
    type Output = Tick;

    fn add(self, duration: Duration) -> Tick {
        Tick(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Tick {
    type Output = Tick;

    fn sub(self, duration: Duration) -> Tick {
        Tick(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// The source of [`Tick`]s and of wall time. Cheap to clone; every clone tells the same time.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Origin>);

#[derive(Debug)]
struct Origin {
    instant: Instant,
    tick: Tick,
    /// Fixed for simulations, where wall time follows the monotonic clock; `None` asks the system each time.
    wall: Option<Timestamp>,
}

impl Clock {
    /// A clock that continues the spool's time line: `last` is the newest tick that the journal knows, and `last_wall`
    /// the wall time journaled with it. Downtime counts as far as the wall clock can be believed: between nothing and
    /// `downtime_max`.
    pub fn resume(last: Tick, last_wall: Timestamp, downtime_max: Duration) -> Clock {
        let away = Timestamp::now().as_millisecond().saturating_sub(last_wall.as_millisecond());
        let away = Duration::from_millis(u64::try_from(away).unwrap_or(0)).min(downtime_max);
        Clock::starting_at(last + away)
    }

    /// A clock for a new spool: its time line starts at the wall clock's time.
    pub fn start() -> Clock {
        Clock::starting_at(Tick(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)))
    }

    /// A clock whose time line stands at `tick` now.
    pub fn starting_at(tick: Tick) -> Clock {
        Clock(Arc::new(Origin { instant: Instant::now(), tick, wall: None }))
    }

    /// A clock for simulations: wall time starts at `wall` and follows the (paused) monotonic clock.
    pub fn simulated(tick: Tick, wall: Timestamp) -> Clock {
        Clock(Arc::new(Origin { instant: Instant::now(), tick, wall: Some(wall) }))
    }

    /// Now, on the spool's time line.
    pub fn now(&self) -> Tick {
        self.0.tick + self.0.instant.elapsed()
    }

    /// Now, as a person reads it. For dates in headers, logs and reports only; never for scheduling.
    pub fn wall(&self) -> Timestamp {
        match self.0.wall {
            Some(start) => start.checked_add(self.0.instant.elapsed()).unwrap_or(start),
            None => Timestamp::now(),
        }
    }

    /// The instant at which `tick` comes, for `tokio::time::sleep_until`. Far-off ticks are cut to a day ahead.
    pub fn instant(&self, tick: Tick) -> Instant {
        let ahead = tick.since(self.now()).min(Duration::from_secs(86_400));
        Instant::now() + ahead
    }
}
