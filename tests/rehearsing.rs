//! `posthaste rehearse` as a program: what it prints and how it ends.

use serde_json::Value;

use crate::support::BINARY;

async fn rehearse(arguments: &[&str]) -> std::process::Output {
    tokio::process::Command::new(BINARY).arg("rehearse").args(arguments).output().await.expect("started")
}

#[tokio::test]
async fn a_rehearsal_ends_with_one_object_that_says_what_became_of_everybody() {
    let output = rehearse(&["--recipients", "500", "--scenario", "fast", "--json"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    for key in ["queued", "lost", "duplicates", "limits_broken"] {
        assert_eq!(report[key], 0, "{key} in {report}");
    }
    let number = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"));
    assert_eq!(number("accepted"), number("delivered") + number("bounced"));
    for key in ["transactions", "uplink_bytes", "peak_connections", "peak_fds"] {
        assert!(number(key) > 0, "{key} in {report}");
    }
    assert!(report["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{report}");
}

#[tokio::test]
async fn batches_of_one_and_subscribers_and_a_message_of_ones_own_are_rehearsed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (subscribers, message) = (directory.path().join("subscribers"), directory.path().join("message.eml"));
    let addresses: Vec<String> = (0..60).map(|number| format!("reader{number}@d{}.test", number % 7)).collect();
    std::fs::write(&subscribers, addresses.join("\n")).expect("written");
    std::fs::write(&message, "From: a@b.test\nSubject: mine\nMessage-ID: <mine@b.test>\n\n.mine\n").expect("written");
    let (subscribers, message) = (subscribers.display().to_string(), message.display().to_string());
    let own = ["--subscribers", &subscribers, "--message", &message];
    let output = rehearse(&[&own[..], &["--batch", "1", "--scenario", "fast", "--json"]].concat()).await;
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["accepted"], &report["damaged"]), (&Value::from(60), &Value::from(0)));
}

#[tokio::test]
async fn a_rehearsal_that_cannot_be_is_refused_with_a_reason() {
    let output = rehearse(&["--scenario", "paradise"]).await;
    assert_eq!(output.status.code(), Some(2));
    let output = rehearse(&["--subscribers", "no/such/file"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no/such/file"), "{said}");
}
