//! The uplink: how many octets per second all deliveries together may send.
//!
//! One line, one queue. A connection asks for a *slice* at a time, 20 ms of the line, and gets the next free moment of it; so
//! with N connections at work each has every N-th slice, whatever their messages' sizes, and none waits longer than N slices.
//! What a line has not sent while it was idle is made up for by at most [`BURST`]: over any 10 s the rate is exceeded by
//! 1 % and a slice.
//!
//! Octets are counted where they enter TCP, that is with TLS but without the 3 to 4 % of packet headers. Reports to list
//! hosts never wait; what they send is taken out of the deliveries' time. Without a rate nothing is locked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{Counter, Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::time::Instant;

/// How much of an idle line's time may be made up for.
const BURST: Duration = Duration::from_millis(100);
/// Slices per second of the line.
const SLICES: u64 = 50;
/// A slice's bounds in octets: a packet's worth at least, a TLS write's at most.
const SLICE: (u64, u64) = (512, 64 * 1024);
/// The time over which use is averaged.
const AVERAGED: f64 = 2.0;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Outbound mail: waits for its turn.
    Delivery,
    /// Reports to list hosts: never wait.
    Bounce,
    /// Next hops that are reached by another line: neither wait nor count.
    OtherLine,
}

impl Lane {
    /// The lane as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Delivery => "delivery",
            Lane::Bounce => "bounce",
            Lane::OtherLine => "other_line",
        }
    }
}

/// The line itself, on a clock that is handed in.
#[derive(Debug)]
struct Line {
    /// Octets per second.
    rate: u64,
    /// When everything that has been granted will have been sent.
    free_at: Instant,
    /// Octets granted lately, each weighing less as it ages by [`AVERAGED`] seconds.
    level: f64,
    weighed: Instant,
}

impl Line {
    fn new(rate: u64, now: Instant) -> Line {
        Line { rate, free_at: now, level: 0.0, weighed: now }
    }

    fn seconds(&self, octets: u64) -> Duration {
        Duration::from_secs_f64(octets as f64 / self.rate as f64)
    }

    /// Grants `octets` the next free moment of the line and says when that is.
    fn reserve(&mut self, octets: u64, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let start = self.free_at.max(earliest);
        self.free_at = start + self.seconds(octets);
        self.weigh(now);
        self.level += octets as f64;
        start.max(now)
    }

    fn weigh(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.weighed).as_secs_f64();
        self.level *= (-age / AVERAGED).exp();
        self.weighed = now;
    }

    /// The part of the rate that is used: 1.0 when the line is full.
    fn used(&mut self, now: Instant) -> f64 {
        self.weigh(now);
        (self.level / AVERAGED / self.rate as f64).min(1.0)
    }
}

/// What the uplink is doing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UplinkUse {
    /// Octets per second that are allowed; `None`: as many as the line takes.
    pub rate: Option<u64>,
    /// The part of it that is used, 0.0 to 1.0; 0.0 without a rate.
    pub used: f64,
    /// Connections that wait for their slice.
    pub waiting: u64,
}

/// The budget of the uplink. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct Uplink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// 0: no limit.
    rate: AtomicU64,
    line: Mutex<Line>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Metrics {
    bytes: IntCounterVec,
    limit: IntGauge,
    used: Gauge,
    waits: IntCounter,
    waited: Counter,
    waiting: IntGauge,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let bytes = Opts::new("posthaste_uplink_bytes_total", "Octets sent to next hops, with TLS, by lane.");
        let metrics = Metrics {
            bytes: IntCounterVec::new(bytes, &["lane"])?,
            limit: IntGauge::new("posthaste_uplink_limit_bytes_per_second", "The uplink's budget; 0 without one.")?,
            used: Gauge::new("posthaste_uplink_used_ratio", "The part of the uplink's budget in use.")?,
            waits: IntCounter::new("posthaste_uplink_waits_total", "Writes that waited for the uplink.")?,
            waited: Counter::new("posthaste_uplink_wait_seconds_total", "Time that writes waited for the uplink.")?,
            waiting: IntGauge::new("posthaste_uplink_waiting", "Connections that wait for the uplink.")?,
        };
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.limit.clone()))?;
        registry.register(Box::new(metrics.used.clone()))?;
        registry.register(Box::new(metrics.waits.clone()))?;
        registry.register(Box::new(metrics.waited.clone()))?;
        registry.register(Box::new(metrics.waiting.clone()))?;
        Ok(metrics)
    }
}

impl Uplink {
    /// A line of `rate` octets per second; `None`: without a limit.
    ///
    /// # Errors
    /// If a metric of the same name is registered already.
    pub fn new(rate: Option<u64>, registry: &Registry) -> Result<Uplink, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        let line = Mutex::new(Line::new(1, Instant::now()));
        let uplink = Uplink(Arc::new(Shared { rate: AtomicU64::new(0), line, metrics }));
        uplink.set_rate(rate);
        Ok(uplink)
    }

    /// Changes the rate. What waits asks anew.
    pub fn set_rate(&self, rate: Option<u64>) {
        let rate = rate.unwrap_or(0);
        self.0.metrics.limit.set(i64::try_from(rate).unwrap_or(i64::MAX));
        if self.0.rate.swap(rate, Ordering::AcqRel) != rate && rate != 0 {
            *self.line() = Line::new(rate, Instant::now());
        }
    }

    /// Octets per second that are allowed; `None`: without a limit.
    pub fn rate(&self) -> Option<u64> {
        Some(self.0.rate.load(Ordering::Acquire)).filter(|rate| *rate > 0)
    }

    /// Whether what is sent in `lane` has to wait for its turns.
    pub fn holds(&self, lane: Lane) -> Option<u64> {
        self.rate().filter(|_| lane == Lane::Delivery)
    }

    /// Grants up to `wanted` octets, a slice at most: how many, and from when on they may be sent.
    pub fn reserve(&self, wanted: usize) -> (usize, Instant) {
        let now = Instant::now();
        let mut line = self.line();
        let slice = (line.rate / SLICES).clamp(SLICE.0, SLICE.1);
        let octets = slice.min(wanted as u64);
        let at = line.reserve(octets, now);
        if at > now {
            self.0.metrics.waits.inc();
            self.0.metrics.waited.inc_by(at.duration_since(now).as_secs_f64());
        }
        (usize::try_from(octets).unwrap_or(usize::MAX), at)
    }

    /// Counts octets that were sent. Those that did not wait are taken out of the line's time here.
    pub fn sent(&self, lane: Lane, octets: usize) {
        self.0.metrics.bytes.with_label_values(&[lane.as_str()]).inc_by(octets as u64);
        if lane == Lane::Bounce && self.rate().is_some() {
            self.line().reserve(octets as u64, Instant::now());
        }
    }

    /// Counts a connection as waiting, for as long as the value lives.
    pub fn waiting(&self) -> Waiting {
        self.0.metrics.waiting.inc();
        Waiting(self.0.metrics.waiting.clone())
    }

    /// What the uplink is doing now.
    pub fn usage(&self) -> UplinkUse {
        let rate = self.rate();
        let used = rate.map_or(0.0, |_| self.line().used(Instant::now()));
        self.0.metrics.used.set(used);
        UplinkUse { rate, used, waiting: self.0.metrics.waiting.get().unsigned_abs() }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Uplink::waiting`].
#[derive(Debug)]
pub struct Waiting(IntGauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 187_500; // 1.5 Mbit/s

    #[tokio::test(start_paused = true)]
    async fn ten_seconds_of_a_full_line_hold_the_rate_within_three_percent() {
        let start = Instant::now();
        let mut line = Line::new(RATE, start);
        let mut sent = 0;
        let idle = start + Duration::from_secs(60); // a burst may have been saved up
        while line.reserve(3750, idle) < idle + Duration::from_secs(10) {
            sent += 3750;
        }
        let share = f64::from(sent) / (10.0 * RATE as f64);
        assert!((0.97..=1.03).contains(&share), "{share}");
    }

    #[tokio::test(start_paused = true)]
    async fn everybody_has_every_nth_slice() {
        let now = Instant::now();
        let mut line = Line::new(1000, now);
        let turns: Vec<_> = (0..6).map(|_| line.reserve(100, now).duration_since(now).as_millis()).collect();
        assert_eq!(turns, [0, 100, 200, 300, 400, 500]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_is_used_whole_and_an_idle_one_not_at_all() {
        let mut now = Instant::now();
        let mut line = Line::new(RATE, now);
        for _ in 0..500 {
            now = line.reserve(3750, now);
        }
        assert!(line.used(now) > 0.95, "{}", line.used(now));
        assert!(line.used(now + Duration::from_secs(20)) < 0.01);
    }

    #[tokio::test(start_paused = true)]
    async fn reports_never_wait_and_deliveries_pay_for_them() {
        let uplink = Uplink::new(Some(1000), &Registry::new()).expect("new");
        assert_eq!(uplink.holds(Lane::Bounce), None);
        uplink.sent(Lane::Bounce, 1100);
        let (octets, at) = uplink.reserve(4096);
        assert_eq!((octets, at.duration_since(Instant::now()).as_millis()), (512, 1100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_rate_begins_with_a_free_line() {
        let uplink = Uplink::new(Some(1000), &Registry::new()).expect("new");
        for _ in 0..100 {
            uplink.reserve(512);
        }
        uplink.set_rate(Some(RATE));
        assert_eq!(uplink.reserve(9999), (3750, Instant::now()));
        uplink.set_rate(None);
        assert_eq!(uplink.usage(), UplinkUse { rate: None, used: 0.0, waiting: 0 });
    }
}
