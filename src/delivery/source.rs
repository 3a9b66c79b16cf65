//! Where our connections come from: pools of local addresses, and which of them are fit for use.
//!
//! The first `[[source]]` that fits a list host and a provider is taken, and its connections serve nobody else. Within it
//! the addresses take turns at random. One that cannot be bound, or that a provider refuses before it has heard of any mail,
//! goes last for a while, the latter with this provider only: it is used again when no other is left, because a refusal may
//! be past. Without a fitting source the system chooses the address. Bounces to list hosts always go that way: their lane is
//! not the world's.
//!
//! An address is bound to port 0, so that the system takes a port per connection rather than per destination: 28,000 per
//! address. `IP_BIND_ADDRESS_NO_PORT` would lift that, and no crate of ours offers it without unsafe code.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use rand::seq::SliceRandom;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use super::classify::{self, Setback};
use super::options::Source;
use super::suspects::Suspects;
use crate::outcome::{Enhanced, Phase, Reason, Scope};

/// Addresses of ours that are remembered as unfit, and pairs of them and providers.
const REMEMBERED_MAX: usize = 10_000;
/// An address that cannot be bound goes last for so long at first, and at most.
const UNBOUND: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// An address that a provider refuses goes last there for so long at first, and at most.
const REFUSED: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(86_400));

/// What is known of our addresses.
#[derive(Debug)]
pub(super) struct Health {
    unbound: Suspects,
    refused: Suspects<(IpAddr, Arc<str>)>,
    /// source: those of the configuration; reason: bind, refused.
    failures: IntCounterVec,
}

impl Health {
    /// # Errors
    /// If a metric of the same name is registered already.
    pub(super) fn new(registry: &Registry) -> Result<Health, prometheus::Error> {
        let failures = Opts::new(
            "posthaste_delivery_source_failures_total",
            "Addresses of ours that could not be bound, or that a provider refused.",
        );
        let failures = IntCounterVec::new(failures, &["source", "reason"])?;
        registry.register(Box::new(failures.clone()))?;
        Ok(Health {
            unbound: Suspects::new(UNBOUND.0, UNBOUND.1, REMEMBERED_MAX),
            refused: Suspects::new(REFUSED.0, REFUSED.1, REMEMBERED_MAX),
            failures,
        })
    }

    /// A socket to dial `to` from an address of the source.
    ///
    /// # Errors
    /// A temporary setback if none of its addresses can be bound; it names the last.
    pub(super) fn bind(&self, source: &Source, provider: &Arc<str>, to: SocketAddr) -> Result<TcpSocket, Setback> {
        let mut failure = None;
        for local in self.in_order(source, provider, to) {
            match bound(local) {
                Ok(socket) => {
                    self.unbound.succeeded(&local);
                    return Ok(socket);
                }
                Err(error) => {
                    self.failed(source, "bind");
                    self.unbound.failed(local, Instant::now());
                    tracing::error!(source = %source.name, address = %local, %error, "an address of ours cannot be bound");
                    failure = Some(format!("{local} of source {} cannot be bound: {error}", source.name));
                }
            }
        }
        Err(unusable(&failure.unwrap_or_else(|| no_family(source, to))))
    }

    /// The addresses that can reach `to`, in a new order each time, those that failed lately last.
    fn in_order(&self, source: &Source, provider: &Arc<str>, to: SocketAddr) -> Vec<IpAddr> {
        let now = Instant::now();
        let mut addresses: Vec<IpAddr> = source.addresses.iter().copied().filter(|ip| is_family(*ip, to)).collect();
        addresses.shuffle(&mut rand::rng());
        addresses.sort_by_key(|ip| {
            (self.unbound.is_suspect(ip, now), self.refused.is_suspect(&(*ip, Arc::clone(provider)), now))
        });
        addresses
    }

    /// Learns from how a session or a transaction ended with this reason, if it says anything of our address.
    pub(super) fn learn(&self, source: Option<&Source>, local: Option<IpAddr>, provider: &Arc<str>, reason: &Reason) {
        if let (Some(source), Some(local)) = (source, local)
            && is_about_us(reason)
        {
            self.failed(source, "refused");
            tracing::warn!(source = %source.name, address = %local, %provider, %reason, "an address of ours is refused");
            self.refused.failed((local, Arc::clone(provider)), Instant::now());
        }
    }

    fn failed(&self, source: &Source, reason: &str) {
        self.failures.with_label_values(&[&*source.name, reason]).inc();
    }
}

/// Whether a host turns our address away: by a reply before it has heard of any mail, or for good by its policy (5.7.x)
/// whatever the recipient. To be asked for patience (4.7.x) is no such thing: going on from another address would be evading.
fn is_about_us(reason: &Reason) -> bool {
    let before_mail = matches!(reason.phase, Phase::Greeting | Phase::Hello) && reason.scope != Scope::Recipient;
    let policy = (reason.status.class, reason.status.subject) == (5, 7) && reason.scope == Scope::Session;
    reason.reply.as_ref().is_some_and(|reply| reply.is_permanent()) && (before_mail || policy)
}

/// What a site without a usable address of ours is told to wait for.
pub(super) fn unusable(text: &str) -> Setback {
    classify::decided(Phase::Connect, Scope::Site, Enhanced::new(4, 3, 5), text, None)
}

fn no_family(source: &Source, to: SocketAddr) -> String {
    let family = if to.is_ipv4() { "IPv4" } else { "IPv6" };
    format!("source {} has no {family} address to reach {} from", source.name, to.ip())
}

fn is_family(local: IpAddr, to: SocketAddr) -> bool {
    local.is_ipv4() == to.is_ipv4()
}

/// A socket of the family of `to` that the system chooses the address of.
pub(super) fn unbound(to: SocketAddr) -> io::Result<TcpSocket> {
    if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn bound(local: IpAddr) -> io::Result<TcpSocket> {
    let local = SocketAddr::new(local, 0);
    let socket = unbound(local)?;
    socket.bind(local)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reply;

    fn source(addresses: &[&str]) -> Source {
        let addresses = addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        Source { name: "a".into(), addresses, hostname: "a.example".into(), list_hosts: vec![], providers: vec![] }
    }

    fn health() -> Health {
        Health::new(&Registry::new()).expect("registered")
    }

    fn reason(phase: Phase, scope: Scope, text: &str) -> Reason {
        let reply: Reply = super::super::reply::parse(format!("{text}\r\n").as_bytes()).expect("a reply");
        let status = reply.enhanced.unwrap_or(Enhanced::new(5, 0, 0));
        Reason { phase, scope, status, reply: Some(reply), text: "".into(), remote: None }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_a_provider_refuses_goes_last_there_for_a_while_and_nowhere_else() {
        let (health, source) = (health(), source(&["127.0.0.2", "127.0.0.3", "::1"]));
        let (p, q): (Arc<str>, Arc<str>) = ("p".into(), "q".into());
        let to: SocketAddr = "127.0.0.1:25".parse().expect("an address");
        let last =
            |provider: &Arc<str>| (0..50).all(|_| health.in_order(&source, provider, to)[1] == source.addresses[0]);
        assert!(!last(&p));
        let refusal = reason(Phase::Greeting, Scope::Site, "554 5.7.1 your address is listed");
        health.learn(Some(&source), Some(source.addresses[0]), &p, &refusal);
        assert!(last(&p) && !last(&q));
        tokio::time::advance(REFUSED.0).await;
        assert!(!last(&p));
    }

    #[test]
    fn only_what_is_said_of_our_address_counts_as_a_refusal() {
        let cases = [
            (Phase::Greeting, Scope::Site, "554 no", true),
            (Phase::Hello, Scope::Site, "550 5.7.1 blocked", true),
            (Phase::Mail, Scope::Session, "550 5.7.606 banned", true),
            (Phase::Greeting, Scope::Site, "421 4.7.0 slow down", false),
            (Phase::Mail, Scope::Session, "421 4.7.28 rate", false),
            (Phase::Rcpt, Scope::Recipient, "550 5.7.1 not you", false),
            (Phase::Dot, Scope::Message, "550 5.7.1 spam", false),
        ];
        for (phase, scope, text, expected) in cases {
            assert_eq!(is_about_us(&reason(phase, scope, text)), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_bound_is_passed_over_and_none_at_all_is_said() {
        let (health, provider) = (health(), Arc::from("p"));
        let to: SocketAddr = "127.0.0.1:25".parse().expect("an address");
        let mixed = source(&["192.0.2.77", "127.0.0.2"]);
        for _ in 0..20 {
            let socket = health.bind(&mixed, &provider, to).expect("bound");
            assert_eq!(socket.local_addr().expect("bound").ip(), mixed.addresses[1]);
        }
        let setback = health.bind(&source(&["192.0.2.77"]), &provider, to).expect_err("refused");
        assert!(setback.reason.text.contains("192.0.2.77 of source a cannot be bound"), "{}", setback.reason);
        let setback = health.bind(&source(&["::1"]), &provider, to).expect_err("refused");
        assert!(setback.reason.text.contains("no IPv4 address to reach 127.0.0.1"), "{}", setback.reason);
        assert!(!setback.permanent);
    }
}
