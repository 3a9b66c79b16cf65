//! Delivery: one attempt in, one report out.
//!
//! **The promise.** An attempt makes at most one accepted transaction, its report has one outcome for each recipient, and
//! only a 2yz to the final dot makes one of them relayed. It ends within the timeouts of RFC 5321 section 4.5.3.2, whatever the
//! peer does. Apart from our Received line and the signatures below it the octets out are
//! the octets in.
//!
//! ```text
//! attempt -> pool (a connection, or the right to open one) -> connect (host, address, race) -> client (greeting, EHLO, TLS)
//!         -> transaction (MAIL..dot) -> classify (what it means) -> report
//! ```
//!
//! `mail-send`'s client speaks on the connection; `stream` lies below it, the transaction above.

mod capabilities;
mod classify;
mod client;
mod connect;
mod dane;
mod envelope;
mod metered;
mod metrics;
mod options;
mod pace;
mod policy;
mod pool;
mod received;
mod reply;
mod source;
mod stream;
mod suspects;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod transaction;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use prometheus::Registry;
use tokio::time::Instant;

use self::connect::{Course, Means};
use self::metrics::Metrics;
use self::policy::Demands;
use self::pool::{Checkout, Connection, Pool, Slot, Wanted};
use self::suspects::Suspects;
use self::tls::Connectors;
use self::transaction::{Conclusion, End};
use crate::attempt::{Attempt, AttemptReport, Delays, Route};
use crate::budget::{Descriptors, Uplink};
use crate::outcome::{Outcome, Reason};
use crate::route::Resolver;

pub use options::{Options, Source, Timeouts, TlsMode, TlsRule};

/// What goes over the wire after DATA, beside our Received line.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// Header fields that go above the content: signatures. No line of it begins with a dot, and each ends in CRLF.
    pub prefix: Bytes,
    /// The content, dot-stuffed; ends in CRLF unless it is empty.
    pub content: Bytes,
}

/// Addresses remembered as unreachable, or as having a broken TLS.
const SUSPECTS_MAX: usize = 10_000;
/// An unreachable address goes last for so long at first, and at most.
const UNREACHABLE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// An address with a broken TLS is spoken to in clear for so long at first, and at most.
const BROKEN_TLS: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(86_400));

/// Makes attempts. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    options: ArcSwap<Options>,
    means: Means,
}

impl Delivery {
    /// Must be called within a runtime: idle connections are closed by a task.
    ///
    /// # Errors
    /// If a metric of the same name is registered already.
    pub fn new(
        options: Options,
        resolver: Resolver,
        descriptors: Descriptors,
        uplink: Uplink,
        registry: &Registry,
    ) -> Result<Delivery, prometheus::Error> {
        let metrics = Metrics::new(registry)?;
        let tls = Connectors::new(options.roots.as_deref(), metrics.tls.clone());
        let means = Means {
            resolver,
            uplink,
            pool: Pool::new(options.connections, descriptors, metrics.clone()),
            tls: ArcSwap::from_pointee(tls),
            unreachable: Suspects::new(UNREACHABLE.0, UNREACHABLE.1, SUSPECTS_MAX),
            broken_tls: Suspects::new(BROKEN_TLS.0, BROKEN_TLS.1, SUSPECTS_MAX),
            sources: source::Health::new(registry)?,
            metrics,
        };
        Ok(Delivery(Arc::new(Inner { options: ArcSwap::from_pointee(options), means })))
    }

    /// Takes new options for the attempts to come.
    pub fn reload(&self, options: Options) {
        let means = &self.0.means;
        means.pool.set_connections(options.connections);
        means.tls.store(Arc::new(Connectors::new(options.roots.as_deref(), means.metrics.tls.clone())));
        self.0.options.store(Arc::new(options));
    }

    /// Makes one attempt.
    pub async fn attempt(&self, attempt: Attempt, outgoing: Outgoing) -> AttemptReport {
        let options = self.0.options.load_full();
        let waiting = Instant::now();
        let demands = Demands::of(&attempt, &outgoing.content, &options, &self.0.means.resolver).await;
        let mut run = Run::new(&self.0.means, &options, &attempt, &demands, &outgoing);
        run.delays.wait = waiting.elapsed();
        let conclusion = run.conclude().await;
        let Run { delays, peer, bytes, transaction, .. } = run;
        self.count(&attempt, &conclusion, bytes);
        let Conclusion { outcomes, trouble, crowded, .. } = conclusion;
        let pushback = classify::pushback(&outcomes, trouble.as_ref(), crowded);
        AttemptReport { attempt, outcomes, trouble, pushback, delays, peer, bytes, transaction }
    }

    fn count(&self, attempt: &Attempt, conclusion: &Conclusion, bytes: u64) {
        let metrics = &self.0.means.metrics;
        metrics.bytes.inc_by(bytes);
        for outcome in &conclusion.outcomes {
            metrics.recipients.with_label_values(&[label(outcome)]).inc();
        }
        let unsure = conclusion.outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Indeterminate(reason) => Some(reason),
            _ => None,
        });
        if let Some(reason) = unsure {
            tracing::warn!(attempt = %attempt.id, %reason, "a message may have been accepted, or not");
        }
    }

    /// Connections that are open, opening or closing.
    pub fn open_connections(&self) -> usize {
        self.0.means.pool.open()
    }

    /// Begins no more connections, says goodbye on idle ones and waits for the rest, until the deadline.
    pub async fn close(&self, deadline: Instant) {
        self.0.means.pool.close(deadline, self.0.options.load().timeouts.quit).await;
    }
}

fn label(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Relayed { .. } => "relayed",
        Outcome::Deferred(_) => "deferred",
        Outcome::Indeterminate(_) => "indeterminate",
        Outcome::Failed(_) => "failed",
        Outcome::NotTried => "not_tried",
    }
}

/// One attempt under way, and what is known of it so far.
struct Run<'a> {
    means: &'a Means,
    options: &'a Options,
    attempt: &'a Attempt,
    demands: &'a Demands,
    outgoing: &'a Outgoing,
    source: Option<&'a Arc<Source>>,
    delays: Delays,
    peer: Option<SocketAddr>,
    bytes: u64,
    transaction: bool,
}

impl<'a> Run<'a> {
    fn new(
        means: &'a Means,
        options: &'a Options,
        attempt: &'a Attempt,
        demands: &'a Demands,
        outgoing: &'a Outgoing,
    ) -> Run<'a> {
        // Bounces have a lane of their own; a partner may know us by the system's choice of address.
        let source = match attempt.site.route {
            Route::Mx(_) => options.source_for(&attempt.envelope.list_host, &attempt.site.provider),
            Route::ListHost(_) | Route::Partner(_) => None,
        };
        Run {
            means,
            options,
            attempt,
            demands,
            outgoing,
            source,
            delays: Delays::default(),
            peer: None,
            bytes: 0,
            transaction: false,
        }
    }

    /// Goes from connection to connection until one has carried the transaction or none is left: on from an idle one that
    /// had died, and from a host that cannot take this message.
    async fn conclude(&mut self) -> Conclusion {
        let mut course = None;
        loop {
            if course.as_ref().is_some_and(Course::is_exhausted) {
                return self.unreached(course);
            }
            // Once a course is begun, what lies idle has been tried.
            let (connection, reused) = match self.checkout(course.is_some()).await {
                None => return self.untried(),
                Some(Checkout::Reused(connection)) => (connection, true),
                Some(Checkout::Dial(slot)) => match self.connect(&mut course, slot).await {
                    None => return self.unreached(course),
                    Some(connection) => (connection, false),
                },
            };
            if let Some(conclusion) = self.transact(connection, reused, &mut course).await {
                return conclusion;
            }
        }
    }

    async fn checkout(&mut self, fresh: bool) -> Option<Checkout> {
        let waiting = Instant::now();
        let Attempt { site, limits, .. } = self.attempt;
        let wanted = Wanted { site, lane: &self.demands.lane, limits, source: self.source, fresh };
        let checkout = self.means.pool.checkout(wanted, self.options.timeouts.quit).await;
        self.delays.wait += waiting.elapsed();
        checkout
    }

    async fn connect(&mut self, course: &mut Option<Course<'a>>, slot: Slot) -> Option<Connection> {
        let started = Instant::now();
        let course = course.get_or_insert_with(|| self.course());
        let before = course.resolving;
        let opened = course.next(slot).await;
        let resolving = course.resolving - before;
        self.delays.wait += resolving;
        self.delays.connect += started.elapsed() - resolving;
        opened.map(|(session, slot)| Connection::new(session, slot, self.source.cloned()))
    }

    fn course(&self) -> Course<'a> {
        Course::new(self.means, self.options, self.attempt, self.source, self.demands)
    }

    /// `None`: another connection must be found.
    async fn transact(
        &mut self,
        mut connection: Connection,
        reused: bool,
        course: &mut Option<Course<'a>>,
    ) -> Option<Conclusion> {
        let (started, written) = (Instant::now(), if reused { connection.session.written() } else { 0 });
        let means = transaction::Means {
            outgoing: self.outgoing,
            hostname: &self.options.hostname,
            timeouts: &self.options.timeouts,
            pass_eight_bit: self.options.pass_eight_bit,
        };
        self.peer = Some(connection.session.peer.address);
        let end = transaction::run(&mut connection.session, self.attempt, means, reused).await;
        self.delays.transmit += started.elapsed();
        self.bytes += connection.session.written() - written;
        let (lane, limits, quit) = (&self.demands.lane, &self.attempt.limits, self.options.timeouts.quit);
        match end {
            End::Done(conclusion) => {
                if let Some(trouble) = &conclusion.trouble {
                    let (source, local) = (connection.source.as_deref(), connection.session.peer.local);
                    self.means.sources.learn(source, local, &self.attempt.site.provider, trouble);
                }
                self.transaction = true;
                let kind = if reused { "reused" } else { "new" };
                self.means.metrics.transactions.with_label_values(&[kind]).inc();
                match conclusion.reusable {
                    true => self.means.pool.checkin(connection, lane, limits, quit),
                    false => connection.close(Some(quit)),
                }
                Some(conclusion)
            }
            End::Stale => {
                self.means.metrics.stale.inc();
                connection.close(None);
                course.get_or_insert_with(|| self.course());
                None
            }
            End::Unfit(setback) => {
                course.get_or_insert_with(|| self.course()).unfit(&connection.session.peer.host, setback);
                self.means.pool.checkin(connection, lane, limits, quit);
                None
            }
        }
    }

    /// Nobody could be reached, or nobody could take the message.
    fn unreached(&self, course: Option<Course<'a>>) -> Conclusion {
        let setback = course.unwrap_or_else(|| self.course()).verdict();
        let trouble: Option<Reason> = classify::is_trouble(&setback.reason, true).then(|| setback.reason.clone());
        // While others of ours are open the site is well, and only this connection was one too many.
        let crowded = classify::is_full(&setback.reason) && self.means.pool.has_open(&self.attempt.site.provider);
        let outcome = if crowded { Outcome::NotTried } else { setback.into_outcome() };
        Conclusion { outcomes: vec![outcome; self.attempt.recipients.len()], trouble, reusable: false, crowded }
    }

    /// No connection came free in time, or we are closing down.
    fn untried(&self) -> Conclusion {
        let outcomes = vec![Outcome::NotTried; self.attempt.recipients.len()];
        Conclusion { outcomes, trouble: None, reusable: false, crowded: false }
    }
}
