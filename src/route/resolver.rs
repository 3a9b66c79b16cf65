//! From a destination to its site, and from a host to its addresses. What was learned is kept by `memory`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::proto::dnssec::TrustAnchors;
use hickory_resolver::proto::rr::RecordType;
use prometheus::{IntCounterVec, Opts, Registry};

use super::dns::{Answer, Dns, Records};
use super::exchangers::{self, Verdict};
use super::memory::{Found, Memory, NEGATIVE};
use super::network::{self, Objection};
use super::options::{Options, ProviderRule};
use super::roots;
use super::sts::{Sts, StsPolicy};
use super::tlsa::Tlsa;
use crate::attempt::{Exchanger, Limits, Route, Site};
use crate::budget::{Descriptors, Use};
use crate::mail::{Destination, Domain};
use crate::outcome::{Enhanced, Phase, Reason, Reply, Scope};

/// Asking the DNS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's resolver configuration is missing or broken.
    #[error(
        "the system's DNS configuration (/etc/resolv.conf) cannot be used: {0}; name servers can be given in [dns]"
    )]
    System(String),
    /// The file of trust anchors cannot be used.
    #[error("the trust anchors in {} cannot be used: {error}", path.display())]
    TrustAnchors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// The file of root certificates cannot be used.
    #[error(transparent)]
    Roots(std::io::Error),
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
    /// Whether DNSSEC proves that these are the exchangers; only then does DANE speak for the domain (RFC 7672 section 2.2.1).
    pub secure: bool,
}

/// The addresses of a host.
#[derive(Debug)]
struct Addresses {
    ips: Vec<IpAddr>,
    /// Whether DNSSEC proves them.
    secure: bool,
}

/// Resolves destinations and hosts. Cheap to clone; clones share cache and limits.
#[derive(Clone, Debug)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    setup: ArcSwap<Setup>,
    descriptors: Descriptors,
    metrics: Metrics,
}

/// What the resolver counts.
#[derive(Clone, Debug)]
struct Metrics {
    /// DNS questions, by record type and result.
    questions: IntCounterVec,
    /// MTA-STS policies, by how what is in force was learned.
    policies: IntCounterVec,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let questions = Opts::new("posthaste_route_dns_questions_total", "DNS questions by record type and result.");
        let questions = IntCounterVec::new(questions, &["type", "result"])?;
        let policies = Opts::new("posthaste_route_mta_sts_total", "MTA-STS policies looked for, by result.");
        let policies = IntCounterVec::new(policies, &["result"])?;
        registry.register(Box::new(questions.clone()))?;
        registry.register(Box::new(policies.clone()))?;
        Ok(Metrics { questions, policies })
    }
}

/// What a reload replaces as a whole.
#[derive(Debug)]
struct Setup {
    options: Options,
    dns: Dns,
    descriptors: Descriptors,
    sites: Memory<Domain, Resolved>,
    addresses: Memory<Arc<str>, Addresses>,
    tlsa: Memory<(Arc<str>, u16), [Tlsa]>,
    /// `None`: MTA-STS is switched off.
    sts: Option<Sts>,
    policies: Memory<Domain, Option<Arc<StsPolicy>>>,
    fetches: IntCounterVec,
}

impl Resolver {
    /// Sets up the resolver.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub fn new(options: Options, descriptors: Descriptors, registry: &Registry) -> Result<Resolver, ResolverError> {
        let metrics = Metrics::new(registry)?;
        let setup = Setup::new(options, descriptors.clone(), &metrics)?;
        Ok(Resolver(Arc::new(Inner { setup: ArcSwap::from_pointee(setup), descriptors, metrics })))
    }

    /// Takes new options; what is known is forgotten, because rules and ranges shape it.
    ///
    /// # Errors
    /// [`ResolverError::System`]; the old options then stay.
    pub fn reload(&self, options: Options) -> Result<(), ResolverError> {
        let setup = Setup::new(options, self.0.descriptors.clone(), &self.0.metrics)?;
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
            Destination::Domain(domain) => {
                // The policy is looked for at the same time, so that no attempt has to wait for it.
                let (site, _policy) =
                    tokio::join!(setup.sites.get(domain, setup.ask_site(domain)), setup.policy(domain));
                site
            }
        }
    }

    /// Whether DNSSEC proves which exchangers a destination has.
    pub async fn has_secure_exchangers(&self, destination: &Destination) -> bool {
        let setup = self.0.setup.load_full();
        match destination {
            Destination::Domain(domain) if setup.options.dnssec => {
                setup.sites.get(domain, setup.ask_site(domain)).await.is_ok_and(|found| found.secure)
            }
            _ => false,
        }
    }

    /// The MTA-STS policy that is in force for a domain (RFC 8461).
    pub async fn sts(&self, domain: &Domain) -> Option<Arc<StsPolicy>> {
        self.0.setup.load_full().policy(domain).await
    }

    /// Finds the addresses of an exchanger, IPv6 and IPv4 taking turns (RFC 8305 section 4).
    ///
    /// # Errors
    /// The reason: no address, asked for twice (5.4.4); one of them is ours (5.4.6); all are prohibited (4.4.4); or the DNS
    /// gave no answer (4.4.3).
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Reason> {
        let setup = self.0.setup.load_full();
        let found = setup.addresses.get(&Arc::from(host), setup.ask_addresses(host)).await?;
        setup.usable(host, &found.ips, port)
    }

    /// The TLSA records of an exchanger, usable or not. None where the host's addresses are not proven: its name servers may
    /// then not even answer such questions (RFC 7672 section 2.1.3).
    ///
    /// # Errors
    /// The reason, temporary: no answer or a forged one. To go on without would be what an attacker wants (RFC 7672 section
    /// 2.1.2).
    pub async fn tlsa(&self, host: &str, port: u16) -> Result<Arc<[Tlsa]>, Reason> {
        let setup = self.0.setup.load_full();
        let host: Arc<str> = host.into();
        let addresses = setup.addresses.get(&host, setup.ask_addresses(&host)).await?;
        if !addresses.secure {
            return Ok(Arc::from([]));
        }
        let key = (host, port);
        setup.tlsa.get(&key, setup.ask_tlsa(&key.0, port)).await
    }

    /// Asks for the TXT records of a name, each joined of its strings; octets that are no UTF-8 are replaced. Not remembered.
    ///
    /// # Errors
    /// The DNS gave no answer (4.4.3). That there are none is an answer.
    pub async fn txt(&self, name: &str) -> Result<Vec<String>, Reason> {
        match self.0.setup.load_full().dns.txt(name).await {
            Answer::Records(found) => {
                Ok(found.records.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect())
            }
            Answer::NoData | Answer::NoName => Ok(Vec::new()),
            Answer::Unknown(error) => Err(unanswered(name, "TXT", &error)),
        }
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
    fn new(options: Options, descriptors: Descriptors, metrics: &Metrics) -> Result<Setup, ResolverError> {
        let anchors = trust_anchors(&options)?;
        let dns = Dns::new(&options, anchors, descriptors.clone(), metrics.questions.clone());
        let dns = dns.map_err(|error| ResolverError::System(error.to_string()))?;
        let sts = match &options.sts {
            on if on.enabled => {
                let roots = roots::load(on.roots.as_deref()).map_err(ResolverError::Roots)?;
                Some(Sts::new(roots, on.cache.clone()))
            }
            _ => None,
        };
        let entries = options.cache_entries.max(16);
        Ok(Setup {
            dns,
            sts,
            descriptors,
            sites: Memory::new(entries),
            addresses: Memory::new(entries),
            tlsa: Memory::new(entries),
            policies: Memory::new(entries),
            fetches: metrics.policies.clone(),
            options,
        })
    }

    async fn policy(&self, domain: &Domain) -> Option<Arc<StsPolicy>> {
        let sts = self.sts.as_ref()?;
        let known = self.policies.get(domain, self.ask_policy(sts, domain)).await;
        known.ok().and_then(|policy| (*policy).clone())
    }

    async fn ask_policy(&self, sts: &Sts, domain: &Domain) -> Found<Option<Arc<StsPolicy>>> {
        let announced = match self.dns.txt(&format!("_mta-sts.{domain}")).await {
            Answer::Records(Records { records, .. }) => records,
            Answer::NoData | Answer::NoName | Answer::Unknown(_) => Vec::new(),
        };
        let found = sts.in_force(domain, &announced, self.fetch_policy(sts, domain)).await;
        self.fetches.with_label_values(&[found.result]).inc();
        Found::Yes(Arc::new(found.policy), found.until)
    }

    async fn fetch_policy(&self, sts: &Sts, domain: &Domain) -> Result<String, String> {
        let host: Arc<str> = format!("mta-sts.{domain}").into();
        let found = self.addresses.get(&host, self.ask_addresses(&host)).await;
        let usable = found.and_then(|found| self.usable(&host, &found.ips, self.options.sts.port));
        let addresses = usable.map_err(|reason| reason.text.to_string())?;
        let _lease = self.descriptors.lease(Use::Dns).await;
        sts.fetch(&host, &addresses).await
    }

    /// The addresses that may be connected to.
    fn usable(&self, host: &str, ips: &[IpAddr], port: u16) -> Result<Vec<SocketAddr>, Reason> {
        let mut usable = Vec::with_capacity(ips.len());
        for &ip in ips {
            let address = SocketAddr::new(ip, port);
            match network::objection(address, &self.options.own_addresses, &self.options.allow_networks) {
                None => usable.push(address),
                Some(Objection::Prohibited) => {}
                Some(Objection::Ourselves) => return Err(loops(format!("{host} leads to our own listener {address}"))),
            }
        }
        if usable.is_empty() { Err(prohibited(host, ips)) } else { Ok(usable) }
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
        Ok(Arc::new(Resolved { site: Arc::new(site), limits: Arc::new(limits), secure: false }))
    }

    /// A name goes the way that the operator's other programs go, hosts file and search list included, unless name servers
    /// are configured.
    async fn find_list_host(&self, host: &str) -> Result<Arc<[IpAddr]>, Reason> {
        if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Arc::from([ip]));
        }
        if !self.options.servers.is_empty() {
            let found = self.addresses.get(&Arc::from(host), self.ask_addresses(host)).await.map_err(temporary)?;
            return Ok(found.ips.as_slice().into());
        }
        let failed = |error: std::io::Error| unanswered(host, "address", &error.to_string());
        let asked = tokio::time::timeout(self.options.timeout * 2, tokio::net::lookup_host((host, 0))).await;
        let found = asked.map_err(std::io::Error::from).and_then(|found| found).map_err(failed)?;
        Ok(found.map(|address| address.ip()).collect())
    }

    async fn ask_site(&self, domain: &Domain) -> Found<Resolved> {
        let Records { records, ttl, secure } = match self.dns.mx(domain.as_str()).await {
            Answer::Records(records) => records,
            // The domain is its own exchanger, so that its addresses alone decide whether DANE applies.
            Answer::NoData => Records { records: Vec::new(), ttl: NEGATIVE, secure: self.options.dnssec },
            Answer::NoName => {
                let text = format!("the domain {domain} does not exist");
                return Found::No(reason(Enhanced::new(5, 1, 2), text));
            }
            Answer::Unknown(error) => return Found::Unknown(unanswered(domain.as_str(), "MX", &error)),
        };
        match exchangers::judge(domain.as_str(), &records, &self.options.own_names) {
            Verdict::Exchangers(exchangers) => Found::Yes(Arc::new(self.resolved(domain, exchangers, secure)), ttl),
            Verdict::NullMx => Found::No(null_mx(domain)),
            Verdict::Unusable => {
                let text = format!("no MX of {domain} names a usable host");
                Found::No(reason(Enhanced::new(5, 4, 4), text))
            }
            Verdict::Ourselves => Found::No(loops(format!("we are the best MX of {domain} ourselves"))),
        }
    }

    fn resolved(&self, domain: &Domain, exchangers: Vec<Exchanger>, secure: bool) -> Resolved {
        let name: Arc<str> = exchangers::site_name(&exchangers).into();
        let rule = self.options.providers.iter().find(|rule| matches(rule, domain, &exchangers));
        let (provider, limits) = match rule {
            Some(rule) => (Arc::clone(&rule.name), Arc::clone(&rule.limits)),
            None => (Arc::clone(&name), Arc::clone(&self.options.default_limits)),
        };
        Resolved { site: Arc::new(Site { name, provider, route: Route::Mx(exchangers) }), limits, secure }
    }

    /// Both families at once. Before a host counts as having no address it is asked for a second time.
    async fn ask_addresses(&self, host: &str) -> Found<Addresses> {
        match self.ask_addresses_once(host).await {
            Found::No(_) => self.ask_addresses_once(host).await,
            found => found,
        }
    }

    async fn ask_addresses_once(&self, host: &str) -> Found<Addresses> {
        let v6 = self.dns.addresses(host, RecordType::AAAA);
        let v4 = self.dns.addresses(host, RecordType::A);
        let (v6, v4) = tokio::join!(v6, v4);
        let (v6, v6_error) = parts(v6);
        let (v4, v4_error) = parts(v4);
        let (ttl, secure) = (v6.ttl.min(v4.ttl), v6.secure && v4.secure);
        let ips = interleave(v6.records, v4.records);
        match v4_error.or(v6_error) {
            _ if !ips.is_empty() => Found::Yes(Arc::new(Addresses { ips, secure }), ttl),
            Some(error) => Found::Unknown(unanswered(host, "address", &error)),
            None => Found::No(reason(Enhanced::new(5, 4, 4), format!("the host {host} has no address"))),
        }
    }

    /// A failed question is an answer here, kept for a while: no earlier one stands in for it.
    async fn ask_tlsa(&self, host: &str, port: u16) -> Found<[Tlsa]> {
        match self.dns.tlsa(host, port).await {
            Answer::Records(Records { records, ttl, secure: true }) => Found::Yes(records.into(), ttl),
            Answer::Records(_) | Answer::NoData | Answer::NoName => Found::Yes(Arc::from([]), NEGATIVE),
            Answer::Unknown(error) => {
                let text = format!("DNS gave no valid answer for TLSA of {host}: {error}");
                Found::No(reason(Enhanced::new(4, 7, 5), text))
            }
        }
    }
}

/// What validation starts from where it is not the root's own keys.
fn trust_anchors(options: &Options) -> Result<Option<Arc<TrustAnchors>>, ResolverError> {
    let Some(path) = options.trust_anchor.as_ref().filter(|_| options.dnssec) else { return Ok(None) };
    match TrustAnchors::from_file(path) {
        Ok(anchors) => Ok(Some(Arc::new(anchors))),
        Err(error) => Err(ResolverError::TrustAnchors { path: path.clone(), error: error.to_string() }),
    }
}

/// The addresses of one family; a family without any is no reason to doubt the other.
fn parts(answer: Answer<IpAddr>) -> (Records<IpAddr>, Option<String>) {
    let none = || Records { records: Vec::new(), ttl: Duration::MAX, secure: true };
    match answer {
        Answer::Records(records) => (records, None),
        Answer::NoData | Answer::NoName => (none(), None),
        Answer::Unknown(error) => (none(), Some(error)),
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
