//! The session's rules, as dialogues and as a model.

use bytes::Bytes;

use crate::mail::EnvelopeParams;
use crate::smtp::data::Findings;

use super::*;

const CALM: Conditions = Conditions { shortage: None, draining: false };

fn terms() -> Terms {
    Terms {
        hostname: "relay.example".into(),
        message_bytes: 1100,
        recipients: 3,
        hops: 2,
        postmaster: None,
        starttls: true,
        auth: true,
        requiretls: false,
    }
}

fn relay() -> Arc<Relay> {
    Arc::new(Relay { name: "lists".into(), reverse_path_domains: vec!["lists.example".into()] })
}

fn peer() -> IpAddr {
    IpAddr::from([192, 0, 2, 1])
}

fn list_host() -> Session {
    Session::new(Arc::new(terms()), peer(), Some(relay()))
}

fn stranger() -> Session {
    Session::new(Arc::new(terms()), peer(), None)
}

fn give(session: &mut Session, line: &str, conditions: Conditions) -> Step {
    session.line(&Line::Command(Bytes::copy_from_slice(line.as_bytes())), conditions)
}

fn reply_of(step: Step) -> Reply {
    match step {
        Step::Reply(reply) | Step::Receive(reply) | Step::StartTls(reply) | Step::Close(reply) => reply,
        Step::CheckPassword(_) => panic!("a password is to be checked"),
    }
}

/// Says `line` and returns code and enhanced code.
fn say(session: &mut Session, line: &str) -> String {
    let reply = reply_of(give(session, line, CALM));
    format!("{} {}", reply.code(), reply.enhanced().unwrap_or("-"))
}

fn dialogue(session: &mut Session, lines: &[(&str, &str)]) {
    for (line, expected) in lines {
        assert_eq!(say(session, line), *expected, "{line}");
    }
}

/// A list host that has said EHLO, MAIL, RCPT and DATA.
fn at_content(mail: &str) -> Session {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("EHLO lists.example", "250 -"),
            (mail, "250 2.1.0"),
            ("RCPT TO:<a@b.example>", "250 2.1.5"),
            ("DATA", "354 -"),
        ],
    );
    session
}

fn finish(session: &mut Session, content: &[u8]) -> Verdict {
    let taken = session.content(content);
    assert_eq!(taken.end, Some(3), "the content must end");
    session.complete()
}

fn verdict(content: &[u8]) -> String {
    let mut session = at_content("MAIL FROM:<l@lists.example>");
    match finish(&mut session, content) {
        Verdict::Accept(_) => "accept".to_owned(),
        Verdict::Refuse(reply) => format!("{} {}", reply.code(), reply.enhanced().unwrap_or("-")),
    }
}

#[test]
fn a_transaction_is_taken_whole() {
    let mut session = at_content("MAIL FROM:<l-bounces+x=y@lists.example> SIZE=100 RET=HDRS");
    let Verdict::Accept(accepted) = finish(&mut session, b"Subject: x\r\n\r\n..\r\n.\r\n") else { panic!("refused") };
    assert_eq!(accepted.reverse_path.as_str(), "l-bounces+x=y@lists.example");
    assert_eq!(accepted.recipients.len(), 1);
    assert_eq!(accepted.findings.size, 17);
    assert_eq!((&*accepted.helo, accepted.protocol), ("lists.example", "ESMTP"));
    session.conclude();
    assert_eq!(say(&mut session, "RCPT TO:<a@b.example>"), "503 5.5.1");
}

#[test]
fn ehlo_lists_what_is_offered_and_helo_nothing() {
    let mut session = list_host();
    let mut wire = Vec::new();
    reply_of(give(&mut session, "EHLO x", CALM)).write_to(&mut wire);
    let text = String::from_utf8(wire).expect("ASCII");
    for extension in
        ["PIPELINING", "SIZE 1100", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "LIMITS RCPTMAX=3", "XVERP"]
    {
        assert!(text.contains(extension), "{extension} in {text}");
    }
    assert!(text.contains("250 STARTTLS\r\n") && !text.contains("AUTH") && !text.contains("CHUNKING"));
    assert_eq!(reply_of(give(&mut session, "HELO x", CALM)), Reply::plain(250, "relay.example"));
    session.tls_started();
    let mut wire = Vec::new();
    reply_of(give(&mut session, "EHLO x", CALM)).write_to(&mut wire);
    let text = String::from_utf8(wire).expect("ASCII");
    assert!(text.contains("AUTH PLAIN LOGIN") && !text.contains("STARTTLS"));
}

#[test]
fn commands_out_of_order_get_503_and_change_nothing() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("RSET", "250 2.0.0"),
            ("MAIL FROM:<l@lists.example>", "503 5.5.1"),
            ("EHLO x", "250 -"),
            ("RCPT TO:<a@b.example>", "503 5.5.1"),
            ("DATA", "503 5.5.1"),
            ("MAIL FROM:<l@lists.example>", "250 2.1.0"),
            ("MAIL FROM:<m@lists.example>", "503 5.5.1"),
            ("STARTTLS", "503 5.5.1"),
            ("AUTH PLAIN", "503 5.5.1"),
            ("NOOP", "250 2.0.0"),
            ("VRFY a", "252 2.0.0"),
            ("EXPN a", "502 5.5.1"),
            ("HELP", "214 2.0.0"),
            ("FOO", "500 5.5.1"),
            ("RCPT TO:<a@b.example>", "250 2.1.5"),
            ("DATA", "354 -"),
        ],
    );
    let Verdict::Accept(accepted) = finish(&mut session, b".\r\n") else { panic!("refused") };
    assert_eq!(accepted.reverse_path.as_str(), "l@lists.example");
}

#[test]
fn data_without_a_valid_recipient_never_becomes_mail() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("EHLO x", "250 -"),
            ("MAIL FROM:<>", "250 2.1.0"),
            ("RCPT TO:<a@localhost>", "550 5.1.2"),
            ("DATA", "554 5.5.1"),
            ("RCPT TO:<a@b.example>", "503 5.5.1"),
            ("MAIL FROM:<>", "250 2.1.0"),
            ("DATA", "503 5.5.1"),
            ("DATA", "503 5.5.1"),
        ],
    );
}

#[test]
fn an_undeclared_reverse_path_is_deferred_and_noted() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("EHLO x", "250 -"),
            ("MAIL FROM:<l@other.example>", "451 4.7.1"),
            ("MAIL FROM:<l@localhost>", "451 4.7.1"),
            ("MAIL FROM:<l@notlists.example>", "451 4.7.1"),
            ("MAIL FROM:<l@sub.LISTS.example>", "250 2.1.0"),
        ],
    );
    let noted: Vec<_> = session.take_notes();
    assert_eq!(noted.len(), 3);
    assert_eq!(noted[0], Note::Undeclared { relay: "lists".into(), reverse_path: "l@other.example".into() });
}

#[test]
fn what_is_our_fault_is_said_to_mail_and_never_inside_a_transaction() {
    let short = |of| Conditions { shortage: Some(of), draining: false };
    let draining = Conditions { shortage: None, draining: true };
    for (conditions, expected, word) in [
        (short(Shortage::Disk), (452, "4.3.1"), "spool"),
        (short(Shortage::Memory), (452, "4.3.1"), "memory"),
        (draining, (451, "4.3.2"), "closing down"),
    ] {
        let mut session = list_host();
        say(&mut session, "EHLO x");
        let refused = reply_of(give(&mut session, "MAIL FROM:<l@lists.example>", conditions));
        assert_eq!((refused.code(), refused.enhanced().unwrap_or("")), expected);
        assert!(refused.text().contains(word), "{word}");
        assert_eq!(say(&mut session, "MAIL FROM:<l@lists.example>"), "250 2.1.0");
        assert_eq!(reply_of(give(&mut session, "RCPT TO:<a@b.example>", conditions)).code(), 250);
        assert!(matches!(give(&mut session, "DATA", conditions), Step::Receive(_)));
    }
}

#[test]
fn the_recipient_limit_is_452_and_keeps_the_earlier_ones() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("EHLO x", "250 -"),
            ("MAIL FROM:<l@lists.example>", "250 2.1.0"),
            ("RCPT TO:<a@b.example>", "250 2.1.5"),
            ("RCPT TO:<a@B.example>", "250 2.1.5"),
            ("RCPT TO:<A@b.example>", "250 2.1.5"),
            ("RCPT TO:<c@b.example>", "250 2.1.5"),
            ("RCPT TO:<d@b.example>", "452 4.5.3"),
            ("RCPT TO:<c@b.example>", "250 2.1.5"),
            ("DATA", "354 -"),
        ],
    );
    let Verdict::Accept(accepted) = finish(&mut session, b".\r\n") else { panic!("refused") };
    let paths: Vec<_> = accepted.recipients.iter().map(|(recipient, _)| recipient.path.as_str()).collect();
    assert_eq!(paths, ["a@b.example", "A@b.example", "c@b.example"]);
    assert_eq!(session.take_notes().iter().filter(|n| **n == Note::Lint(Lint::RepeatedRecipient)).count(), 2);
}

#[test]
fn postmaster_without_a_domain_goes_where_the_configuration_says() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[("EHLO x", "250 -"), ("MAIL FROM:<>", "250 2.1.0"), ("RCPT TO:<postmaster>", "550 5.1.1")],
    );
    let postmaster = Mailbox::parse("ops@relay.example", false).ok();
    let mut session = Session::new(Arc::new(Terms { postmaster, ..terms() }), peer(), Some(relay()));
    dialogue(
        &mut session,
        &[("EHLO x", "250 -"), ("MAIL FROM:<>", "250 2.1.0"), ("RCPT TO:<PostMaster>", "250 2.1.5"), ("DATA", "354 -")],
    );
    let Verdict::Accept(accepted) = finish(&mut session, b".\r\n") else { panic!("refused") };
    assert_eq!(accepted.recipients[0].0.path.as_str(), "ops@relay.example");
}

#[test]
fn only_the_message_itself_is_refused_after_the_dot() {
    assert_eq!(verdict(b"From: a\r\n\r\nbody\r\n.\r\n"), "accept");
    assert_eq!(verdict(b".\r\n"), "accept");
    assert_eq!(verdict(b"a\nb\r\n.\r\n"), "554 5.6.0");
    assert_eq!(verdict(b"a\rb\r\n.\r\n"), "554 5.6.0");
    assert_eq!(verdict(&[&b"x".repeat(1099)[..], b"\r\n.\r\n"].concat()), "552 5.3.4");
    assert_eq!(verdict(&[&b"x".repeat(1098)[..], b"\r\n.\r\n"].concat()), "accept");
    assert_eq!(verdict(&[&b"Received: x\r\n".repeat(2)[..], b"\r\n.\r\n"].concat()), "accept");
    assert_eq!(verdict(&[&b"received: x\r\n".repeat(3)[..], b"\r\n.\r\n"].concat()), "554 5.4.6");
    assert_eq!(verdict(b"a\0\x7f\x0b\r\n.\r\n"), "accept");
}

#[test]
fn a_declared_size_is_checked_but_never_trusted() {
    let mut session = list_host();
    dialogue(
        &mut session,
        &[
            ("EHLO x", "250 -"),
            ("MAIL FROM:<l@lists.example> SIZE=1101", "552 5.3.4"),
            ("MAIL FROM:<l@lists.example> SIZE=1", "250 2.1.0"),
            ("RCPT TO:<a@b.example>", "250 2.1.5"),
            ("DATA", "354 -"),
        ],
    );
    assert!(matches!(finish(&mut session, b"From: a\r\n\r\n.\r\n"), Verdict::Accept(_)));
    assert!(session.take_notes().contains(&Note::Lint(Lint::SizeUnderstated)));
}

#[test]
fn lints_are_noted_and_pass() {
    let mut session = at_content("MAIL FROM:<l@lists.example>");
    let long = [&b"\xc3\xa9".repeat(499)[..], b"y\r\n.\r\n"].concat();
    let Verdict::Accept(_) = finish(&mut session, &long) else { panic!("refused") };
    let noted = session.take_notes();
    for lint in [Lint::LongLine, Lint::UndeclaredEightBit, Lint::NoDate, Lint::NoFrom, Lint::NoMessageId] {
        assert!(noted.contains(&Note::Lint(lint)), "{lint:?}");
    }
    let mut session = at_content("MAIL FROM:<l@lists.example> BODY=8BITMIME");
    let Verdict::Accept(_) = finish(&mut session, b"From: a\r\nDate: b\r\nMessage-ID: <c>\r\n\r\n\xc3\xa9\r\n.\r\n")
    else {
        panic!("refused")
    };
    assert_eq!(session.take_notes(), []);
}

#[test]
fn a_stranger_gets_nothing() {
    let mut session = stranger();
    dialogue(
        &mut session,
        &[
            ("MAIL FROM:<>", "550 5.7.1"),
            ("EHLO x", "250 -"),
            ("MAIL FROM:<a@lists.example>", "550 5.7.1"),
            ("MAIL garbage", "550 5.7.1"),
            ("RCPT TO:<a@b.example>", "550 5.7.1"),
            ("DATA", "550 5.7.1"),
            ("VRFY a", "550 5.7.1"),
            ("FOO", "550 5.7.1"),
            ("NOOP", "250 2.0.0"),
            ("AUTH PLAIN AHgAeA==", "538 5.7.11"),
            ("STARTTLS", "220 2.0.0"),
        ],
    );
}

#[test]
fn a_strangers_patience_with_us_is_tested_for_a_while_only() {
    let mut session = stranger();
    let closes = (1..).find(|_| matches!(give(&mut session, "MAIL FROM:<>", CALM), Step::Close(_)));
    assert_eq!(closes, Some(STRANGER_REFUSALS_MAX + 1));
    let mut session = stranger();
    let closes = (1..).find(|_| matches!(give(&mut session, "NOOP", CALM), Step::Close(_)));
    assert_eq!(closes, Some(STRANGER_COMMANDS_MAX + 1));
}

#[test]
fn a_list_host_may_err_as_often_as_it_likes() {
    let mut session = list_host();
    for _ in 0..1000 {
        assert_eq!(say(&mut session, "FOO"), "500 5.5.1");
        assert_eq!(say(&mut session, "NOOP"), "250 2.0.0");
    }
}

#[test]
fn malformed_lines_close_the_session_only_outside_a_transaction() {
    let bare = Line::Defect(Defect::BareLineFeed);
    let mut session = list_host();
    assert_eq!(reply_of(session.line(&bare, CALM)).code(), 500);
    assert_eq!(reply_of(session.line(&Line::Defect(Defect::Nul), CALM)).code(), 501);
    assert!(matches!(session.line(&bare, CALM), Step::Close(reply) if reply.code() == 421));
    let mut session = list_host();
    dialogue(&mut session, &[("EHLO x", "250 -"), ("MAIL FROM:<>", "250 2.1.0")]);
    for _ in 0..10 {
        assert!(matches!(session.line(&bare, CALM), Step::Reply(reply) if reply.code() == 500));
    }
    assert_eq!(say(&mut session, "RCPT TO:<a@b.example>"), "250 2.1.5");
}

#[test]
fn another_protocol_is_shown_the_door() {
    for line in ["GET / HTTP/1.1", "Host: relay.example", "BDAT 4 LAST", "\u{16}\u{3}\u{1}"] {
        assert!(matches!(give(&mut list_host(), line, CALM), Step::Close(reply) if reply.code() == 500), "{line:?}");
    }
}

#[test]
fn everything_said_in_the_clear_is_forgotten_under_tls() {
    let mut session = list_host();
    dialogue(&mut session, &[("EHLO x", "250 -"), ("STARTTLS", "220 2.0.0")]);
    session.tls_started();
    dialogue(
        &mut session,
        &[("MAIL FROM:<>", "503 5.5.1"), ("STARTTLS", "503 5.5.1"), ("EHLO x", "250 -"), ("MAIL FROM:<>", "250 2.1.0")],
    );
}

fn under_tls() -> Session {
    let mut session = stranger();
    session.tls_started();
    say(&mut session, "EHLO x");
    session
}

#[test]
fn a_password_makes_a_stranger_a_list_host() {
    let mut session = under_tls();
    assert_eq!(say(&mut session, "AUTH LOGIN"), "334 -");
    assert_eq!(say(&mut session, "dXNlcg=="), "334 -");
    let Step::CheckPassword(credentials) = give(&mut session, "c2VjcmV0", CALM) else { panic!("not asked") };
    assert_eq!((&*credentials.user, &*credentials.password), ("user", "secret"));
    assert_eq!(reply_of(session.password_checked(Checked::Granted(relay()))).code(), 235);
    dialogue(
        &mut session,
        &[
            ("AUTH PLAIN", "503 5.5.1"),
            ("MAIL FROM:<l@lists.example>", "250 2.1.0"),
            ("RCPT TO:<a@b.example>", "250 2.1.5"),
            ("DATA", "354 -"),
        ],
    );
    let Verdict::Accept(accepted) = finish(&mut session, b".\r\n") else { panic!("refused") };
    assert_eq!(accepted.protocol, "ESMTPSA");
}

#[test]
fn failed_passwords_cost_more_each_time_and_end_the_session() {
    let mut session = under_tls();
    for (attempt, penalty) in [(1, 1), (2, 2)] {
        assert!(matches!(give(&mut session, "AUTH PLAIN AHUAcA==", CALM), Step::CheckPassword(_)));
        assert_eq!(reply_of(session.password_checked(Checked::Denied)).code(), 535, "attempt {attempt}");
        assert_eq!(session.penalty(), Duration::from_secs(penalty));
    }
    assert!(matches!(give(&mut session, "AUTH PLAIN AHUAcA==", CALM), Step::CheckPassword(_)));
    assert!(matches!(session.password_checked(Checked::Denied), Step::Close(reply) if reply.code() == 421));
}

#[test]
fn an_exchange_is_cancelled_by_a_star_or_a_line_too_long() {
    let mut session = under_tls();
    dialogue(&mut session, &[("AUTH PLAIN", "334 -"), ("*", "501 5.7.0"), ("AUTH PLAIN", "334 -")]);
    assert_eq!(reply_of(session.line(&Line::Defect(Defect::TooLong), CALM)).code(), 500);
    assert_eq!(say(&mut session, "NOOP"), "250 2.0.0");
}

#[test]
fn the_name_in_the_received_line_cannot_leave_its_clause() {
    for (given, kept) in [
        ("[127.0.0.1]", "[127.0.0.1]"),
        ("host.example", "host.example"),
        ("a) by evil (b", "unknown"),
        ("a;b", "unknown"),
    ] {
        assert_eq!(&*sanitised(given), kept);
    }
    assert_eq!(&*sanitised(&"a".repeat(256)), "unknown");
}

/// The state a list host is brought into, by what it says.
const STATES: [(&str, &[&str]); 5] = [
    ("connected", &[]),
    ("greeted", &["EHLO x"]),
    ("mail", &["EHLO x", "MAIL FROM:<l@lists.example> RET=FULL ENVID=first"]),
    ("rcpt", &["EHLO x", "MAIL FROM:<l@lists.example> RET=FULL ENVID=first", "RCPT TO:<first@b.example> NOTIFY=NEVER"]),
    ("exchange", &["EHLO x", "AUTH PLAIN"]),
];

/// Command, then the code in each state of `STATES`.
const MODEL: [(&str, [u16; 5]); 14] = [
    ("EHLO y", [250, 250, 250, 250, 501]),
    ("HELO y", [250, 250, 250, 250, 501]),
    ("MAIL FROM:<n@lists.example>", [503, 250, 503, 503, 501]),
    ("MAIL FROM:<bad", [501, 501, 501, 501, 501]),
    ("MAIL FROM:<n@other.example>", [503, 451, 503, 503, 501]),
    ("RCPT TO:<second@b.example>", [503, 503, 250, 250, 501]),
    ("RCPT TO:<>", [501, 501, 501, 501, 501]),
    ("DATA", [503, 503, 503, 354, 535]),
    ("RSET", [250, 250, 250, 250, 535]),
    ("NOOP", [250, 250, 250, 250, 535]),
    ("VRFY a", [252, 252, 252, 252, 501]),
    ("FOO!", [500, 500, 500, 500, 501]),
    ("STARTTLS", [503, 503, 503, 503, 535]),
    ("QUIT", [221, 221, 221, 221, 535]),
];

#[test]
fn every_command_in_every_state_is_answered_as_the_model_says_and_leaks_nothing() {
    for (state, (name, script)) in STATES.iter().enumerate() {
        for (command, codes) in &MODEL {
            let mut session = Session::new(Arc::new(Terms { starttls: true, ..terms() }), peer(), Some(relay()));
            session.tls_started();
            script.iter().for_each(|line| drop(give(&mut session, line, CALM)));
            let step = give(&mut session, command, CALM);
            assert_eq!(reply_of(step).code(), codes[state], "{command} when {name}");
            next_transaction_is_clean(&mut session, name, command);
        }
    }
}

/// Whatever happened: after RSET a new transaction holds nothing of the one before.
fn next_transaction_is_clean(session: &mut Session, state: &str, command: &str) {
    if session.awaits_content() {
        assert!(matches!(finish(session, b"a\nb\r\n.\r\n"), Verdict::Refuse(_)));
    }
    for line in ["RSET", "EHLO z", "MAIL FROM:<clean@lists.example>", "RCPT TO:<only@b.example>", "DATA"] {
        give(session, line, CALM);
    }
    let Verdict::Accept(accepted) = finish(session, b".\r\n") else { panic!("{command} when {state}: refused") };
    assert_eq!(accepted.reverse_path.as_str(), "clean@lists.example", "{command} when {state}");
    assert_eq!(accepted.params, EnvelopeParams::default(), "{command} when {state}");
    assert_eq!(accepted.recipients.len(), 1, "{command} when {state}");
    assert_eq!(accepted.recipients[0].0.params, RecipientParams::default(), "{command} when {state}");
}

/// Pieces of dialogue, whole and broken; what is drawn from them is fed in chunks of any size.
const PIECES: [&str; 18] = [
    "EHLO x\r\n",
    "MAIL FROM:<l@lists.example>\r\n",
    "MAIL FROM:<l@lists.example> SMTPUTF8 XVERP\r\n",
    "RCPT TO:<a@b.example>\r\n",
    "RCPT TO:<\u{e9}@b.example>\r\n",
    "DATA\r\n",
    "RSET\r\n",
    "AUTH PLAIN\r\n",
    "AHUAcA==\r\n",
    "*\r\n",
    "\r\n.\r\n",
    ".\r\n",
    "From: x\r\n",
    "\n",
    "\r",
    "\0",
    "text",
    "\u{e9}",
];

/// Feeds `input` in chunks of `size` octets and returns the codes of all replies and what was accepted.
fn converse(input: &[u8], size: usize) -> (Vec<u16>, Vec<(usize, Findings)>) {
    let mut session = Session::new(Arc::new(terms()), peer(), Some(relay()));
    session.tls_started();
    let (mut framer, mut buffer) = (super::super::line::Framer::default(), bytes::BytesMut::new());
    let (mut codes, mut accepted) = (Vec::new(), Vec::new());
    for chunk in input.chunks(size) {
        buffer.extend_from_slice(chunk);
        loop {
            if session.awaits_content() {
                let taken = session.content(&buffer);
                bytes::Buf::advance(&mut buffer, taken.content + taken.end.unwrap_or(0));
                if taken.end.is_none() {
                    break;
                }
                match session.complete() {
                    Verdict::Refuse(reply) => codes.push(reply.code()),
                    Verdict::Accept(whole) => {
                        accepted.push((whole.recipients.len(), whole.findings));
                        session.conclude();
                    }
                }
                continue;
            }
            let Some(line) = framer.next(&mut buffer, session.awaits_exchange()) else { break };
            let step = match session.line(&line, CALM) {
                Step::CheckPassword(_) => session.password_checked(Checked::Denied),
                step => step,
            };
            let closes = matches!(step, Step::Close(_));
            codes.push(reply_of(step).code());
            if closes {
                return (codes, accepted);
            }
        }
    }
    (codes, accepted)
}

proptest::proptest! {
    #[test]
    fn a_session_goes_the_same_way_at_every_split(picks in proptest::collection::vec(0..PIECES.len(), 0..24), size in 1..20_usize) {
        let input: String = picks.iter().map(|&pick| PIECES[pick]).collect();
        let whole = converse(input.as_bytes(), usize::MAX);
        proptest::prop_assert_eq!(converse(input.as_bytes(), size), whole);
    }
}
