//! From a site to a session: hosts, greetings, TLS.

use std::sync::Arc;
use std::time::Duration;

use super::super::testing::attempt;
use super::peer::{CLOSE, HANG, Peer, SHAKE, acceptor, polite};
use super::*;

const TWO: [(u16, &str); 2] = [(10, "one.example.org"), (20, "two.example.org")];

/// A site of two hosts: the first is odd, the second polite. What became of the recipient, and whether the second had it.
async fn two_hosts(odd: impl Fn(&str) -> Option<&'static str> + Send + Sync + 'static) -> (String, bool) {
    let answer = move |_: usize, line: &str| odd(line).unwrap_or_else(|| polite(line)).to_owned();
    let one = Peer::start("127.0.0.1", 0, None, answer).await;
    let two = Peer::start("127.0.0.2", one.address.port(), None, |_, line| polite(line).to_owned()).await;
    let mut options = options(one.address.port());
    options.timeouts.greeting = Duration::from_millis(200);
    options.timeouts.hello = Duration::from_millis(200);
    let house = house(options).await;
    house.dns.host("one.example.org", &["127.0.0.1"]);
    house.dns.host("two.example.org", &["127.0.0.2"]);
    let report = house.attempt(to_site("p", &TWO)).await;
    (words(&report).remove(0), two.seen.made() == 1)
}

#[tokio::test]
async fn a_host_that_does_not_welcome_us_gives_way_to_the_next() {
    let long: &'static str = Box::leak(format!("220 {}\r\n", "x".repeat(70_000)).into_boxed_str());
    for greeting in [
        "554 5.7.1 blocked\r\n",
        "421 4.3.2 too busy\r\n",
        "521 no mail here\r\n",
        "HTTP/1.1 400 Bad Request\r\n",
        CLOSE,
        HANG,
        long,
    ] {
        let outcome = two_hosts(move |line| line.is_empty().then_some(greeting)).await;
        assert_eq!(outcome, ("relayed".to_owned(), true), "{greeting:?}");
    }
    for hello in ["550 no\r\n", "421 no\r\n", CLOSE, HANG, "250-\0\r\nx\r\n"] {
        let outcome = two_hosts(move |line| line.contains("LO ").then_some(hello)).await;
        assert_eq!(outcome, ("relayed".to_owned(), true), "{hello:?}");
    }
}

#[tokio::test]
async fn odd_but_lawful_greetings_will_do() {
    for greeting in ["220\r\n", "220-wait\r\n220-for\r\n220 it\r\n", "220 bare line feed\n"] {
        let outcome = two_hosts(move |line| line.is_empty().then_some(greeting)).await;
        assert_eq!(outcome, ("relayed".to_owned(), false), "{greeting:?}");
    }
}

#[tokio::test]
async fn a_host_that_does_not_know_ehlo_is_greeted_with_helo() {
    let outcome = two_hosts(|line| line.starts_with("EHLO").then_some("502 5.5.1 what\r\n")).await;
    assert_eq!(outcome, ("relayed".to_owned(), false));
}

#[tokio::test]
async fn what_no_host_of_a_site_will_have_is_deferred_with_the_last_reason() {
    for (greeting, expected) in [
        ("554 5.7.1 blocked\r\n", "deferred 5.7.1 Greeting"),
        ("521 5.3.2 no mail here\r\n", "failed 5.3.2 Greeting"),
        (CLOSE, "deferred 4.4.2 Greeting"),
    ] {
        let peer = Peer::start("127.0.0.1", 0, None, move |_, line| {
            if line.is_empty() { greeting } else { polite(line) }.to_owned()
        })
        .await;
        let report = house_of(&peer).await.send(&["a@example.org", "b@example.org"]).await;
        assert_eq!(words(&report), [expected; 2]);
        assert!(report.trouble.is_some() && !report.transaction);
    }
}

#[tokio::test]
async fn a_refused_connection_goes_on_to_the_next_host_and_is_remembered() {
    let two = Peer::start("127.0.0.2", 0, None, |_, line| polite(line).to_owned()).await;
    let house = house(options(two.address.port())).await;
    house.dns.host("one.example.org", &["127.0.0.1"]);
    house.dns.host("two.example.org", &["127.0.0.2"]);
    for _ in 0..2 {
        let attempt = with_limits(to_site("p", &TWO), |limits| limits.messages_per_connection = 1);
        assert_eq!(words(&house.attempt(attempt).await), ["relayed"]);
    }
    assert_eq!(house.metric("posthaste_delivery_dials_total", "refused"), 1.0, "tried last the second time");
    let report = house.attempt(to_site("p", &TWO[..1])).await;
    assert_eq!(words(&report), ["deferred 4.4.1 Connect"], "tried all the same where there is no other");
    let text = report.trouble.expect("trouble").to_string();
    assert!(text.starts_with("host one.example.org[127.0.0.1]:") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_overtaken_by_the_next() {
    // A full backlog does not answer: the second connection to a listener that never accepts hangs.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let stuck = socket.listen(0).expect("a listener");
    let port = stuck.local_addr().expect("an address").port();
    let _fill = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let good = Peer::start("127.0.0.2", port, None, |_, line| polite(line).to_owned()).await;
    let house = house(options(port)).await;
    house.dns.host("mx.example.org", &["127.0.0.1", "127.0.0.2"]);
    let started = std::time::Instant::now();
    let report = house.send(&["a@example.org"]).await;
    assert_eq!((words(&report), good.seen.made()), (vec!["relayed".to_owned()], 1));
    assert!(started.elapsed() < Duration::from_secs(4), "not after the whole connect timeout");
}

#[tokio::test]
async fn ipv6_without_a_route_costs_nothing() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await;
    let house = house(options(peer.address.port())).await;
    house.dns.host("mx.example.org", &["2001:db8::1", "2001:db8::2", "127.0.0.1"]);
    assert_eq!(words(&house.send(&["a@example.org"]).await), ["relayed"]);
}

#[tokio::test]
async fn a_host_without_address_is_final_only_if_no_other_may_come_back() {
    let house = house(options(1)).await;
    assert_eq!(words(&house.attempt(to_site("p", &TWO)).await), ["failed 5.4.4 Resolve"]);
    house.dns.host("two.example.org", &["127.0.0.2"]);
    let report = house.attempt(to_site("p", &[(10, "three.example.org"), (20, "two.example.org")])).await;
    assert_eq!(words(&report), ["failed 5.4.4 Resolve"], "what was not there a moment ago is not asked for again");
    house.dns.host("four.example.org", &["127.0.0.4"]);
    let report = house.attempt(to_site("p", &[(10, "three.example.org"), (20, "four.example.org")])).await;
    assert_eq!(words(&report), ["deferred 4.4.1 Connect"]);
}

#[tokio::test]
async fn a_host_of_our_own_name_is_a_loop_and_ends_the_list() {
    let us = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "" => "220 Relay.Example.NET ESMTP\r\n".to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    let after = Peer::start("127.0.0.2", us.address.port(), None, |_, line| polite(line).to_owned()).await;
    let house = house(options(us.address.port())).await;
    house.dns.host("one.example.org", &["127.0.0.1"]);
    house.dns.host("two.example.org", &["127.0.0.2"]);
    let report = house.attempt(to_site("p", &TWO)).await;
    assert_eq!((words(&report), after.seen.made()), (vec!["failed 5.4.6 Greeting".to_owned()], 0));
    let report = house.attempt(to_list_host(&us, false, &["a@example.org"])).await;
    assert_eq!(words(&report), ["relayed"], "a list host may bear our machine's name");
}

#[tokio::test]
async fn a_message_too_big_for_one_host_goes_to_the_next_and_fails_if_there_is_none() {
    let small = |line: &str| line.starts_with("EHLO").then_some("250-mx\r\n250 SIZE 10\r\n");
    assert_eq!(two_hosts(small).await, ("relayed".to_owned(), true));
    let peer = Peer::start("127.0.0.1", 0, None, move |_, line| small(line).unwrap_or_else(|| polite(line)).to_owned());
    let peer = peer.await;
    let report = house_of(&peer).await.send(&["a@example.org"]).await;
    assert_eq!(words(&report), ["failed 5.3.4 Mail"]);
    assert!(!report.transaction && report.trouble.is_none());
}

#[tokio::test]
async fn eight_bit_text_goes_to_a_host_without_8bitmime_only_if_it_may() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        l if l.starts_with("EHLO") => "250 mx\r\n".to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    for (pass, expected) in [(false, "failed 5.6.3 Mail"), (true, "relayed")] {
        let mut options = options(peer.address.port());
        options.pass_eight_bit = pass;
        let mut attempt = attempt(&["a@example.org"]);
        Arc::make_mut(&mut attempt.envelope).eight_bit = true;
        assert_eq!(words(&house_with(&peer, options).await.attempt(attempt).await), [expected]);
    }
}

fn with_tls(line: &str) -> String {
    match line {
        l if l.starts_with("EHLO") => "250-mx\r\n250-PIPELINING\r\n250 STARTTLS\r\n".to_owned(),
        "STARTTLS" => format!("{SHAKE}220 2.0.0 go\r\n"),
        _ => polite(line).to_owned(),
    }
}

#[tokio::test]
async fn tls_is_used_where_it_is_offered_whatever_the_certificate() {
    let peer = Peer::start("127.0.0.1", 0, Some(acceptor()), |_, line| with_tls(line)).await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        let report = house.attempt(attempt(&["a@example.org"])).await;
        assert_eq!(words(&report), ["relayed"]);
    }
    assert!(peer.seen.message(0).ends_with(CONTENT));
    assert_eq!((peer.seen.count("EHLO"), peer.seen.made()), (2, 1), "said again after the handshake");
    let judged: f64 = ["unknown_issuer", "invalid", "unchecked", "wrong_name"]
        .iter()
        .map(|verdict| house.metric("posthaste_delivery_tls_total", verdict))
        .sum();
    assert_eq!(judged, 1.0);
}

#[tokio::test]
async fn a_failed_handshake_falls_back_to_clear_text_on_a_new_connection_and_is_remembered() {
    // No acceptor: the peer closes where the handshake should be.
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| with_tls(line)).await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        let attempt = with_limits(attempt(&["a@example.org"]), |limits| limits.messages_per_connection = 1);
        assert_eq!(words(&house.attempt(attempt).await), ["relayed"]);
    }
    assert_eq!((peer.seen.count("STARTTLS"), peer.seen.made()), (1, 3));
    assert_eq!(house.metric("posthaste_delivery_tls_total", "fallback"), 1.0);
}

#[tokio::test]
async fn a_host_that_takes_its_offer_back_is_spoken_to_in_clear() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "STARTTLS" => "454 4.7.0 not now\r\n".to_owned(),
        _ => with_tls(line),
    })
    .await;
    assert_eq!(words(&house_of(&peer).await.send(&["a@example.org"]).await), ["relayed"]);
    assert_eq!(peer.seen.made(), 1);
}

#[tokio::test]
async fn octets_slipped_in_before_the_handshake_end_the_connection() {
    let peer = Peer::start("127.0.0.1", 0, Some(acceptor()), |_, line| match line {
        "STARTTLS" => format!("{SHAKE}220 2.0.0 go\r\n250 2.0.0 injected\r\n"),
        _ => with_tls(line),
    })
    .await;
    let report = house_of(&peer).await.send(&["a@example.org"]).await;
    assert_eq!((words(&report), peer.seen.made()), (vec!["deferred 4.5.0 Tls".to_owned()], 1));
}

#[tokio::test]
async fn tls_may_be_switched_off() {
    let peer = Peer::start("127.0.0.1", 0, Some(acceptor()), |_, line| with_tls(line)).await;
    let mut options = options(peer.address.port());
    options.tls = TlsMode::Off;
    assert_eq!(words(&house_with(&peer, options).await.send(&["a@example.org"]).await), ["relayed"]);
    assert_eq!(peer.seen.count("STARTTLS"), 0);
}
