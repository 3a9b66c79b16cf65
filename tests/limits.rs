//! Limits are kept: those of providers, those of the machine, and the share that a small mailing has in a big one's relay.

use std::time::{Duration, Instant};

use posthaste::rehearse::internet::{Internet, Policy};
use posthaste::rehearse::{self, Options, ProgressStyle, Scenario};

use crate::support::{BINARY, Plan, Stage, message, subscribers};

fn refs(recipients: &[String]) -> Vec<&str> {
    recipients.iter().map(String::as_str).collect()
}

/// Many domains at one provider, and a recipient at each.
fn provider_of_many(policy: Policy, rule: &str) -> (Plan, Vec<String>) {
    let mut builder = Internet::builder().provider("big", ["mx1.big.test", "mx2.big.test"], policy);
    let domains: Vec<String> = (0..40).map(|number| format!("d{number}.test")).collect();
    for domain in &domains {
        builder = builder.domain(domain, |d| d.mx(["mx1.big.test", "mx2.big.test"]));
    }
    let providers = format!("[[provider]]\nname = \"big\"\nmx_suffixes = [\"big.test\"]\n{rule}\n");
    let recipients = domains.iter().flat_map(|domain| subscribers(5, domain)).collect();
    (Plan::new(builder).providers(&providers), recipients)
}

async fn keeps_to_it(policy: Policy, rule: &str) -> Stage {
    let (plan, recipients) = provider_of_many(policy, rule);
    let stage = plan.start().await;
    for (number, batch) in recipients.chunks(50).enumerate() {
        stage.post(&refs(batch), &message(&format!("m{}", number % 2))).await;
    }
    stage.until_delivered(&refs(&recipients)).await;
    let counts = stage.internet.provider("big").expect("described").counts();
    assert_eq!((counts.broken, stage.internet.totals().duplicates), (vec![], 0));
    stage
}

#[tokio::test]
async fn a_providers_connections_are_never_more_than_its_rule_says_over_all_its_domains() {
    let policy = Policy::new().connections(3).rtt(Duration::from_millis(5));
    let stage = keeps_to_it(policy, "connections = 3").await;
    assert!(stage.internet.provider("big").expect("described").counts().peak_connections > 1);
}

#[tokio::test]
async fn a_providers_recipients_per_time_are_never_more_than_its_rule_says() {
    let policy = Policy::new().recipient_rate(60, Duration::from_secs(1));
    let start = Instant::now();
    keeps_to_it(policy, "recipient_rate = \"50/1s\"").await;
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_providers_connections_per_time_are_never_more_than_its_rule_says() {
    let policy = Policy::new().connection_rate(20, Duration::from_secs(1)).messages_per_connection(4);
    keeps_to_it(policy, "connection_rate = \"15/1s\"\nmessages_per_connection = 4").await;
}

#[tokio::test]
async fn a_transaction_holds_no_more_recipients_than_the_rule_says() {
    let builder = Internet::builder().domain("a.test", |d| d);
    let stage = Plan::new(builder).providers("[default]\nrecipients_per_transaction = 8\n").start().await;
    let recipients = subscribers(100, "a.test");
    stage.post(&refs(&recipients), &message("many")).await;
    stage.until_delivered(&refs(&recipients)).await;
    let counts = stage.internet.provider("a.test").expect("described").counts();
    assert!(stage.internet.deliveries().iter().all(|arrived| arrived.recipients.len() <= 8));
    assert_eq!((counts.deferrals, counts.transactions), (0, 13));
}

#[tokio::test]
async fn a_changed_rule_holds_after_sighup() {
    let builder = Internet::builder().domain("a.test", |d| d);
    let mut stage = Plan::new(builder).providers("[default]\nrecipients_per_transaction = 50\n").start().await;
    std::fs::write(stage.directory().join("providers.toml"), "[default]\nrecipients_per_transaction = 5\n")
        .expect("written");
    assert!(stage.hang_up().await);
    let recipients = subscribers(20, "a.test");
    stage.post(&refs(&recipients), &message("fewer")).await;
    stage.until_delivered(&refs(&recipients)).await;
    assert!(stage.internet.deliveries().iter().all(|arrived| arrived.recipients.len() <= 5));
}

#[tokio::test]
async fn a_mailing_of_twenty_overtakes_one_of_five_thousand() {
    let policy = Policy::new().rtt(Duration::from_millis(20)).connections(4);
    let builder = Internet::builder().domain("a.test", |d| d.policy(policy));
    let providers = "[default]\nconnections = 4\nrecipient_rate = \"100000/1s\"\nrecipients_per_transaction = 20\n";
    let stage = Plan::new(builder).providers(providers).start().await;
    let newsletter = subscribers(5_000, "a.test");
    for batch in newsletter.chunks(1000) {
        stage.post(&refs(batch), &message("newsletter")).await;
    }
    let post: Vec<String> = (0..20).map(|number| format!("reader{number}@a.test")).collect();
    stage.post(&refs(&post), &message("post")).await;
    stage.until_delivered(&refs(&post)).await;
    let before = stage.internet.totals().delivered;
    assert!(before < 3_000, "{before} of the newsletter came first");
    stage.until("the newsletter", |stage| stage.internet.totals().delivered == 5_020).await;
    assert_eq!(stage.internet.limits_broken(), 0);
}

#[tokio::test]
async fn one_list_host_gets_its_share_beside_another_with_a_big_mailing() {
    let policy = Policy::new().rtt(Duration::from_millis(40)).connections(2);
    let builder = Internet::builder().domain("a.test", |d| d.policy(policy));
    let two = "[[list_host]]\nname = \"big\"\nnetworks = [\"127.0.0.0/9\"]\nreverse_path_domains = [\"lists.test\"]\n\
        bounces_to = \"127.0.0.1:1\"\n[[list_host]]\nname = \"small\"\nnetworks = [\"127.128.0.0/9\"]\n\
        reverse_path_domains = [\"small.test\"]\nbounces_to = \"127.0.0.1:1\"\n";
    let providers = "[default]\nconnections = 2\nrecipient_rate = \"100000/1s\"\nrecipients_per_transaction = 20\n";
    let stage = Plan::new(builder).with(two).providers(providers).start().await;
    let newsletter = subscribers(2_000, "a.test");
    stage.post(&refs(&newsletter), &message("newsletter")).await;
    let mut small = stage.client_from([127, 200, 0, 1]).await;
    let recipients: Vec<String> = (0..100).map(|number| format!("<member{number}@a.test>")).collect();
    small.must_take("<small@small.test>", &refs(&recipients), &message("small")).await;
    let members: Vec<String> = recipients.iter().map(|path| path.trim_matches(['<', '>']).to_owned()).collect();
    stage.until_delivered(&refs(&members)).await;
    let delivered = stage.internet.totals().delivered;
    assert!(delivered < 1_500, "{delivered}");
}

#[tokio::test]
async fn too_low_a_limit_on_open_files_is_said_with_its_remedy_before_anything_starts() {
    let builder = Internet::builder();
    let stage = Plan::new(builder).set_up().await;
    stage.write_config();
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", "ulimit -n 40 && exec \"$0\" serve --config \"$1\"", BINARY]).arg(&stage.program.config);
    let output = tokio::time::timeout(Duration::from_secs(20), command.output()).await.expect("ends").expect("started");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("40") && said.contains("LimitNOFILE"), "{said}");
}

async fn passes_with(fd_limit: u64) {
    let options = Options {
        relay: Some(BINARY.into()),
        recipients: 600,
        fd_limit: Some(fd_limit),
        scenario: Scenario::Fast,
        deadline: Duration::from_secs(60),
        progress: ProgressStyle::Off,
        ..Options::default()
    };
    let report = rehearse::run(options).await.expect("it runs");
    assert!(report.passed(), "{fd_limit}: {}", report.to_text());
    assert!(report.peak_fds <= fd_limit, "{} of {fd_limit}", report.peak_fds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_file_descriptors_slow_a_mailing_down_and_lose_nothing() {
    tokio::join!(passes_with(64), passes_with(128));
}
