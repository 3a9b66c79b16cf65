//! Bounces go straight to the list host, once, and never in circles (design 10).

use std::time::Duration;

use mail_parser::{MessageParser, MimeHeaders};
use posthaste::rehearse::internet::{Domain, Extensions, Internet, Policy, Stage as Moment};

use crate::support::bounce_port::{BouncePort, Protocol};
use crate::support::{A_WHILE, BOUNCES, Plan, Stage, free_address, message, subscribers};

fn one(describe: impl FnOnce(Domain) -> Domain) -> Plan {
    Plan::new(Internet::builder().domain("a.test", describe))
}

/// One domain where everybody whose name begins with `gone` is unknown.
fn with_unknowns() -> Plan {
    one(|d| d.refuse("gone*"))
}

fn bounces_to(url: &str) -> String {
    format!(
        "[[list_host]]\nname = \"lists\"\nnetworks = [\"127.0.0.0/8\"]\nreverse_path_domains = [\"lists.test\"]\n\
         bounces_to = \"{url}\"\n"
    )
}

/// The types of a message's parts, the whole one first.
fn types(content: &[u8]) -> Vec<String> {
    let message = MessageParser::default().parse(content).expect("a message");
    let part_type = |part: &mail_parser::MessagePart<'_>| {
        let content_type = part.content_type().expect("a type");
        format!("{}/{}", content_type.ctype(), content_type.subtype().unwrap_or_default())
    };
    message.parts.iter().map(part_type).collect()
}

async fn nothing_bounces(stage: &Stage) {
    stage.until_empty().await;
    tokio::time::sleep(A_WHILE).await;
    assert!(stage.bounces().is_empty());
}

#[tokio::test]
async fn a_refused_recipient_is_reported_once_to_the_list_host_in_the_form_of_rfc_3464() {
    let stage = with_unknowns().start().await;
    stage.post(&["gone@a.test", "u@a.test"], &message("refused")).await;
    let bounce = stage.bounce().await;
    assert_eq!(
        (bounce.0.reverse_path.as_str(), &bounce.0.recipients[..]),
        ("", &["news-bounces@lists.test".into()][..])
    );
    assert_eq!(
        types(&bounce.0.content),
        ["multipart/report", "text/plain", "message/delivery-status", "text/rfc822-headers"]
    );
    assert_eq!(bounce.reported(), [("gone@a.test".into(), "failed".into(), "5.1.1".into())]);
    let text = bounce.text();
    for field in [
        "Reporting-MTA: dns; relay.test",
        "Remote-MTA: dns; mx.a.test",
        "Diagnostic-Code: smtp; 550 5.1.1 No such user here",
        "Auto-Submitted: auto-replied",
        "Message-ID: <refused@lists.test>",
    ] {
        assert!(text.contains(field), "{field} is missing in\n{text}");
    }
    assert!(!text.contains("Hello refused."), "the body was not asked for:\n{text}");
    stage.until_empty().await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(stage.bounces().len(), 1);
}

#[tokio::test]
async fn all_failures_of_a_batch_stand_in_one_report() {
    let stage = with_unknowns().start().await;
    let names: Vec<String> = (0..20).map(|number| format!("gone{number}@a.test")).collect();
    stage.post(&names.iter().map(String::as_str).collect::<Vec<_>>(), &message("several")).await;
    let bounce = stage.bounce().await;
    let mut reported: Vec<String> = bounce.reported().into_iter().map(|(to, ..)| to).collect();
    let mut expected = names.clone();
    reported.sort();
    expected.sort();
    assert_eq!(reported, expected);
    stage.until_empty().await;
    assert_eq!(stage.bounces().len(), 1);
}

#[tokio::test]
async fn two_batches_get_a_report_each() {
    let stage = with_unknowns().start().await;
    stage.post(&["gone1@a.test"], &message("batch")).await;
    stage.post(&["gone2@a.test"], &message("batch")).await;
    stage.until("two reports", |stage| stage.bounces().len() == 2).await;
}

#[tokio::test]
async fn a_bounce_of_verp_mail_goes_to_the_reverse_path_of_its_recipient() {
    let stage = with_unknowns().start().await;
    let mail = format!("{BOUNCES} XVERP=+=");
    stage.client().await.must_take(&mail, &["<gone1@a.test>", "<gone2@a.test>", "<u@a.test>"], &message("verp")).await;
    stage.until("two reports", |stage| stage.bounces().len() == 2).await;
    let mut told: Vec<String> = stage.bounces().into_iter().flat_map(|bounce| bounce.recipients).collect();
    told.sort();
    assert_eq!(told, ["news-bounces+gone1=a.test@lists.test", "news-bounces+gone2=a.test@lists.test"]);
}

#[tokio::test]
async fn mail_from_the_null_reverse_path_is_never_bounced() {
    let stage = with_unknowns().start().await;
    stage.client().await.must_take("<>", &["<gone@a.test>"], &message("null")).await;
    stage.until("the refusal", |stage| stage.outcome("gone@a.test").is_some()).await;
    nothing_bounces(&stage).await;
}

#[tokio::test]
async fn who_wants_to_hear_of_nothing_hears_of_nothing() {
    let stage = with_unknowns().start().await;
    stage.client().await.must_take(BOUNCES, &["<gone@a.test> NOTIFY=NEVER"], &message("never")).await;
    stage.until("the refusal", |stage| stage.outcome("gone@a.test").is_some()).await;
    nothing_bounces(&stage).await;
}

#[tokio::test]
async fn a_delay_is_reported_once_where_it_was_asked_for() {
    let stage = one(|d| d.full("full*")).with("[bounce]\ndelay_after = \"500ms\"").start().await;
    let recipients = ["<full1@a.test> NOTIFY=DELAY,FAILURE", "<full2@a.test> NOTIFY=FAILURE", "<full3@a.test>"];
    stage.client().await.must_take(BOUNCES, &recipients, &message("delayed")).await;
    let bounce = stage.bounce().await;
    assert_eq!(bounce.reported(), [("full1@a.test".into(), "delayed".into(), "4.2.2".into())]);
    assert!(bounce.text().contains("Will-Retry-Until:"), "{}", bounce.text());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.bounces().len(), 1);
}

#[tokio::test]
async fn a_success_is_reported_where_the_next_hop_will_not() {
    for (dsn, expected) in [(false, 1), (true, 0)] {
        let policy = Policy::new().extensions(Extensions { dsn, ..Extensions::ALL });
        let stage = one(|d| d.policy(policy)).start().await;
        stage.client().await.must_take(BOUNCES, &["<u@a.test> NOTIFY=SUCCESS"], &message("success")).await;
        stage.until_delivered(&["u@a.test"]).await;
        stage.until_empty().await;
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(stage.bounces().len(), expected, "DSN offered: {dsn}");
        if expected == 1 {
            assert_eq!(stage.bounce().await.reported()[0].1, "relayed");
        }
    }
}

#[tokio::test]
async fn the_whole_message_comes_back_where_it_was_asked_for() {
    let stage = with_unknowns().start().await;
    let mail = format!("{BOUNCES} RET=FULL ENVID=abc+2B");
    stage.client().await.must_take(&mail, &["<gone@a.test> ORCPT=rfc822;Old@a.test"], &message("full")).await;
    let bounce = stage.bounce().await;
    assert_eq!(
        types(&bounce.0.content)[..4],
        ["multipart/report", "text/plain", "message/delivery-status", "message/rfc822"]
    );
    let text = bounce.text();
    assert!(text.contains("Hello full.") && text.contains("Original-Envelope-Id: abc+"), "{text}");
    assert!(text.contains("Original-Recipient: rfc822; Old@a.test"), "{text}");
}

#[tokio::test]
async fn a_bounce_goes_to_an_lmtp_port_as_well() {
    let address = free_address();
    let port = BouncePort::open(address, Protocol::Lmtp).await;
    let stage = with_unknowns().with(&bounces_to(&format!("lmtp://{address}"))).start().await;
    stage.post(&["gone@a.test"], &message("lmtp")).await;
    stage.until("a report", |_| !port.taken().messages.is_empty()).await;
    let taken = port.taken();
    assert!(taken.commands[0].starts_with("LHLO relay.test"), "{:?}", taken.commands);
    assert!(taken.commands.iter().any(|command| command.starts_with("MAIL FROM:<>")), "{:?}", taken.commands);
    assert!(taken.commands.iter().any(|command| command.starts_with("RCPT TO:<news-bounces@lists.test>")));
    assert!(taken.messages[0].contains("Final-Recipient: rfc822; gone@a.test"), "{}", taken.messages[0]);
    stage.until_empty().await;
}

#[tokio::test]
async fn a_bounce_for_a_list_host_that_is_down_survives_a_kill_and_arrives_when_it_is_up() {
    let address = free_address();
    let mut stage = with_unknowns().with(&bounces_to(&format!("smtp://{address}"))).start().await;
    stage.post(&["gone@a.test"], &message("down")).await;
    stage.until("a try", |stage| stage.outcome("news-bounces@lists.test").is_some()).await;
    stage.kill9().await;
    stage.start_relay().await;
    tokio::time::sleep(A_WHILE).await;
    let port = BouncePort::open(address, Protocol::Smtp).await;
    stage.until("the report", |_| !port.taken().messages.is_empty()).await;
    stage.until_empty().await;
    assert_eq!(port.taken().messages.len(), 1);
}

#[tokio::test]
async fn the_second_bounce_address_takes_over_while_the_first_is_down() {
    let (dead, alive) = (free_address(), free_address());
    let port = BouncePort::open(alive, Protocol::Smtp).await;
    let list_host = bounces_to("x").replace("\"x\"", &format!("[\"smtp://{dead}\", \"smtp://{alive}\"]"));
    let stage = with_unknowns().with(&list_host).start().await;
    stage.post(&["gone@a.test"], &message("second")).await;
    stage.until("the report", |_| !port.taken().messages.is_empty()).await;
}

#[tokio::test]
async fn a_refused_bounce_is_never_bounced_and_goes_to_the_postmaster() {
    let postmaster = "[bounce]\npostmaster = \"postmaster@b.test\"";
    let builder = Internet::builder().domain("a.test", |d| d.refuse("gone")).domain("b.test", |d| d);
    let stage = Plan::new(builder).with(postmaster).start().await;
    let refuse =
        posthaste::rehearse::internet::Scripted { stage: Moment::Rcpt, times: u32::MAX, reply: "550 5.1.1 no".into() };
    stage.internet.provider("lists.test").expect("described").script(refuse);
    stage.post(&["gone@a.test"], &message("circle")).await;
    stage.until_delivered(&["postmaster@b.test"]).await;
    stage.until_empty().await;
    assert_eq!((stage.internet.delivered("postmaster@b.test"), stage.bounces().len()), (1, 0));
}

#[tokio::test]
async fn a_bounce_never_waits_behind_outbound_mail() {
    let builder = Internet::builder().domain("a.test", |d| d.refuse("gone"));
    let builder = builder.domain("tar.test", |d| d.rtt(Duration::from_secs(15)));
    let limits = "[dispatch]\nattempts = 1\n[delivery]\nconnections = 1\n[bounce]\ngather = \"700ms\"";
    let stage = Plan::new(builder).with(limits).start().await;
    stage.post(&["gone@a.test"], &message("first")).await;
    stage.until("the refusal", |stage| stage.outcome("gone@a.test").is_some()).await;
    let recipients = subscribers(5, "tar.test");
    stage.post(&recipients.iter().map(String::as_str).collect::<Vec<_>>(), &message("tarpit")).await;
    let start = std::time::Instant::now();
    stage.bounce().await;
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_a_hostile_host_says_cannot_add_a_line_to_a_report() {
    let reply =
        "550-5.1.1 \u{1b}[31mred\u{202e}\tFinal-Recipient: rfc822; victim@a.test\r\n550 5.1.1 Action: delivered";
    let stage = one(|d| d.policy(Policy::new().answer_always(Moment::Rcpt, reply))).start().await;
    stage.post(&["u@a.test"], &message("hostile")).await;
    let bounce = stage.bounce().await;
    assert_eq!(bounce.reported(), [("u@a.test".into(), "failed".into(), "5.1.1".into())]);
    assert!(!bounce.text().contains('\u{1b}'), "{}", bounce.text());
}
