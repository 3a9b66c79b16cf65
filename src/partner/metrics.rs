//! What is counted of partners. The labels are configured names: as many as there are partners.

use prometheus::{IntCounterVec, IntGaugeVec, Opts, Registry};

use super::table::Status;
use crate::outcome::Outcome;

/// The metrics of partners. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    recipients: IntCounterVec,
    given_back: IntCounterVec,
    open: IntGaugeVec,
    quota_left: IntGaugeVec,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let gauges = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["partner"]);
        let metrics = Metrics {
            recipients: counters(
                "posthaste_partner_recipients_total",
                "Recipients of attempts by way of a partner, by outcome.",
                &["partner", "outcome"],
            )?,
            given_back: counters(
                "posthaste_partner_given_back_total",
                "Recipients that a partner did not take and that went back to the direct route, by phase.",
                &["partner", "phase"],
            )?,
            open: gauges("posthaste_partner_open", "Whether the partner's condition holds and it is not suspended.")?,
            quota_left: gauges("posthaste_partner_quota_left", "Recipients that the partner may still be given.")?,
        };
        registry.register(Box::new(metrics.recipients.clone()))?;
        registry.register(Box::new(metrics.given_back.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        registry.register(Box::new(metrics.quota_left.clone()))?;
        Ok(metrics)
    }

    /// Counts what a partner did with a recipient.
    pub fn outcome(&self, partner: &str, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Relayed { .. } => "relayed",
            Outcome::Failed(_) => "failed",
            Outcome::Indeterminate(_) => "indeterminate",
            Outcome::Deferred(_) | Outcome::NotTried => "not_taken",
        };
        self.recipients.with_label_values(&[partner, outcome]).inc();
    }

    /// Counts a recipient that goes back to the direct route. `phase`: where the partner said no, or `loop`.
    pub fn given_back(&self, partner: &str, phase: &str) {
        self.given_back.with_label_values(&[partner, phase]).inc();
    }

    /// Shows how the partners stand.
    pub fn observe(&self, partners: &[Status]) {
        for status in partners {
            let open = status.open && !status.suspended;
            self.open.with_label_values(&[&status.name]).set(open.into());
            if let Some(left) = status.quota_left {
                self.quota_left.with_label_values(&[&status.name]).set(i64::try_from(left).unwrap_or(i64::MAX));
            }
        }
    }
}
