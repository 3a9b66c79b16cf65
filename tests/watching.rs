//! What an operator can see: metrics, health, the log, the spool on disk, and what systemd is told.

use std::time::Duration;

use posthaste::rehearse::internet::{Internet, Policy, Stage as Moment};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{A_WHILE, BOUNCES, Metrics, Plan, Stage, message, subscribers};

fn refs(recipients: &[String]) -> Vec<&str> {
    recipients.iter().map(String::as_str).collect()
}

/// accepted = relayed + bounced + expired + cancelled + queued; returns what is accepted and queued.
fn balance(metrics: &Metrics) -> (u64, u64) {
    let [accepted, queued] = ["accepted", "queued"].map(|fate| metrics.recipients(fate));
    let ended: u64 = ["relayed", "bounced", "expired", "cancelled"].iter().map(|fate| metrics.recipients(fate)).sum();
    assert_eq!(accepted, ended + queued, "{}", metrics.0);
    (accepted, queued)
}

#[tokio::test]
async fn the_books_balance_at_every_moment_of_a_mailing() {
    let slow = || Policy::new().rtt(Duration::from_millis(60));
    let builder = Internet::builder().domain("a.test", |d| d.policy(slow()).refuse("u7*").full("u6*"));
    let stage = Plan::new(builder.domain("b.test", |d| d.policy(slow())))
        .with("[delivery]\nexpire_after = \"3s\"")
        .providers("[default]\nrecipients_per_transaction = 20\nconnections = 2\n")
        .start()
        .await;
    for (number, domain) in ["a.test", "b.test"].iter().enumerate() {
        let subscribers = subscribers(1_000, domain);
        stage.post(&refs(&subscribers), &message(&format!("m{number}"))).await;
        balance(&stage.metrics().await);
    }
    let start = std::time::Instant::now();
    loop {
        let metrics = stage.metrics().await;
        let (accepted, queued) = balance(&metrics);
        if accepted == 2_000 && queued == 0 {
            break;
        }
        assert!(start.elapsed() < crate::support::PATIENCE, "{}", metrics.0);
    }
    let metrics = stage.metrics().await;
    assert_eq!((metrics.recipients("bounced"), metrics.recipients("expired")), (111, 111));
    assert_eq!(metrics.recipients("relayed"), stage.internet.totals().delivered);
}

#[tokio::test]
async fn the_books_go_on_after_a_restart() {
    let mut stage = Plan::new(Internet::builder().domain("a.test", |d| d.refuse("gone"))).start().await;
    stage.post(&["u@a.test", "gone@a.test"], &message("books")).await;
    stage.bounce().await;
    stage.until_empty().await;
    stage.kill9().await;
    stage.start_relay().await;
    let metrics = stage.metrics().await;
    assert_eq!((balance(&metrics), metrics.recipients("relayed"), metrics.recipients("bounced")), ((2, 0), 1, 1));
}

#[tokio::test]
async fn the_metrics_have_the_series_that_alerts_are_written_for() {
    let stage = Plan::new(Internet::builder().domain("a.test", |d| d)).start().await;
    stage.post(&["u@a.test"], &message("series")).await;
    stage.until_delivered(&["u@a.test"]).await;
    stage.until_empty().await;
    let metrics = stage.metrics().await;
    for series in [
        "posthaste_recipients_total{status=\"sent\"}",
        "posthaste_transactions_total",
        "posthaste_spool_accepts_total",
        "posthaste_spool_fsync_seconds_count",
        "posthaste_ingress_sessions",
        "posthaste_ingress_accept_seconds_count",
        "posthaste_delivery_connections",
        "posthaste_bounce_reports_total",
        "posthaste_log_outcomes_dropped_total",
        "posthaste_build_info",
        "process_open_fds",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.0.lines().any(|line| line.starts_with(series)), "{series} is missing in\n{}", metrics.0);
    }
}

#[tokio::test]
async fn two_thousand_domains_add_no_series() {
    let stage = Plan::new(Internet::builder().domain("a.test", |d| d.refuse("gone"))).start().await;
    stage.post(&["u@a.test", "gone@a.test", "u@nowhere.test"], &message("before")).await;
    stage.bounce().await;
    stage.until_empty().await;
    let before = stage.metrics().await.series();
    let hostile: Vec<String> = (0..2_000).map(|number| format!("u@hostile{number}.test")).collect();
    stage
        .client()
        .await
        .must_take("<>", &refs(&hostile.iter().map(|to| format!("<{to}>")).collect::<Vec<_>>()), &message("hostile"))
        .await;
    stage.until_empty().await;
    let metrics = stage.metrics().await;
    assert!(!metrics.0.contains("hostile"), "a domain is a label");
    assert!(metrics.series() <= before + 20, "{before} became {}", metrics.series());
}

#[tokio::test]
async fn health_and_readiness_say_what_is_so_before_and_during_the_drain() {
    let mut stage = Plan::new(Internet::builder().domain("a.test", |d| d.rtt(Duration::from_secs(2)))).start().await;
    assert_eq!((stage.ask("/healthz").await.0, stage.ask("/readyz").await.0), (200, 200));
    // Something that keeps the drain busy for a moment.
    let mut client = stage.client().await;
    client.expect(&format!("MAIL FROM:{BOUNCES}"), "250").await;
    stage.signal(Signal::TERM);
    stage.until("the drain", |stage| stage.log().contains("draining")).await;
    assert_eq!((stage.ask("/healthz").await.0, stage.ask("/readyz").await.0), (200, 503));
    drop(client);
    stage.stop().await;
}

#[tokio::test]
async fn the_admin_port_answers_a_foreign_name_and_a_foreign_path_with_a_refusal() {
    let stage = Plan::new(Internet::builder()).start().await;
    assert_eq!(stage.ask("/etc/passwd").await.0, 404);
    assert!(raw_http(&stage, "GET /metrics HTTP/1.0\r\nHost: evil.example\r\n\r\n").await.starts_with("HTTP/1.0 421"));
    let post = format!("POST /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", stage.program.admin);
    assert!(raw_http(&stage, &post).await.starts_with("HTTP/1.0 405"));
}

async fn raw_http(stage: &Stage, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(stage.program.admin).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

#[tokio::test]
async fn every_outcome_has_a_line_in_the_shape_of_postfix() {
    let builder = Internet::builder().domain("a.test", |d| d.refuse("gone").full("full"));
    let stage = Plan::new(builder).start().await;
    stage.post(&["u@a.test", "gone@a.test", "full@a.test"], &message("lines")).await;
    for (to, dsn, status, said) in [
        ("u@a.test", "2.0.0", "sent", "(250 2.0.0 Ok: taken)"),
        ("gone@a.test", "5.1.1", "bounced", "(550 5.1.1 No such user here)"),
        ("full@a.test", "4.2.2", "deferred", "(452 4.2.2 Mailbox full)"),
    ] {
        let line = stage.eventually("its line", |stage| stage.outcome(to)).await;
        assert!(
            line.contains("relay=mx.a.test[127.1.0.") && line.contains(&format!("]:{}, delay=", stage.internet.port)),
            "{line}"
        );
        assert!(line.contains(", delays=") && line.contains(&format!(", dsn={dsn}, status={status} {said}")), "{line}");
        let delays = line.split("delays=").nth(1).and_then(|rest| rest.split(',').next()).expect("delays");
        assert_eq!(delays.split('/').filter(|part| part.parse::<f64>().is_ok()).count(), 4, "{line}");
    }
}

#[tokio::test]
async fn the_log_in_json_is_json_and_says_the_same() {
    let builder = Internet::builder().domain("a.test", |d| d);
    let stage = Plan::new(builder).with("[log]\nformat = \"json\"").start().await;
    stage.post(&["u@a.test"], &message("json")).await;
    let line = stage
        .eventually("its line", |stage| stage.log().lines().find(|line| line.contains("\"sent\"")).map(str::to_owned))
        .await;
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (line["to"].as_str(), line["dsn"].as_str(), line["status"].as_str()),
        (Some("u@a.test"), Some("2.0.0"), Some("sent"))
    );
    assert_eq!((line["list_host"].as_str(), line["delays"].as_array().map(Vec::len)), (Some("rehearsal"), Some(4)));
    for line in stage.log().lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line}");
    }
}

#[tokio::test]
async fn hostile_text_of_peers_cannot_forge_a_line_or_paint_the_terminal() {
    let reply = "550-5.1.1 one\r\n550 5.1.1 \u{1b}[2J\u{202e}two";
    for format in ["text", "json"] {
        let builder =
            Internet::builder().domain("a.test", |d| d.policy(Policy::new().answer_always(Moment::Rcpt, reply)));
        let stage = Plan::new(builder).with(&format!("[log]\nformat = \"{format}\"\nlevel = \"debug\"")).start().await;
        let mut client = stage.client().await;
        client.say("EHLO \u{1b}[31mx").await;
        client.expect("EHLO lists.test", "250").await;
        client.say("MAIL FROM:<\u{1b}[0m@undeclared.test>").await;
        client.must_take(BOUNCES, &["<u@a.test>"], &message("hostile")).await;
        stage.until("the refusal", |stage| stage.log().contains("two")).await;
        let log = stage.log();
        assert!(!log.contains('\u{1b}') && !log.contains('\u{202e}'), "{log}");
        let lines = log.lines().filter(|line| line.contains("u@a.test") && line.contains("bounced")).count();
        assert_eq!(lines, 1, "{log}");
    }
}

#[tokio::test]
async fn a_spool_that_was_stopped_in_good_order_is_sound_and_can_be_printed() {
    let builder = Internet::builder().domain("a.test", |d| d.full("full"));
    let mut stage = Plan::new(builder).start().await;
    stage.post(&["u@a.test", "full@a.test"], &message("spool")).await;
    stage.until_delivered(&["u@a.test"]).await;
    let config = stage.program.config.display().to_string();
    stage.stop().await;
    let checked = stage.run(&["spool", "fsck", "--config", &config]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stdout));
    let checked = stage.run(&["spool", "fsck", "--json", "--config", &config]);
    let report: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert_eq!(report["damage"].as_array().map(Vec::len), Some(0), "{report}");
    let dump = stage.run(&["spool", "dump", "--config", &config]);
    let dump = String::from_utf8(dump.stdout).expect("text");
    let records: Vec<Value> = dump.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let accept = records.iter().find(|record| record["reverse_path"] == "news-bounces@lists.test").expect("the accept");
    assert_eq!(accept["recipients"], serde_json::json!(["u@a.test", "full@a.test"]));
    assert!(records.iter().any(|record| record["fates"].as_array().is_some_and(|fates| !fates.is_empty())));
    assert!(!dump.contains("Hello spool."), "contents are left out");
}

#[tokio::test]
async fn a_spool_in_use_is_not_looked_at() {
    let stage = Plan::new(Internet::builder()).start().await;
    let checked = stage.run(&["spool", "fsck", &stage.spool().display().to_string()]);
    assert_eq!(checked.status.code(), Some(1));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");
}

#[tokio::test]
async fn systemd_is_told_when_the_relay_is_ready_reloads_and_stops() {
    let stage = Plan::new(Internet::builder()).set_up().await;
    stage.write_config();
    let path = stage.directory().join("notify");
    let socket = tokio::net::UnixDatagram::bind(&path).expect("bound");
    let mut command = tokio::process::Command::new(crate::support::BINARY);
    command.arg("serve").arg("--config").arg(&stage.program.config).env("NOTIFY_SOCKET", &path).kill_on_drop(true);
    let log = std::fs::File::create(&stage.program.log).expect("made");
    let mut child = command.stderr(log).spawn().expect("started");
    let pid = rustix::process::Pid::from_raw(child.id().expect("alive") as i32).expect("a process");
    told(&socket, "READY=1").await;
    assert!(tokio::net::TcpStream::connect(stage.listen).await.is_ok());
    rustix::process::kill_process(pid, Signal::HUP).expect("sent");
    told(&socket, "RELOADING=1").await;
    told(&socket, "READY=1").await;
    rustix::process::kill_process(pid, Signal::TERM).expect("sent");
    told(&socket, "STOPPING=1").await;
    assert!(child.wait().await.expect("ended").success());
    tokio::time::sleep(A_WHILE).await;
}

/// Waits for this line from the relay.
async fn told(socket: &tokio::net::UnixDatagram, line: &str) {
    let mut buffer = [0; 1024];
    loop {
        let received = tokio::time::timeout(crate::support::PATIENCE, socket.recv(&mut buffer));
        let length = received.await.unwrap_or_else(|_| panic!("never told {line}")).expect("received");
        if String::from_utf8_lossy(&buffer[..length]).lines().any(|told| told == line) {
            return;
        }
    }
}
