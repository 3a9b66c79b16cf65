//! What a list host meets when it hands mail over (design 6): it is never the one who waits, retries or loses.

use std::time::Duration;

use posthaste::rehearse::internet::{Delivered, Digest, Internet, without_trace};
use toml::Value;

use crate::support::{A_WHILE, BOUNCES, Client, Plan, Stage, certify, message, subscribers};

fn two_domains() -> Plan {
    Plan::new(Internet::builder().domain("a.test", |d| d).domain("b.test", |d| d))
}

/// The only transaction that arrives, if it is only one.
async fn only_delivery(stage: &Stage) -> Delivered {
    stage.eventually("a delivery", |stage| stage.internet.deliveries().into_iter().next()).await
}

#[tokio::test]
async fn a_pipelined_batch_is_accepted_and_delivered_once() {
    let stage = two_domains().start().await;
    let replies = stage.client().await.hand_over(BOUNCES, &["<u1@a.test>", "<u2@b.test>"], &message("once")).await;
    let codes: Vec<&str> = replies.iter().map(|reply| &reply[..3]).collect();
    assert_eq!(codes, ["250", "250", "250", "354", "250"], "{replies:?}");
    stage.until_delivered(&["u1@a.test", "u2@b.test"]).await;
    stage.until_empty().await;
    assert_eq!((stage.internet.totals().delivered, stage.internet.totals().duplicates), (2, 0));
}

#[tokio::test]
async fn ehlo_offers_exactly_what_is_kept() {
    let stage = two_domains().start().await;
    let offered = Client::connect(stage.listen).await.say("EHLO lists.test").await;
    let lines = [
        "250-relay.test",
        "250-PIPELINING",
        "250-SIZE 50000000",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-ENHANCEDSTATUSCODES",
        "250-DSN",
        "250-LIMITS RCPTMAX=50000",
        "250 XVERP",
    ];
    assert_eq!(offered.lines().collect::<Vec<_>>(), lines);
}

#[tokio::test]
async fn a_stranger_is_told_550_and_nothing_more() {
    let stage = two_domains().with(&list_host("networks = [\"192.0.2.0/24\"]")).start().await;
    let mut client = stage.client().await;
    client.expect("MAIL FROM:<news-bounces@lists.test>", "550 5.7.1").await;
    client.expect("RCPT TO:<u1@a.test>", "550 5.7.1").await;
    client.expect("DATA", "550 5.7.1").await;
    client.expect("VRFY u1@a.test", "550 5.7.1").await;
    client.expect("QUIT", "221").await;
}

#[tokio::test]
async fn a_configuration_without_list_hosts_relays_for_nobody() {
    let stage = two_domains().with("list_host = []").start().await;
    stage.client().await.expect("MAIL FROM:<news-bounces@lists.test>", "550 5.7.1").await;
}

#[tokio::test]
async fn a_reverse_path_that_is_not_declared_is_put_off_and_the_recipients_are_safe() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.expect("MAIL FROM:<news@undeclared.test>", "451 4.7.1").await;
    // The connection lives, and what is declared goes through it.
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("declared")).await;
    client.must_take("<news+verp=x@sub.lists.test>", &["<u2@a.test>"], &message("subdomain")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
    stage.until("an alert", |stage| stage.log().contains("reverse-path domain not declared")).await;
}

#[tokio::test]
async fn recipients_beyond_the_limit_get_452_and_the_others_are_delivered() {
    let stage = two_domains().with("[ingress]\nrecipients_per_transaction = 100").start().await;
    let recipients: Vec<String> = subscribers(101, "a.test").iter().map(|to| format!("<{to}>")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let replies = stage.client().await.hand_over(BOUNCES, &recipients, &message("many")).await;
    assert!(replies[100].starts_with("250") && replies[101].starts_with("452 4.5.3"), "{replies:?}");
    assert!(replies[103].starts_with("250"), "{replies:?}");
    stage.until_delivered(&["u0@a.test", "u99@a.test"]).await;
    stage.until_empty().await;
    assert_eq!(stage.internet.totals().delivered, 100);
}

#[tokio::test]
async fn a_bare_line_feed_is_refused_and_nothing_of_it_is_delivered() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    for smuggled in ["\n.\nMAIL FROM:<x@lists.test>", "\n.\r\n", "\r.\r\n", "a\nb", "a\rb", "\r\n.\n"] {
        let content = [&message("smuggled")[..], smuggled.as_bytes(), b"\r\n"].concat();
        let replies = client.hand_over(BOUNCES, &["<u1@a.test>"], &content).await;
        let last = replies.last().expect("a reply");
        assert!(last.starts_with("554 5.6"), "{smuggled:?}: {replies:?}");
    }
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("clean")).await;
    stage.until_delivered(&["u1@a.test"]).await;
    stage.until_empty().await;
    assert_eq!(stage.internet.totals().transactions, 1);
}

#[tokio::test]
async fn a_message_over_the_size_limit_is_refused_when_it_is_announced_and_when_it_is_not() {
    let stage = two_domains().with("[ingress]\nmessage_bytes = \"64KiB\"").start().await;
    let mut client = stage.client().await;
    client.expect("MAIL FROM:<news-bounces@lists.test> SIZE=65537", "552 5.3.4").await;
    let big =
        [message("big"), b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(1200)].concat();
    let replies = client.hand_over(BOUNCES, &["<u1@a.test>"], &big).await;
    assert!(replies.last().expect("a reply").starts_with("552 5.3.4"), "{replies:?}");
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("small")).await;
    stage.until_delivered(&["u1@a.test"]).await;
}

#[tokio::test]
async fn broken_commands_are_refused_each_in_its_own_way_and_the_session_lives() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    for (command, reply) in [
        ("RCPT TO:<u1@a.test>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("NONSENSE", "500 5.5.1"),
        ("MAIL FROM:<news@lists.test> HOLDFOR=9", "555 5.5.4"),
        ("MAIL FROM:<news@lists.test> SIZE=-1", "501 5.5.4"),
        ("MAIL FROM:<news@lists.test> BODY=8BITMIME BODY=7BIT", "501"),
        ("MAIL FROM:<news@lists.test> RET=BOTH", "501 5.5.4"),
        ("MAIL FROM:<news@lists.test> ENVID=+00", "501 5.5.4"),
        ("mail from:<news@lists.test>", "250"),
        ("MAIL FROM:<news@lists.test>", "503 5.5.1"),
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:<u1@a.test:2525>", "501"),
        ("RCPT TO:<u1@a..test>", "501"),
        ("RCPT TO:<u1@a.test> NOTIFY=NEVER,FAILURE", "501 5.5.4"),
        ("RCPT TO:<u1@a.test> ORCPT=rfc822;u1+0D+0A@a.test", "501 5.5.4"),
        ("RCPT TO:<u1@b\u{fc}cher.test>", "553 5.6.7"),
        ("DATA", "554 5.5.1"),
        ("NOOP", "250"),
    ] {
        client.expect(command, reply).await;
    }
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("alive")).await;
}

#[tokio::test]
async fn octets_of_a_chunk_that_was_not_offered_are_never_read_as_commands() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.write(b"BDAT 31 LAST\r\nMAIL FROM:<news@lists.test>\r\n").await;
    assert!(client.reply().await.starts_with("500 5.5.1"));
    assert_eq!(client.reply().await, "");
}

#[tokio::test]
async fn a_command_line_that_ends_in_a_bare_line_feed_is_not_executed() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.write(b"MAIL FROM:<news@lists.test>\n\r\n").await;
    assert!(client.reply().await.starts_with("500 5.5.2"));
    client.expect("RCPT TO:<u1@a.test>", "503 5.5.1").await;
}

#[tokio::test]
async fn a_line_without_an_end_is_given_up() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.write(&b"MAIL FROM:<".repeat(8_000)).await;
    assert!(client.reply().await.starts_with("421 4.7.0"));
    assert_eq!(client.reply().await, "");
}

#[tokio::test]
async fn a_message_that_has_gone_round_a_hundred_times_is_refused() {
    let stage = two_domains().start().await;
    let hop = b"Received: from a.test by b.test; Tue, 24 Nov 2026 08:00:00 +0000\r\n";
    let content = [hop.repeat(101), message("loop")].concat();
    let replies = stage.client().await.hand_over(BOUNCES, &["<u1@a.test>"], &content).await;
    assert!(replies.last().expect("a reply").starts_with("554 5.4.6"), "{replies:?}");
}

#[tokio::test]
async fn nobody_relays_through_the_tricks_of_open_relay_probes() {
    let stage = two_domains().with(&list_host("networks = [\"192.0.2.0/24\"]")).start().await;
    let mut client = stage.client().await;
    for command in [
        "MAIL FROM:<>",
        "MAIL FROM:<news@lists.test>",
        "RCPT TO:<\"u1@a.test\">",
        "RCPT TO:<u1%a.test@relay.test>",
        "RCPT TO:<@relay.test:u1@a.test>",
        "RCPT TO:<a.test!u1@relay.test>",
    ] {
        client.expect(command, "550 5.7.1").await;
    }
}

#[tokio::test]
async fn beyond_the_limit_of_sessions_a_connection_is_refused_until_one_ends() {
    let stage = two_domains().with("[ingress]\nconnections = 4").start().await;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(stage.client().await);
    }
    stage.until("refusal", |stage| std::net::TcpStream::connect(stage.listen).is_err()).await;
    sessions[0].must_take(BOUNCES, &["<u1@a.test>"], &message("served")).await;
    drop(sessions);
    stage.until("welcome", |stage| std::net::TcpStream::connect(stage.listen).is_ok()).await;
    stage.post(&["u2@a.test"], &message("again")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
}

#[tokio::test]
async fn a_web_browser_is_shown_out_at_once() {
    let stage = two_domains().start().await;
    let mut client = Client::connect(stage.listen).await;
    client.write(b"POST / HTTP/1.1\r\nHost: relay.test\r\n\r\nEHLO x\r\nMAIL FROM:<news@lists.test>\r\n").await;
    assert!(client.reply().await.starts_with("500"));
    assert_eq!(client.reply().await, "");
}

#[tokio::test]
async fn a_repeated_recipient_gets_one_copy() {
    let stage = two_domains().start().await;
    stage.post(&["u1@a.test", "u1@a.test", "u1@A.TEST", "u2@a.test"], &message("repeated")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
    stage.until_empty().await;
    assert_eq!((stage.internet.delivered("u1@a.test"), stage.internet.totals().duplicates), (1, 0));
}

#[tokio::test]
async fn one_xverp_transaction_gives_every_recipient_a_reverse_path_of_its_own() {
    let stage = two_domains().start().await;
    let mail = format!("{BOUNCES} XVERP");
    stage.client().await.must_take(&mail, &["<u1@a.test>", "<u2@a.test>", "<u3@b.test>"], &message("verp")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test", "u3@b.test"]).await;
    let mut envelopes: Vec<(String, Vec<String>)> =
        stage.internet.deliveries().into_iter().map(|arrived| (arrived.reverse_path, arrived.recipients)).collect();
    envelopes.sort();
    let expected = [("u1", "a.test"), ("u2", "a.test"), ("u3", "b.test")]
        .map(|(user, domain)| (format!("news-bounces-{user}={domain}@lists.test"), vec![format!("{user}@{domain}")]));
    assert_eq!(envelopes, expected);
}

#[tokio::test]
async fn an_internationalised_address_goes_out_as_it_came_in() {
    let stage = two_domains().start().await;
    let mail = format!("{BOUNCES} SMTPUTF8 BODY=8BITMIME");
    stage.client().await.must_take(&mail, &["<m\u{fc}ller@a.test>"], &message("utf8")).await;
    let arrived = only_delivery(&stage).await;
    assert_eq!(arrived.recipients, ["m\u{fc}ller@a.test"]);
    assert!(arrived.mail_parameters.contains("SMTPUTF8"), "{}", arrived.mail_parameters);
}

#[tokio::test]
async fn eight_bit_text_keeps_its_declaration_and_its_octets() {
    let stage = two_domains().start().await;
    let content = [message("8bit"), b"caf\xe9 \xff\r\n..dots\r\n.\x00NUL\r\n".to_vec()].concat();
    stage.client().await.must_take(&format!("{BOUNCES} BODY=8BITMIME"), &["<u1@a.test>"], &content).await;
    let arrived = only_delivery(&stage).await;
    assert!(arrived.mail_parameters.contains("BODY=8BITMIME"), "{}", arrived.mail_parameters);
    assert_eq!(without_trace(&arrived.content), content);
    assert_eq!(Digest::of(&arrived.content), Digest::of(&content));
}

#[tokio::test]
async fn dsn_parameters_are_passed_on_to_a_host_that_knows_them() {
    let stage = two_domains().start().await;
    let mail = format!("{BOUNCES} RET=HDRS ENVID=QQ314159+2B");
    let rcpt = "<u1@a.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Old+2BName@a.test";
    stage.client().await.must_take(&mail, &[rcpt], &message("dsn")).await;
    let arrived = only_delivery(&stage).await;
    let mail = &arrived.mail_parameters;
    assert!(mail.contains("RET=HDRS") && mail.contains("ENVID=QQ314159+2B"), "{mail}");
    let rcpt = &arrived.recipient_parameters[0];
    assert!(rcpt.contains("NOTIFY=SUCCESS,FAILURE") && rcpt.contains("ORCPT=rfc822;Old+2BName@a.test"), "{rcpt}");
}

#[tokio::test]
async fn a_connection_lost_before_the_final_dot_leaves_nothing_behind() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.write(b"MAIL FROM:<news@lists.test>\r\nRCPT TO:<u1@a.test>\r\nDATA\r\n").await;
    for _ in 0..3 {
        client.reply().await;
    }
    client.write(&message("half")).await;
    drop(client);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(stage.internet.totals().transactions, 0);
}

#[tokio::test]
async fn forty_sessions_at_once_lose_and_mix_nothing() {
    let stage = two_domains().start().await;
    let posts = (0..40).map(|number| {
        let to = format!("u{number}@a.test");
        let stage = &stage;
        async move { stage.post(&[&to], &message(&format!("m{number}"))).await }
    });
    join_all(posts).await;
    let recipients = subscribers(40, "a.test");
    stage.until_delivered(&recipients.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for arrived in stage.internet.deliveries() {
        let number = arrived.recipients[0].trim_start_matches('u').trim_end_matches("@a.test");
        assert_eq!(without_trace(&arrived.content), message(&format!("m{number}")));
    }
}

/// All at the same time.
async fn join_all<F: Future<Output = ()>>(futures: impl IntoIterator<Item = F>) {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        waiting.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if waiting.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// A `[[list_host]]` that differs in who may relay.
fn list_host(who: &str) -> String {
    format!(
        "[[list_host]]\nname = \"lists\"\n{who}\nreverse_path_domains = [\"lists.test\"]\nbounces_to = \"127.0.0.1:1\"\n"
    )
}

/// A stage whose listener has a certificate, and that certificate.
async fn secured(plan: Plan) -> (Stage, rustls::pki_types::CertificateDer<'static>) {
    let mut stage = plan.set_up().await;
    let certificate = certify(stage.directory()).expect("made");
    let listener = &mut stage.config["listener"][0];
    let listener = listener.as_table_mut().expect("a table");
    listener.insert("tls_certificate".to_owned(), Value::from("chain.pem"));
    listener.insert("tls_key".to_owned(), Value::from("key.pem"));
    stage.start_relay().await;
    (stage, certificate)
}

#[tokio::test]
async fn a_batch_handed_over_under_tls_is_delivered_and_traced_as_such() {
    let (stage, certificate) = secured(two_domains()).await;
    let mut client = stage.client().await.start_tls(&certificate).await.expect("a handshake");
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("tls")).await;
    let arrived = only_delivery(&stage).await;
    let head = String::from_utf8_lossy(&arrived.content).into_owned();
    assert!(head.starts_with("Received:") && head.contains("with ESMTPS"), "{head}");
}

#[tokio::test]
async fn a_certificate_that_was_replaced_is_taken_over_without_a_restart() {
    let (mut stage, old) = secured(two_domains()).await;
    let mut open = stage.client().await.start_tls(&old).await.expect("the old one");
    let new = certify(stage.directory()).expect("made");
    assert!(stage.hang_up().await);
    assert!(stage.client().await.start_tls(&old).await.is_err());
    stage.client().await.start_tls(&new).await.expect("the new one");
    open.must_take(BOUNCES, &["<u1@a.test>"], &message("open")).await;
}

#[tokio::test]
async fn a_user_with_the_right_password_relays_over_tls_from_anywhere() {
    let hash = hash_password("correct horse");
    let users = format!("users = [{{ name = \"news\", password_hash = \"{hash}\" }}]");
    let (stage, certificate) = secured(two_domains().with(&list_host(&users))).await;
    let mut clear = stage.client().await;
    clear.expect("AUTH PLAIN AG5ld3MAY29ycmVjdCBob3JzZQ==", "538 5.7.11").await;
    let mut client = clear.start_tls(&certificate).await.expect("a handshake");
    assert!(client.say("EHLO lists.test").await.contains("AUTH PLAIN LOGIN"));
    client.expect("MAIL FROM:<news@lists.test>", "550 5.7.1").await;
    client.expect("AUTH PLAIN AG5ld3MAd3Jvbmc=", "535 5.7.8").await;
    client.expect("AUTH PLAIN AG5ld3MAY29ycmVjdCBob3JzZQ==", "235").await;
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("auth")).await;
    stage.until_delivered(&["u1@a.test"]).await;
    assert!(!stage.log().contains("correct horse") && !stage.log().contains("Y29ycmVjdCBob3JzZQ"));
}

/// As an operator makes it.
fn hash_password(password: &str) -> String {
    use std::io::Write;
    let mut command = std::process::Command::new(crate::support::BINARY);
    command.args(["config", "hash-password"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("started");
    child.stdin.take().expect("piped").write_all(format!("{password}\n").as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[tokio::test]
async fn what_was_pipelined_behind_starttls_in_the_clear_is_never_executed() {
    let (stage, _) = secured(two_domains()).await;
    let mut client = stage.client().await;
    client.write(b"STARTTLS\r\nMAIL FROM:<news@lists.test>\r\n").await;
    assert_eq!(client.reply().await, "");
}

#[tokio::test]
async fn a_session_may_stay_silent_between_two_batches() {
    let stage = two_domains().start().await;
    let mut client = stage.client().await;
    client.must_take(BOUNCES, &["<u1@a.test>"], &message("first")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.must_take(BOUNCES, &["<u2@a.test>"], &message("second")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
}
