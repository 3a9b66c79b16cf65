//! Where connections come from.

use std::net::IpAddr;

use super::peer::polite;
use super::*;
use crate::delivery::Source;

fn source(name: &str, addresses: &[&str]) -> Source {
    Source {
        name: name.into(),
        addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
        hostname: format!("{name}.example.net").into(),
        list_hosts: Vec::new(),
        providers: Vec::new(),
    }
}

async fn polite_peer() -> Peer {
    Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await
}

async fn house_from(peer: &Peer, sources: Vec<Source>) -> House {
    let sources = sources.into_iter().map(Arc::new).collect();
    house_with(peer, Options { sources, ..options(peer.address.port()) }).await
}

/// An attempt of this list host at a provider.
fn from_list_host(list_host: &str, provider: &str) -> Attempt {
    let mut attempt = to_site(provider, &[(10, "mx.example.org")]);
    Arc::make_mut(&mut attempt.envelope).list_host = list_host.into();
    attempt
}

fn one_message_per_connection(attempt: Attempt) -> Attempt {
    with_limits(attempt, |limits| limits.messages_per_connection = 1)
}

fn relayed(report: &AttemptReport) -> bool {
    matches!(report.outcomes[..], [Outcome::Relayed { .. }])
}

/// The addresses that the peer was dialled from, without repetition, in order.
fn clients(peer: &Peer) -> Vec<String> {
    let mut clients: Vec<IpAddr> = peer.seen.clients.lock().expect("clients").clone();
    clients.sort();
    clients.dedup();
    clients.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn mail_leaves_from_the_addresses_of_its_source_under_its_name() {
    let peer = polite_peer().await;
    let house = house_from(&peer, vec![source("pool", &["127.0.0.21", "127.0.0.22", "127.0.0.23"])]).await;
    for _ in 0..40 {
        let attempt = one_message_per_connection(from_list_host("lists", "p"));
        assert!(relayed(&house.attempt(attempt).await));
    }
    assert_eq!(clients(&peer), ["127.0.0.21", "127.0.0.22", "127.0.0.23"]);
    assert_eq!(peer.seen.count("EHLO pool.example.net"), 40);
}

#[tokio::test]
async fn the_first_source_that_fits_list_host_and_provider_is_taken() {
    let peer = polite_peer().await;
    let news = Source { list_hosts: vec!["news".into()], ..source("news", &["127.0.0.21"]) };
    let big = Source { providers: vec!["big".into()], ..source("big", &["127.0.0.22"]) };
    let house = house_from(&peer, vec![news, big, source("rest", &["127.0.0.23"])]).await;
    for (list_host, provider, address) in
        [("news", "big", "127.0.0.21"), ("lists", "big", "127.0.0.22"), ("lists", "small", "127.0.0.23")]
    {
        peer.seen.clients.lock().expect("clients").clear();
        assert!(relayed(&house.attempt(from_list_host(list_host, provider)).await));
        assert_eq!(clients(&peer), [address], "{list_host} to {provider}");
    }
}

#[tokio::test]
async fn a_connection_of_another_source_is_never_used_again() {
    let peer = polite_peer().await;
    let news = Source { list_hosts: vec!["news".into()], ..source("news", &["127.0.0.21"]) };
    let house = house_from(&peer, vec![news.clone(), source("rest", &["127.0.0.23"])]).await;
    for list_host in ["news", "lists", "news", "lists"] {
        assert!(relayed(&house.attempt(from_list_host(list_host, "p")).await));
    }
    assert_eq!(peer.seen.made(), 2, "each source has a connection that it uses twice");
    let moved = Source { addresses: vec!["127.0.0.24".parse().expect("an address")], ..news };
    house.delivery.reload(Options { sources: vec![Arc::new(moved)], ..options(peer.address.port()) });
    assert!(relayed(&house.attempt(from_list_host("news", "p")).await));
    assert_eq!(clients(&peer), ["127.0.0.21", "127.0.0.23", "127.0.0.24"]);
}

#[tokio::test]
async fn at_the_ceiling_a_connection_of_another_source_makes_room() {
    let peer = polite_peer().await;
    let news = Source { list_hosts: vec!["news".into()], ..source("news", &["127.0.0.21"]) };
    let house = house_from(&peer, vec![news, source("rest", &["127.0.0.23"])]).await;
    for list_host in ["news", "lists", "news"] {
        let attempt = with_limits(from_list_host(list_host, "p"), |limits| limits.connections = 1);
        assert!(relayed(&house.attempt(attempt).await));
    }
    assert_eq!(peer.seen.made(), 3);
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_is_counted_and_the_others_carry_on() {
    let peer = polite_peer().await;
    let house = house_from(&peer, vec![source("pool", &["192.0.2.77", "127.0.0.22"])]).await;
    for _ in 0..20 {
        let attempt = one_message_per_connection(from_list_host("lists", "p"));
        assert!(relayed(&house.attempt(attempt).await));
    }
    assert_eq!(clients(&peer), ["127.0.0.22"]);
    assert_eq!(house.metric("posthaste_delivery_source_failures_total", "bind"), 1.0, "then it rests");
}

#[tokio::test]
async fn a_source_without_a_usable_address_defers_and_says_so() {
    let peer = polite_peer().await;
    let cases =
        [("192.0.2.77", "192.0.2.77 of source pool cannot be bound"), ("::1", "no address of the family of mx")];
    for (address, expected) in cases {
        let house = house_from(&peer, vec![source("pool", &[address])]).await;
        let report = house.attempt(from_list_host("lists", "p")).await;
        let Outcome::Deferred(reason) = &report.outcomes[0] else { panic!("{:?}", report.outcomes) };
        assert!(reason.text.contains(expected), "{reason}");
        assert_eq!(reason.status.to_string(), "4.3.5");
    }
    assert_eq!(peer.seen.made(), 0);
}

#[tokio::test]
async fn an_address_that_a_provider_refuses_rests_and_another_is_used() {
    let listed = |number: usize, line: &str| match (number, line) {
        (1, "") => "554 5.7.1 your address is listed\r\n".to_owned(),
        _ => polite(line).to_owned(),
    };
    let peer = Peer::start("127.0.0.1", 0, None, listed).await;
    let house = house_from(&peer, vec![source("pool", &["127.0.0.21", "127.0.0.22"])]).await;
    assert!(!relayed(&house.attempt(from_list_host("lists", "p")).await));
    let refused = clients(&peer);
    peer.seen.clients.lock().expect("clients").clear();
    for _ in 0..20 {
        let attempt = one_message_per_connection(from_list_host("lists", "p"));
        assert!(relayed(&house.attempt(attempt).await));
    }
    let used = clients(&peer);
    assert!(used.len() == 1 && used != refused, "{used:?} after {refused:?}");
    assert_eq!(house.metric("posthaste_delivery_source_failures_total", "refused"), 1.0);
}

#[tokio::test]
async fn bounces_never_leave_from_a_source() {
    let peer = polite_peer().await;
    let house = house_from(&peer, vec![source("pool", &["127.0.0.21"])]).await;
    assert!(relayed(&house.attempt(to_list_host(&peer, false, &["a@example.org"])).await));
    assert_eq!(clients(&peer), ["127.0.0.1"]);
    assert_eq!(peer.seen.count("EHLO relay.example.net"), 1);
}
