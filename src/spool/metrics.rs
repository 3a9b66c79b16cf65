//! What the spool counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::api::{Stats, Totals};

/// The spool's metrics.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Submissions by how they were answered.
    pub(super) accepts: IntCounterVec,
    /// Seconds of each fsync.
    pub(super) fsync: Histogram,
    /// Writes or fsyncs that failed; each gave up a segment.
    pub(super) failures: IntCounter,
    /// Damaged places found in journal, contents or index.
    pub(super) damage: IntCounter,
    /// Batches that were not handed out at acceptance, because dispatch had no room.
    pub(super) missed: IntCounter,
    /// Commits that were held back because checkpoints lag behind.
    pub(super) slowed: IntCounter,
    /// Contents that were stored, and that were there already.
    pub(super) contents: IntCounterVec,
    /// Octets that compaction copied forward.
    pub(super) compacted: IntCounter,
    /// Whether new mail is refused for want of disk.
    pub(super) refusing: IntGauge,
    recipients: IntGaugeVec,
    owed: IntGauge,
    segments: IntGauge,
    journal_bytes: IntGauge,
    live_bytes: IntGauge,
    delta: IntGauge,
}

impl Metrics {
    /// Registers the spool's metrics.
    ///
    /// # Errors
    /// The registry has metrics of these names already.
    pub(super) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let labelled = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let buckets = vec![0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0];
        let fsync = Histogram::with_opts(
            HistogramOpts::new("posthaste_spool_fsync_seconds", "Time of each fsync of the journal.").buckets(buckets),
        )?;
        registry.register(Box::new(fsync.clone()))?;
        let recipients = IntGaugeVec::new(
            Opts::new("posthaste_spool_recipients", "Recipients since the spool was made, by fate; queued: now."),
            &["fate"],
        )?;
        registry.register(Box::new(recipients.clone()))?;
        Ok(Metrics {
            accepts: labelled("posthaste_spool_accepts_total", "Submissions by answer.", "answer")?,
            fsync,
            failures: counter("posthaste_spool_write_failures_total", "Failed writes or fsyncs of the journal.")?,
            damage: counter("posthaste_spool_damage_total", "Damaged places found.")?,
            missed: counter("posthaste_spool_missed_total", "Accepted batches that dispatch had no room for.")?,
            slowed: counter("posthaste_spool_slowed_total", "Commits held back by a lagging checkpoint.")?,
            contents: labelled("posthaste_spool_contents_total", "Contents by whether they were known.", "known")?,
            compacted: counter("posthaste_spool_compacted_bytes_total", "Octets that compaction copied forward.")?,
            recipients,
            refusing: gauge("posthaste_spool_refusing", "Whether new mail is refused for want of disk.")?,
            owed: gauge("posthaste_spool_owed", "DSNs that are owed.")?,
            segments: gauge("posthaste_spool_segments", "Journal segments.")?,
            journal_bytes: gauge("posthaste_spool_journal_bytes", "Octets in the journal.")?,
            live_bytes: gauge("posthaste_spool_live_bytes", "Octets that would survive compaction.")?,
            delta: gauge("posthaste_spool_index_changes", "Index changes since the last checkpoint.")?,
        })
    }

    /// Shows the state as it is now.
    pub(super) fn show(&self, totals: &Totals, stats: &Stats) {
        let fates = [
            ("accepted", totals.accepted),
            ("queued", totals.queued),
            ("relayed", totals.relayed),
            ("bounced", totals.bounced),
            ("expired", totals.expired),
            ("cancelled", totals.cancelled),
            ("dsn_accepted", totals.dsn_accepted),
            ("dsn_queued", totals.dsn_queued),
            ("dsn_relayed", totals.dsn_relayed),
            ("dsn_bounced", totals.dsn_bounced),
            ("dsn_expired", totals.dsn_expired),
            ("dsn_cancelled", totals.dsn_cancelled),
        ];
        for (fate, count) in fates {
            self.recipients.with_label_values(&[fate]).set(signed(count));
        }
        self.owed.set(signed(totals.owed));
        self.segments.set(signed(stats.segments));
        self.journal_bytes.set(signed(stats.journal_bytes));
        self.live_bytes.set(signed(stats.live_bytes));
        self.delta.set(signed(stats.delta_rows));
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
