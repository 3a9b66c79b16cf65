//! Dialogues over real sockets on loopback, with a store in memory.

pub(super) mod support;
mod tls_and_auth;

use std::sync::atomic::Ordering;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use support::{Client, Memory, Mood, Relay, list_host, options};

use super::*;
use crate::mail::{Destination, Domain};
use crate::spool::NewBody;

const MESSAGE: &str = "From: l@lists.example\r\nDate: today\r\nMessage-ID: <1@lists.example>\r\n\r\nhello\r\n";

#[tokio::test]
async fn mailmans_dialogue_is_taken_word_for_word() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("ehlo [127.0.0.1]", "250-relay.example|250-PIPELINING|250-SIZE 1048576|").await;
    client.expect("mail FROM:<l-bounces+u=d@lists.example> size=33200", "250 2.1.0").await;
    client.expect("rcpt TO:<user@domain.example>", "250 2.1.5").await;
    client.expect("rcpt TO:<other@example.com>", "250 2.1.5").await;
    client.expect("data", "354 ").await;
    client.send(MESSAGE.as_bytes()).await;
    client.expect(".", "250 2.0.0 queued as 00000000").await;
    client.expect("quit", "221 2.0.0").await;
    assert!(client.is_closed().await);

    let taken = &relay.store.taken()[0];
    assert_eq!((&*taken.list_host, taken.reverse_path.as_str()), ("lists", "l-bounces+u=d@lists.example"));
    assert_eq!(taken.content.size, MESSAGE.len() as u64);
    let NewBody::Inline(body) = &taken.content.body else { panic!("not inline") };
    assert_eq!(body, MESSAGE.as_bytes());
    assert_eq!((&*taken.trace.helo, &*taken.trace.protocol), ("[127.0.0.1]", "ESMTP"));
    assert_eq!(taken.trace.peer, Some("127.0.0.1".parse().expect("an address")));
    let domain = Domain::parse("domain.example").expect("valid");
    assert_eq!(taken.recipients[0].1, Destination::Domain(domain));
    assert_eq!(relay.metric("recipients_total"), 2.0);
}

#[tokio::test]
async fn a_pipelined_transaction_is_answered_in_order() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    let group = "MAIL FROM:<l@lists.example>\r\nRCPT TO:<a@b.example>\r\nRCPT TO:<bad>\r\nDATA\r\n";
    client.send(group.as_bytes()).await;
    for expected in ["250 2.1.0", "250 2.1.5", "501 5.1.3", "354 "] {
        assert!(client.reply().await.starts_with(expected));
    }
    client.send(format!("{MESSAGE}.\r\n{group}").as_bytes()).await;
    for expected in ["250 2.0.0", "250 2.1.0", "250 2.1.5", "501 5.1.3", "354 "] {
        assert!(client.reply().await.starts_with(expected));
    }
    client.send(b".\r\nQUIT\r\n").await;
    assert!(client.reply().await.starts_with("250 2.0.0 queued as 00000001"));
    assert!(client.reply().await.starts_with("221"));
}

#[tokio::test]
async fn a_transaction_octet_by_octet_means_the_same() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let dialogue = format!(
        "EHLO x\r\nMAIL FROM:<l@lists.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n{MESSAGE}..\r\n.\r\nQUIT\r\n"
    );
    for octet in dialogue.bytes() {
        client.send(&[octet]).await;
        tokio::task::yield_now().await;
    }
    for expected in ["250-", "250 2.1.0", "250 2.1.5", "354 ", "250 2.0.0", "221 "] {
        assert!(client.reply().await.starts_with(expected), "{expected}");
    }
    let NewBody::Inline(body) = &relay.store.taken()[0].content.body else { panic!("not inline") };
    assert_eq!(body, format!("{MESSAGE}..\r\n").as_bytes());
}

#[tokio::test]
async fn xverp_makes_one_submission_per_recipient_with_one_content() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l-bounces@lists.example> XVERP=-=", "250 2.1.0").await;
    client.expect("RCPT TO:<a@b.example>", "250 2.1.5").await;
    client.expect("RCPT TO:<c@d.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(&format!("{MESSAGE}."), "250 2.0.0 queued as 00000000 to 00000001").await;
    let taken = relay.store.taken();
    let paths: Vec<_> = taken.iter().map(|submission| submission.reverse_path.as_str()).collect();
    assert_eq!(paths, ["l-bounces-a=b.example@lists.example", "l-bounces-c=d.example@lists.example"]);
    assert_eq!(taken[0].content.hash, taken[1].content.hash);
    assert_eq!(taken[0].mailing, taken[1].mailing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_at_once_mix_nothing_up() {
    let relay = Arc::new(Relay::start(Options { connections: 200, ..options() }));
    let clients = (0..40).map(|client_number| {
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            let mut client = relay.greeted().await;
            client.expect("EHLO x", "250-").await;
            for n in 0..25 {
                client.expect(&format!("MAIL FROM:<l-{client_number}-{n}@lists.example>"), "250 ").await;
                client.expect(&format!("RCPT TO:<u{n}@d{client_number}.example>"), "250 ").await;
                client.expect("DATA", "354 ").await;
                client.expect(&format!("Subject: {client_number} {n}\r\n\r\nx\r\n."), "250 ").await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.expect("no client failed");
    }
    let taken = relay.store.taken();
    assert_eq!(taken.len(), 1000);
    for submission in taken {
        let NewBody::Inline(body) = &submission.content.body else { panic!("not inline") };
        let subject = String::from_utf8_lossy(body).into_owned();
        let domain = submission.recipients[0].0.path.domain_as_written().to_owned();
        let client_number = domain.trim_start_matches('d').trim_end_matches(".example");
        assert!(subject.starts_with(&format!("Subject: {client_number} ")), "{subject} to {domain}");
        assert!(submission.reverse_path.as_str().starts_with(&format!("l-{client_number}-")), "{subject}");
    }
}

#[tokio::test]
async fn the_parameters_of_dsn_reach_the_store() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@lists.example> RET=HDRS ENVID=a+2Bb", "250 2.1.0").await;
    client.expect("RCPT TO:<a@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+3Dy@z", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
    let taken = &relay.store.taken()[0];
    assert_eq!(taken.params.envid.as_deref(), Some("a+b"));
    let params = &taken.recipients[0].0.params;
    assert_eq!(params.notify.map(|notify| notify.to_string()).as_deref(), Some("SUCCESS,DELAY"));
    assert_eq!(params.orcpt.as_ref().map(|orcpt| &*orcpt.address), Some("x=y@z"));
}

#[tokio::test]
async fn a_smuggled_message_is_refused_and_never_seen() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b"a\n.\r\nMAIL FROM:<evil@lists.example>\r\nRCPT TO:<v@b.example>\r\nDATA\r\nx\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("554 5.6.0"));
    client.expect("NOOP", "250 2.0.0").await;
    assert!(relay.store.taken().is_empty());
}

#[tokio::test]
async fn a_message_too_big_is_read_to_its_end_and_refused() {
    let relay = Relay::start(Options { message_bytes: 1000, ..options() });
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(&b"0123456789012345678901234567890\r\n".repeat(20_000)).await;
    client.expect(".", "552 5.3.4").await;
    client.open().await;
}

#[tokio::test]
async fn recipients_beyond_the_limit_get_452_and_the_others_their_mail() {
    let relay = Relay::start(Options { recipients_per_transaction: 100, ..options() });
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@lists.example>", "250 ").await;
    for n in 0..100 {
        client.expect(&format!("RCPT TO:<u{n}@b.example>"), "250 2.1.5").await;
    }
    client.expect("RCPT TO:<one-too-many@b.example>", "452 4.5.3").await;
    client.expect("RCPT TO:<u0@B.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
    assert_eq!(relay.store.taken()[0].recipients.len(), 100);
    assert_eq!(relay.metric_at("lints_total", "repeated_recipient"), 1.0);
}

#[tokio::test]
async fn an_undeclared_reverse_path_costs_nothing_but_time() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@other.example>", "451 4.7.1").await;
    client.open().await;
    assert_eq!(relay.metric_at("undeclared_reverse_paths_total", "lists"), 1.0);
}

#[tokio::test]
async fn a_store_that_cannot_take_a_message_is_never_a_permanent_error() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    for (mood, expected) in [(Mood::Full, "452 4.3.1"), (Mood::Broken, "451 4.3.0"), (Mood::Fine, "250 2.0.0")] {
        relay.store.set(mood);
        client.open().await;
        client.expect("DATA", "354 ").await;
        client.expect(".", expected).await;
    }
    relay.store.0.no_room.store(true, Ordering::Relaxed);
    client.expect("MAIL FROM:<l@lists.example>", "452 4.3.1").await;
    relay.store.0.no_room.store(false, Ordering::Relaxed);
    client.open().await;
    relay.store.0.no_room.store(true, Ordering::Relaxed);
    client.expect("RCPT TO:<c@b.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn the_dot_is_answered_only_when_the_store_has_the_message() {
    let relay = Relay::start(options());
    let gate = relay.store.gate();
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    let early = tokio::select! {
        biased;
        reply = client.reply() => Some(reply),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => None,
    };
    assert_eq!(early, None);
    gate.add_permits(1);
    assert!(client.reply().await.starts_with("250 2.0.0"));
}

#[tokio::test]
async fn a_client_that_leaves_after_the_dot_has_handed_its_message_over() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    drop(client);
    relay.until("sessions", 0.0).await;
    assert_eq!(relay.store.taken().len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_dot_has_handed_nothing_over() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b"From: x\r\n\r\n.").await;
    drop(client);
    relay.until("sessions", 0.0).await;
    assert!(relay.store.taken().is_empty());
}

fn strangers_only() -> Options {
    let host = ListHost { networks: vec!["192.0.2.0/24".parse().expect("a network")], ..list_host() };
    Options { list_hosts: vec![Arc::new(host)], ..options() }
}

#[tokio::test]
async fn a_stranger_gets_nothing_for_a_while_and_then_the_door() {
    let relay = Relay::start(strangers_only());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    for _ in 0..20 {
        client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1 relaying denied: 127.0.0.1").await;
    }
    client.expect("RCPT TO:<a@b.example>", "421 4.7.0").await;
    assert!(client.is_closed().await);
    assert_eq!(relay.metric_at("connections_total", "stranger"), 1.0);
}

#[tokio::test]
async fn strangers_have_few_places_and_leave_the_others_to_list_hosts() {
    let relay = Relay::start(strangers_only());
    let mut inside = Vec::new();
    for _ in 0..4 {
        inside.push(relay.greeted().await);
    }
    assert!(relay.connect().await.reply().await.starts_with("421 4.7.0"));
    assert_eq!(relay.metric_at("connections_total", "strangers_full"), 1.0);
    drop(inside.pop());
    relay.until("sessions", 3.0).await;
    relay.greeted().await;
}

#[tokio::test]
async fn ten_thousand_noops_are_ten_thousand_replies() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let (reader, mut writer) = client.stream.into_inner().into_split();
    let writing = tokio::spawn(async move {
        writer.write_all(&b"NOOP\r\n".repeat(10_000)).await.expect("written");
        writer
    });
    let mut reader = BufReader::new(reader);
    for _ in 0..10_000 {
        let mut line = String::new();
        reader.read_line(&mut line).await.expect("read");
        assert_eq!(line, "250 2.0.0 ok\r\n");
    }
    let writer = writing.await.expect("written");
    client = Client { stream: BufReader::new(reader.into_inner().reunite(writer).expect("a pair")) };
    client.expect("EHLO x", "250-").await;
    client.open().await;
}

#[tokio::test]
async fn another_protocol_is_shown_the_door() {
    let relay = Relay::start(options());
    for octets in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n"] {
        let mut client = relay.greeted().await;
        client.send(octets).await;
        assert!(client.reply().await.starts_with("500 5.5.1"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn an_endless_line_ends_the_session() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.send(&[b'x'; 70_000]).await;
    assert!(client.reply().await.starts_with("421 4.7.0"));
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_kept_for_as_long_as_promised_and_then_closed() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let since = Instant::now();
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(since.elapsed().as_secs(), 300);
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_trickles_in_is_given_up_and_so_is_a_message() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let since = Instant::now();
    client.send(b"NO").await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    client.send(b"O").await;
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(since.elapsed().as_secs(), 300);
    let mut client = relay.greeted().await;
    client.reach_content().await;
    let mut sent = 0;
    let reply = loop {
        tokio::select! {
            reply = client.reply() => break reply,
            () = tokio::time::sleep(Duration::from_secs(100)) => {}
        }
        client.send(b"x").await;
        sent += 1;
    };
    assert!(reply.starts_with("421 4.4.2") && (2..5).contains(&sent), "{reply} after {sent}");
    assert!(relay.store.taken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_waited_for() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    for line in MESSAGE.split_inclusive("\r\n") {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.send(line.as_bytes()).await;
    }
    client.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn a_panic_ends_one_session_and_is_counted() {
    let relay = Relay::start(options());
    let mut other = relay.greeted().await;
    relay.store.set(Mood::Panicking);
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    assert!(client.is_closed().await);
    relay.until("panics_total", 1.0).await;
    relay.store.set(Mood::Fine);
    other.reach_content().await;
    other.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn a_full_relay_closes_its_sockets_and_opens_them_again() {
    let relay = Relay::start(Options { connections: 4, ..options() });
    let address = relay.ingress.local_addresses()[0];
    let mut inside = Vec::new();
    for _ in 0..4 {
        inside.push(relay.greeted().await);
    }
    relay.until("overloads_total", 1.0).await;
    assert!(TcpStream::connect(address).await.is_err(), "must be refused");
    inside[0].reach_content().await;
    inside[0].expect(".", "250 2.0.0").await;
    drop(inside.pop());
    relay.until("sessions", 3.0).await;
    let reopened = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut client = Client::new(reopened.await);
    assert!(client.reply().await.starts_with("220 "));
    assert_eq!(relay.ingress.local_addresses(), [address]);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_transactions_refuses_new_ones_and_closes_idle_sessions() {
    let relay = Relay::start(options());
    let address = relay.ingress.local_addresses()[0];
    let mut idle = relay.greeted().await;
    let mut busy = relay.greeted().await;
    busy.reach_content().await;
    let relay = Arc::new(relay);
    let draining = tokio::spawn({
        let relay = Arc::clone(&relay);
        async move { relay.ingress.drain(Duration::from_secs(60)).await }
    });
    assert!(idle.reply().await.starts_with("421 4.3.2"));
    assert!(TcpStream::connect(address).await.is_err(), "must be refused");
    busy.send(MESSAGE.as_bytes()).await;
    busy.expect(".", "250 2.0.0").await;
    busy.expect("MAIL FROM:<l@lists.example>", "451 4.3.2").await;
    busy.expect("QUIT", "221 ").await;
    draining.await.expect("drained");
    assert_eq!(relay.store.taken().len(), 1);
    assert_eq!((relay.metric("sessions"), relay.metric("cut_off_total")), (0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_drain_holds() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    let since = Instant::now();
    relay.ingress.drain(Duration::from_secs(10)).await;
    assert_eq!(since.elapsed().as_secs(), 10);
    assert!(client.is_closed().await);
    assert_eq!((relay.metric("sessions"), relay.metric("cut_off_total")), (0.0, 1.0));
}

#[tokio::test]
async fn a_reload_swaps_list_hosts_and_listeners_whole_or_not_at_all() {
    let relay = Relay::start(options());
    let before = relay.ingress.local_addresses();
    let mut session = relay.greeted().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let mut bad = strangers_only();
    bad.listeners.push(Listener { address: taken.local_addr().expect("bound"), tls: None });
    let error = relay.ingress.reload(bad.clone()).expect_err("taken").to_string();
    assert!(error.contains(&taken.local_addr().expect("bound").to_string()), "{error}");
    assert!(error.contains("another program"), "{error}");
    relay.greeted().await.reach_content().await;

    drop(taken);
    relay.ingress.reload(bad).expect("free now");
    assert_eq!(relay.ingress.local_addresses()[0], before[0]);
    assert_eq!(relay.ingress.local_addresses().len(), 2);
    let mut client = relay.greeted().await;
    client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1").await;

    let mut fewer = options();
    fewer.listeners[0].address = relay.ingress.local_addresses()[1];
    relay.ingress.reload(fewer).expect("reloaded");
    assert_eq!(relay.ingress.local_addresses().len(), 1);
    session.reach_content().await;
    session.expect(".", "250 2.0.0").await;
    while TcpStream::connect(before[0]).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_with_its_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = taken.local_addr().expect("bound");
    let options = Options { listeners: vec![Listener { address, tls: None }], ..options() };
    let ledger = Descriptors::with_limit(100).expect("enough");
    let error = Ingress::start(options, Memory::default(), ledger, &Registry::new()).err().expect("taken").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("another port"), "{error}");
}

#[test]
fn a_complaint_about_a_list_host_is_logged_once_a_minute() {
    let complaints = Complaints::default();
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let now = Instant::now();
    assert!(complaints.may_log(&a, now) && complaints.may_log(&b, now));
    assert!(!complaints.may_log(&a, now + Duration::from_secs(59)));
    assert!(complaints.may_log(&a, now + Duration::from_secs(60)));
}
