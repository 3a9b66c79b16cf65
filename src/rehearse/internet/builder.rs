//! How a simulated internet is described: domains, the providers behind them, and how each behaves.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! use posthaste::rehearse::internet::{Internet, Policy};
//! use std::time::Duration;
//!
//! let internet = Internet::builder()
//!     .provider("big", ["mx1.big.test", "mx2.big.test"], Policy::new().connections(5))
//!     .domain("a.test", |d| d.mx(["mx1.big.test", "mx2.big.test"]).refuse("bob"))
//!     .domain("b.test", |d| d.mx(["mx.b.test"]).greylist(Duration::from_secs(1)))
//!     .domain("c.test", |d| d.servfail())
//!     .start()
//!     .await?;
//! # Ok(()) }
//! ```

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RData;

use super::ledger::Delivered;
use super::policy::{Door, Policy};
use super::provider::Provider;
use super::receiver::BlackHole;
use super::session::Host;
use super::zone::{Behaviour, Zone};
use super::{Internet, Shared, Watch};

/// Seconds that records live unless told otherwise.
const TTL: u32 = 300;
/// Exchangers that fit into 127.1.0.0 to 127.254.255.255, some way from the addresses that people use.
const HOSTS_MAX: usize = 1 << 20;

/// Mailboxes by local part: exact, or everything that begins with what stands before a final `*`.
#[derive(Clone, Debug, Default)]
pub(super) struct Locals {
    exact: HashSet<String>,
    prefixes: Vec<String>,
}

impl Locals {
    fn add(&mut self, pattern: &str) {
        match pattern.strip_suffix('*') {
            Some(prefix) => self.prefixes.push(prefix.to_owned()),
            None => drop(self.exact.insert(pattern.to_owned())),
        }
    }

    pub(super) fn has(&self, local: &str) -> bool {
        self.exact.contains(local) || self.prefixes.iter().any(|prefix| local.starts_with(prefix.as_str()))
    }
}

/// How a domain's receivers treat its mailboxes.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) refuse: Locals,
    pub(super) full: Locals,
    pub(super) greylist: Option<Duration>,
    /// Who takes mail for it.
    providers: Vec<Arc<Provider>>,
}

impl Rules {
    pub(super) fn is_served_by(&self, provider: &Arc<Provider>) -> bool {
        self.providers.iter().any(|ours| Arc::ptr_eq(ours, provider))
    }
}

/// One domain of the description.
#[derive(Debug, Default)]
pub struct Domain {
    behaviour: Behaviour,
    delay: Duration,
    authentic: bool,
    /// `None` until an exchanger is named: then the domain gets `mx.<domain>`.
    exchangers: Option<Vec<(u16, String)>>,
    addressless: bool,
    implicit: bool,
    alias: Option<String>,
    records: Vec<(String, RData)>,
    refuse: Locals,
    full: Locals,
    greylist: Option<Duration>,
    policy: Policy,
}

impl Domain {
    /// Exchangers in order of preference: 10, 20 and so on.
    #[must_use]
    pub fn mx<'a>(mut self, exchangers: impl IntoIterator<Item = &'a str>) -> Domain {
        let numbered = exchangers.into_iter().enumerate().map(|(i, name)| (10 * (i as u16 + 1), name.to_owned()));
        self.exchangers.get_or_insert_default().extend(numbered);
        self
    }

    /// One exchanger with its preference.
    #[must_use]
    pub fn mx_at(mut self, preference: u16, exchanger: &str) -> Domain {
        self.exchangers.get_or_insert_default().push((preference, exchanger.to_owned()));
        self
    }

    /// No MX records: the domain's own address takes the mail (RFC 5321 section 5.1).
    #[must_use]
    pub fn implicit_mx(self) -> Domain {
        Domain { implicit: true, ..self }
    }

    /// `0 .`: the domain takes no mail (RFC 7505).
    #[must_use]
    pub fn null_mx(self) -> Domain {
        self.mx_at(0, ".")
    }

    /// Exchangers are named but have no addresses.
    #[must_use]
    pub fn exchangers_without_address(self) -> Domain {
        Domain { addressless: true, ..self }
    }

    /// The domain is an alias of `target`, which must be described too.
    #[must_use]
    pub fn cname(self, target: &str) -> Domain {
        Domain { alias: Some(target.to_owned()), ..self }
    }

    /// Any record, at any name.
    #[must_use]
    pub fn record(mut self, name: &str, data: RData) -> Domain {
        self.records.push((name.to_owned(), data));
        self
    }

    /// Answers for the domain carry the AD bit.
    #[must_use]
    pub fn authentic(self) -> Domain {
        Domain { authentic: true, ..self }
    }

    /// How the name itself answers.
    #[must_use]
    pub fn dns(self, behaviour: Behaviour) -> Domain {
        Domain { behaviour, ..self }
    }

    /// The name does not exist.
    #[must_use]
    pub fn nxdomain(self) -> Domain {
        self.dns(Behaviour::NxDomain)
    }

    /// The name server fails.
    #[must_use]
    pub fn servfail(self) -> Domain {
        self.dns(Behaviour::ServFail)
    }

    /// The name server does not answer.
    #[must_use]
    pub fn dns_timeout(self) -> Domain {
        self.dns(Behaviour::Timeout)
    }

    /// The name server is slow.
    #[must_use]
    pub fn dns_delay(self, delay: Duration) -> Domain {
        Domain { delay, ..self }
    }

    /// This local part gets `550 5.1.1`; a final `*` stands for anything.
    #[must_use]
    pub fn refuse(mut self, local: &str) -> Domain {
        self.refuse.add(local);
        self
    }

    /// This local part gets `452 4.2.2`; a final `*` stands for anything.
    #[must_use]
    pub fn full(mut self, local: &str) -> Domain {
        self.full.add(local);
        self
    }

    /// A reverse-path that is new to the domain gets `451 4.7.1` until this time has passed since its first try.
    #[must_use]
    pub fn greylist(self, delay: Duration) -> Domain {
        Domain { greylist: Some(delay), ..self }
    }

    /// The rules of the exchangers that no provider was declared for.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Domain {
        Domain { policy, ..self }
    }

    /// A short cut for a policy that only differs in its round-trip time.
    #[must_use]
    pub fn rtt(self, rtt: Duration) -> Domain {
        Domain { policy: self.policy.clone().rtt(rtt), ..self }
    }

    /// A short cut for a policy that only differs in how connections are met.
    #[must_use]
    pub fn door(self, door: Door) -> Domain {
        Domain { policy: self.policy.clone().door(door), ..self }
    }
}

/// The description of a simulated internet.
#[derive(Default)]
pub struct Builder {
    providers: Vec<(String, Vec<String>, Policy)>,
    hosts: HashMap<String, Policy>,
    domains: Vec<(String, Domain)>,
    names: Vec<(String, Behaviour)>,
    watches: Vec<(String, Watch)>,
    ttl: Option<u32>,
    keep: bool,
    tls: Option<Arc<rustls::ServerConfig>>,
    port: u16,
    dns_at: Option<SocketAddr>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Builder of {} domains", self.domains.len())
    }
}

impl Builder {
    /// A provider: these exchangers share one policy, and its limits hold over all of them.
    #[must_use]
    pub fn provider<'a>(
        mut self,
        name: &str,
        exchangers: impl IntoIterator<Item = &'a str>,
        policy: Policy,
    ) -> Builder {
        let exchangers = exchangers.into_iter().map(str::to_owned).collect();
        self.providers.push((name.to_owned(), exchangers, policy));
        self
    }

    /// One more exchanger of a declared provider.
    #[must_use]
    pub fn member(mut self, provider: &str, exchanger: &str) -> Builder {
        if let Some((_, exchangers, _)) = self.providers.iter_mut().find(|(name, ..)| name == provider) {
            exchangers.push(exchanger.to_owned());
        }
        self
    }

    /// One exchanger that differs from its provider, for example the one that is dead. Limits are still counted over
    /// the provider; scripts belong to the provider.
    #[must_use]
    pub fn host(mut self, exchanger: &str, policy: Policy) -> Builder {
        self.hosts.insert(exchanger.to_owned(), policy);
        self
    }

    /// A domain. What `describe` leaves alone is a healthy domain with the exchanger `mx.<name>`.
    #[must_use]
    pub fn domain(mut self, name: &str, describe: impl FnOnce(Domain) -> Domain) -> Builder {
        self.domains.push((name.to_ascii_lowercase(), describe(Domain::default())));
        self
    }

    /// How some other name answers, for example an exchanger whose address look-up fails.
    #[must_use]
    pub fn name(mut self, name: &str, behaviour: Behaviour) -> Builder {
        self.names.push((name.to_owned(), behaviour));
        self
    }

    /// What the provider `name` (or the domain whose own provider it is) accepts goes to `watch` instead of into the
    /// ledger. A list host takes its bounces so.
    #[must_use]
    pub fn watch(mut self, name: &str, watch: impl Fn(Delivered) + Send + Sync + 'static) -> Builder {
        self.watches.push((name.to_owned(), Arc::new(watch)));
        self
    }

    /// Seconds that DNS records live; 300 unless told otherwise.
    #[must_use]
    pub fn ttl(self, seconds: u32) -> Builder {
        Builder { ttl: Some(seconds), ..self }
    }

    /// Keeps every accepted transaction whole, for [`Internet::deliveries`]. For tests: memory grows with the mail.
    #[must_use]
    pub fn keep_content(self) -> Builder {
        Builder { keep: true, ..self }
    }

    /// Offers STARTTLS at every exchanger, with this configuration.
    #[must_use]
    pub fn tls(self, config: Arc<rustls::ServerConfig>) -> Builder {
        Builder { tls: Some(config), ..self }
    }

    /// Puts the exchangers at this port instead of a free one.
    #[must_use]
    pub fn port(self, port: u16) -> Builder {
        Builder { port, ..self }
    }

    /// Puts the DNS at this address instead of a free port of 127.0.0.1. Other relays want port 53.
    #[must_use]
    pub fn dns_at(self, address: SocketAddr) -> Builder {
        Builder { dns_at: Some(address), ..self }
    }

    /// Brings the internet up.
    ///
    /// # Errors
    /// When no ports are free, or as the system's.
    pub async fn start(self) -> io::Result<Internet> {
        let listener = super::receiver::bind(self.port)?;
        let port = listener.local_addr()?.port();
        let mut plan = Plan::new(self.ttl.unwrap_or(TTL));
        plan.lay_out(&self)?;
        let holes = plan.black_holes(port)?;
        let dns = super::dns::bind(self.dns_at).await?;
        let shared = Shared::new(plan.hosts, plan.domains, plan.watches, self.keep, self.tls);
        Internet::launch(shared, plan.zone, plan.providers, (listener, dns), holes)
    }
}

/// The description turned into addresses and records.
struct Plan {
    zone: Zone,
    providers: Vec<Arc<Provider>>,
    by_exchanger: HashMap<String, Arc<Provider>>,
    placed: HashMap<String, Arc<Provider>>,
    hosts: HashMap<Ipv4Addr, Arc<Host>>,
    domains: Vec<(String, Rules)>,
    watches: Vec<(Arc<Provider>, Watch)>,
}

impl Plan {
    fn new(ttl: u32) -> Plan {
        Plan {
            zone: Zone::new(ttl),
            providers: Vec::new(),
            by_exchanger: HashMap::new(),
            placed: HashMap::new(),
            hosts: HashMap::new(),
            domains: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn lay_out(&mut self, builder: &Builder) -> io::Result<()> {
        for (name, exchangers, policy) in &builder.providers {
            let provider = self.add_provider(name, policy);
            for exchanger in exchangers {
                self.by_exchanger.insert(exchanger.clone(), Arc::clone(&provider));
                self.place(builder, exchanger, &provider)?;
            }
        }
        builder.domains.iter().try_for_each(|(name, domain)| self.add_domain(builder, name, domain))?;
        for (name, behaviour) in &builder.names {
            self.zone.node(name).behaviour = *behaviour;
        }
        for (name, watch) in &builder.watches {
            let provider = self.providers.iter().find(|provider| provider.name == *name);
            let provider = provider.ok_or_else(|| io::Error::other(format!("nothing called {name} to watch")))?;
            self.watches.push((Arc::clone(provider), Arc::clone(watch)));
        }
        Ok(())
    }

    fn add_provider(&mut self, name: &str, policy: &Policy) -> Arc<Provider> {
        let provider = Arc::new(Provider::new(name, policy.clone()));
        self.providers.push(Arc::clone(&provider));
        provider
    }

    fn add_domain(&mut self, builder: &Builder, name: &str, domain: &Domain) -> io::Result<()> {
        let node = self.zone.node(name);
        (node.behaviour, node.delay, node.authentic) = (domain.behaviour, domain.delay, domain.authentic);
        for (at, data) in &domain.records {
            self.zone.node(at).records.push(data.clone());
        }
        let providers = match &domain.alias {
            Some(target) => {
                self.zone.cname(name, target);
                self.domains.iter().find(|(known, _)| known == target).map_or(Vec::new(), |(_, r)| r.providers.clone())
            }
            None => self.add_exchangers(builder, name, domain)?,
        };
        let (refuse, full) = (domain.refuse.clone(), domain.full.clone());
        self.domains.push((name.to_owned(), Rules { refuse, full, greylist: domain.greylist, providers }));
        Ok(())
    }

    fn add_exchangers(&mut self, builder: &Builder, name: &str, domain: &Domain) -> io::Result<Vec<Arc<Provider>>> {
        let exchangers = match &domain.exchangers {
            _ if domain.implicit => vec![(0, name.to_owned())],
            Some(exchangers) => exchangers.clone(),
            None => vec![(10, format!("mx.{name}"))],
        };
        let mut own = None;
        let mut serving: Vec<Arc<Provider>> = Vec::new();
        for (preference, exchanger) in exchangers {
            if !domain.implicit {
                self.zone.mx(name, preference, &exchanger);
            }
            if exchanger == "." || domain.addressless {
                continue;
            }
            let provider = match self.by_exchanger.get(&exchanger) {
                Some(provider) => Arc::clone(provider),
                None => Arc::clone(own.get_or_insert_with(|| self.add_provider(name, &domain.policy))),
            };
            self.by_exchanger.insert(exchanger.clone(), Arc::clone(&provider));
            self.place(builder, &exchanger, &provider)?;
            serving.push(provider);
        }
        Ok(serving)
    }

    /// Gives an exchanger its address, once.
    fn place(&mut self, builder: &Builder, exchanger: &str, provider: &Arc<Provider>) -> io::Result<()> {
        if self.placed.insert(exchanger.to_owned(), Arc::clone(provider)).is_some() {
            return Ok(());
        }
        let policy = builder.hosts.get(exchanger).unwrap_or(&provider.policy).clone();
        if policy.door == Door::Refused {
            self.zone.address(exchanger, Ipv6Addr::LOCALHOST.into());
            return Ok(());
        }
        let address = address_of(self.hosts.len())?;
        self.zone.address(exchanger, address.into());
        let host = Host { name: exchanger.into(), provider: Arc::clone(provider), policy };
        self.hosts.insert(address, Arc::new(host));
        Ok(())
    }

    fn black_holes(&self, port: u16) -> io::Result<Vec<BlackHole>> {
        let holes = self.hosts.iter().filter(|(_, host)| host.policy.door == Door::BlackHole);
        holes.map(|(address, _)| BlackHole::dig(*address, port)).collect()
    }
}

/// The address of the n-th exchanger: 127.1.0.1 and up, none of which ends in .0 or .255.
fn address_of(index: usize) -> io::Result<Ipv4Addr> {
    if index >= HOSTS_MAX {
        return Err(io::Error::other("more exchangers than loopback addresses"));
    }
    let (high, low) = (index / 254, index % 254);
    Ok(Ipv4Addr::new(127, 1 + (high >> 8) as u8, high as u8, 1 + low as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exchangers_have_addresses_of_their_own_within_loopback() {
        let all: HashSet<_> = (0..HOSTS_MAX).step_by(7).map(|i| address_of(i).expect("in range")).collect();
        assert_eq!(all.len(), HOSTS_MAX.div_ceil(7));
        assert!(all.iter().all(Ipv4Addr::is_loopback));
        assert!(address_of(HOSTS_MAX).is_err());
    }

    #[test]
    fn a_star_stands_for_any_ending() {
        let mut locals = Locals::default();
        locals.add("bob");
        locals.add("gone.*");
        assert!(locals.has("bob") && locals.has("gone.1"));
        assert!(!locals.has("bobby") && !locals.has("agone.1"));
    }
}
