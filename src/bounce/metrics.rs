//! What is counted about reports.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{Dsn, Returned};
use crate::spool::ObligationKind;

/// The part's counters. The engine holds them, because composing is pure.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Reports composed, by what they return of the original: `nothing` means content that could not be read, `headers`
    /// also a message that was too long to return.
    reports: IntCounterVec,
    /// Recipients reported on, by action.
    recipients: IntCounterVec,
    /// Reports that no list host took and that went to the postmaster.
    to_postmaster: IntCounter,
    /// Reports given up: no list host took them, and there was no postmaster to turn to.
    dropped: IntCounter,
}

impl Metrics {
    /// Registers the counters.
    ///
    /// # Errors
    /// If the registry holds them already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let metrics = Metrics {
            reports: IntCounterVec::new(
                Opts::new("posthaste_bounce_reports_total", "Delivery reports composed, by what they return"),
                &["returned"],
            )?,
            recipients: IntCounterVec::new(
                Opts::new("posthaste_bounce_recipients_total", "Recipients reported on, by action"),
                &["action"],
            )?,
            to_postmaster: IntCounter::new(
                "posthaste_bounce_postmaster_total",
                "Delivery reports that no list host took and that went to the postmaster",
            )?,
            dropped: IntCounter::new("posthaste_bounce_dropped_total", "Delivery reports that were given up")?,
        };
        registry.register(Box::new(metrics.reports.clone()))?;
        registry.register(Box::new(metrics.recipients.clone()))?;
        registry.register(Box::new(metrics.to_postmaster.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        metrics.touch();
        Ok(metrics)
    }

    /// Makes every series exist from the start, at zero: an alert on a series that is absent until it fires is none.
    fn touch(&self) {
        for returned in ["nothing", "headers", "message"] {
            self.reports.with_label_values(&[returned]);
        }
        for action in ["failed", "delayed", "relayed"] {
            self.recipients.with_label_values(&[action]);
        }
    }

    /// Counts a report that was accepted by the spool.
    pub fn composed(&self, dsn: &Dsn) {
        let returned = match dsn.returned {
            Returned::Nothing => "nothing",
            Returned::Headers => "headers",
            Returned::Message => "message",
        };
        self.reports.with_label_values(&[returned]).inc();
        for (_, kind) in &dsn.pays {
            let action = match kind {
                ObligationKind::Failed => "failed",
                ObligationKind::Delayed => "delayed",
                ObligationKind::Relayed => "relayed",
            };
            self.recipients.with_label_values(&[action]).inc();
        }
    }

    /// Counts a report that went to the postmaster.
    pub fn sent_to_postmaster(&self) {
        self.to_postmaster.inc();
    }

    /// Counts a report that was given up.
    pub fn dropped(&self) {
        self.dropped.inc();
    }
}
