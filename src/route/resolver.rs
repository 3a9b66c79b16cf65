//! From a destination to its site, and from a host to its addresses.
//!
//! What is known is kept for its TTL, within 30 s and a day; a refusal shortly. One question at a time is asked for a name,
//! whoever else waits for the answer. If the DNS falls silent, what was known before holds on for a day: mail to a domain
//! whose servers are down for an hour should reach its exchangers all the same.

use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use hickory_resolver::proto::rr::RecordType;
use moka::future::Cache;
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::dns::{Answer, Dns};
use super::exchangers::{self, Verdict};
use super::network::{self, Objection};
use super::options::{Options, ProviderRule};
use crate::attempt::{Exchanger, Limits, Route, Site};
use crate::budget::Descriptors;
use crate::mail::{Destination, Domain};
use crate::outcome::{Enhanced, Phase, Reason, Reply, Scope};

/// How long an answer is believed: at least, at most. Zero TTLs would ask per attempt, huge ones never again.
const TTL: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(86_400));
/// How long "no such thing" is believed.
const NEGATIVE: Duration = Duration::from_secs(60);
/// How long a failed question is not repeated: enough that a thousand recipients ask once.
const UNKNOWN: Duration = Duration::from_secs(1);
/// How long an answer outlives its TTL while the DNS is silent.
const STALE: Duration = Duration::from_secs(86_400);

/// Asking the DNS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's resolver configuration is missing or broken.
    #[error(
        "the system's DNS configuration (/etc/resolv.conf) cannot be used: {0}; name servers can be given in [dns]"
    )]
    System(String),
    /// A metric of that name exists.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Where a destination's mail goes, and under which ceilings.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The site.
    pub site: Arc<Site>,
    /// Its provider's ceilings.
    pub limits: Arc<Limits>,
}

/// Resolves destinations and hosts. Cheap to clone; clones share cache and limits.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    setup: ArcSwap<Setup>,
    descriptors: Descriptors,
    questions: IntCounterVec,
}

/// What a reload replaces as a whole.
#[derive(Debug)]
struct Setup {
    options: Options,
    dns: Dns,
    sites: Memory<Domain, Resolved>,
    addresses: Memory<Arc<str>, [IpAddr]>,
}

impl Resolver {
    /// Sets up the resolver.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub fn new(options: Options, descriptors: Descriptors, registry: &Registry) -> Result<Resolver, ResolverError> {
        let questions = Opts::new("posthaste_route_dns_questions_total", "DNS questions by record type and result.");
        let questions = IntCounterVec::new(questions, &["type", "result"])?;
        registry.register(Box::new(questions.clone()))?;
        let setup = Setup::new(options, descriptors.clone(), questions.clone())?;
        Ok(Resolver(Arc::new(Inner { setup: ArcSwap::from_pointee(setup), descriptors, questions })))
    }

    /// Takes new options; what is known is forgotten, because rules and ranges shape it.
    ///
    /// # Errors
    /// [`ResolverError::System`]; the old options then stay.
    pub fn reload(&self, options: Options) -> Result<(), ResolverError> {
        let setup = Setup::new(options, self.0.descriptors.clone(), self.0.questions.clone())?;
        self.0.setup.store(Arc::new(setup));
        Ok(())
    }

    /// Addresses tried per attempt round, over all exchangers.
    pub fn address_limit(&self) -> usize {
        self.0.setup.load().options.address_limit.max(1)
    }

    /// Finds the site of a destination.
    ///
    /// # Errors
    /// The reason, permanent if its status is of class 5: no such domain (5.1.2), null MX (5.1.10, RFC 7505), no usable
    /// exchanger (5.4.4), ourselves (5.4.6). Else temporary.
    pub async fn resolve(&self, destination: &Destination) -> Result<Arc<Resolved>, Reason> {
        let setup = self.0.setup.load_full();
        match destination {
            Destination::ListHost(name) => setup.list_host(name),
            Destination::Domain(domain) => setup.sites.get(domain, setup.ask_site(domain)).await,
        }
    }

    /// Finds the addresses of an exchanger, IPv6 and IPv4 taking turns (RFC 8305 section 4).
    ///
    /// # Errors
    /// The reason: no address, asked for twice (5.4.4); one of them is ours (5.4.6); all are prohibited (4.4.4); or the DNS
    /// gave no answer (4.4.3).
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Reason> {
        let setup = self.0.setup.load_full();
        let found = setup.addresses.get(&Arc::from(host), setup.ask_addresses(host)).await?;
        let options = &setup.options;
        let mut usable = Vec::with_capacity(found.len());
        for &ip in found.iter() {
            let address = SocketAddr::new(ip, port);
            match network::objection(address, &options.own_addresses, &options.allow_networks) {
                None => usable.push(address),
                Some(Objection::Prohibited) => {}
                Some(Objection::Ourselves) => return Err(loops(format!("{host} leads to our own listener {address}"))),
            }
        }
        if usable.is_empty() { Err(prohibited(host, &found)) } else { Ok(usable) }
    }

    /// Finds the addresses of a host that the operator declared, a list host's bounce address or a partner: only our own
    /// listeners are refused.
    ///
    /// # Errors
    /// The reason; always temporary, because a bounce has nowhere else to go.
    pub async fn declared_addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Reason> {
        let setup = self.0.setup.load_full();
        let found = setup.find_list_host(host).await?;
        let addresses = found.iter().map(|&ip| SocketAddr::new(ip, port));
        let ours = |address: &SocketAddr| {
            network::objection(*address, &setup.options.own_addresses, &[]) == Some(Objection::Ourselves)
        };
        let usable: Vec<_> = addresses.filter(|address| !ours(address)).collect();
        match usable.is_empty() {
            true => Err(temporary(loops(format!("{host}:{port} is our own listener")))),
            false => Ok(usable),
        }
    }
}

impl Setup {
    fn new(options: Options, descriptors: Descriptors, questions: IntCounterVec) -> Result<Setup, ResolverError> {
        let dns = Dns::new(&options, descriptors, questions);
        let dns = dns.map_err(|error| ResolverError::System(error.to_string()))?;
        let entries = options.cache_entries.max(16);
        Ok(Setup { options, dns, sites: Memory::new(entries), addresses: Memory::new(entries) })
    }

    fn list_host(&self, name: &Arc<str>) -> Result<Arc<Resolved>, Reason> {
        let Some(addresses) = self.options.list_hosts.get(name) else {
            let text = format!("list host {name} is not in the configuration (any more)");
            return Err(reason(Enhanced::new(4, 3, 5), text));
        };
        let site = Site {
            name: Arc::clone(name),
            provider: format!("list-host:{name}").into(),
            route: Route::ListHost(addresses.clone()),
        };
        // A lane to our own side: paced by nothing.
        let limits = Limits { connection_rate: None, recipient_rate: None, ..(*self.options.default_limits).clone() };
        Ok(Arc::new(Resolved { site: Arc::new(site), limits: Arc::new(limits) }))
    }

    /// A name goes the way that the operator's other programs go, hosts file and search list included, unless name servers
    /// are configured.
    async fn find_list_host(&self, host: &str) -> Result<Arc<[IpAddr]>, Reason> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Arc::from([ip]));
        }
        if !self.options.servers.is_empty() {
            return self.addresses.get(&Arc::from(host), self.ask_addresses(host)).await.map_err(temporary);
        }
        let failed = |error: std::io::Error| unanswered(host, "address", &error.to_string());
        let asked = tokio::time::timeout(self.options.timeout * 2, tokio::net::lookup_host((host, 0))).await;
        let found = asked.map_err(std::io::Error::from).and_then(|found| found).map_err(failed)?;
        Ok(found.map(|address| address.ip()).collect())
    }

    async fn ask_site(&self, domain: &Domain) -> Found<Resolved> {
        let (records, ttl) = match self.dns.mx(domain.as_str()).await {
            Answer::Records(records, ttl) => (records, ttl),
            Answer::NoData => (Vec::new(), NEGATIVE),
            Answer::NoName => {
                let text = format!("the domain {domain} does not exist");
                return Found::No(reason(Enhanced::new(5, 1, 2), text));
            }
            Answer::Unknown(error) => return Found::Unknown(unanswered(domain.as_str(), "MX", &error)),
        };
        match exchangers::judge(domain.as_str(), &records, &self.options.own_names) {
            Verdict::Exchangers(exchangers) => Found::Yes(Arc::new(self.resolved(domain, exchangers)), ttl),
            Verdict::NullMx => Found::No(null_mx(domain)),
            Verdict::Unusable => {
                let text = format!("no MX of {domain} names a usable host");
                Found::No(reason(Enhanced::new(5, 4, 4), text))
            }
            Verdict::Ourselves => Found::No(loops(format!("we are the best MX of {domain} ourselves"))),
        }
    }

    fn resolved(&self, domain: &Domain, exchangers: Vec<Exchanger>) -> Resolved {
        let name: Arc<str> = exchangers::site_name(&exchangers).into();
        let rule = self.options.providers.iter().find(|rule| matches(rule, domain, &exchangers));
        let (provider, limits) = match rule {
            Some(rule) => (Arc::clone(&rule.name), Arc::clone(&rule.limits)),
            None => (Arc::clone(&name), Arc::clone(&self.options.default_limits)),
        };
        Resolved { site: Arc::new(Site { name, provider, route: Route::Mx(exchangers) }), limits }
    }

    /// Both families at once. Before a host counts as having no address it is asked for a second time.
    async fn ask_addresses(&self, host: &str) -> Found<[IpAddr]> {
        match self.ask_addresses_once(host).await {
            Found::No(_) => self.ask_addresses_once(host).await,
            found => found,
        }
    }

    async fn ask_addresses_once(&self, host: &str) -> Found<[IpAddr]> {
        let v6 = self.dns.addresses(host, RecordType::AAAA);
        let v4 = self.dns.addresses(host, RecordType::A);
        let (v6, v4) = tokio::join!(v6, v4);
        let (v6, v6_ttl, v6_error) = parts(v6);
        let (v4, v4_ttl, v4_error) = parts(v4);
        let found = interleave(v6, v4);
        match v4_error.or(v6_error) {
            _ if !found.is_empty() => Found::Yes(found.into(), v6_ttl.min(v4_ttl)),
            Some(error) => Found::Unknown(unanswered(host, "address", &error)),
            None => Found::No(reason(Enhanced::new(5, 4, 4), format!("the host {host} has no address"))),
        }
    }
}

fn parts(answer: Answer<IpAddr>) -> (Vec<IpAddr>, Duration, Option<String>) {
    match answer {
        Answer::Records(addresses, ttl) => (addresses, ttl, None),
        Answer::NoData | Answer::NoName => (Vec::new(), Duration::MAX, None),
        Answer::Unknown(error) => (Vec::new(), Duration::MAX, Some(error)),
    }
}

/// IPv6 first, then in turns (RFC 8305 section 4), each family in the order of the answer.
fn interleave(v6: Vec<IpAddr>, v4: Vec<IpAddr>) -> Vec<IpAddr> {
    let longer = v6.len().max(v4.len());
    let turn = |i: usize| [v6.get(i).copied(), v4.get(i).copied()];
    (0..longer).flat_map(turn).flatten().collect()
}

/// Whether a rule of `providers.toml` speaks of this domain or of all its exchangers.
fn matches(rule: &ProviderRule, domain: &Domain, exchangers: &[Exchanger]) -> bool {
    let within = |host: &str, suffix: &str| {
        let suffix = suffix.trim_matches('.');
        host.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let known = |exchanger: &Exchanger| rule.mx_suffixes.iter().any(|suffix| within(&exchanger.host, suffix));
    rule.domains.iter().any(|name| name == domain.as_str()) || exchangers.iter().all(known)
}

fn reason(status: Enhanced, text: String) -> Reason {
    Reason { phase: Phase::Resolve, scope: Scope::Site, status, reply: None, text: text.into(), remote: None }
}

fn loops(text: String) -> Reason {
    reason(Enhanced::new(5, 4, 6), format!("mail loop: {text}"))
}

fn unanswered(name: &str, kind: &str, error: &str) -> Reason {
    reason(Enhanced::new(4, 4, 3), format!("DNS gave no answer for {kind} of {name}: {error}"))
}

/// Temporary, because the remedy may be ours: the ranges are configured.
fn prohibited(host: &str, found: &[IpAddr]) -> Reason {
    let first = found.first().map(IpAddr::to_string).unwrap_or_default();
    let text = format!("the host {host} has no permitted address ({first} is prohibited; see allow_networks)");
    reason(Enhanced::new(4, 4, 4), text)
}

/// RFC 7505 section 4.2: as if the host had answered 556.
fn null_mx(domain: &Domain) -> Reason {
    let status = Enhanced::new(5, 1, 10);
    let text = format!("the domain {domain} takes no mail (null MX)");
    let reply = Reply { code: 556, enhanced: Some(status), text: text.as_str().into() };
    Reason { reply: Some(reply), ..reason(status, text) }
}

fn temporary(permanent: Reason) -> Reason {
    Reason { status: Enhanced { class: 4, ..permanent.status }, ..permanent }
}

/// What asking came to.
enum Found<T: ?Sized> {
    Yes(Arc<T>, Duration),
    No(Reason),
    Unknown(Reason),
}

/// What is known by name, bounded; who asks first asks for all.
#[derive(Debug)]
struct Memory<K, T: ?Sized>(Cache<K, Arc<Slot<T>>>)
where
    K: Hash + Eq + Send + Sync + 'static,
    T: Send + Sync + 'static;

#[derive(Debug)]
struct Slot<T: ?Sized> {
    known: ArcSwapOption<Known<T>>,
    asking: Mutex<()>,
}

#[derive(Debug)]
struct Known<T: ?Sized> {
    answer: Result<Arc<T>, Reason>,
    until: Instant,
    /// Until when it may stand in for an answer that does not come.
    last_resort: Instant,
}

impl<K, T> Memory<K, T>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: ?Sized + Send + Sync + 'static,
{
    fn new(entries: u64) -> Memory<K, T> {
        Memory(Cache::new(entries))
    }

    async fn get(&self, key: &K, ask: impl Future<Output = Found<T>>) -> Result<Arc<T>, Reason> {
        let fresh = async { Arc::new(Slot { known: ArcSwapOption::empty(), asking: Mutex::new(()) }) };
        let slot = match self.0.get(key).await {
            Some(slot) => slot,
            None => self.0.get_with(key.clone(), fresh).await,
        };
        if let Some(answer) = slot.current() {
            return answer;
        }
        let _asking = slot.asking.lock().await;
        match slot.current() {
            Some(answer) => answer,
            None => slot.learn(ask.await),
        }
    }
}

impl<T: ?Sized> Slot<T> {
    fn current(&self) -> Option<Result<Arc<T>, Reason>> {
        let known = self.known.load();
        known.as_ref().filter(|known| Instant::now() < known.until).map(|known| known.answer.clone())
    }

    fn learn(&self, found: Found<T>) -> Result<Arc<T>, Reason> {
        let now = Instant::now();
        let known = match found {
            Found::Yes(value, ttl) => {
                let until = now + ttl.clamp(TTL.0, TTL.1);
                Known { answer: Ok(value), until, last_resort: until + STALE }
            }
            Found::No(reason) => Known { answer: Err(reason), until: now + NEGATIVE, last_resort: now },
            Found::Unknown(reason) => self.instead(reason, now),
        };
        let answer = known.answer.clone();
        self.known.store(Some(Arc::new(known)));
        answer
    }

    /// What to go by while the DNS is silent. Either way the question is not repeated at once.
    fn instead(&self, reason: Reason, now: Instant) -> Known<T> {
        let until = now + UNKNOWN;
        match self.known.load_full() {
            Some(old) if old.answer.is_ok() && now < old.last_resort => {
                Known { answer: old.answer.clone(), until, last_resort: old.last_resort }
            }
            _ => Known { answer: Err(reason), until, last_resort: now },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn no(class: u8) -> Reason {
        reason(Enhanced::new(class, 0, 0), "no".to_owned())
    }

    /// Asks the memory, which asks this: how often it did, and what came of it.
    async fn ask(memory: &Memory<u8, u32>, asked: &Cell<u32>, found: Found<u32>) -> Result<u32, u8> {
        let ask = async {
            asked.set(asked.get() + 1);
            found
        };
        memory.get(&1, ask).await.map(|value| *value).map_err(|reason| reason.status.class)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_for_its_ttl_within_bounds() {
        for (ttl, kept) in [(0, 30), (300, 300), (1 << 31, 86_400)] {
            let (memory, asked) = (Memory::new(10), Cell::new(0));
            let yes = |value| Found::Yes(Arc::new(value), Duration::from_secs(ttl));
            assert_eq!(ask(&memory, &asked, yes(1)).await, Ok(1));
            tokio::time::advance(Duration::from_secs(kept) - Duration::from_millis(1)).await;
            assert_eq!(ask(&memory, &asked, yes(2)).await, Ok(1));
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!((ask(&memory, &asked, yes(3)).await, asked.get()), (Ok(3), 2));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_kept_for_a_minute_and_silence_for_a_second() {
        let (memory, asked) = (Memory::new(10), Cell::new(0));
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Err(4));
        assert_eq!((ask(&memory, &asked, Found::No(no(5))).await, asked.get()), (Err(4), 1));
        tokio::time::advance(UNKNOWN).await;
        assert_eq!(ask(&memory, &asked, Found::No(no(5))).await, Err(5));
        tokio::time::advance(MINUTE - UNKNOWN).await;
        assert_eq!((ask(&memory, &asked, Found::No(no(5))).await, asked.get()), (Err(5), 2));
        tokio::time::advance(UNKNOWN).await;
        assert_eq!((ask(&memory, &asked, Found::Yes(Arc::new(1), MINUTE)).await, asked.get()), (Ok(1), 3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_known_holds_for_a_day_while_the_dns_is_silent() {
        let (memory, asked) = (Memory::new(10), Cell::new(0));
        assert_eq!(ask(&memory, &asked, Found::Yes(Arc::new(1), MINUTE)).await, Ok(1));
        tokio::time::advance(MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Ok(1));
        assert_eq!((ask(&memory, &asked, Found::Unknown(no(4))).await, asked.get()), (Ok(1), 2), "not asked at once");
        tokio::time::advance(STALE - MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Ok(1));
        tokio::time::advance(MINUTE * 2).await;
        assert_eq!(ask(&memory, &asked, Found::Unknown(no(4))).await, Err(4));
    }
}
