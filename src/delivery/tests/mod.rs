//! Delivery against scripted peers on loopback: rows T1 to T20 of the fault catalogue, and the promises of `pool`.

mod peer;
mod policies;
mod pooling;
mod postfix;
mod sessions;
mod sources;
mod transactions;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry;

use self::peer::Peer;
use super::testing::attempt;
use super::{Delivery, Options, Outgoing, Timeouts, TlsMode};
use crate::attempt::{Attempt, AttemptReport, BounceAddress, Exchanger, Limits, Route, Site};
use crate::budget::{Descriptors, Uplink};
use crate::outcome::{Outcome, Reason};
use crate::route::testing::{FakeDns, resolver};

const CONTENT: &[u8] = b"Subject: x\r\n\r\n..stuffed\r\n.. \r\n\xc3\xbc\r\n";

fn outgoing() -> Outgoing {
    Outgoing { prefix: Bytes::new(), content: Bytes::from_static(CONTENT) }
}

/// Delivery with a name server of its own.
struct House {
    dns: FakeDns,
    delivery: Delivery,
    registry: Registry,
}

fn options(port: u16) -> Options {
    let short = Duration::from_secs(5);
    Options {
        hostname: "relay.example.net".into(),
        port,
        connect_stagger: Duration::from_millis(50),
        tls: TlsMode::Opportunistic,
        tls_rules: Vec::new(),
        list_hosts: HashMap::new(),
        roots: None,
        timeouts: Timeouts {
            connect: short,
            greeting: short,
            hello: short,
            mail: short,
            rcpt: short,
            data: short,
            block: short,
            dot: short,
            quit: Duration::from_millis(500),
        },
        connections: 100,
        pass_eight_bit: true,
        sources: Vec::new(),
    }
}

async fn house(options: Options) -> House {
    let (dns, registry) = (FakeDns::start().await, Registry::new());
    let descriptors = Descriptors::with_limit(512).expect("enough");
    let uplink = Uplink::new(None, &registry).expect("uplink");
    let delivery = Delivery::new(options, resolver(dns.options()), descriptors, uplink, &registry).expect("delivery");
    House { dns, delivery, registry }
}

/// A house for one peer, which is `mx.example.org`.
async fn house_of(peer: &Peer) -> House {
    house_with(peer, options(peer.address.port())).await
}

async fn house_with(peer: &Peer, options: Options) -> House {
    let house = house(options).await;
    house.dns.host("mx.example.org", &[&peer.address.ip().to_string()]);
    house
}

impl House {
    async fn attempt(&self, attempt: Attempt) -> AttemptReport {
        self.delivery.attempt(attempt, outgoing()).await
    }

    /// Sends to recipients at the one peer.
    async fn send(&self, recipients: &[&str]) -> AttemptReport {
        self.attempt(attempt(recipients)).await
    }

    fn metric(&self, name: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        let named =
            |m: &&prometheus::proto::Metric| label.is_empty() || m.get_label().iter().any(|pair| pair.value() == label);
        metrics.iter().find(named).map_or(0.0, |m| m.get_counter().get_value())
    }
}

fn site(provider: &str, exchangers: &[(u16, &str)]) -> Arc<Site> {
    let exchanger = |&(preference, host): &(u16, &str)| Exchanger { preference, host: host.into() };
    let name: Vec<_> = exchangers.iter().map(|(preference, host)| format!("{host}/{preference}")).collect();
    let route = Route::Mx(exchangers.iter().map(exchanger).collect());
    Arc::new(Site { name: name.join(",").into(), provider: provider.into(), route })
}

/// An attempt for one recipient at these exchangers.
fn to_site(provider: &str, exchangers: &[(u16, &str)]) -> Attempt {
    Attempt { site: site(provider, exchangers), ..attempt(&["a@example.org"]) }
}

/// An attempt for these recipients at a list host's bounce address.
fn to_list_host(peer: &Peer, lmtp: bool, recipients: &[&str]) -> Attempt {
    let address = BounceAddress { lmtp, host: "127.0.0.1".into(), port: peer.address.port() };
    let site = Site { name: "lists".into(), provider: "list-host:lists".into(), route: Route::ListHost(vec![address]) };
    Attempt { site: Arc::new(site), ..attempt(recipients) }
}

fn with_limits(mut attempt: Attempt, change: impl FnOnce(&mut Limits)) -> Attempt {
    change(Arc::make_mut(&mut attempt.limits));
    attempt
}

/// The outcomes in words: kind and status.
fn words(report: &AttemptReport) -> Vec<String> {
    let word = |kind: &str, reason: &Reason| format!("{kind} {} {:?}", reason.status, reason.phase);
    report
        .outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Relayed { .. } => "relayed".to_owned(),
            Outcome::NotTried => "not tried".to_owned(),
            Outcome::Deferred(reason) => word("deferred", reason),
            Outcome::Indeterminate(reason) => word("indeterminate", reason),
            Outcome::Failed(reason) => word("failed", reason),
        })
        .collect()
}
