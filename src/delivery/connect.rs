//! From a site to an open session: which hosts, in which order, at which addresses.
//!
//! Hosts go by preference, equal ones in an order drawn for this attempt; the addresses of one host race with a staggered
//! start (RFC 8305); what failed lately goes last. At most the resolver's `address_limit` addresses are dialled for an
//! attempt, and no dial begins after its time budget. A refusing greeting counts like a refused connection: the next one.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::seq::SliceRandom;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::classify::{self, Fault, Setback};
use super::client::{Manners, OpenError, Peer, Session, StartTls, remote};
use super::metered::Metered;
use super::metrics::Metrics;
use super::options::{Options, Source};
use super::policy::{Demands, Policy};
use super::pool::{Pool, Slot};
use super::source::{self, Health};
use super::suspects::Suspects;
use super::tls::Connectors;
use crate::attempt::{Attempt, Limits, Partner, Route, Site};
use crate::budget::{Lane, Uplink};
use crate::outcome::{Enhanced, Phase, Reason, Scope};
use crate::route::Resolver;

/// Keepalive probes begin after this long without traffic: a peer that vanished without a word is noticed during the ten
/// minutes that the final dot may take.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// How long the slot of an aborted dial stays taken: its SYN may still be answered on the way.
const LOST_RACE: Duration = Duration::from_secs(1);

/// What all courses share.
pub(super) struct Means {
    pub(super) resolver: Resolver,
    pub(super) uplink: Uplink,
    pub(super) pool: Pool,
    pub(super) tls: ArcSwap<Connectors>,
    /// Addresses that could not be reached.
    pub(super) unreachable: Suspects,
    /// Addresses whose STARTTLS is broken: spoken to in clear for a while.
    pub(super) broken_tls: Suspects,
    /// Addresses of ours.
    pub(super) sources: Health,
    pub(super) metrics: Metrics,
}

/// One host that may take the mail.
#[derive(Clone, Debug)]
struct Hop {
    preference: u16,
    host: Arc<str>,
    port: u16,
    lmtp: bool,
    declared: bool,
}

/// One attempt's way along the hosts of a site.
pub(super) struct Course<'a> {
    means: &'a Means,
    options: &'a Options,
    limits: &'a Limits,
    provider: &'a Arc<str>,
    lane: Lane,
    partner: Option<&'a Partner>,
    /// Where to dial from; `None`: the system chooses.
    source: Option<&'a Arc<Source>>,
    demands: &'a Demands,
    hops: VecDeque<Hop>,
    /// Hosts of which every address failed lately.
    postponed: VecDeque<(Hop, VecDeque<SocketAddr>)>,
    /// The host that is being tried, and what is left of its addresses.
    current: Option<(Hop, VecDeque<SocketAddr>)>,
    addresses_left: usize,
    until: Instant,
    temporary: Option<Setback>,
    permanent: Option<Setback>,
    /// Time spent on address lookups.
    pub(super) resolving: Duration,
}

impl<'a> Course<'a> {
    pub(super) fn new(
        means: &'a Means,
        options: &'a Options,
        attempt: &'a Attempt,
        source: Option<&'a Arc<Source>>,
        demands: &'a Demands,
    ) -> Course<'a> {
        let site = &attempt.site;
        let timeouts = &options.timeouts;
        let addresses_left = means.resolver.address_limit();
        let dialling = timeouts.connect.saturating_mul(u32::try_from(addresses_left).unwrap_or(u32::MAX));
        Course {
            means,
            options,
            limits: &attempt.limits,
            provider: &site.provider,
            lane: lane(site),
            partner: partner(site),
            source,
            demands,
            hops: hops(site, options.port),
            postponed: VecDeque::new(),
            current: None,
            addresses_left,
            until: Instant::now() + dialling + timeouts.greeting + timeouts.hello,
            temporary: None,
            permanent: None,
            resolving: Duration::ZERO,
        }
    }

    /// Opens a session with the next host that will have one. The slot is given back if none will; then [`Course::verdict`]
    /// says why.
    pub(super) async fn next(&mut self, slot: Slot) -> Option<(Session, Slot)> {
        let mut first = true;
        while self.addresses_left > 0 && Instant::now() < self.until {
            let (hop, mut addresses) = self.advance().await?;
            if !first && !self.means.pool.paced(&slot, self.limits, self.until).await {
                break;
            }
            first = false;
            let session = self.try_host(&hop, &mut addresses, &slot).await;
            self.current = Some((hop, addresses));
            match session {
                Ok(session) => return Some((session, slot)),
                Err(setback) => self.note(setback),
            }
        }
        None
    }

    /// Notes why the current host will not do; a mail loop rules out everybody who is no better (RFC 5321 section 5.1).
    pub(super) fn note(&mut self, setback: Setback) {
        if setback.reason.status == Enhanced::new(5, 4, 6)
            && let Some((hop, _)) = self.current.take()
        {
            self.hops.retain(|other| other.preference < hop.preference);
            self.postponed.retain(|(other, _)| other.preference < hop.preference);
        }
        self.means.metrics.sessions.with_label_values(&[setback.reason.phase.as_str()]).inc();
        if setback.permanent {
            self.permanent = Some(setback);
        } else {
            self.temporary = Some(setback);
        }
    }

    /// Gives up this host: it cannot take the message, whatever its address.
    pub(super) fn unfit(&mut self, host: &str, setback: Setback) {
        self.current = self.current.take().filter(|(hop, _)| *hop.host != *host);
        self.hops.retain(|hop| *hop.host != *host);
        self.postponed.retain(|(hop, _)| *hop.host != *host);
        self.note(setback);
    }

    /// Whether nobody is left to try.
    pub(super) fn is_exhausted(&self) -> bool {
        let nobody = self.hops.is_empty() && self.postponed.is_empty() && self.current.is_none();
        nobody || self.addresses_left == 0 || Instant::now() >= self.until
    }

    /// Why no host would do: for good only if none of them may do later.
    pub(super) fn verdict(self) -> Setback {
        let untried = || {
            let text = "no next hop could be tried in time";
            classify::decided(Phase::Connect, Scope::Site, Enhanced::new(4, 4, 1), text, None)
        };
        self.temporary.or(self.permanent).unwrap_or_else(untried)
    }

    /// The next host with addresses to try. Hosts whose addresses all failed lately come last.
    async fn advance(&mut self) -> Option<(Hop, VecDeque<SocketAddr>)> {
        if let Some((hop, addresses)) = self.current.take()
            && !addresses.is_empty()
        {
            return Some((hop, addresses));
        }
        while let Some(hop) = self.hops.pop_front() {
            let found = self.lookup(&hop).await;
            let mut addresses = match found {
                Ok(addresses) => addresses,
                Err(reason) => {
                    self.current = Some((hop, VecDeque::new()));
                    let permanent = reason.status.class == 5;
                    self.note(Setback { reason, permanent });
                    continue;
                }
            };
            let now = Instant::now();
            let suspect = |address: &SocketAddr| self.means.unreachable.is_suspect(&address.ip(), now);
            addresses.sort_by_key(suspect);
            let hopeless = addresses.iter().all(suspect);
            let entry = (hop, VecDeque::from(addresses));
            if !hopeless {
                return Some(entry);
            }
            self.postponed.push_back(entry);
        }
        self.current = None;
        self.postponed.pop_front()
    }

    async fn lookup(&mut self, hop: &Hop) -> Result<Vec<SocketAddr>, Reason> {
        let started = Instant::now();
        let resolver = &self.means.resolver;
        let found = match hop.declared {
            true => resolver.declared_addresses(&hop.host, hop.port).await,
            false => resolver.addresses(&hop.host, hop.port).await,
        };
        self.resolving += started.elapsed();
        found.and_then(|addresses| self.reachable(hop, addresses))
    }

    /// Of a source without an IPv6 address nothing leaves for one.
    fn reachable(&self, hop: &Hop, mut addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Reason> {
        let Some(source) = self.source else { return Ok(addresses) };
        addresses.retain(|address| source.reaches(address));
        if addresses.is_empty() {
            let text = format!("source {} has no address of the family of {}", source.name, hop.host);
            return Err(source::unusable(&text).reason);
        }
        Ok(addresses)
    }

    /// A socket to dial this address with.
    fn socket(&self, to: SocketAddr) -> Result<TcpSocket, Setback> {
        match self.source {
            Some(source) => self.means.sources.bind(source, self.provider, to),
            None => source::unbound(to).map_err(|error| source::unusable(&error.to_string())),
        }
    }

    /// Dials the host and opens a session with it, under the policy that holds there.
    async fn try_host(
        &mut self,
        hop: &Hop,
        addresses: &mut VecDeque<SocketAddr>,
        slot: &Slot,
    ) -> Result<Session, Setback> {
        let policy = match self.demands.at(&hop.host, hop.port, &self.means.resolver).await {
            Ok(policy) => policy,
            Err(setback) => {
                addresses.clear();
                self.count_tls("discovery", "refused");
                return Err(setback);
            }
        };
        let (stream, address) = self.race(hop, addresses, slot).await?;
        // A partner that bears our name is ourselves; a list host may run on this very machine.
        let may_be_us = !hop.declared || self.partner.is_some();
        let mut peer = Peer::new(&hop.host, address, hop.lmtp, may_be_us);
        peer.local = stream.local_addr().ok().map(|local| local.ip());
        let local = peer.local;
        let opened = match self.open(stream, peer.clone(), &policy).await {
            Err(OpenError::Tls(setback)) if policy.tolerates_clear() => {
                self.fall_back(peer, setback, slot, &policy).await
            }
            Err(OpenError::Tls(setback)) => return Err(self.insecure(&policy, setback)),
            Err(OpenError::NoTls) => return Err(self.unencrypted(&policy, &peer)),
            Err(OpenError::Setback(setback)) => Err(setback),
            Ok(session) => Ok(session),
        };
        if let Err(setback) = &opened {
            self.means.sources.learn(self.source.map(|source| &**source), local, self.provider, &setback.reason);
            // Next time another host may come first.
            self.means.unreachable.failed(address.ip(), Instant::now());
        }
        opened
    }

    /// Nothing goes in clear after a handshake that the policy wanted to succeed.
    fn insecure(&self, policy: &Policy, setback: Setback) -> Setback {
        self.count_tls(policy.as_str(), "handshake_failed");
        self.demands.insecure(setback)
    }

    fn unencrypted(&self, policy: &Policy, peer: &Peer) -> Setback {
        self.count_tls(policy.as_str(), "not_offered");
        self.demands.unencrypted(policy, &peer.remote)
    }

    fn count_tls(&self, policy: &str, verdict: &str) {
        self.means.metrics.tls.with_label_values(&[policy, verdict]).inc();
    }

    /// An address whose TLS is known to be broken is spoken to in clear, where that may be.
    async fn open(&self, stream: TcpStream, peer: Peer, policy: &Policy) -> Result<Session, OpenError> {
        let mandatory = !policy.tolerates_clear();
        let broken = !mandatory && self.means.broken_tls.is_suspect(&peer.address.ip(), Instant::now());
        let connector = if broken { None } else { self.means.tls.load().connector(policy) };
        let tls = connector.as_ref().map(|connector| StartTls { connector, mandatory });
        let hostname = &self.options.hostname;
        let helo = self.source.map_or(hostname, |source| &source.hostname);
        let credentials = self.partner.and_then(|partner| partner.credentials.as_ref());
        let manners = Manners { helo, hostname, timeouts: &self.options.timeouts, tls, credentials };
        let stream = Metered::new(stream, self.means.uplink.clone(), self.lane);
        let session = Session::open(stream, peer, manners).await?;
        self.means.metrics.sessions.with_label_values(&["open"]).inc();
        Ok(session)
    }

    /// On in clear, on a new connection, where TLS fails (RFC 7435 section 3).
    async fn fall_back(
        &mut self,
        peer: Peer,
        setback: Setback,
        slot: &Slot,
        policy: &Policy,
    ) -> Result<Session, Setback> {
        self.means.broken_tls.failed(peer.address.ip(), Instant::now());
        self.count_tls(policy.as_str(), "fallback");
        tracing::info!(remote = %peer.remote, reason = %setback.reason, "TLS failed; going on in clear");
        if !self.means.pool.paced(slot, self.limits, self.until).await {
            return Err(setback);
        }
        let socket = self.socket(peer.address)?;
        let stream = dial(socket, peer.address, self.options.timeouts.connect, self.options.timeouts.block).await;
        let stream = self
            .judge_dial(peer.address, stream)
            .map_err(|fault| classify::unusable(Phase::Connect, &fault, &peer.remote))?;
        let local = stream.local_addr().ok().map(|local| local.ip());
        match self.open(stream, Peer { local, ..peer }, &Policy::Off).await {
            Ok(session) => Ok(session),
            Err(OpenError::Setback(setback) | OpenError::Tls(setback)) => Err(setback),
            Err(OpenError::NoTls) => Err(setback),
        }
    }

    /// Dials the addresses one after another, the next at the latest `connect_stagger` after the last; the first to be
    /// connected wins. A second connection needs a slot of its own: where the provider's ceiling leaves none, the next dial
    /// waits for the end of the one before.
    async fn race(
        &mut self,
        hop: &Hop,
        addresses: &mut VecDeque<SocketAddr>,
        slot: &Slot,
    ) -> Result<(TcpStream, SocketAddr), Setback> {
        let timeouts = self.options.timeouts;
        let mut racing = JoinSet::new();
        let mut spare = Vec::new();
        let mut last = None;
        loop {
            let may_dial = racing.len() <= spare.len() && self.addresses_left > 0 && Instant::now() < self.until;
            if may_dial && let Some(address) = addresses.pop_front() {
                self.addresses_left -= 1;
                match self.socket(address) {
                    Ok(socket) => drop(racing.spawn(async move {
                        (address, dial(socket, address, timeouts.connect, timeouts.block).await)
                    })),
                    Err(setback) => {
                        last = Some(setback);
                        continue;
                    }
                }
            }
            if racing.is_empty() {
                return Err(last.unwrap_or_else(|| self.untried(hop)));
            }
            let stagger = sleep_until(Instant::now() + self.options.connect_stagger);
            tokio::select! {
                Some(done) = racing.join_next() => {
                    let Ok((address, result)) = done else { continue };
                    match self.judge_dial(address, result) {
                        Ok(stream) => {
                            bury(racing, spare);
                            return Ok((stream, address));
                        }
                        Err(fault) => {
                            let remote = remote(&hop.host, address);
                            last = Some(classify::unusable(Phase::Connect, &fault, &remote));
                        }
                    }
                }
                () = stagger, if !addresses.is_empty() => {
                    spare.extend(self.means.pool.try_another(slot, self.limits));
                }
            }
        }
    }

    fn untried(&self, hop: &Hop) -> Setback {
        let text = format!("no address of {} could be tried in time", hop.host);
        classify::decided(Phase::Connect, Scope::Site, Enhanced::new(4, 4, 1), &text, None)
    }

    /// Remembers how a dial went. A network that this machine does not have costs nothing and says nothing of the host.
    fn judge_dial(&mut self, address: SocketAddr, result: io::Result<TcpStream>) -> Result<TcpStream, Fault> {
        let dials = &self.means.metrics.dials;
        match result {
            Ok(stream) => {
                dials.with_label_values(&["connected"]).inc();
                self.means.unreachable.succeeded(&address.ip());
                Ok(stream)
            }
            Err(error) => {
                dials.with_label_values(&[dial_failure(&error)]).inc();
                if error.kind() == io::ErrorKind::NetworkUnreachable {
                    self.addresses_left += 1;
                } else {
                    self.means.unreachable.failed(address.ip(), Instant::now());
                }
                Err(if error.kind() == io::ErrorKind::TimedOut { Fault::Timeout } else { Fault::Io(error) })
            }
        }
    }
}

fn dial_failure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => "unreachable",
        _ => "error",
    }
}

/// Ends the dials that lost; their slots stay taken for as long as one of them may yet be answered.
fn bury<T: 'static>(racing: JoinSet<T>, spare: Vec<Slot>) {
    if spare.is_empty() {
        return;
    }
    drop(racing);
    tokio::spawn(async move {
        sleep(LOST_RACE).await;
        drop(spare);
    });
}

fn partner(site: &Site) -> Option<&Partner> {
    match &site.route {
        Route::Partner(partner) => Some(partner),
        Route::Mx(_) | Route::ListHost(_) => None,
    }
}

/// The lane of the uplink that leads to a site.
fn lane(site: &Site) -> Lane {
    match &site.route {
        Route::Mx(_) => Lane::Delivery,
        Route::ListHost(_) => Lane::Bounce,
        Route::Partner(partner) if partner.other_line => Lane::OtherLine,
        Route::Partner(_) => Lane::Delivery,
    }
}

/// The hosts of a site in the order of this attempt.
fn hops(site: &Site, port: u16) -> VecDeque<Hop> {
    match &site.route {
        Route::ListHost(addresses) => {
            let hop = |(address, preference): (&crate::attempt::BounceAddress, u16)| Hop {
                preference,
                host: Arc::clone(&address.host),
                port: address.port,
                lmtp: address.lmtp,
                declared: true,
            };
            addresses.iter().zip(0..).map(hop).collect()
        }
        Route::Partner(partner) => {
            let hop = |((host, port), preference): (&(Arc<str>, u16), u16)| Hop {
                preference,
                host: Arc::clone(host),
                port: *port,
                lmtp: false,
                declared: true,
            };
            partner.hosts.iter().zip(0..).map(hop).collect()
        }
        Route::Mx(exchangers) => {
            let mut exchangers: Vec<_> = exchangers.iter().collect();
            exchangers.shuffle(&mut rand::rng());
            exchangers.sort_by_key(|exchanger| exchanger.preference);
            let hop = |exchanger: &crate::attempt::Exchanger| Hop {
                preference: exchanger.preference,
                host: Arc::clone(&exchanger.host),
                port,
                lmtp: false,
                declared: false,
            };
            exchangers.into_iter().map(hop).collect()
        }
    }
}

/// Opens one TCP connection. No delay: an envelope or a final dot must not wait for the peer's delayed acknowledgement.
async fn dial(
    socket: TcpSocket,
    address: SocketAddr,
    within: Duration,
    unacknowledged: Duration,
) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    let stream = timeout(within, socket.connect(address)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let options = SockRef::from(&stream);
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4))?;
    options.set_tcp_user_timeout(Some(unacknowledged))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::attempt::Exchanger;

    #[test]
    fn equal_preferences_are_drawn_anew_for_each_attempt_and_unequal_ones_are_not() {
        let exchanger = |preference, host: &str| Exchanger { preference, host: host.into() };
        let route = Route::Mx(vec![exchanger(10, "a"), exchanger(10, "b"), exchanger(20, "c")]);
        let site = Site { name: "s".into(), provider: "s".into(), route };
        let orders: HashSet<Vec<_>> =
            (0..200).map(|_| hops(&site, 25).into_iter().map(|hop| hop.host.to_string()).collect()).collect();
        let expected = [["a", "b", "c"], ["b", "a", "c"]].map(|order| order.map(str::to_owned).to_vec());
        assert_eq!(orders, HashSet::from(expected));
    }
}
