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
    /// By policy: certificates as they were judged, or would have been by a checking client; handshakes that failed; hosts
    /// without STARTTLS; exchangers that a policy does not name; fallbacks to clear text.
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
        let open = Opts::new("posthaste_delivery_connections", "Connections open, opening or closing, by use.");
        let open = IntGaugeVec::new(open, &["use"])?;
        registry.register(Box::new(open.clone()))?;
        let counters = |name: &str, help: &str, label: &str| counters(registry, name, help, label);
        let counter = |name: &str, help: &str| counter(registry, name, help);
        Ok(Metrics {
            open,
            dials: counters("dials_total", "TCP connections begun, by result.", "result")?,
            sessions: counters("sessions_total", "Sessions opened, and hosts given up by phase.", "result")?,
            tls: {
                let tls = Opts::new("posthaste_delivery_tls_total", "TLS towards next hops, by policy and verdict.");
                let tls = IntCounterVec::new(tls, &["policy", "verdict"])?;
                registry.register(Box::new(tls.clone()))?;
                tls
            },
            waits_in_vain: counters("waits_in_vain_total", "Attempts given back unserved, by limit.", "limit")?,
            transactions: counters("transactions_total", "Mail transactions, by age of the connection.", "connection")?,
            stale: counter("stale_connections_total", "Idle connections that turned out dead.")?,
            recipients: counters("recipients_total", "Recipients of attempts, by outcome.", "outcome")?,
            bytes: counter("written_bytes_total", "Octets written to next hops, before TLS.")?,
        })
    }
}

fn counters(registry: &Registry, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
    let counters = IntCounterVec::new(Opts::new(format!("posthaste_delivery_{name}"), help), &[label])?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(format!("posthaste_delivery_{name}"), help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}
