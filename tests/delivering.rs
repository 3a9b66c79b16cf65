//! What exchangers, name servers and recipients see of the relay (design 7 and 8).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;
use posthaste::rehearse::internet::{
    AfterDot, Behaviour, Delivered, Domain, Door, Extensions, Internet, Policy, Stage as Moment, without_trace,
};

use crate::support::{A_WHILE, BOUNCES, Bounce, Plan, Stage, certify, message, subscribers};

fn refs(recipients: &[String]) -> Vec<&str> {
    recipients.iter().map(String::as_str).collect()
}

/// The transactions that reached `host`.
fn at(stage: &Stage, host: &str) -> Vec<Delivered> {
    stage.internet.deliveries().into_iter().filter(|arrived| &*arrived.host == host).collect()
}

/// A one-domain internet.
fn one(describe: impl FnOnce(Domain) -> Domain) -> Plan {
    Plan::new(Internet::builder().domain("a.test", describe))
}

/// The domains `d0.test`, `d1.test`, ..., one per case.
fn domain_per<T>(cases: impl IntoIterator<Item = T>, describe: impl Fn(Domain, T) -> Domain) -> Plan {
    let numbered = cases.into_iter().enumerate();
    let builder = numbered.fold(Internet::builder(), |builder, (number, case)| {
        builder.domain(&format!("d{number}.test"), |domain| describe(domain, case))
    });
    Plan::new(builder)
}

/// A recipient in each of them.
fn recipient_per<T>(cases: impl IntoIterator<Item = T>) -> Vec<String> {
    cases.into_iter().enumerate().map(|(number, _)| format!("u@d{number}.test")).collect()
}

/// The status and the action of the one recipient of the first bounce.
async fn bounced(stage: &Stage) -> (String, String) {
    let bounce = stage.bounce().await;
    let reported = bounce.reported();
    assert_eq!(reported.len(), 1, "{}", bounce.text());
    (reported[0].1.clone(), reported[0].2.clone())
}

#[tokio::test]
async fn recipients_of_two_batches_of_one_message_share_a_transaction() {
    let stage = one(|d| d).with("[dispatch]\ncoalesce_quiet = \"500ms\"\ncoalesce_window = \"3s\"").start().await;
    stage.post(&["u1@a.test", "u2@a.test"], &message("shared")).await;
    stage.post(&["u3@a.test"], &message("shared")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test", "u3@a.test"]).await;
    assert_eq!(stage.internet.totals().transactions, 1);
}

#[tokio::test]
async fn a_transaction_holds_one_domain_even_where_two_share_their_exchanger() {
    let google = Policy::new().one_domain();
    let builder = Internet::builder().provider("big", ["mx.big.test"], google);
    let builder = builder.domain("a.test", |d| d.mx(["mx.big.test"])).domain("b.test", |d| d.mx(["mx.big.test"]));
    let stage = Plan::new(builder).start().await;
    stage.post(&["u1@a.test", "u1@b.test", "u2@a.test", "u2@b.test"], &message("domains")).await;
    stage.until_delivered(&["u1@a.test", "u1@b.test", "u2@a.test", "u2@b.test"]).await;
    assert_eq!((stage.internet.totals().transactions, stage.internet.limits_broken()), (2, 0));
}

#[tokio::test]
async fn two_messages_never_share_a_transaction() {
    let stage = one(|d| d).start().await;
    stage.post(&["u1@a.test"], &message("first")).await;
    stage.post(&["u1@a.test"], &message("second")).await;
    stage.until("both", |stage| stage.internet.totals().transactions == 2).await;
    assert_eq!(stage.internet.delivered("u1@a.test"), 2);
}

#[tokio::test]
async fn the_exchanger_of_lowest_preference_is_taken_while_it_lives() {
    let stage = one(|d| d.mx_at(20, "second.a.test").mx_at(10, "first.a.test").mx_at(30, "third.a.test")).start().await;
    for number in 0..5 {
        stage.post(&["u@a.test"], &message(&format!("m{number}"))).await;
    }
    stage.until("all", |stage| stage.internet.totals().transactions == 5).await;
    assert_eq!(at(&stage, "first.a.test").len(), 5);
}

#[tokio::test]
async fn exchangers_of_equal_preference_share_the_load() {
    let mut builder = Internet::builder().provider("big", ["one.test", "two.test"], Policy::new());
    let domains: Vec<String> = (0..24).map(|number| format!("d{number}.test")).collect();
    for domain in &domains {
        // Exchangers of a further name each, so that every domain is a site with connections of its own.
        let own = format!("mx.{domain}");
        builder = builder.member("big", &own);
        builder = builder.domain(domain, |d| d.mx_at(10, "one.test").mx_at(10, "two.test").mx_at(90, &own));
    }
    let stage = Plan::new(builder).start().await;
    let recipients: Vec<String> = domains.iter().map(|domain| format!("u@{domain}")).collect();
    stage.post(&refs(&recipients), &message("equal")).await;
    stage.until_delivered(&refs(&recipients)).await;
    let hosts: HashSet<String> = stage.internet.deliveries().iter().map(|arrived| arrived.host.to_string()).collect();
    assert_eq!(hosts, HashSet::from(["one.test".to_owned(), "two.test".to_owned()]));
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_exchanger() {
    let stage = one(|d| d.implicit_mx()).start().await;
    stage.post(&["u@a.test"], &message("implicit")).await;
    stage.until_delivered(&["u@a.test"]).await;
    assert_eq!(at(&stage, "a.test").len(), 1);
}

#[tokio::test]
async fn a_null_mx_bounces_at_once_and_nobody_is_dialled() {
    let stage = one(|d| d.null_mx()).start().await;
    stage.post(&["u@a.test"], &message("null")).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.1.10".to_owned()));
    assert_eq!(stage.internet.provider("a.test").map_or(0, |provider| provider.counts().connections), 0);
}

#[tokio::test]
async fn a_domain_that_does_not_exist_bounces_at_once() {
    let stage = one(|d| d.nxdomain()).start().await;
    stage.post(&["u@a.test"], &message("nxdomain")).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.1.2".to_owned()));
}

#[tokio::test]
async fn a_failing_name_server_only_delays_until_it_recovers() {
    let stage = one(|d| d.servfail()).start().await;
    stage.post(&["u1@a.test", "u2@a.test"], &message("servfail")).await;
    stage.until("a complaint", |stage| stage.log().contains("cannot be resolved for now")).await;
    stage.internet.change_dns(|zone| zone.node("a.test").behaviour = Behaviour::Normal);
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
    stage.until_empty().await;
    assert_eq!((stage.internet.totals().delivered, stage.internet.totals().duplicates), (2, 0));
    assert!(stage.bounces().is_empty());
}

fn is_deferred(stage: &Stage, recipient: &str) -> bool {
    stage.outcome(recipient).is_some_and(|line| line.contains("status=deferred"))
}

#[tokio::test]
async fn a_silent_name_server_holds_up_its_own_domain_only() {
    let builder = Internet::builder().domain("a.test", |d| d.dns_timeout()).domain("b.test", |d| d);
    let stage = Plan::new(builder).start().await;
    stage.post(&["u@a.test", "u@b.test"], &message("silent")).await;
    stage.until_delivered(&["u@b.test"]).await;
    stage.until("a complaint", |stage| stage.log().contains("cannot be resolved for now")).await;
}

#[tokio::test]
async fn mail_for_a_domain_that_never_resolves_expires_and_bounces_once() {
    let stage = one(|d| d.servfail()).with("[delivery]\nexpire_after = \"1s\"").start().await;
    stage.post(&["u@a.test"], &message("never")).await;
    assert_eq!(bounced(&stage).await.0, "failed");
    stage.until_empty().await;
    assert_eq!(stage.bounces().len(), 1);
}

#[tokio::test]
async fn mail_for_hosts_that_are_all_dead_expires_and_bounces_once() {
    let doors = [Door::Refused, Door::BlackHole, Door::Busy, Door::Resetting, Door::Silent];
    let plan = domain_per(doors, |domain, door| domain.door(door));
    let stage = plan.with("[delivery]\nexpire_after = \"1s\"").start().await;
    let recipients = recipient_per(doors);
    stage.post(&refs(&recipients), &message("dead")).await;
    stage.until_empty().await;
    let bounces: Vec<Bounce> = stage.bounces().into_iter().map(Bounce).collect();
    let mut reported: Vec<(String, String)> =
        bounces.iter().flat_map(Bounce::reported).map(|(to, action, _)| (to, action)).collect();
    reported.sort();
    let expected: Vec<_> = recipients.into_iter().map(|to| (to, "failed".to_owned())).collect();
    assert_eq!(reported, expected);
}

#[tokio::test]
async fn exchangers_without_an_address_are_tried_again_only_as_long_as_they_may_get_one() {
    let stage = one(|d| d.mx(["mx.a.test"]).exchangers_without_address()).start().await;
    stage.post(&["u@a.test"], &message("addressless")).await;
    stage.until("an outcome", |stage| stage.outcome("u@a.test").is_some()).await;
    let line = stage.outcome("u@a.test").expect("a line");
    assert!(line.contains("dsn=5.") || line.contains("dsn=4.4."), "{line}");
    assert_eq!(stage.internet.totals().transactions, 0);
}

#[tokio::test]
async fn an_exchanger_of_our_own_name_is_a_loop_and_bounces() {
    let stage = one(|d| d.mx(["relay.test"])).start().await;
    stage.post(&["u@a.test"], &message("loop")).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.4.6".to_owned()));
    assert_eq!(stage.internet.totals().transactions, 0);
}

#[tokio::test]
async fn exchangers_worse_than_our_own_name_are_never_used() {
    let stage = one(|d| d.mx_at(10, "good.a.test").mx_at(20, "relay.test").mx_at(30, "worse.a.test"));
    let stage = stage.start().await;
    stage.post(&["u@a.test"], &message("backup")).await;
    stage.until_delivered(&["u@a.test"]).await;
    assert_eq!(at(&stage, "good.a.test").len(), 1);
}

#[tokio::test]
async fn an_alias_leads_to_the_exchangers_of_its_target_and_keeps_its_name_in_the_envelope() {
    let builder = Internet::builder().domain("target.test", |d| d).domain("alias.test", |d| d.cname("target.test"));
    let stage = Plan::new(builder).start().await;
    stage.post(&["u@alias.test"], &message("alias")).await;
    stage.until_delivered(&["u@alias.test"]).await;
    assert_eq!(at(&stage, "mx.target.test")[0].recipients, ["u@alias.test"]);
}

#[tokio::test]
async fn loopback_is_never_a_next_hop_unless_it_is_allowed() {
    let stage = one(|d| d).with("[delivery]\nallow_networks = []").start().await;
    stage.post(&["u@a.test"], &message("loopback")).await;
    let line = stage.eventually("an outcome", |stage| stage.outcome("u@a.test")).await;
    assert!(line.contains("status=bounced") || line.contains("status=deferred"), "{line}");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(stage.internet.provider("a.test").expect("described").counts().connections, 0);
}

#[tokio::test]
async fn our_own_listener_is_never_a_next_hop() {
    let mut stage = one(|d| d.mx(["self.test"]).record("self.test", RData::A(A::new(127, 0, 0, 1)))).set_up().await;
    stage.config["delivery"]["port"] = i64::from(stage.listen.port()).into();
    stage.internet.change_dns(|zone| {
        zone.node("self.test").records.clear();
        zone.address("self.test", stage.listen.ip());
    });
    stage.start_relay().await;
    stage.post(&["u@a.test"], &message("self")).await;
    let line = stage.eventually("an outcome", |stage| stage.outcome("u@a.test")).await;
    assert!(line.contains("relay=none") && !line.contains("status=sent"), "{line}");
}

#[tokio::test]
async fn the_second_exchanger_takes_over_from_a_dead_first() {
    let doors = [Door::Refused, Door::BlackHole, Door::Resetting, Door::Busy, Door::Silent];
    let mut builder = Internet::builder();
    for (number, door) in doors.into_iter().enumerate() {
        let (dead, live) = (format!("dead{number}.test"), format!("live{number}.test"));
        builder = builder.provider(&dead, [dead.as_str(), live.as_str()], Policy::new());
        builder = builder.host(&dead, Policy::new().door(door));
        builder = builder.domain(&format!("d{number}.test"), |d| d.mx([dead.as_str(), live.as_str()]));
    }
    let stage = Plan::new(builder).start().await;
    let recipients = recipient_per(doors);
    stage.post(&refs(&recipients), &message("dead")).await;
    stage.until_delivered(&refs(&recipients)).await;
    assert!(stage.internet.deliveries().iter().all(|arrived| arrived.host.starts_with("live")));
}

#[tokio::test]
async fn a_dead_ipv6_address_costs_the_stagger_and_no_more() {
    let stage = one(|d| d.mx(["mx.a.test"])).start().await;
    stage.internet.change_dns(|zone| zone.address("mx.a.test", IpAddr::V6(Ipv6Addr::LOCALHOST)));
    let start = Instant::now();
    stage.post(&["u@a.test"], &message("ipv6")).await;
    stage.until_delivered(&["u@a.test"]).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(at(&stage, "mx.a.test").len(), 1);
}

#[tokio::test]
async fn a_greylisted_message_is_retried_and_arrives_once() {
    let stage = one(|d| d.greylist(Duration::from_millis(250))).start().await;
    let recipients = subscribers(5, "a.test");
    stage.post(&refs(&recipients), &message("greylist")).await;
    stage.until_delivered(&refs(&recipients)).await;
    stage.until_empty().await;
    let totals = stage.internet.totals();
    assert_eq!((totals.delivered, totals.duplicates, totals.transactions), (5, 0, 1));
}

#[tokio::test]
async fn too_many_recipients_go_on_at_once_in_further_transactions() {
    let slow = "[delivery]\nretry = [\"1h\"]";
    let stage = one(|d| d.policy(Policy::new().recipients_per_transaction(10))).with(slow).start().await;
    let recipients = subscribers(35, "a.test");
    stage.post(&refs(&recipients), &message("many")).await;
    stage.until_delivered(&refs(&recipients)).await;
    let counts: usize = stage.internet.deliveries().iter().map(|arrived| arrived.recipients.len()).sum();
    assert_eq!(counts, 35);
}

#[tokio::test]
async fn a_full_mailbox_waits_while_the_others_get_their_copy() {
    let stage = one(|d| d.full("full")).start().await;
    stage.post(&["full@a.test", "u@a.test"], &message("full")).await;
    stage.until_delivered(&["u@a.test"]).await;
    stage.until("a deferral", |stage| is_deferred(stage, "full@a.test")).await;
    let line = stage.outcome("full@a.test").expect("a line");
    assert!(line.contains("dsn=4.2.2"), "{line}");
    assert!(stage.bounces().is_empty());
}

#[tokio::test]
async fn a_mailbox_that_stays_full_expires_and_bounces_once() {
    let stage = one(|d| d.full("full")).with("[delivery]\nexpire_after = \"1s\"").start().await;
    stage.post(&["full@a.test"], &message("expires")).await;
    let (action, status) = bounced(&stage).await;
    assert_eq!(action, "failed");
    assert!(status == "4.4.7" || status == "5.4.7" || status == "4.2.2" || status == "5.2.2", "{status}");
    stage.until_empty().await;
    assert_eq!(stage.bounces().len(), 1);
    assert!(stage.outcome("full@a.test").expect("a line").contains("status=expired"));
}

#[tokio::test]
async fn a_recipient_that_is_refused_for_good_is_not_tried_again() {
    let stage = one(|d| d.refuse("gone")).start().await;
    stage.post(&["gone@a.test", "u@a.test"], &message("gone")).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.1.1".to_owned()));
    stage.until_delivered(&["u@a.test"]).await;
    stage.until_empty().await;
    assert_eq!(stage.internet.provider("a.test").expect("described").counts().refusals, 1);
}

#[tokio::test]
async fn a_message_refused_after_the_dot_bounces_for_all_its_recipients() {
    let policy = Policy::new().answer_always(Moment::Dot, "554 5.7.1 spam, we think");
    let stage = one(|d| d.policy(policy)).start().await;
    stage.post(&["u1@a.test", "u2@a.test"], &message("spam")).await;
    let bounce = stage.bounce().await;
    let reported: Vec<_> = bounce.reported().into_iter().map(|(to, _, status)| (to, status)).collect();
    let expected = ["u1@a.test", "u2@a.test"].map(|to| (to.to_owned(), "5.7.1".to_owned()));
    assert_eq!(reported, expected);
    assert!(bounce.text().contains("spam, we think"));
}

#[tokio::test]
async fn a_host_that_is_busy_at_any_stage_gets_the_mail_later_and_once() {
    let moments = [Moment::Greeting, Moment::Hello, Moment::Mail, Moment::Rcpt, Moment::Data, Moment::Dot];
    let busy = |moment| Policy::new().answer_times(moment, 2, "421 4.3.2 closing for a moment");
    let stage = domain_per(moments, |domain, moment| domain.policy(busy(moment))).start().await;
    arrives_everywhere_once(&stage, &recipient_per(moments)).await;
}

#[tokio::test]
async fn a_connection_cut_at_any_stage_before_the_dot_costs_nobody_their_copy() {
    let moments = [Moment::Greeting, Moment::Hello, Moment::Mail, Moment::Rcpt, Moment::Data];
    let cut = |moment| Policy::new().answer_times(moment, 1, "!");
    let stage = domain_per(moments, |domain, moment| domain.policy(cut(moment))).start().await;
    arrives_everywhere_once(&stage, &recipient_per(moments)).await;
}

async fn arrives_everywhere_once(stage: &Stage, recipients: &[String]) {
    stage.post(&refs(recipients), &message("everywhere")).await;
    stage.until_delivered(&refs(recipients)).await;
    stage.until_empty().await;
    let totals = stage.internet.totals();
    assert_eq!((totals.delivered, totals.duplicates), (recipients.len() as u64, 0));
    assert!(stage.bounces().is_empty());
}

#[tokio::test]
async fn a_tarpit_holds_up_nobody_else() {
    let builder = Internet::builder().domain("tar.test", |d| d.rtt(Duration::from_secs(8))).domain("a.test", |d| d);
    let stage = Plan::new(builder).start().await;
    stage.post(&["u@tar.test"], &message("tarpit")).await;
    let recipients = subscribers(50, "a.test");
    let start = Instant::now();
    stage.post(&refs(&recipients), &message("quick")).await;
    stage.until_delivered(&refs(&recipients)).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_may_have_been_taken_is_never_tried_at_a_sibling() {
    let cutting = Policy::new().after_dot(AfterDot::KeepAndCutEvery(1));
    let builder = Internet::builder().provider("a", ["cuts.a.test", "other.a.test"], Policy::new());
    let builder = builder.host("cuts.a.test", cutting).domain("a.test", |d| d.mx(["cuts.a.test", "other.a.test"]));
    let stage = Plan::new(builder).with("[delivery]\nretry = [\"1h\"]").start().await;
    stage.post(&["u@a.test"], &message("indeterminate")).await;
    stage.until_delivered(&["u@a.test"]).await;
    stage.until("a deferral", |stage| is_deferred(stage, "u@a.test")).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!((at(&stage, "other.a.test").len(), stage.internet.delivered("u@a.test")), (0, 1));
}

#[tokio::test]
async fn a_connection_is_used_for_many_messages() {
    let plan = one(|d| d).providers("[default]\nconnections = 1\n");
    let stage = plan.start().await;
    for number in 0..10 {
        stage.post(&["u@a.test"], &message(&format!("m{number}"))).await;
    }
    stage.until("all", |stage| stage.internet.totals().transactions == 10).await;
    assert_eq!(stage.internet.provider("a.test").expect("described").counts().connections, 1);
}

#[tokio::test]
async fn a_connection_is_closed_after_as_many_messages_as_the_provider_takes() {
    let policy = Policy::new().messages_per_connection(3);
    let plan = one(|d| d.policy(policy)).providers("[default]\nconnections = 1\nmessages_per_connection = 3\n");
    let stage = plan.start().await;
    for number in 0..10 {
        stage.post(&["u@a.test"], &message(&format!("m{number}"))).await;
    }
    stage.until("all", |stage| stage.internet.totals().transactions == 10).await;
    assert_eq!(stage.internet.limits_broken(), 0);
    assert!(stage.internet.provider("a.test").expect("described").counts().connections >= 4);
}

#[tokio::test]
async fn a_limit_that_the_host_itself_announces_is_kept() {
    let policy = Policy::new().messages_per_connection(2).recipients_per_transaction(7);
    let policy = policy.extensions(Extensions { limits: true, ..Extensions::ALL });
    let stage = one(|d| d.policy(policy)).providers("[default]\nconnections = 1\n").start().await;
    let recipients = subscribers(40, "a.test");
    stage.post(&refs(&recipients), &message("announced")).await;
    stage.until_delivered(&refs(&recipients)).await;
    let counts = stage.internet.provider("a.test").expect("described").counts();
    assert_eq!((counts.broken, counts.deferrals), (vec![], 0));
}

#[tokio::test]
async fn tls_is_used_where_it_is_offered_and_mail_goes_in_the_clear_where_it_is_not_or_is_switched_off() {
    for (offered, setting, expected) in
        [(true, "opportunistic", true), (false, "opportunistic", false), (true, "off", false)]
    {
        let builder = Internet::builder().domain("a.test", |d| d);
        let builder = if offered { builder.tls(server_tls()) } else { builder };
        let stage = Plan::new(builder).with(&format!("[delivery]\ntls = \"{setting}\"")).start().await;
        stage.post(&["u@a.test"], &message("tls")).await;
        stage.until_delivered(&["u@a.test"]).await;
        assert_eq!(stage.internet.deliveries()[0].tls, expected, "{offered} {setting}");
    }
}

/// A self-signed certificate, as most exchangers have for our purposes.
fn server_tls() -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    let directory = tempfile::tempdir().expect("a directory");
    let certificate = certify(directory.path()).expect("made");
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(directory.path().join("key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    Arc::new(config.expect("a pair"))
}

#[tokio::test]
async fn the_octets_that_leave_are_those_that_came_below_one_received_line() {
    let stage = one(|d| d).start().await;
    let long = format!("X-Long: {}\r\n", "x".repeat(2000));
    let content = [long.as_bytes(), &message("octets"), b".\r\n..\r\n. \r\n\r\n\ttabs \r\n\x07\x1b\r\n"].concat();
    stage.post(&["u@a.test"], &content).await;
    stage.until_delivered(&["u@a.test"]).await;
    let arrived = &stage.internet.deliveries()[0].content;
    assert_eq!(without_trace(arrived), content);
    let head = String::from_utf8_lossy(arrived).into_owned();
    assert_eq!(head.matches("Received:").count(), 1, "{head}");
    assert!(head.starts_with("Received: from lists.test") && head.contains("by relay.test"), "{head}");
    assert!(!head.contains("for <"), "a list's recipients do not see each other: {head}");
}

#[tokio::test]
async fn a_message_without_a_single_header_field_arrives_as_it_is() {
    let stage = one(|d| d).start().await;
    stage.post(&["u@a.test"], b"\r\nnaked\r\n").await;
    stage.until_delivered(&["u@a.test"]).await;
    assert_eq!(without_trace(&stage.internet.deliveries()[0].content), b"\r\nnaked\r\n");
}

#[tokio::test]
async fn eight_bit_text_reaches_a_host_without_8bitmime_unless_the_operator_forbids_it() {
    let bare = || Policy::new().extensions(Extensions { eight_bit_mime: false, ..Extensions::ALL });
    let content = [message("8bit"), b"caf\xc3\xa9\r\n".to_vec()].concat();
    let stage = one(|d| d.policy(bare())).start().await;
    stage.post(&["u@a.test"], &content).await;
    stage.until_delivered(&["u@a.test"]).await;
    assert_eq!(without_trace(&stage.internet.deliveries()[0].content), content);
    let stage = one(|d| d.policy(bare())).with("[delivery]\npass_eight_bit = false").start().await;
    stage.post(&["u@a.test"], &content).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.6.3".to_owned()));
}

#[tokio::test]
async fn an_internationalised_recipient_bounces_at_a_host_without_smtputf8() {
    let policy = Policy::new().extensions(Extensions { smtputf8: false, ..Extensions::ALL });
    let stage = one(|d| d.policy(policy)).start().await;
    let mail = format!("{BOUNCES} SMTPUTF8");
    stage.client().await.must_take(&mail, &["<m\u{fc}ller@a.test>", "<u@a.test>"], &message("utf8")).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.6.7".to_owned()));
    stage.until_delivered(&["u@a.test"]).await;
}

#[tokio::test]
async fn a_message_too_big_for_the_host_bounces_without_being_sent() {
    let stage = one(|d| d.policy(Policy::new().size_max(1000))).start().await;
    let content = [message("big"), b"0123456789\r\n".repeat(200)].concat();
    stage.post(&["u@a.test"], &content).await;
    assert_eq!(bounced(&stage).await, ("failed".to_owned(), "5.3.4".to_owned()));
    assert!(stage.internet.bytes() < 1000, "{}", stage.internet.bytes());
}

#[tokio::test]
async fn a_host_that_only_knows_helo_is_delivered_to() {
    let stage = one(|d| d.policy(Policy::new().helo_only())).start().await;
    stage.post(&["u1@a.test", "u2@a.test"], &message("helo")).await;
    stage.until_delivered(&["u1@a.test", "u2@a.test"]).await;
    assert_eq!(stage.internet.deliveries()[0].mail_parameters, "");
}

#[tokio::test]
async fn a_host_without_pipelining_is_waited_for_at_every_command() {
    let policy = Policy::new().extensions(Extensions { pipelining: false, ..Extensions::ALL });
    let stage = one(|d| d.policy(policy.rtt(Duration::from_millis(5)))).start().await;
    let recipients = subscribers(10, "a.test");
    stage.post(&refs(&recipients), &message("steps")).await;
    stage.until_delivered(&refs(&recipients)).await;
}
