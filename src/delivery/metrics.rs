//! What delivery counts.

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

/// Counters and gauges. All label sets are bounded: none holds a name that a peer or a message brings.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Connections that are open, opening or closing, by use.
    pub(super) open: IntGaugeVec,
    /// Dials, by result.
    pub(super) dials: IntCounterVec,
    /// Sessions, by how far they came: `open`, or the phase that failed.
    pub(super) sessions: IntCounterVec,
    /// Certificates as a checking client would have judged them, and fallbacks to clear text.
    pub(super) tls: IntCounterVec,
    /// Waits for a connection that were in vain, by the limit that stopped them.
    pub(super) waits_in_vain: IntCounterVec,
    /// Transactions, on new and on reused connections.
    pub(super) transactions: IntCounterVec,
    /// Idle connections that turned out dead.
    pub(super) stale: IntCounter,
    /// Recipients, by outcome.
    pub(super) recipients: IntCounterVec,
    /// Octets written, before TLS.
    pub(super) bytes: IntCounter,
}

impl Metrics {
    /// # Errors
    /// If a metric of the same name is registered already.
    pub(super) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counters = |name, help, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let counter = |name, help| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let open = Opts::new("posthaste_delivery_connections", "Connections open, opening or closing, by use.");
        let open = IntGaugeVec::new(open, &["use"])?;
        registry.register(Box::new(open.clone()))?;
        Ok(Metrics {
            open,
            dials: counters("posthaste_delivery_dials_total", "TCP connections begun, by result.", &["result"])?,
            sessions: counters(
                "posthaste_delivery_sessions_total",
                "Sessions with next hops: open, or the phase that failed.",
                &["result"],
            )?,
            tls: counters(
                "posthaste_delivery_tls_total",
                "Certificates of next hops as a checking client would judge them; fallback: went on in clear.",
                &["verdict"],
            )?,
            waits_in_vain: counters(
                "posthaste_delivery_waits_in_vain_total",
                "Attempts given back because no connection came free in time, by the limit.",
                &["limit"],
            )?,
            transactions: counters(
                "posthaste_delivery_transactions_total",
                "Mail transactions begun, on new and on reused connections.",
                &["connection"],
            )?,
            stale: counter("posthaste_delivery_stale_connections_total", "Idle connections that turned out dead.")?,
            recipients: counters(
                "posthaste_delivery_recipients_total",
                "Recipients of attempts, by outcome.",
                &["outcome"],
            )?,
            bytes: counter("posthaste_delivery_written_bytes_total", "Octets written to next hops, before TLS.")?,
        })
    }
}
