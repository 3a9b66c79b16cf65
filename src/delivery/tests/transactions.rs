//! One transaction: what is said, and what becomes of each recipient.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::testing::attempt;
use super::peer::{CLOSE, HANG, Peer, polite};
use super::*;
use crate::mail::{Notify, ReversePath};

const THREE: [&str; 3] = ["a@example.org", "b@example.org", "c@example.org"];

/// A peer that is polite except where `odd` has something to say.
async fn peer(odd: impl Fn(&str) -> Option<&'static str> + Send + Sync + 'static) -> Peer {
    Peer::start("127.0.0.1", 0, None, move |_, line| odd(line).unwrap_or_else(|| polite(line)).to_owned()).await
}

/// What becomes of a, b and c at such a peer.
async fn fates(odd: impl Fn(&str) -> Option<&'static str> + Send + Sync + 'static) -> (Vec<String>, bool) {
    let peer = peer(odd).await;
    let report = house_of(&peer).await.send(&THREE).await;
    (words(&report), report.trouble.is_some())
}

#[tokio::test]
async fn a_signature_goes_below_our_received_line_and_counts_in_size() {
    const SIGNATURE: &[u8] = b"DKIM-Signature: v=1\r\n\tb=x\r\n";
    let peer = peer(|_| None).await;
    let house = house_of(&peer).await;
    let signed = Outgoing { prefix: Bytes::from_static(SIGNATURE), ..outgoing() };
    house.delivery.attempt(attempt(&THREE), outgoing()).await;
    house.delivery.attempt(attempt(&THREE), signed).await;
    let (plain, signed) = (peer.seen.message(0), peer.seen.message(1));
    let received = plain.len() - CONTENT.len();
    assert_eq!(signed, [&plain[..received], SIGNATURE, CONTENT].concat());
    assert_eq!(
        peer.seen
            .count(&format!("MAIL FROM:<list-bounces@lists.example.org> SIZE={}", 100 + received + SIGNATURE.len())),
        1
    );
}

#[tokio::test]
async fn the_octets_out_are_the_octets_in_below_our_received_line() {
    let peer = peer(|_| None).await;
    let house = house_of(&peer).await;
    let report = house.send(&THREE).await;
    assert_eq!(words(&report), ["relayed"; 3]);
    let expected = [
        b"Received: from lists.example.org ([192.0.2.1])\r\n\tby relay.example.net (Posthaste) with ESMTP\r\n\t\
          id 00000001;\r\n\tTue, 24 Nov 2026 07:11:00 +0000\r\n",
        CONTENT,
    ]
    .concat();
    assert_eq!(peer.seen.message(0), expected);
    let Outcome::Relayed { remote, reply, dsn_passed_on } = &report.outcomes[0] else { panic!("relayed") };
    assert_eq!(**remote, *format!("mx.example.org[127.0.0.1]:{}", peer.address.port()));
    assert_eq!((reply.to_string().as_str(), *dsn_passed_on), ("250 2.0.0 queued as 42", true));
    assert_eq!((report.peer, report.transaction, report.trouble), (Some(peer.address), true, None));
    assert!(report.bytes as usize > expected.len() && report.delays.transmit > Duration::ZERO);
    assert!(report.delays.connect > Duration::ZERO);
}

#[tokio::test]
async fn an_empty_message_and_a_large_one_go_through() {
    let peer = peer(|line| line.starts_with("EHLO").then_some("250-mx\r\n250 PIPELINING\r\n")).await;
    let house = house_of(&peer).await;
    let large = Bytes::from(b"a line of some length, over and over again\r\n".repeat(100_000));
    for content in [Bytes::new(), large] {
        let report = house
            .delivery
            .attempt(attempt(&["a@example.org"]), Outgoing { content: content.clone(), ..outgoing() })
            .await;
        assert_eq!(words(&report), ["relayed"]);
        assert!(peer.seen.messages.lock().expect("messages").last().expect("a message").ends_with(&content));
    }
}

#[tokio::test]
async fn the_envelope_leaves_in_one_write_where_pipelining_is_offered() {
    let peer = peer(|_| None).await;
    house_of(&peer).await.send(&THREE).await;
    let reads = peer.seen.reads.lock().expect("reads").clone();
    let envelope = reads.iter().find(|read| read.starts_with("MAIL")).expect("an envelope");
    assert!(envelope.ends_with("RCPT TO:<c@example.org>\r\nDATA\r\n"), "{envelope}");
}

#[tokio::test]
async fn without_pipelining_each_command_waits_for_the_reply_before_it() {
    let peer = peer(|line| match line {
        l if l.starts_with("EHLO") => Some("250 mx\r\n"),
        l if l.starts_with("RCPT TO:<b") => Some("550 5.1.1 no such user\r\n"),
        _ => None,
    })
    .await;
    let report = house_of(&peer).await.send(&THREE).await;
    assert_eq!(words(&report), ["relayed", "failed 5.1.1 Rcpt", "relayed"]);
    let reads = peer.seen.reads.lock().expect("reads").clone();
    assert!(reads.iter().all(|read| read.contains("Received") || read.matches("\r\n").count() == 1), "{reads:?}");
}

#[tokio::test]
async fn more_recipients_than_a_window_holds_go_in_several_writes() {
    let peer = peer(|_| None).await;
    let many: Vec<_> = (0..500).map(|i| format!("recipient-{i}@example.org")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let report = house_of(&peer).await.send(&many).await;
    assert_eq!(words(&report), vec!["relayed"; 500]);
    assert_eq!((peer.seen.count("RCPT"), peer.seen.count("DATA")), (500, 1));
}

#[tokio::test]
async fn each_recipient_has_its_own_fate() {
    let (fates, trouble) = fates(|line| match line {
        l if l.starts_with("RCPT TO:<a") => Some("450 4.2.0 greylisted\r\n"),
        l if l.starts_with("RCPT TO:<c") => Some("550 5.7.509 no\r\n"),
        _ => None,
    })
    .await;
    assert_eq!(fates, ["deferred 4.2.0 Rcpt", "relayed", "failed 5.7.509 Rcpt"]);
    assert!(!trouble);
}

#[tokio::test]
async fn too_many_recipients_leaves_the_rest_untried_once_one_was_accepted() {
    let (rest, _) = fates(|line| line.starts_with("RCPT TO:<c").then_some("452 4.5.3 too many recipients\r\n")).await;
    assert_eq!(rest, ["relayed", "relayed", "not tried"]);
    let (all, _) = fates(|line| line.starts_with("RCPT").then_some("452 4.5.3 too many recipients\r\n")).await;
    assert_eq!(all, ["deferred 4.5.3 Rcpt"; 3]);
}

#[tokio::test]
async fn a_421_at_rcpt_takes_those_with_it_who_were_accepted_but_not_those_refused() {
    let (fates, trouble) = fates(|line| match line {
        l if l.starts_with("RCPT TO:<a") => Some("550 5.1.1 no such user\r\n"),
        l if l.starts_with("RCPT TO:<c") => Some("421 4.7.0 too fast\r\n"),
        _ => None,
    })
    .await;
    assert_eq!(fates, ["failed 5.1.1 Rcpt", "deferred 4.7.0 Rcpt", "deferred 4.7.0 Rcpt"]);
    assert!(trouble);
}

#[tokio::test]
async fn all_refused_and_a_354_is_answered_with_a_lone_dot() {
    let refuse = |line: &str| match line {
        l if l.starts_with("RCPT") => Some("550 5.1.1 no such user\r\n"),
        "." => Some("250 2.0.0 queued all the same\r\n"),
        _ => None,
    };
    let peer = peer(refuse).await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        assert_eq!(words(&house.send(&THREE).await), ["failed 5.1.1 Rcpt"; 3]);
    }
    assert_eq!((peer.seen.message(0), peer.seen.made()), (Vec::new(), 1));
}

#[tokio::test]
async fn all_refused_and_a_refused_data_leaves_the_connection_usable() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "RCPT TO:<a@example.org>" => "550 5.1.1 no such user\r\n".to_owned(),
        "DATA" => "503 5.5.1 no valid recipients\r\n".to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        assert_eq!(words(&house.send(&["a@example.org"]).await), ["failed 5.1.1 Rcpt"]);
    }
    assert_eq!((peer.seen.count("RSET"), peer.seen.made()), (2, 1));
}

#[tokio::test]
async fn a_refused_mail_speaks_for_everybody() {
    let (never, trouble) = fates(|line| match line {
        l if l.starts_with("MAIL") => Some("550 5.7.1 sender refused\r\n"),
        l if l.starts_with("RCPT") || l == "DATA" => Some("503 5.5.1 MAIL first\r\n"),
        _ => None,
    })
    .await;
    assert_eq!((never, trouble), (vec!["failed 5.7.1 Mail".to_owned(); 3], false));
    let (later, trouble) = fates(|line| match line {
        l if l.starts_with("MAIL") => Some("451 4.7.500 Server busy\r\n"),
        l if l.starts_with("RCPT") || l == "DATA" => Some("503 5.5.1 MAIL first\r\n"),
        _ => None,
    })
    .await;
    assert_eq!((later, trouble), (vec!["deferred 4.7.500 Mail".to_owned(); 3], true));
}

#[tokio::test]
async fn the_reply_to_the_dot_speaks_for_those_accepted() {
    for (dot, expected) in [
        ("451 4.3.0 later\r\n", "deferred 4.3.0 Dot"),
        ("554 5.7.1 spam\r\n", "failed 5.7.1 Dot"),
        ("421 4.3.2 closing\r\n", "deferred 4.3.2 Dot"),
        ("250 5.0.0 odd but yes\r\n", "relayed"),
        ("354 odd\r\n", "indeterminate 4.5.0 Dot"),
        ("garbage\r\n", "indeterminate 4.5.0 Dot"),
        (CLOSE, "indeterminate 4.4.2 Dot"),
    ] {
        let (fates, trouble) = fates(move |line| match line {
            l if l.starts_with("RCPT TO:<b") => Some("450 4.2.1 busy\r\n"),
            "." => Some(dot),
            _ => None,
        })
        .await;
        assert_eq!(fates, [expected, "deferred 4.2.1 Rcpt", expected], "{dot:?}");
        assert_eq!(trouble, expected.starts_with("indeterminate") || dot.starts_with("421"), "{dot:?}");
    }
}

#[tokio::test]
async fn silence_after_the_dot_is_indeterminate_and_no_other_host_is_tried() {
    let first = peer(|line| (line == ".").then_some(HANG)).await;
    let second = Peer::start("127.0.0.2", first.address.port(), None, |_, line| polite(line).to_owned()).await;
    let mut options = options(first.address.port());
    options.timeouts.dot = Duration::from_millis(100);
    let house = house(options).await;
    house.dns.host("one.example.org", &["127.0.0.1"]);
    house.dns.host("two.example.org", &["127.0.0.2"]);
    let report = house.attempt(to_site("p", &[(10, "one.example.org"), (20, "two.example.org")])).await;
    assert_eq!(words(&report), ["indeterminate 4.4.2 Dot"]);
    assert_eq!(second.seen.made(), 0);
    assert_eq!(house.metric("posthaste_delivery_recipients_total", "indeterminate"), 1.0);
}

#[tokio::test]
async fn a_connection_lost_before_the_dot_is_tried_again_by_schedule() {
    for (at, phase) in [("MAIL", "Mail"), ("RCPT TO:<b", "Rcpt"), ("DATA", "Data")] {
        let (fates, trouble) = fates(move |line| line.starts_with(at).then_some(CLOSE)).await;
        assert_eq!(fates, vec![format!("deferred 4.4.2 {phase}"); 3]);
        assert!(trouble);
    }
}

#[tokio::test]
async fn a_connection_cut_in_the_content_is_not_indeterminate() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.expect("a connection");
        for reply in ["220 mx\r\n", "250-mx\r\n250 PIPELINING\r\n", "250 a\r\n250 b\r\n354 c\r\n"] {
            stream.write_all(reply.as_bytes()).await.expect("written");
            let _ = stream.read(&mut [0; 4096]).await;
        }
        // Dropped with data unread: the peer sees a reset.
    });
    let house = house(options(address.port())).await;
    house.dns.host("mx.example.org", &["127.0.0.1"]);
    let content = Bytes::from(b"0123456789\r\n".repeat(2_000_000));
    let report = house.delivery.attempt(attempt(&["a@example.org"]), Outgoing { content, ..outgoing() }).await;
    assert_eq!(words(&report), ["deferred 4.4.2 Content"]);
}

#[tokio::test]
async fn replies_that_do_not_match_their_commands_end_the_connection() {
    // One reply more than there were commands, before the content: nothing of it was sent.
    let (more, _) = fates(|line| (line == "DATA").then_some("354 go\r\n250 2.0.0 queued\r\n")).await;
    assert_eq!(more, ["deferred 4.5.0 Data"; 3]);
    // An answer that no DATA has.
    let (other, _) = fates(|line| (line == "DATA").then_some("250 what\r\n")).await;
    assert_eq!(other, ["deferred 4.5.0 Data"; 3]);
    for garbage in ["999 no\r\n", "250_no\r\n", "HTTP/1.1 400 Bad Request\r\n", "250-a\r\n251 b\r\n", "\r\n"] {
        let (fates, _) = fates(move |line| line.starts_with("MAIL").then_some(garbage)).await;
        assert_eq!(fates, ["deferred 4.5.0 Mail"; 3], "{garbage:?}");
    }
}

#[tokio::test]
async fn a_reply_unasked_for_after_the_dot_costs_the_connection_and_not_the_mail() {
    let peer = peer(|line| (line == ".").then_some("250 2.0.0 queued\r\n421 bye\r\n")).await;
    let house = house_of(&peer).await;
    for _ in 0..2 {
        assert_eq!(words(&house.send(&THREE).await), ["relayed"; 3]);
    }
    assert_eq!(peer.seen.made(), 2);
}

#[tokio::test]
async fn a_reply_without_end_is_cut_off_by_size_and_by_time() {
    for reply in ["250-x\r\n", "250 drip"] {
        let peer = peer(move |line| match line {
            l if l.starts_with("EHLO") => Some("250 mx\r\n"),
            l if l.starts_with("MAIL") => Some(reply),
            _ => None,
        })
        .await;
        let mut options = options(peer.address.port());
        options.timeouts.mail = Duration::from_millis(100);
        let report = house_with(&peer, options).await.send(&["a@example.org"]).await;
        assert_eq!(words(&report), ["deferred 4.4.2 Mail"], "{reply:?}");
    }
    let endless: &'static str = Box::leak("250-x\r\n".repeat(10_000).into_boxed_str());
    let (fates, _) = fates(move |line| line.starts_with("MAIL").then_some(endless)).await;
    assert_eq!(fates, ["deferred 4.5.0 Mail"; 3]);
}

#[tokio::test]
async fn lmtp_answers_for_each_recipient_after_the_dot() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        l if l.starts_with("EHLO") => "500 5.5.1 this is LMTP\r\n".to_owned(),
        l if l.starts_with("RCPT TO:<b") => "550 5.1.1 no such user\r\n".to_owned(),
        "." => "250 2.0.0 a\r\n452 4.2.2 full\r\n".to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    let house = house(options(25)).await;
    let report = house.attempt(to_list_host(&peer, true, &THREE)).await;
    assert_eq!(words(&report), ["relayed", "failed 5.1.1 Rcpt", "deferred 4.2.2 Dot"]);
    assert_eq!(peer.seen.count("LHLO"), 1);
    assert!(matches!(&report.outcomes[0], Outcome::Relayed { reply, .. } if &*reply.text == "a"));
}

#[tokio::test]
async fn lmtp_cut_off_half_way_keeps_what_was_answered() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "." => "250 2.0.0 a\r\n".to_owned(),
        "QUIT" => CLOSE.to_owned(),
        _ => polite(line).to_owned(),
    })
    .await;
    let mut options = options(25);
    options.timeouts.dot = Duration::from_millis(100);
    let report = house(options).await.attempt(to_list_host(&peer, true, &THREE)).await;
    assert_eq!(words(&report), ["relayed", "indeterminate 4.4.2 Dot", "indeterminate 4.4.2 Dot"]);
}

#[tokio::test]
async fn a_dsn_of_our_own_leaves_from_the_null_path_and_from_nobody() {
    let peer = peer(|_| None).await;
    let house = house(options(25)).await;
    let mut dsn = to_list_host(&peer, false, &["list-bounces@lists.example.org"]);
    Arc::make_mut(&mut dsn.envelope).reverse_path = ReversePath::Null;
    dsn.trace.peer = None;
    assert_eq!(words(&house.attempt(dsn).await), ["relayed"]);
    assert_eq!(peer.seen.count("MAIL FROM:<> SIZE="), 1);
    assert!(peer.seen.message(0).starts_with(b"Received: by relay.example.net (Posthaste)\r\n"));
}

#[tokio::test]
async fn limits_that_the_host_announces_are_kept() {
    let peer = peer(|line| {
        line.starts_with("EHLO").then_some("250-mx\r\n250-PIPELINING\r\n250 LIMITS RCPTMAX=2 MAILMAX=2\r\n")
    })
    .await;
    let house = house_of(&peer).await;
    for _ in 0..3 {
        assert_eq!(words(&house.send(&THREE).await), ["relayed", "relayed", "not tried"]);
    }
    assert_eq!(peer.seen.made(), 2, "two transactions on the first, one on the second");
}

#[tokio::test]
async fn dsn_parameters_go_where_they_are_understood() {
    for (ehlo, sent) in [("250-mx\r\n250 DSN\r\n", true), ("250 mx\r\n", false)] {
        let peer = peer(move |line| line.starts_with("EHLO").then_some(ehlo)).await;
        let mut attempt = attempt(&["a@example.org"]);
        let recipient = Arc::make_mut(&mut attempt.recipients[0].recipient);
        recipient.params.notify = Some(Notify::On { success: true, failure: false, delay: false });
        let report = house_of(&peer).await.attempt(attempt).await;
        assert_eq!(peer.seen.count("RCPT TO:<a@example.org> NOTIFY=SUCCESS") == 1, sent);
        assert!(matches!(report.outcomes[0], Outcome::Relayed { dsn_passed_on, .. } if dsn_passed_on == sent));
    }
}
