//! Connections: who may open one, and which are kept for the next transaction.
//!
//! **The promise:** a provider never has more connections of ours than its ceiling, counting busy, idle, opening and closing
//! ones. A [`Slot`] is the right to one connection; it is held from before the dial until the peer has closed, and only then
//! given to another. At the ceiling an idle connection of another site or source of the same provider makes room; at the bound
//! of all connections or of descriptors, an idle one of anybody.
//!
//! Connections that were opened under different obligations of TLS are never mixed, even to the same site: each has a *lane*.
//!
//! Waiting is bounded by [`WAIT_MAX`]; what waited in vain is counted and offered again by dispatch.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::client::Session;
use super::metrics::Metrics;
use super::options::Source;
use super::pace::Pace;
use crate::attempt::{Limits, Route, Site};
use crate::budget::{Descriptors, Lease, Use};

/// How long an attempt waits for a slot before it is given back untried. Dispatch keeps attempts within the ceilings, so
/// that only a slow goodbye or a pace is waited for.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often idle connections are looked through.
const REAP_EVERY: Duration = Duration::from_secs(1);

/// The right to one connection of a provider, with its place among all connections and its descriptor.
#[derive(Debug)]
pub(super) struct Slot {
    provider: Arc<Provider>,
    usage: Use,
    _place: Option<Place>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.provider.state().open -= 1;
        self.provider.changed.notify_waiters();
    }
}

/// A place among all connections.
#[derive(Debug)]
struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    _lease: Lease,
    open: prometheus::IntGauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// An open connection and the right to it.
pub(super) struct Connection {
    pub(super) session: Box<Session>,
    slot: Slot,
    /// Where it comes from; it serves only what goes out from there.
    pub(super) source: Option<Arc<Source>>,
    transactions: u32,
}

impl Connection {
    pub(super) fn new(session: Session, slot: Slot, source: Option<Arc<Source>>) -> Connection {
        Connection { session: Box::new(session), slot, source, transactions: 0 }
    }

    /// Closes it, politely; the slot is free for another dial once the peer has closed too.
    async fn farewell(self, quit: Duration) -> Slot {
        self.session.farewell(quit).await;
        self.slot
    }

    /// Closes it in the background, politely or not; until then its slot is taken.
    pub(super) fn close(self, quit: Option<Duration>) {
        tokio::spawn(async move {
            match quit {
                Some(quit) => self.session.farewell(quit).await,
                None => self.session.hang_up().await,
            }
            drop(self.slot);
        });
    }
}

/// What an attempt looks for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Whom to be connected with.
    pub(super) site: &'a Site,
    /// The name under which idle ones may be shared: the site's, and what is asked of its TLS.
    pub(super) lane: &'a str,
    /// Its provider's ceilings.
    pub(super) limits: &'a Limits,
    /// Where to come from: connections of another source do not serve.
    pub(super) source: Option<&'a Arc<Source>>,
    /// Not a connection that has lain idle.
    pub(super) fresh: bool,
}

/// What an attempt may use.
pub(super) enum Checkout {
    /// A connection that has lain idle.
    Reused(Connection),
    /// The right to open one.
    Dial(Slot),
}

struct Idle {
    lane: Arc<str>,
    connection: Connection,
    until: Instant,
}

#[derive(Default)]
struct State {
    /// Slots that are given out.
    open: u32,
    /// Oldest first.
    idle: Vec<Idle>,
    pace: Option<Pace>,
    last_dial: Option<Instant>,
}

/// One provider's connections.
#[derive(Default)]
struct Provider {
    state: Mutex<State>,
    changed: Notify,
}

impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Provider").field("open", &state.open).field("idle", &state.idle.len()).finish()
    }
}

/// What the provider's state allows at this moment.
enum Turn {
    Reuse(Connection),
    /// Close this idle connection of another site, then dial in its slot.
    Replace(Connection),
    Open,
    /// Something must change first, or this moment must come.
    Wait(Option<Instant>),
}

impl Provider {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, wanted: Wanted<'_>) -> Turn {
        let now = Instant::now();
        let mut state = self.state();
        let Wanted { limits, .. } = wanted;
        if let Some(connection) = state.take_idle(wanted, now) {
            return Turn::Reuse(connection);
        }
        let full = state.open >= limits.connections.max(1);
        if full && state.idle.is_empty() {
            return Turn::Wait(None);
        }
        if let Err(at) = state.pace(limits, now) {
            return Turn::Wait(Some(at));
        }
        if full {
            return Turn::Replace(state.idle.remove(0).connection);
        }
        state.open += 1;
        Turn::Open
    }
}

impl State {
    /// The fitting connection that was used last: the others may then end.
    fn take_idle(&mut self, wanted: Wanted<'_>, now: Instant) -> Option<Connection> {
        let fits = |idle: &Idle| {
            *idle.lane == *wanted.lane && idle.connection.source.as_ref() == wanted.source && now < idle.until
        };
        let at = self.idle.iter().rposition(|idle| !wanted.fresh && fits(idle))?;
        Some(self.idle.remove(at).connection)
    }

    /// Takes a turn of the provider's pace; else says when.
    fn pace(&mut self, limits: &Limits, now: Instant) -> Result<(), Instant> {
        let Some(rate) = limits.connection_rate else { return Ok(()) };
        if self.pace.as_ref().is_none_or(|pace| pace.rate() != rate) {
            self.pace = Some(Pace::new(rate, now));
        }
        if let Some(pace) = &self.pace {
            pace.take()?;
        }
        self.last_dial = Some(now);
        Ok(())
    }

    /// Whether a new entry would forget what the pace still has to remember.
    fn is_paced(&self, now: Instant) -> bool {
        let (Some(pace), Some(last)) = (&self.pace, self.last_dial) else { return false };
        now < last + pace.rate().period
    }
}

/// All connections. Cheap to clone; clones share them.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    providers: DashMap<Arc<str>, Arc<Provider>>,
    descriptors: Descriptors,
    /// Places of connections to exchangers. Those to list hosts are bounded by their descriptors alone.
    places: Arc<Semaphore>,
    /// Permits of `places` that exist.
    capacity: AtomicUsize,
    /// Attempts that wait for a place: while there are any, nothing is kept idle.
    waiting: AtomicUsize,
    closing: AtomicBool,
    metrics: Metrics,
}

impl Pool {
    /// Must be called within a runtime: it starts the task that closes idle connections.
    pub(super) fn new(connections: usize, descriptors: Descriptors, metrics: Metrics) -> Pool {
        let connections = connections.clamp(1, Semaphore::MAX_PERMITS);
        let pool = Pool(Arc::new(Shared {
            providers: DashMap::new(),
            descriptors,
            places: Arc::new(Semaphore::new(connections)),
            capacity: AtomicUsize::new(connections),
            waiting: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            metrics,
        }));
        tokio::spawn(reap(Arc::downgrade(&pool.0)));
        pool
    }

    /// Changes the bound of all connections. Those above it end as they are used up.
    pub(super) fn set_connections(&self, connections: usize) {
        let shared = &self.0;
        let connections = connections.clamp(1, Semaphore::MAX_PERMITS);
        let before = shared.capacity.load(Ordering::Relaxed);
        let after = match connections.checked_sub(before) {
            Some(more) => {
                shared.places.add_permits(more);
                connections
            }
            None => before - shared.places.forget_permits(before - connections),
        };
        shared.capacity.store(after, Ordering::Relaxed);
    }

    /// A connection or the right to open one. `None` if the wait was in vain.
    pub(super) async fn checkout(&self, wanted: Wanted<'_>, quit: Duration) -> Option<Checkout> {
        let provider = self.provider(&wanted.site.provider);
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            if self.0.closing.load(Ordering::Acquire) {
                return None;
            }
            let changed = provider.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match provider.turn(wanted) {
                Turn::Reuse(mut connection) => {
                    if !connection.session.is_disturbed() {
                        return Some(Checkout::Reused(connection));
                    }
                    self.0.metrics.stale.inc();
                    connection.close(None);
                }
                Turn::Replace(idle) => return Some(Checkout::Dial(idle.farewell(quit).await)),
                Turn::Open => {
                    return self.dial(&provider, &wanted.site.route, deadline, quit).await.map(Checkout::Dial);
                }
                Turn::Wait(_) if Instant::now() >= deadline => return self.in_vain("provider"),
                Turn::Wait(at) => {
                    let until = at.map_or(deadline, |at| at.min(deadline));
                    let _ = timeout_at(until, changed).await;
                }
            }
        }
    }

    /// The provider has room: now a place among all.
    async fn dial(&self, provider: &Arc<Provider>, route: &Route, deadline: Instant, quit: Duration) -> Option<Slot> {
        let usage = match route {
            Route::Mx(_) | Route::Partner(_) => Use::Delivery,
            Route::ListHost(_) => Use::Bounce,
        };
        let mut slot = Slot { provider: Arc::clone(provider), usage, _place: None };
        slot._place = Some(self.place(usage, deadline, quit).await?);
        Some(slot)
    }

    /// A second slot of the same provider for a second dial at the same time, if there is one just now.
    pub(super) fn try_another(&self, slot: &Slot, limits: &Limits) -> Option<Slot> {
        let place = self.try_place(slot.usage)?;
        let mut state = slot.provider.state();
        if state.open >= limits.connections || state.pace(limits, Instant::now()).is_err() {
            return None;
        }
        state.open += 1;
        Some(Slot { provider: Arc::clone(&slot.provider), usage: slot.usage, _place: Some(place) })
    }

    /// Waits until the provider's pace allows one more dial in this slot. `false` if that is after `until`.
    pub(super) async fn paced(&self, slot: &Slot, limits: &Limits, until: Instant) -> bool {
        loop {
            let pace = slot.provider.state().pace(limits, Instant::now());
            match pace {
                Ok(()) => return true,
                Err(at) if at > until => return false,
                Err(at) => sleep_until(at).await,
            }
        }
    }

    async fn place(&self, usage: Use, deadline: Instant, quit: Duration) -> Option<Place> {
        if let Some(place) = self.try_place(usage) {
            return Some(place);
        }
        let _waiting = Waiting::new(&self.0);
        if let Some(idle) = self.take_any_idle(usage) {
            drop(idle.farewell(quit).await);
        }
        let waited = async {
            let permit = match usage {
                Use::Bounce => None,
                _ => Arc::clone(&self.0.places).acquire_owned().await.ok(),
            };
            self.placed(usage, permit, self.0.descriptors.lease(usage).await)
        };
        match timeout_at(deadline, waited).await {
            Ok(place) => Some(place),
            Err(_) => self.in_vain("connections"),
        }
    }

    fn try_place(&self, usage: Use) -> Option<Place> {
        let permit = match usage {
            Use::Bounce => None,
            _ => Some(Arc::clone(&self.0.places).try_acquire_owned().ok()?),
        };
        Some(self.placed(usage, permit, self.0.descriptors.try_lease(usage)?))
    }

    fn placed(&self, usage: Use, permit: Option<OwnedSemaphorePermit>, lease: Lease) -> Place {
        let open = self.0.metrics.open.with_label_values(&[usage.as_str()]);
        open.inc();
        Place { _permit: permit, _lease: lease, open }
    }

    fn in_vain<T>(&self, limit: &str) -> Option<T> {
        self.0.metrics.waits_in_vain.with_label_values(&[limit]).inc();
        None
    }

    /// Takes a connection back after a transaction: kept for the next one, or closed where it has served its time.
    pub(super) fn checkin(&self, mut connection: Connection, lane: &Arc<str>, limits: &Limits, quit: Duration) {
        connection.transactions += 1;
        let most = connection.session.capabilities.mail_max.unwrap_or(u32::MAX).min(limits.messages_per_connection);
        let wanted = self.0.waiting.load(Ordering::Acquire) > 0 || self.0.closing.load(Ordering::Acquire);
        if connection.transactions >= most || wanted || limits.idle_timeout.is_zero() {
            return connection.close(Some(quit));
        }
        let provider = Arc::clone(&connection.slot.provider);
        let until = Instant::now() + limits.idle_timeout;
        let mut state = provider.state();
        if state.open > limits.connections.max(1) {
            drop(state);
            return connection.close(Some(quit));
        }
        state.idle.push(Idle { lane: Arc::clone(lane), connection, until });
        drop(state);
        provider.changed.notify_waiters();
    }

    /// Whether any connection of a provider is open, opening or closing.
    pub(super) fn has_open(&self, provider: &Arc<str>) -> bool {
        self.0.providers.get(provider).is_some_and(|provider| provider.state().open > 0)
    }

    fn provider(&self, name: &Arc<str>) -> Arc<Provider> {
        if let Some(provider) = self.0.providers.get(name) {
            return Arc::clone(&provider);
        }
        Arc::clone(&self.0.providers.entry(Arc::clone(name)).or_default())
    }

    /// Any idle connection of this use, to make room for another provider.
    fn take_any_idle(&self, usage: Use) -> Option<Connection> {
        self.0.providers.iter().find_map(|provider| {
            let mut state = provider.state();
            let at = state.idle.iter().position(|idle| idle.connection.slot.usage == usage)?;
            Some(state.idle.remove(at).connection)
        })
    }

    /// Connections that are open, opening or closing.
    pub(super) fn open(&self) -> usize {
        let count = |usage: Use| self.0.metrics.open.with_label_values(&[usage.as_str()]).get();
        usize::try_from(count(Use::Delivery) + count(Use::Bounce)).unwrap_or(0)
    }

    /// Refuses new connections, says goodbye on idle ones, and waits for the rest until the deadline.
    pub(super) async fn close(&self, deadline: Instant, quit: Duration) {
        self.0.closing.store(true, Ordering::Release);
        let providers: Vec<_> = self.0.providers.iter().map(|entry| Arc::clone(entry.value())).collect();
        for provider in &providers {
            let idle = std::mem::take(&mut provider.state().idle);
            idle.into_iter().for_each(|idle| idle.connection.close(Some(quit)));
            provider.changed.notify_waiters();
        }
        for provider in providers {
            let gone = async {
                loop {
                    let changed = provider.changed.notified();
                    tokio::pin!(changed);
                    changed.as_mut().enable();
                    if provider.state().open == 0 {
                        return;
                    }
                    changed.await;
                }
            };
            if timeout_at(deadline, gone).await.is_err() {
                return;
            }
        }
    }
}

/// Counts an attempt as waiting for a place, for as long as it lives.
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Waiting<'a> {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Shared {
    /// Idle connections hold their provider, which holds them.
    fn drop(&mut self) {
        for provider in &self.providers {
            let idle = std::mem::take(&mut provider.state().idle);
            drop(idle);
        }
    }
}

/// Closes what has lain idle for too long, and forgets providers without connections.
async fn reap(shared: Weak<Shared>) {
    loop {
        sleep_until(Instant::now() + REAP_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        let now = Instant::now();
        let mut expired = Vec::new();
        for provider in &shared.providers {
            expired.extend(provider.state().idle.extract_if(.., |idle| idle.until <= now));
        }
        expired.into_iter().for_each(|idle| idle.connection.close(Some(REAP_EVERY)));
        // Whoever asks for a provider does so under the same lock of the map, so a count of one means nobody uses it.
        shared.providers.retain(|_, provider| Arc::strong_count(provider) > 1 || provider.state().is_paced(now));
    }
}
