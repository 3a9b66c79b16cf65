//! `[dispatch]`, `[retry]` the list hosts' weights and the partners, translated.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Reactions;
use crate::attempt::Rate;
use crate::partner;

/// Everything dispatch is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a mailing must be quiet before its partial transactions leave.
    pub coalesce_quiet: Duration,
    /// The longest that a partial transaction waits for company.
    pub coalesce_window: Duration,
    /// Attempts in flight at a time, over all providers.
    pub attempts: usize,
    /// Concurrency that a provider starts with; it grows with success and shrinks with trouble.
    pub initial_window: u32,
    /// Recipients per time that a provider starts with; none: no pace is learned before somebody refuses.
    pub initial_rate: Option<Rate>,
    /// Recipients held in memory per destination.
    pub read_ahead: usize,
    /// Recipients held in memory in all.
    pub resident: usize,
    /// Attempts after attempts.
    pub retry: RetrySchedule,
    /// How long a site is left alone after it could not be used: doubled at each further failure, up to the last value.
    pub suspend: (Duration, Duration),
    /// Share of each list host relative to the others; 1 where it is not named.
    pub weights: HashMap<Arc<str>, u32>,
    /// What providers' words make us do.
    pub reactions: Arc<Reactions>,
    /// Who takes mail over, and when.
    pub partners: partner::Options,
}

/// When a deferred recipient is tried again, and when it is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetrySchedule {
    /// Delay after the 1st, 2nd, ... attempt; the last one repeats. Never empty.
    pub delays: Vec<Duration>,
    /// Each delay is varied by up to this many percent, once per attempt.
    pub jitter_percent: u32,
    /// Lifetime in the queue.
    pub expire_after: Duration,
    /// Lifetime of our own reports to list hosts, which are waited for longer than mail to the world.
    pub reports_expire_after: Duration,
}
