use std::sync::Arc;

use mail_parser::{Message, MessageParser, MimeHeaders, PartType};

use super::super::{Options, samples};
use super::*;
use crate::mail::{OriginalRecipient, ReversePath};
use crate::outcome::{Enhanced, Reply};
use crate::spool::Obligation;

/// Undoes dot-stuffing, as a receiver does.
fn unstuffed(content: &[u8]) -> Vec<u8> {
    let text: Vec<&[u8]> = content.split_inclusive(|&b| b == b'\n').collect();
    text.iter().flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect()
}

fn composed(owed: &Owed) -> Dsn {
    composed_with(owed, &samples::options())
}

fn composed_with(owed: &Owed, options: &Options) -> Dsn {
    let dsn = compose(&samples::report(owed), options).expect("a report is owed");
    assert_is_mail(&dsn);
    dsn
}

/// What holds of every report, whatever went into it.
fn assert_is_mail(dsn: &Dsn) {
    let plain = unstuffed(&dsn.content);
    assert_eq!(plain.len() as u64, dsn.size);
    assert_eq!(!plain.is_ascii(), dsn.eight_bit);
    let text = String::from_utf8_lossy(&plain).replace("\r\n", "\u{0}");
    assert!(!text.contains(['\r', '\n']), "a bare CR or LF");
    assert!(plain.ends_with(b"\r\n"));
    assert!(plain.split(|&b| b == b'\n').all(|line| line.len() <= 999), "a line over 998 octets");
    let message = MessageParser::default().parse(&plain).expect("a report parses");
    let kind = message.content_type().expect("a report has a type");
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert!(matches!(message.root_part().body, PartType::Multipart(_)));
}

/// The bodies of the three parts, cut at the boundary as an independent reader would.
fn bodies(dsn: &Dsn) -> Vec<(String, String)> {
    let plain = String::from_utf8(unstuffed(&dsn.content)).expect("UTF-8");
    let boundary = plain.split("boundary=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a boundary");
    let delimiter = format!("\r\n--{boundary}");
    let parts = plain.split(&delimiter).skip(1).filter(|part| !part.starts_with("--"));
    parts
        .map(|part| part.split_once("\r\n\r\n").expect("a part has a head"))
        .map(|(head, body)| (head.trim().to_owned(), body.to_owned()))
        .collect()
}

fn set(owed: &mut Owed, change: impl FnOnce(&mut crate::mail::Envelope)) {
    let mut batch = (*owed.batch).clone();
    let mut envelope = (*batch.envelope).clone();
    change(&mut envelope);
    batch.envelope = Arc::new(envelope);
    owed.batch = Arc::new(batch);
}

fn with_orcpt(obligation: &mut Obligation, address_type: &str, address: &str) {
    let mut recipient = (*obligation.recipient).clone();
    recipient.params.orcpt = Some(OriginalRecipient { address_type: address_type.into(), address: address.into() });
    obligation.recipient = Arc::new(recipient);
}

const GOLDEN: &str = "\
From: Mail Delivery System <MAILER-DAEMON@relay.example.net>
To: <news-bounces@lists.example.org>
Subject: Undelivered Mail Returned to Sender
Date: Tue, 24 Nov 2026 08:01:05 +0000
Message-ID: <0000002D.0000001A.dsn@relay.example.net>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
    boundary=\"dsn-0000002D-0000001A-0\"

This is a delivery report in MIME format.

--dsn-0000002D-0000001A-0
Content-Type: text/plain; charset=us-ascii
Content-Description: Notification

This is the mail relay relay.example.net.

The message that it accepted from you on Tue, 24 Nov 2026 08:00:00 +0000
could not be delivered to the recipients below. No further attempt will be
made.

  <a@example.com>
      mx.example.com said: 550 5.1.1 User unknown
  <b@example.com>
      mx.example.com said: 550 5.1.1 User unknown

The header of the message is attached. The relay's postmaster finds it under
queue id 0000002D.

--dsn-0000002D-0000001A-0
Content-Type: message/delivery-status
Content-Description: Delivery report

Reporting-MTA: dns; relay.example.net
Arrival-Date: Tue, 24 Nov 2026 08:00:00 +0000

Final-Recipient: rfc822; a@example.com
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550 5.1.1 User unknown
Last-Attempt-Date: Tue, 24 Nov 2026 08:01:00 +0000
Final-Log-Id: 0000002D.0

Final-Recipient: rfc822; b@example.com
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.com
Diagnostic-Code: smtp; 550 5.1.1 User unknown
Last-Attempt-Date: Tue, 24 Nov 2026 08:01:00 +0000
Final-Log-Id: 0000002D.1

--dsn-0000002D-0000001A-0
Content-Type: text/rfc822-headers
Content-Description: Undelivered message header

From: editor@lists.example.org
To: news@lists.example.org
Subject: News
Message-ID: <1@lists.example.org>
List-Id: <news.lists.example.org>

--dsn-0000002D-0000001A-0--
";

#[test]
fn a_plain_bounce_reads_as_expected_to_the_letter() {
    let dsn = composed(&samples::owed(&["a@example.com", "b@example.com"]));
    assert_eq!(String::from_utf8(dsn.content).expect("ASCII").replace("\r\n", "\n"), GOLDEN);
    assert_eq!(dsn.recipient, samples::mailbox("news-bounces@lists.example.org"));
    assert!(!dsn.smtputf8);
}

#[test]
fn the_null_reverse_path_is_never_reported_to() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| envelope.reverse_path = ReversePath::Null);
    assert_eq!(compose(&samples::report(&owed), &samples::options()), None);
}

#[test]
fn a_batch_that_owes_nothing_gets_no_report() {
    assert_eq!(compose(&samples::report(&samples::owed(&[])), &samples::options()), None);
}

#[test]
fn what_a_report_pays_is_what_it_reports() {
    let owed = samples::owed(&["a@example.com", "b@example.com"]);
    let pays: Vec<_> = owed.obligations.iter().map(|(id, _)| (*id, ObligationKind::Failed)).collect();
    assert_eq!(composed(&owed).pays, pays);
}

#[test]
fn the_senders_own_words_for_envelope_and_recipient_come_back_decoded() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| envelope.params.envid = Some("news+42=x".into()));
    with_orcpt(&mut owed.obligations[0].1, "rfc822", "a+tag@example.com");
    let status = bodies(&composed(&owed)).remove(1).1;
    assert!(status.contains("Original-Envelope-Id: news+42=x\r\n"), "{status}");
    assert!(
        status.contains("Original-Recipient: rfc822; a+tag@example.com\r\nFinal-Recipient: rfc822; a@"),
        "{status}"
    );
}

#[test]
fn a_hostile_reply_stays_in_its_field() {
    let mut owed = samples::owed(&["a@example.com"]);
    let text =
        format!("no\r\n\r\nFinal-Recipient: rfc822; b@example.com\r\nAction: failed\u{1b}[2J ü {}", "y".repeat(5000));
    owed.obligations[0].1.reason.reply = Some(Reply { code: 550, enhanced: None, text: text.into() });
    owed.obligations[0].1.reason.remote = Some("mx\r\nevil: yes[192.0.2.1]:25".into());
    let dsn = composed(&owed);
    let status = bodies(&dsn).remove(1).1;
    assert_eq!(status.matches("\r\nFinal-Recipient:").count(), 1, "{status}");
    assert_eq!(status.matches("\r\nAction:").count(), 1, "{status}");
    assert!(!status.contains("\r\nevil:") && status.is_ascii() && !status.contains('\u{1b}'));
    assert!(status.len() < 1500);
    assert!(!dsn.eight_bit);
}

#[test]
fn an_original_cannot_end_the_report_early() {
    let mut content = samples::CONTENT.to_vec();
    content.extend_from_slice(b"--dsn-0000002D-0000001A-0--\r\n--dsn-0000002D-0000001A-1\r\n");
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| envelope.params.ret = Some(Ret::Full));
    let report = Report { original_content: Some(&content), ..samples::report(&owed) };
    let dsn = compose(&report, &samples::options()).expect("owed");
    assert_is_mail(&dsn);
    assert!(bodies(&dsn)[2].1.ends_with("--dsn-0000002D-0000001A-1\r\n"));
}

#[test]
fn the_whole_message_comes_back_where_it_was_asked_for() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| envelope.params.ret = Some(Ret::Full));
    let dsn = composed(&owed);
    let (head, body) = bodies(&dsn).remove(2);
    assert_eq!(dsn.returned, Returned::Message);
    assert!(head.starts_with("Content-Type: message/rfc822"));
    assert_eq!(body.as_bytes(), unstuffed(samples::CONTENT));
    assert!(dsn.content.windows(7).any(|window| window == b"\r\n..dot"), "the report is stuffed again");
}

#[test]
fn what_must_not_travel_in_clear_does_not_come_back_in_full() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| {
        envelope.params.ret = Some(Ret::Full);
        envelope.params.requiretls = true;
    });
    assert_eq!(composed(&owed).returned, Returned::Headers);
}

#[test]
fn a_delay_never_returns_the_whole_message_and_says_until_when() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| envelope.params.ret = Some(Ret::Full));
    owed.obligations[0].1.kind = ObligationKind::Delayed;
    owed.obligations[0].1.reason.status = Enhanced::new(4, 2, 1);
    let until = "2026-11-29T08:00:00Z".parse().expect("a timestamp");
    let report = Report { retry_until: Some(until), ..samples::report(&owed) };
    let dsn = compose(&report, &samples::options()).expect("owed");
    let parts = bodies(&dsn);
    assert_eq!(dsn.returned, Returned::Headers);
    assert!(parts[0].1.contains("no need to send it again"));
    assert!(parts[1].1.contains("Action: delayed\r\nStatus: 4.2.1\r\n"));
    assert!(parts[1].1.contains("Will-Retry-Until: Sun, 29 Nov 2026 08:00:00 +0000\r\n"));
}

#[test]
fn a_status_never_contradicts_its_action() {
    let mut owed = samples::owed(&["a@example.com", "b@example.com"]);
    owed.obligations[0].1.kind = ObligationKind::Relayed;
    owed.obligations[1].1.reason.status = Enhanced::new(4, 4, 7);
    let status = bodies(&composed(&owed)).remove(1).1;
    assert!(status.contains("Action: relayed\r\nStatus: 2.0.0\r\n"), "{status}");
    assert!(
        status.contains("Action: failed\r\nStatus: 4.4.7\r\n"),
        "an expired recipient keeps its last status: {status}"
    );
}

#[test]
fn one_report_covers_all_kinds_that_are_owed() {
    let mut owed = samples::owed(&["a@example.com", "b@example.com"]);
    owed.obligations[1].1.kind = ObligationKind::Relayed;
    let dsn = composed(&owed);
    let text = bodies(&dsn).remove(0).1;
    assert!(text.contains("could not be delivered") && text.contains("last notice"));
    assert_eq!(dsn.pays.len(), 2);
    assert!(String::from_utf8_lossy(&dsn.content).contains("Subject: Undelivered Mail"));
}

#[test]
fn where_no_reply_says_it_the_diagnosis_is_ours() {
    let mut owed = samples::owed(&["a@example.com"]);
    let reason = &mut owed.obligations[0].1.reason;
    (reason.reply, reason.remote, reason.text) = (None, None, "example.com does not exist".into());
    let status = bodies(&composed(&owed)).remove(1).1;
    assert!(status.contains("Diagnostic-Code: x-posthaste; example.com does not exist\r\n"), "{status}");
    assert!(!status.contains("Remote-MTA"));
}

#[test]
fn five_thousand_failures_are_all_in_one_report() {
    let addresses: Vec<String> = (0..5000).map(|n| format!("member{n}@d{}.example.com", n % 40)).collect();
    let dsn = composed(&samples::owed(&addresses.iter().map(String::as_str).collect::<Vec<_>>()));
    let parts = bodies(&dsn);
    assert_eq!(parts[1].1.matches("Final-Recipient: ").count(), 5000);
    assert!(parts[0].1.contains("... and 4950 more"));
    assert!(parts[0].1.len() < 8000, "the text for people stays short");
}

#[test]
fn a_report_on_unreadable_content_has_two_parts_and_says_so() {
    let owed = samples::owed(&["a@example.com"]);
    let report = Report { original_content: None, ..samples::report(&owed) };
    let dsn = compose(&report, &samples::options()).expect("owed");
    assert_is_mail(&dsn);
    assert_eq!((dsn.returned, bodies(&dsn).len()), (Returned::Nothing, 2));
    assert!(bodies(&dsn)[0].1.contains("could not be read"));
}

#[test]
fn eight_bit_headers_come_back_untouched_and_are_declared() {
    let owed = samples::owed(&["a@example.com"]);
    let content = "Subject: Grüße\r\n\r\nx\r\n".as_bytes();
    let report = Report { original_content: Some(content), ..samples::report(&owed) };
    let dsn = compose(&report, &samples::options()).expect("owed");
    assert_is_mail(&dsn);
    let (head, body) = bodies(&dsn).remove(2);
    assert!(dsn.eight_bit && !dsn.smtputf8, "8-bit octets of a part need 8BITMIME, not SMTPUTF8");
    assert!(head.ends_with("Content-Transfer-Encoding: 8bit"));
    assert_eq!(body, "Subject: Grüße\r\n");
    let top = String::from_utf8_lossy(&dsn.content).split_once("\r\n\r\n").expect("a header").0.to_owned();
    assert!(top.contains("Content-Transfer-Encoding: 8bit"), "a multipart is at least as wide as its parts");
}

#[test]
fn an_address_beyond_ascii_makes_the_report_global() {
    let mut owed = samples::owed(&["grüße@exämple.com", "b@example.com"]);
    set(&mut owed, |envelope| envelope.params.smtputf8 = true);
    with_orcpt(&mut owed.obligations[0].1, "utf-8", "grüße@exämple.com");
    let content = "Subject: Grüße\r\n\r\nx\r\n".as_bytes();
    let report = Report { original_content: Some(content), ..samples::report(&owed) };
    let dsn = compose(&report, &samples::options()).expect("owed");
    assert_is_mail(&dsn);
    let parts = bodies(&dsn);
    assert!(parts[0].0.contains("charset=utf-8") && parts[0].1.contains("<grüße@exämple.com>"));
    assert!(parts[1].0.starts_with("Content-Type: message/global-delivery-status"));
    assert!(parts[1].1.contains("Original-Recipient: utf-8; grüße@exämple.com\r\nFinal-Recipient: utf-8; grüße@"));
    assert!(parts[1].1.contains("Final-Recipient: rfc822; b@example.com"));
    assert!(parts[2].0.starts_with("Content-Type: message/global-headers"));
    assert!(dsn.eight_bit && !dsn.smtputf8);
}

#[test]
fn a_reverse_path_beyond_ascii_needs_smtputf8() {
    let mut owed = samples::owed(&["a@example.com"]);
    set(&mut owed, |envelope| {
        envelope.reverse_path = ReversePath::Mailbox(samples::mailbox("grüße@lists.example.org"))
    });
    let dsn = composed(&owed);
    assert!(dsn.smtputf8);
    let message = unstuffed(&dsn.content);
    let message: Message<'_> = MessageParser::default().parse(&message).expect("parses");
    let to = message.to().and_then(|to| to.first()).and_then(|to| to.address());
    assert_eq!(to, Some("grüße@lists.example.org"));
}

#[test]
fn the_reports_sender_can_be_configured() {
    let options = Options { from: Some(samples::mailbox("bounces@example.net")), ..samples::options() };
    let dsn = composed_with(&samples::owed(&["a@example.com"]), &options);
    assert!(dsn.content.starts_with(b"From: Mail Delivery System <bounces@example.net>\r\n"));
}

proptest::proptest! {
    #[test]
    fn whatever_a_peer_or_a_message_says_the_report_is_mail(
        reply in ".{0,600}", remote in ".{0,80}", content in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
        full in proptest::bool::ANY,
    ) {
        let mut owed = samples::owed(&["a@example.com"]);
        set(&mut owed, |envelope| envelope.params.ret = full.then_some(Ret::Full));
        owed.obligations[0].1.reason.reply = Some(Reply { code: 550, enhanced: None, text: reply.into() });
        owed.obligations[0].1.reason.remote = Some(remote.into());
        let report = Report { original_content: Some(&content), ..samples::report(&owed) };
        assert_is_mail(&compose(&report, &samples::options()).expect("owed"));
    }
}
