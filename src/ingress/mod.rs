//! Ingress: the list host is never the one who waits, retries or loses (design 6).
//!
//! The promise: an allowed list host hears 2yz to all that can be done; 250 after the dot means that the store has
//! the message, durably; nothing of ours is ever said with 5yz or inside a transaction. Load is met by slower replies,
//! then by closed sockets, never by refusals. Anybody else gets 550 5.7.1 and a bounded amount of our attention.
//!
//! * `listener` binds and accepts, `places` counts who is in, `admission` and `auth` say who may relay.
//! * `session` moves octets for the state machine in [`crate::smtp::session`], over a `stream` with or without TLS.
//! * `compose` makes of an accepted transaction what the [`Store`] takes.
//!
//! With XVERP one transaction becomes one submission per recipient. [`Store::accept_all`] takes them all or none: a
//! client that hears 4yz repeats all of them, and what had been taken would go out twice.

mod admission;
mod auth;
mod compose;
mod listener;
mod metrics;
mod options;
mod places;
mod session;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus::Registry;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::budget::{Descriptors, Use};
use crate::clock::Clock;
use crate::mail::{MailingId, QueueId};
use crate::mailing::{Clue, Recogniser};
use crate::smtp::session::{Shortage, Terms};
use crate::spool::{AcceptError, NewContent, Submission};

use admission::Admission;
use listener::Listening;
use metrics::Metrics;
use places::{Limits, Places};

pub use options::{ListHost, Listener, Options, PasswordHash, Tls};
pub use store::Keeper;

/// Where accepted mail goes: the spool, or a fake of it in tests.
pub trait Store: Clone + Send + Sync + 'static {
    /// Takes one content while it comes in.
    type Writer: ContentSink;

    /// A sink for the next content.
    fn writer(&self) -> Self::Writer;

    /// What there is too little of for new mail. Asked at each MAIL: it must be cheap.
    fn shortage(&self) -> Option<Shortage>;

    /// Takes all submissions in one commit, or none; resolves when they are durable. The ids are in the order of the
    /// submissions.
    fn accept_all(
        &self,
        submissions: Vec<Submission>,
    ) -> impl Future<Output = Result<Vec<QueueId>, AcceptError>> + Send;
}

/// A content on its way into the store. Dropped, it leaves nothing behind.
pub trait ContentSink: Send + 'static {
    /// Takes the next octets, dot-stuffed.
    ///
    /// # Errors
    /// The octets could not be written; the message will be refused with 4yz.
    fn write(&mut self, stuffed: &[u8]) -> io::Result<()>;

    /// The content is complete. `size` is its size without dot-stuffing, in octets (RFC 1870).
    ///
    /// # Errors
    /// It could not be written; the message will be refused with 4yz.
    fn finish(self, size: u64, eight_bit: bool) -> io::Result<NewContent>;
}

/// What is derived from the options and swapped whole at a reload. A session keeps the one that it began with.
#[derive(Debug)]
struct Policy {
    admission: Admission,
    /// For listeners without and with a certificate.
    terms: [Arc<Terms>; 2],
    idle_timeout: Duration,
    campaign_headers: Vec<String>,
    limits: Limits,
}

impl Policy {
    fn new(options: &Options) -> io::Result<Policy> {
        let admission = Admission::new(options)?;
        let terms = [false, true].map(|starttls| {
            Arc::new(Terms {
                hostname: Arc::clone(&options.hostname),
                message_bytes: options.message_bytes,
                recipients: options.recipients_per_transaction,
                hops: options.hops,
                postmaster: options.postmaster.clone(),
                starttls,
                auth: !admission.authenticator.is_empty(),
                requiretls: starttls,
            })
        });
        let (all, strangers) = (options.connections as usize, options.stranger_connections as usize);
        Ok(Policy {
            admission,
            terms,
            idle_timeout: options.idle_timeout,
            campaign_headers: options.campaign_headers.clone(),
            limits: Limits { all, strangers },
        })
    }

    fn terms(&self, starttls: bool) -> &Arc<Terms> {
        &self.terms[usize::from(starttls)]
    }
}

/// Whether we go on.
#[derive(Clone, Copy, Debug)]
enum Phase {
    Running,
    Draining { since: Instant, deadline: Instant },
}

impl Phase {
    fn deadline(&self) -> Option<Instant> {
        match *self {
            Phase::Running => None,
            Phase::Draining { deadline, .. } => Some(deadline),
        }
    }

    /// When draining began.
    fn since(&self) -> Instant {
        match *self {
            Phase::Running => Instant::now(),
            Phase::Draining { since, .. } => since,
        }
    }
}

/// What all listeners and sessions have in common.
struct Shared<S> {
    store: S,
    policy: ArcSwap<Policy>,
    places: Arc<Places>,
    descriptors: Descriptors,
    metrics: Metrics,
    clock: Clock,
    recogniser: Mutex<Recogniser>,
    complaints: Complaints,
    phase: watch::Receiver<Phase>,
}

impl<S> Shared<S> {
    /// The configured limits, within the descriptors that there are.
    fn limits(&self) -> Limits {
        let Limits { all, strangers } = self.policy.load().limits;
        Limits { all: all.min(self.descriptors.usage(Use::Ingress).0), strangers }
    }

    fn recognise(&self, list_host: &str, clue: &Clue, recipients: usize) -> MailingId {
        // A panic in another session leaves the table as it was: ids may differ, mail does not suffer.
        let mut recogniser = self.recogniser.lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = recogniser.forgotten();
        let mailing = recogniser.recognise(self.clock.now(), list_host, clue, recipients);
        self.metrics.identities_forgotten.inc_by(recogniser.forgotten() - forgotten);
        mailing
    }
}

/// Limits how often one thing is complained about in the log: once a minute for each list host.
#[derive(Debug, Default)]
struct Complaints(Mutex<HashMap<Arc<str>, Instant>>);

impl Complaints {
    const EVERY: Duration = Duration::from_secs(60);

    /// List hosts come and go with reloads; those of long ago are forgotten here.
    const KEEP_MAX: usize = 1024;

    fn may_log(&self, list_host: &Arc<str>, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(list_host).is_some_and(|&last| now < last + Self::EVERY) {
            return false;
        }
        if last.len() >= Self::KEEP_MAX {
            last.clear();
        }
        last.insert(Arc::clone(list_host), now);
        true
    }
}

/// A listener that runs.
struct Slot {
    /// As configured: what a reload recognises it by.
    configured: SocketAddr,
    /// As bound: the port may have been chosen by the kernel.
    local: SocketAddr,
    tls: Arc<ArcSwapOption<ServerConfig>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The listeners and sessions of list hosts.
pub struct Ingress<S: Store> {
    shared: Arc<Shared<S>>,
    phase: watch::Sender<Phase>,
    slots: Mutex<Vec<Slot>>,
    /// Listeners that a reload removed, and whose sessions may still run.
    retired: Mutex<Vec<JoinHandle<()>>>,
}

/// A listener as the new options want it, ready to run: nothing is left that can fail.
enum Planned {
    /// The slot with this configured address stays.
    Kept(SocketAddr, Option<Arc<ServerConfig>>),
    /// A new socket.
    New(SocketAddr, TcpListener, Option<Arc<ServerConfig>>),
}

impl<S: Store> Ingress<S> {
    /// Binds all listeners and begins to accept mail into `store`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The options cannot be put into effect: an address cannot be bound, a certificate or password hash cannot be read.
    /// The error says which, and what to do. Nothing listens then.
    pub fn start(options: Options, store: S, descriptors: Descriptors, registry: &Registry) -> io::Result<Ingress<S>> {
        let metrics = Metrics::new(registry).map_err(io::Error::other)?;
        let (sender, phase) = watch::channel(Phase::Running);
        let shared = Shared {
            store,
            policy: ArcSwap::from_pointee(Policy::new(&options)?),
            places: Arc::new(Places::new(metrics.sessions.clone())),
            descriptors,
            metrics,
            clock: Clock::start(),
            recogniser: Mutex::default(),
            complaints: Complaints::default(),
            phase,
        };
        let (slots, retired) = (Mutex::default(), Mutex::default());
        let ingress = Ingress { shared: Arc::new(shared), phase: sender, slots, retired };
        ingress.reload(options)?;
        Ok(ingress)
    }

    /// The addresses that are listened on, in the order of the options.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.lock(&self.slots).iter().map(|slot| slot.local).collect()
    }

    /// Puts new options into effect, whole or not at all. Listeners that stay go on without a gap, with their
    /// certificates read again; new ones are bound first; removed ones close, and their sessions end in their own time.
    /// Open sessions keep the options that they began with.
    ///
    /// # Errors
    /// As [`Ingress::start`]. The old options stay in effect then.
    pub fn reload(&self, options: Options) -> io::Result<()> {
        let policy = Policy::new(&options)?;
        let mut slots = self.lock(&self.slots);
        let mut unclaimed: Vec<_> = slots.iter().map(|slot| slot.configured).collect();
        let planned = options.listeners.iter().map(|listener| plan(&mut unclaimed, listener));
        let planned = planned.collect::<io::Result<Vec<_>>>()?;
        // From here on nothing fails.
        self.shared.policy.store(Arc::new(policy));
        self.shared.places.limits_changed();
        let mut before = std::mem::take(&mut *slots);
        for planned in planned {
            slots.extend(self.put_into_effect(planned, &mut before));
        }
        self.retire(before);
        Ok(())
    }

    fn put_into_effect(&self, planned: Planned, before: &mut Vec<Slot>) -> Option<Slot> {
        match planned {
            Planned::Kept(configured, tls) => {
                let at = before.iter().position(|slot| slot.configured == configured)?;
                let slot = before.swap_remove(at);
                slot.tls.store(tls);
                Some(slot)
            }
            Planned::New(configured, socket, tls) => Some(self.spawn(configured, socket, tls)),
        }
    }

    fn spawn(&self, configured: SocketAddr, socket: TcpListener, tls: Option<Arc<ServerConfig>>) -> Slot {
        let local = socket.local_addr().unwrap_or(configured);
        let (stop, tls) = (CancellationToken::new(), Arc::new(ArcSwapOption::new(tls)));
        let listening = Listening {
            shared: Arc::clone(&self.shared),
            address: local,
            tls: Arc::clone(&tls),
            stop: stop.clone(),
            sessions: JoinSet::new(),
        };
        info!(address = %local, "listening");
        Slot { configured, local, tls, stop, task: tokio::spawn(listening.run(socket)) }
    }

    fn retire(&self, slots: Vec<Slot>) {
        let mut retired = self.lock(&self.retired);
        retired.retain(|task| !task.is_finished());
        for slot in slots {
            slot.stop.cancel();
            info!(address = %slot.local, "no longer listening");
            retired.push(slot.task);
        }
    }

    /// Closes down: listening sockets at once; open transactions are finished; the next MAIL gets 451 4.3.2; sessions
    /// without a transaction that are silent are closed; after `within` all others are. Returns when none is left.
    pub async fn drain(&self, within: Duration) {
        let since = Instant::now();
        self.phase.send_replace(Phase::Draining { since, deadline: since + within });
        let slots = std::mem::take(&mut *self.lock(&self.slots));
        self.retire(slots);
        let tasks = std::mem::take(&mut *self.lock(&self.retired));
        for task in tasks {
            // A listener's task does not panic; if it did, its sessions are gone with it.
            let _ = task.await;
        }
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Store> Drop for Ingress<S> {
    /// Without anybody who could drain it, everything ends at once.
    fn drop(&mut self) {
        let now = Instant::now();
        self.phase.send_replace(Phase::Draining { since: now, deadline: now });
        self.lock(&self.slots).iter().for_each(|slot| slot.stop.cancel());
    }
}

/// `unclaimed` holds the configured addresses of listeners that run and that nobody has asked for yet.
fn plan(unclaimed: &mut Vec<SocketAddr>, listener: &Listener) -> io::Result<Planned> {
    let tls = listener.tls.as_ref().map(tls::load).transpose()?;
    match unclaimed.iter().position(|&address| address == listener.address) {
        Some(at) => Ok(Planned::Kept(unclaimed.swap_remove(at), tls)),
        None => Ok(Planned::New(listener.address, listener::bind(listener.address)?, tls)),
    }
}
