//! Connections: reuse, ceilings, goodbyes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::super::testing::attempt;
use super::peer::{CLOSE, Peer, polite, until};
use super::*;
use crate::attempt::Rate;

async fn polite_peer() -> Peer {
    Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await
}

#[tokio::test]
async fn a_connection_is_used_again_for_its_site_and_no_longer_than_allowed() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    for _ in 0..7 {
        let attempt = with_limits(attempt(&["a@example.org"]), |limits| limits.messages_per_connection = 3);
        assert_eq!(words(&house.attempt(attempt).await), ["relayed"]);
    }
    assert_eq!(peer.seen.made(), 3);
    until(|| house.delivery.open_connections() == 1).await;
    assert_eq!(peer.seen.count("QUIT"), 2);
    let report = house.send(&["a@example.org"]).await;
    assert_eq!(report.delays.connect, Duration::ZERO);
}

#[tokio::test]
async fn another_site_does_not_get_the_connection_of_the_first() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    house.dns.host("other.example.org", &["127.0.0.1"]);
    house.attempt(to_site("p", &[(10, "mx.example.org")])).await;
    house.attempt(to_site("p", &[(10, "other.example.org")])).await;
    assert_eq!((peer.seen.made(), house.delivery.open_connections()), (2, 2));
}

#[tokio::test]
async fn a_connection_that_died_while_idle_costs_nothing() {
    let messages = AtomicUsize::new(0);
    let peer = Peer::start("127.0.0.1", 0, None, move |number, line| match line {
        // The first connection dies at its second MAIL, by a reset of the peer or by 421.
        l if l.starts_with("MAIL") && number <= 2 && messages.fetch_add(1, Ordering::SeqCst) % 2 == 1 => {
            if number == 1 { CLOSE } else { "421 4.4.2 idle for too long\r\n" }.to_owned()
        }
        _ => polite(line).to_owned(),
    })
    .await;
    let house = house_of(&peer).await;
    for _ in 0..4 {
        let report = house.send(&["a@example.org"]).await;
        assert_eq!((words(&report), report.trouble), (vec!["relayed".to_owned()], None));
    }
    assert!(house.metric("posthaste_delivery_stale_connections_total", "") >= 1.0);
}

#[tokio::test]
async fn an_idle_connection_ends_in_its_time() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    let attempt = with_limits(attempt(&["a@example.org"]), |limits| limits.idle_timeout = Duration::from_millis(1));
    house.attempt(attempt).await;
    until(|| house.delivery.open_connections() == 0 && peer.seen.count("QUIT") == 1).await;
}

#[tokio::test]
async fn a_provider_never_sees_more_connections_than_its_ceiling() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    house.dns.host("other.example.org", &["127.0.0.1"]);
    house.dns.host("third.example.org", &["127.0.0.1"]);
    let sites = ["mx.example.org", "other.example.org", "third.example.org"];
    let attempts = (0..120).map(|i| {
        let attempt = with_limits(to_site("p", &[(10, sites[i % 3])]), |limits| {
            limits.connections = 4;
            limits.messages_per_connection = 5;
        });
        let delivery = house.delivery.clone();
        tokio::spawn(async move { delivery.attempt(attempt, outgoing()).await })
    });
    for attempt in attempts.collect::<Vec<_>>() {
        assert_eq!(words(&attempt.await.expect("no panic")), ["relayed"]);
    }
    let most = peer.seen.most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most}");
    assert_eq!(peer.seen.messages.lock().expect("messages").len(), 120);
}

#[tokio::test]
async fn a_race_of_addresses_stays_within_the_ceiling() {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let stuck = socket.listen(0).expect("a listener");
    let port = stuck.local_addr().expect("an address").port();
    let _fill = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let _good = Peer::start("127.0.0.2", port, None, |_, line| polite(line).to_owned()).await;
    let mut options = options(port);
    options.timeouts.connect = Duration::from_millis(400);
    options.connect_stagger = Duration::from_millis(20);
    let house = house(options).await;
    house.dns.host("mx.example.org", &["127.0.0.1", "127.0.0.2"]);
    let attempt = with_limits(attempt(&["a@example.org"]), |limits| limits.connections = 1);
    let report = house.attempt(attempt).await;
    assert_eq!(words(&report), ["relayed"]);
    assert!(report.delays.connect >= Duration::from_millis(400), "one after the other: {:?}", report.delays);
}

#[tokio::test]
async fn the_bound_of_all_connections_makes_idle_ones_give_way() {
    let peer = polite_peer().await;
    let mut options = options(peer.address.port());
    options.connections = 2;
    let house = house_with(&peer, options).await;
    for i in 0..6 {
        let host = format!("mx{i}.example.org");
        house.dns.host(&host, &["127.0.0.1"]);
        assert_eq!(words(&house.attempt(to_site(&host, &[(10, &host)])).await), ["relayed"]);
        assert!(house.delivery.open_connections() <= 2);
    }
    assert!(peer.seen.most.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn new_connections_keep_the_providers_pace() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    let started = Instant::now();
    for _ in 0..4 {
        let attempt = with_limits(attempt(&["a@example.org"]), |limits| {
            limits.messages_per_connection = 1;
            limits.connection_rate = Some(Rate { count: 2, period: Duration::from_millis(200) });
        });
        assert_eq!(words(&house.attempt(attempt).await), ["relayed"]);
    }
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[tokio::test]
async fn closing_says_goodbye_and_begins_nothing_more() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    house.send(&["a@example.org"]).await;
    house.delivery.close(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!((house.delivery.open_connections(), peer.seen.count("QUIT")), (0, 1));
    assert_eq!(words(&house.send(&["a@example.org"]).await), ["not tried"]);
}

#[tokio::test]
async fn a_peer_that_ignores_quit_delays_nobody_for_long() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "QUIT" => super::peer::HANG.to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        let attempt = with_limits(attempt(&["a@example.org"]), |limits| {
            limits.messages_per_connection = 1;
            limits.connections = 1;
        });
        assert_eq!(words(&house.attempt(attempt).await), ["relayed"]);
    }
    assert_eq!(peer.seen.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reload_changes_the_bound_of_connections() {
    let peer = polite_peer().await;
    let house = house_of(&peer).await;
    for (bound, sites) in [(1, 3), (3, 3)] {
        house.delivery.reload(Options { connections: bound, ..options(peer.address.port()) });
        for i in 0..sites {
            let host = format!("mx{i}.example.org");
            house.dns.host(&host, &["127.0.0.1"]);
            assert_eq!(words(&house.attempt(to_site(&host, &[(10, &host)])).await), ["relayed"]);
        }
        assert_eq!(house.delivery.open_connections(), bound);
    }
}
