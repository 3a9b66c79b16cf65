//! What was answered 250 outlives crashes, restarts, mistakes of the operator and a full disk; what was not is not kept.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use posthaste::rehearse::internet::{Behaviour, Internet, Policy};
use posthaste::rehearse::{self, Options, ProgressStyle};
use rustix::process::Signal;

use crate::support::{A_WHILE, BINARY, BOUNCES, Client, Plan, Stage, free_address, message, subscribers};

fn refs(recipients: &[String]) -> Vec<&str> {
    recipients.iter().map(String::as_str).collect()
}

/// A domain whose name server fails until [`recover`] is called: its mail waits in the spool.
fn failing() -> Plan {
    Plan::new(Internet::builder().domain("a.test", |d| d.servfail()).domain("b.test", |d| d))
}

fn recover(stage: &Stage) {
    stage.internet.change_dns(|zone| zone.node("a.test").behaviour = Behaviour::Normal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_at_random_moments_of_a_mailing_lose_nothing_and_double_only_what_was_in_flight() {
    let options = Options {
        relay: Some(BINARY.into()),
        recipients: 3_000,
        kills: 20,
        seed: u64::from(std::process::id()),
        deadline: Duration::from_secs(120),
        progress: ProgressStyle::Off,
        ..Options::default()
    };
    let seed = options.seed;
    let report = rehearse::run(options).await.expect("it runs");
    assert!(report.passed(), "seed {seed}: {}", report.to_text());
    assert_eq!((report.kills, report.lost, report.duplicates, report.accepted), (20, 0, 0, 3_000), "seed {seed}");
}

#[tokio::test]
async fn sigterm_in_the_middle_of_a_mailing_ends_in_time_and_the_rest_goes_after_the_next_start() {
    let builder = Internet::builder().domain("a.test", |d| d.policy(Policy::new().rtt(Duration::from_millis(100))));
    let mut stage = Plan::new(builder).providers("[default]\nrecipients_per_transaction = 20\n").start().await;
    let recipients = subscribers(1_000, "a.test");
    stage.post(&refs(&recipients), &message("newsletter")).await;
    stage.until("the first", |stage| stage.internet.totals().delivered > 50).await;
    let start = Instant::now();
    stage.stop().await;
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let before = stage.internet.totals().delivered;
    assert!(before < 1_000, "it was over already");
    stage.start_relay().await;
    stage.until("the rest", |stage| stage.internet.totals().delivered == 1_000).await;
    assert_eq!(stage.internet.totals().duplicates, 0);
}

#[tokio::test]
async fn a_draining_relay_finishes_the_open_transaction_and_puts_off_the_next() {
    let mut stage = failing().start().await;
    let mut client = stage.client().await;
    client.expect(&format!("MAIL FROM:{BOUNCES}"), "250").await;
    client.expect("RCPT TO:<u@b.test>", "250").await;
    client.expect("DATA", "354").await;
    stage.signal(Signal::TERM);
    stage.until("the drain", |stage| stage.log().contains("draining")).await;
    client.write(&message("last")).await;
    client.write(format!(".\r\nMAIL FROM:{BOUNCES}\r\n").as_bytes()).await;
    assert!(client.reply().await.starts_with("250"));
    assert!(client.reply().await.starts_with("451 4.3.2"));
    stage.stop().await;
    stage.start_relay().await;
    stage.until_delivered(&["u@b.test"]).await;
    stage.until_empty().await;
    assert_eq!(stage.internet.delivered("u@b.test"), 1);
}

#[tokio::test]
async fn what_is_queued_survives_a_kill_and_arrives_once() {
    let mut stage = failing().start().await;
    let recipients = subscribers(100, "a.test");
    stage.post(&refs(&recipients), &message("queued")).await;
    stage.kill9().await;
    recover(&stage);
    stage.start_relay().await;
    stage.until_delivered(&refs(&recipients)).await;
    stage.until_empty().await;
    assert_eq!((stage.internet.totals().delivered, stage.internet.totals().duplicates), (100, 0));
}

#[tokio::test]
async fn a_message_too_big_for_the_journal_survives_a_kill_octet_for_octet() {
    let mut stage = failing().start().await;
    let content = [message("big"), b".0123456789abcdef\r\n".repeat(40_000)].concat();
    stage.internet.expect(&content);
    stage.post(&["u@a.test"], &content).await;
    stage.kill9().await;
    recover(&stage);
    stage.start_relay().await;
    stage.until_delivered(&["u@a.test"]).await;
    assert_eq!(posthaste::rehearse::internet::without_trace(&stage.internet.deliveries()[0].content), content);
}

#[tokio::test]
async fn a_restart_sends_nothing_again() {
    let builder = Internet::builder().domain("a.test", |d| d.refuse("gone"));
    let mut stage = Plan::new(builder).start().await;
    stage.post(&["u@a.test", "gone@a.test"], &message("done")).await;
    stage.until_delivered(&["u@a.test"]).await;
    stage.bounce().await;
    stage.until_empty().await;
    for _ in 0..2 {
        stage.kill9().await;
        stage.start_relay().await;
        tokio::time::sleep(A_WHILE).await;
    }
    assert_eq!((stage.internet.totals().transactions, stage.bounces().len()), (1, 1));
}

#[tokio::test]
async fn a_second_instance_on_one_spool_ends_with_a_clear_word_and_the_first_goes_on() {
    let stage = failing().start().await;
    let others = format!("[[listener]]\naddress = \"{}\"\n[admin]\naddress = \"{}\"\n", free_address(), free_address());
    let (code, said) = stage.serve_in_vain(&others).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is in use by another process") && said.contains("spool"), "{said}");
    stage.post(&["u@b.test"], &message("unharmed")).await;
    stage.until_delivered(&["u@b.test"]).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_to_do() {
    let stage = failing().start().await;
    let (code, said) = stage.serve_in_vain("[spool]\npath = \"other\"").await;
    assert_eq!(code, Some(1), "{said}");
    let admin = stage.program.admin.to_string();
    assert!(said.contains(&admin) && said.contains("free it or choose another"), "{said}");
    let other = format!("[spool]\npath = \"other\"\n[admin]\naddress = \"{}\"\n", free_address());
    let (code, said) = stage.serve_in_vain(&other).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&stage.listen.to_string()) && said.contains("choose another port"), "{said}");
}

#[tokio::test]
async fn a_spool_that_cannot_be_written_is_named_before_any_mail_is_taken() {
    let stage = failing().set_up().await;
    std::fs::write(stage.directory().join("file"), "").expect("written");
    let (code, said) = stage.serve_in_vain("[spool]\npath = \"file/spool\"").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("file/spool"), "{said}");
    assert!(tokio::net::TcpStream::connect(stage.listen).await.is_err());
}

#[tokio::test]
async fn a_wrong_configuration_starts_nothing_and_says_file_line_key_and_what_would_be_right() {
    let stage = failing().set_up().await;
    let (code, said) = stage.serve_in_vain("[delivery]\nexpire_afer = \"5d\"").await;
    assert_eq!(code, Some(2), "{said}");
    let text = std::fs::read_to_string(stage.directory().join("other.toml")).expect("written");
    let line = 1 + text.lines().position(|line| line.starts_with("expire_afer")).expect("written");
    let expected = format!("other.toml:{line}:1: delivery.expire_afer: unknown key; did you mean `expire_after`?");
    assert!(said.contains(&expected), "{said}");
    assert!(!stage.spool().exists());
}

#[tokio::test]
async fn a_broken_configuration_is_not_taken_over_and_the_old_one_stays_in_force() {
    let mut stage = failing().start().await;
    std::fs::write(&stage.program.config, "[ingress]\nidle_timeout = 7\n").expect("written");
    assert!(!stage.hang_up().await);
    let log = stage.log();
    assert!(log.contains("posthaste.toml:2:16: ingress.idle_timeout:"), "{log}");
    stage.post(&["u@b.test"], &message("still")).await;
    stage.until_delivered(&["u@b.test"]).await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_leaves_everything_as_it_was() {
    let mut stage = failing().start().await;
    let listener = format!(
        "[[listener]]\naddress = \"{}\"\ntls_certificate = \"none.pem\"\ntls_key = \"none.pem\"\n[delivery]\ntls = \"off\"",
        stage.listen
    );
    stage.reload(&listener).await;
    assert!(stage.log().contains("not reloaded") && stage.log().contains("none.pem"), "{}", stage.log());
    stage.post(&["u@b.test"], &message("still")).await;
    stage.until_delivered(&["u@b.test"]).await;
}

#[tokio::test]
async fn a_new_list_host_may_relay_after_sighup_and_one_that_was_removed_no_more() {
    let mut stage = failing().start().await;
    stage.client().await.expect("MAIL FROM:<a@new.test>", "451 4.7.1").await;
    stage
        .reload(
            "[[list_host]]\nname = \"new\"\nnetworks = [\"127.0.0.0/8\"]\nreverse_path_domains = [\"new.test\"]\n\
             bounces_to = \"127.0.0.1:1\"",
        )
        .await;
    let mut client = stage.client().await;
    client.must_take("<a@new.test>", &["<u@b.test>"], &message("new")).await;
    client.expect(&format!("MAIL FROM:{BOUNCES}"), "451 4.7.1").await;
    stage.until_delivered(&["u@b.test"]).await;
    stage.reload("list_host = []").await;
    stage.client().await.expect("MAIL FROM:<a@new.test>", "550 5.7.1").await;
}

#[tokio::test]
async fn a_new_listener_listens_after_sighup() {
    let mut stage = failing().start().await;
    let (old, new) = (stage.listen, free_address());
    stage.reload(&format!("[[listener]]\naddress = \"{new}\"")).await;
    Client::greeted(new).await.must_take(BOUNCES, &["<u@b.test>"], &message("moved")).await;
    stage.until_delivered(&["u@b.test"]).await;
    stage.listen = new;
    assert!(tokio::net::TcpStream::connect(old).await.is_err());
}

#[tokio::test]
async fn a_full_disk_puts_new_mail_off_and_the_queue_drains() {
    let mut stage = failing().start().await;
    stage.post(&["u@a.test"], &message("queued")).await;
    stage.stop().await;
    stage.config["spool"]["reserve_bytes"] = "1000TB".into();
    stage.start_relay().await;
    let mut client = stage.client().await;
    client.expect(&format!("MAIL FROM:{BOUNCES}"), "452 4.3.1").await;
    recover(&stage);
    stage.until_delivered(&["u@a.test"]).await;
    client.expect("NOOP", "250").await;
    stage.until_empty().await;
}

/// The file below the spool that holds `text`, and where in it.
fn find_in_spool(stage: &Stage, text: &[u8]) -> (PathBuf, usize) {
    let mut waiting = vec![stage.spool()];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path()));
        } else if let Some(at) = memchr::memmem::find(&std::fs::read(&path).expect("readable"), text) {
            return (path, at);
        }
    }
    panic!("the spool does not hold it")
}

#[tokio::test]
async fn a_damaged_message_is_held_and_reported_and_the_others_go_on() {
    let mut stage = failing().start().await;
    for subject in ["first", "second", "third"] {
        stage.post(&[&format!("{subject}@a.test")], &message(subject)).await;
    }
    stage.stop().await;
    let (path, at) = find_in_spool(&stage, b"Hello second.");
    let mut octets = std::fs::read(&path).expect("readable");
    octets[at] ^= 1;
    std::fs::write(&path, octets).expect("written");
    let checked = stage.run(&["spool", "fsck", "--config", &stage.program.config.display().to_string()]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&checked.stdout).contains("damaged:"));
    recover(&stage);
    stage.start_relay().await;
    stage.until_delivered(&["first@a.test", "third@a.test"]).await;
    tokio::time::sleep(A_WHILE).await;
    let queued = stage.metrics().await.recipients("queued");
    assert_eq!((stage.internet.delivered("second@a.test"), queued), (0, 1));
    assert!(stage.log().contains("is damaged"), "{}", stage.log());
    // The same content again is taken for what it is, not for the damaged one.
    stage.post(&["new@a.test"], &message("second")).await;
    stage.until_delivered(&["new@a.test"]).await;
}
