//! What the engine counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::attempt::AttemptReport;
use crate::dispatch::Stats;
use crate::log::OutcomeLine;

/// Recipients per transaction, delays in seconds.
const SIZES: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0];
const DELAYS: [f64; 12] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0, 600.0, 3600.0, 14_400.0, 86_400.0, 432_000.0];

/// The engine's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// status: sent, deferred, bounced, expired, cancelled.
    outcomes: IntCounterVec,
    attempts: IntCounter,
    transactions: IntCounter,
    indeterminate: IntCounter,
    recipients: Histogram,
    delay: Histogram,
    panics: IntCounter,
    unreadable: IntCounter,
    /// what: resident, in_flight, destinations, sites, suspended_sites, held_providers, hungry.
    scheduler: IntGaugeVec,
    in_flight: IntGauge,
    /// By provider (those of the rules file; `other`) and kind: slow, misconfigured.
    reactions: IntCounterVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let metrics = Metrics {
            outcomes: IntCounterVec::new(
                Opts::new("posthaste_recipients_total", "Outcomes per recipient; deferred counts each attempt."),
                &["status"],
            )?,
            attempts: counter("posthaste_attempts_total", "Attempts that came to an end.")?,
            transactions: counter("posthaste_transactions_total", "Mail transactions begun with a next hop.")?,
            indeterminate: counter(
                "posthaste_indeterminate_total",
                "Recipients whose connection ended after the final dot without a reply: possible duplicates.",
            )?,
            recipients: histogram("posthaste_transaction_recipients", "Recipients per transaction.", &SIZES)?,
            delay: histogram("posthaste_relay_delay_seconds", "From acceptance to relayed.", &DELAYS)?,
            panics: counter("posthaste_engine_panics_total", "Tasks of the engine lost to a panic.")?,
            unreadable: counter(
                "posthaste_content_unreadable_total",
                "Attempts held because their content is damaged.",
            )?,
            scheduler: IntGaugeVec::new(
                Opts::new("posthaste_scheduler", "What the scheduler holds in memory."),
                &["what"],
            )?,
            in_flight: IntGauge::new("posthaste_attempts_in_flight", "Attempts under way.")?,
            reactions: IntCounterVec::new(
                Opts::new("posthaste_reactions_total", "Reactions to replies that took hold."),
                &["provider", "kind"],
            )?,
        };
        registry.register(Box::new(metrics.outcomes.clone()))?;
        registry.register(Box::new(metrics.attempts.clone()))?;
        registry.register(Box::new(metrics.transactions.clone()))?;
        registry.register(Box::new(metrics.indeterminate.clone()))?;
        registry.register(Box::new(metrics.recipients.clone()))?;
        registry.register(Box::new(metrics.delay.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.unreadable.clone()))?;
        registry.register(Box::new(metrics.scheduler.clone()))?;
        registry.register(Box::new(metrics.in_flight.clone()))?;
        registry.register(Box::new(metrics.reactions.clone()))?;
        for status in ["sent", "deferred", "bounced", "expired", "cancelled"] {
            metrics.outcomes.with_label_values(&[status]); // a series that shows 0 rather than nothing
        }
        Ok(metrics)
    }

    pub(super) fn attempted(&self, report: &AttemptReport) {
        use crate::outcome::Outcome;
        self.attempts.inc();
        if report.transaction {
            self.transactions.inc();
            self.recipients.observe(report.attempt.recipients.len() as f64);
        }
        let lost = report.outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Indeterminate(_))).count();
        self.indeterminate.inc_by(lost as u64);
    }

    pub(super) fn settled(&self, lines: &[OutcomeLine]) {
        for line in lines {
            self.outcomes.with_label_values(&[line.status]).inc();
            if line.status == "sent" {
                self.delay.observe(line.delay.as_secs_f64());
            }
        }
    }

    pub(super) fn panicked(&self) {
        self.panics.inc();
    }

    /// A provider without a rule bears its site's name, which a stranger chose: it is counted as `other`.
    pub(super) fn reacted(&self, provider: &str, misconfigured: bool) {
        let kind = if misconfigured { "misconfigured" } else { "slow" };
        let provider = if provider.contains(['.', ',']) { "other" } else { provider };
        self.reactions.with_label_values(&[provider, kind]).inc();
    }

    pub(super) fn content_unreadable(&self) {
        self.unreadable.inc();
    }

    pub(super) fn observe(&self, stats: Stats) {
        let set = |what: &str, value: usize| {
            self.scheduler.with_label_values(&[what]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set("resident", stats.resident);
        set("destinations", stats.destinations);
        set("sites", stats.sites);
        set("suspended_sites", stats.suspended_sites);
        set("held_providers", stats.held_providers);
        set("hungry", stats.hungry);
        self.in_flight.set(i64::try_from(stats.in_flight).unwrap_or(i64::MAX));
    }
}
