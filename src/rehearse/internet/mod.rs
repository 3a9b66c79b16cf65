//! A simulated internet on loopback: a DNS server and as many mail exchangers as are described, each with the rules and
//! the moods of real ones. Nothing leaves the machine. It promises to count honestly: what it accepted, from whom,
//! how often, whether the octets were the sender's, and which limits the client broke.
//!
//! [`Internet::builder`] describes it; [`Internet`] is what runs, until it is dropped.

mod builder;
mod dns;
mod ledger;
mod policy;
mod provider;
mod receiver;
mod session;
#[cfg(test)]
mod tests;
mod zone;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use builder::{Builder, Domain};
pub use ledger::{Delivered, Digest, Totals, without_trace};
pub use policy::{AfterDot, Door, Extensions, Policy, Rate, Scripted, Stage};
pub use provider::{Broken, Counts, Provider};
pub use zone::{Behaviour, Node, Zone};

use builder::Rules;
use ledger::Ledger;
use receiver::BlackHole;
use session::Host;

/// Takes what a watched provider accepts.
type Watch = Arc<dyn Fn(Delivered) + Send + Sync>;

/// What all connections share.
struct Shared {
    hosts: HashMap<Ipv4Addr, Arc<Host>>,
    domains: Vec<(String, Rules)>,
    by_name: HashMap<String, usize>,
    watches: Vec<(Arc<Provider>, Watch)>,
    keep: bool,
    tls: Option<Arc<rustls::ServerConfig>>,
    ledger: Mutex<Ledger>,
    kept: Mutex<Vec<Delivered>>,
    bytes: AtomicU64,
    open: AtomicU32,
    peak_open: AtomicU32,
    strays: AtomicU64,
}

impl Shared {
    fn new(
        hosts: HashMap<Ipv4Addr, Arc<Host>>,
        domains: Vec<(String, Rules)>,
        watches: Vec<(Arc<Provider>, Watch)>,
        keep: bool,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Shared {
        let by_name = domains.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        Shared {
            hosts,
            domains,
            by_name,
            watches,
            keep,
            tls,
            ledger: Mutex::new(Ledger::new(Instant::now())),
            kept: Mutex::default(),
            bytes: AtomicU64::new(0),
            open: AtomicU32::new(0),
            peak_open: AtomicU32::new(0),
            strays: AtomicU64::new(0),
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Delivered>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The domain's number and rules.
    fn domain(&self, name: &str) -> Option<(usize, &Rules)> {
        let index = match self.by_name.get(name) {
            Some(index) => *index,
            None => *self.by_name.get(&name.to_ascii_lowercase())?,
        };
        Some((index, &self.domains[index].1))
    }

    fn watch_of(&self, provider: &Arc<Provider>) -> Option<&Watch> {
        self.watches.iter().find(|(watched, _)| Arc::ptr_eq(watched, provider)).map(|(_, watch)| watch)
    }

    /// Whether transactions at this host are kept whole.
    fn keeps(&self, host: &Host) -> bool {
        self.keep || self.watch_of(&host.provider).is_some()
    }
}

/// A running simulated internet. Dropping it closes everything.
pub struct Internet {
    /// Where its DNS answers, over UDP and TCP.
    pub dns_address: SocketAddr,
    /// The port of every exchanger.
    pub port: u16,
    shared: Arc<Shared>,
    dns: Arc<dns::Dns>,
    providers: Vec<Arc<Provider>>,
    by_name: HashMap<String, usize>,
    tasks: Vec<JoinHandle<()>>,
    _holes: Vec<BlackHole>,
}

impl std::fmt::Debug for Internet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Internet with DNS at {} and exchangers at port {}", self.dns_address, self.port)
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Internet {
    /// Starts a description.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn launch(
        shared: Shared,
        zone: Zone,
        providers: Vec<Arc<Provider>>,
        (listener, (udp, tcp)): (TcpListener, (UdpSocket, TcpListener)),
        holes: Vec<BlackHole>,
    ) -> io::Result<Internet> {
        let dns_address = udp.local_addr()?;
        let port = listener.local_addr()?.port();
        let by_name = providers.iter().enumerate().map(|(i, provider)| (provider.name.clone(), i)).collect();
        let (shared, dns) = (Arc::new(shared), Arc::new(dns::Dns::new(zone)));
        let tasks = vec![
            tokio::spawn(dns::serve(Arc::clone(&dns), udp, tcp)),
            tokio::spawn(receiver::serve(Arc::clone(&shared), listener)),
        ];
        Ok(Internet { dns_address, port, shared, dns, providers, by_name, tasks, _holes: holes })
    }

    /// From now on a message of this content (dot-stuffed, as sent) must arrive octet for octet, below what the relay
    /// adds on top; otherwise it counts as damaged.
    pub fn expect(&self, content: &[u8]) {
        self.shared.ledger().expect(content);
    }

    /// Tells the ledger that the relay is killed at this moment, so that repeats of what was in flight are explained.
    pub fn relay_killed(&self) {
        self.shared.ledger().killed(Instant::now());
    }

    /// Tells the ledger that the list host sends to `mailbox` again without knowing whether the relay has the message.
    pub fn excuse(&self, mailbox: &str) {
        self.shared.ledger().excuse(mailbox);
    }

    /// Totals so far.
    pub fn totals(&self) -> Totals {
        self.shared.ledger().totals()
    }

    /// Copies that arrived for `mailbox`, over all messages.
    pub fn delivered(&self, mailbox: &str) -> u32 {
        self.shared.ledger().copies(mailbox)
    }

    /// Accepted transactions in order of arrival; empty unless [`Builder::keep_content`] was asked for.
    pub fn deliveries(&self) -> Vec<Delivered> {
        self.shared.kept().clone()
    }

    /// The time from `since` by which `share` (0 to 1) of all deliveries had come.
    pub fn time_to(&self, share: f64, since: Instant) -> Option<Duration> {
        let ledger = self.shared.ledger();
        let before = since.saturating_duration_since(ledger.start());
        ledger.time_to(share).map(|time| time.saturating_sub(before))
    }

    /// Octets that clients sent to exchangers.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Most connections at a time, over all exchangers.
    pub fn peak_connections(&self) -> u32 {
        self.shared.peak_open.load(Ordering::Relaxed)
    }

    /// Recipients offered to an exchanger that does not serve their domain.
    pub fn strays(&self) -> u64 {
        self.shared.strays.load(Ordering::Relaxed)
    }

    /// All providers, in the order of the description.
    pub fn providers(&self) -> &[Arc<Provider>] {
        &self.providers
    }

    /// The provider of this name; a domain with exchangers of its own is a provider named after the domain.
    pub fn provider(&self, name: &str) -> Option<&Arc<Provider>> {
        self.by_name.get(name).map(|index| &self.providers[*index])
    }

    /// How often any limit was broken, over all providers.
    pub fn limits_broken(&self) -> u64 {
        self.providers.iter().flat_map(|provider| provider.counts().broken).map(|broken| broken.times).sum()
    }

    /// The loopback address of an exchanger.
    pub fn address_of(&self, exchanger: &str) -> Option<SocketAddr> {
        let found = self.shared.hosts.iter().find(|(_, host)| &*host.name == exchanger)?;
        Some((*found.0, self.port).into())
    }

    /// Changes what the DNS says, from the next question on.
    pub fn change_dns<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        self.dns.change(change)
    }

    /// How often the DNS was asked for `name`.
    pub fn dns_asked(&self, name: &str) -> u32 {
        self.dns.asked(name)
    }
}
