//! What ingress counts. Labels are list hosts (as many as are configured) and fixed words.

use prometheus::{Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::smtp::session::Lint;

/// Ingress in numbers.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    /// Connections by what became of them: `list_host`, `stranger`, or the limit that refused them.
    pub(super) connections: IntCounterVec,
    /// Sessions that are open.
    pub(super) sessions: IntGauge,
    /// Sessions by how they ended.
    pub(super) closed: IntCounterVec,
    /// Batches accepted, by list host.
    pub(super) batches: IntCounterVec,
    /// Recipients accepted, by list host.
    pub(super) recipients: IntCounterVec,
    /// Octets of content accepted, by list host.
    pub(super) octets: IntCounterVec,
    /// 4yz and 5yz replies, by code and enhanced code.
    pub(super) refusals: IntCounterVec,
    /// What passed although it is not as the standards have it.
    pub(super) lints: IntCounterVec,
    /// MAIL with a reverse-path domain that the list host has not declared.
    pub(super) undeclared: IntCounterVec,
    /// STARTTLS by result: `ok`, `failed`, `injected`.
    pub(super) tls: IntCounterVec,
    /// AUTH by result: `ok`, `denied`, `unavailable`.
    pub(super) auth: IntCounterVec,
    /// Times a listening socket was closed because no more sessions fit.
    pub(super) overloads: IntCounter,
    /// accept(2) or bind(2) failed.
    pub(super) socket_errors: IntCounter,
    /// Sessions that ended in a panic.
    pub(super) panics: IntCounter,
    /// Sessions that were cut off at the deadline of a drain.
    pub(super) cut_off: IntCounter,
    /// Mailing identities that were forgotten early.
    pub(super) identities_forgotten: IntCounter,
    /// Seconds from the final dot to the reply.
    pub(super) accept_seconds: Histogram,
    /// Replies that were held back for load.
    pub(super) pauses: IntCounter,
}

impl Metrics {
    /// Registers all of it.
    pub(super) fn new(registry: &Registry) -> Result<Metrics, Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, Error> {
            let counter = IntCounter::new(format!("posthaste_ingress_{name}_total"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let by = |name: &str, help: &str, label: &str, known: &[&str]| -> Result<IntCounterVec, Error> {
            let opts = Opts::new(format!("posthaste_ingress_{name}_total"), help);
            let counters = IntCounterVec::new(opts, &[label])?;
            registry.register(Box::new(counters.clone()))?;
            known.iter().for_each(|value| drop(counters.with_label_values(&[value])));
            Ok(counters)
        };
        let sessions = IntGauge::new("posthaste_ingress_sessions", "Sessions that are open.")?;
        registry.register(Box::new(sessions.clone()))?;
        Ok(Metrics {
            connections: by(
                "connections",
                "Connections, by what became of them.",
                "outcome",
                &["list_host", "stranger", "full", "strangers_full", "descriptors"],
            )?,
            sessions,
            closed: by("sessions_closed", "Sessions, by how they ended.", "why", &[])?,
            batches: by("batches", "Batches accepted.", "list_host", &[])?,
            recipients: by("recipients", "Recipients accepted.", "list_host", &[])?,
            octets: by("octets", "Octets of content accepted.", "list_host", &[])?,
            refusals: by("refusals", "4yz and 5yz replies.", "reply", &[])?,
            lints: by(
                "lints",
                "Messages that passed although they are not as the standards have it.",
                "lint",
                &Lint::ALL.map(Lint::as_str),
            )?,
            undeclared: by(
                "undeclared_reverse_paths",
                "MAIL with a reverse-path domain that is not declared for the list host: an error of the operator's.",
                "list_host",
                &[],
            )?,
            tls: by("starttls", "STARTTLS, by result.", "result", &["ok", "failed", "injected"])?,
            auth: by("auth", "AUTH, by result.", "result", &["ok", "denied", "unavailable"])?,
            overloads: counter("overloads", "Times a listening socket was closed because no more sessions fit.")?,
            socket_errors: counter("socket_errors", "Failures of accept(2), or of bind(2) after an overload.")?,
            panics: counter("panics", "Sessions that ended in a panic: bugs.")?,
            cut_off: counter("cut_off", "Sessions that were cut off at the deadline of a drain.")?,
            identities_forgotten: counter("identities_forgotten", "Mailing identities forgotten at the bound.")?,
            accept_seconds: accept_seconds(registry)?,
            pauses: counter("pauses", "Replies that were held back because of load.")?,
        })
    }
}

fn accept_seconds(registry: &Registry) -> Result<Histogram, Error> {
    let opts = HistogramOpts::new("posthaste_ingress_accept_seconds", "From the final dot to the reply.");
    let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
    let histogram = Histogram::with_opts(opts.buckets(buckets))?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}
