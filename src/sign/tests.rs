//! Signatures before independent verifiers.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use prometheus::Registry;
use proptest::prelude::*;

use super::samples::{self, Records};
use super::*;
use crate::clock::Tick;

/// A signer for example.org with both algorithms, and what it counts.
fn signer(keys: Vec<SigningKey>) -> (Signer, Registry) {
    let registry = Registry::new();
    let wall = "2026-11-24T08:00:00Z".parse().expect("a time");
    let signer = Signer::new(Options { keys }, Clock::simulated(Tick(0), wall), &registry).expect("registered");
    (signer, registry)
}

fn keys() -> Vec<SigningKey> {
    [samples::rfc8463(), samples::rsa()].map(|key| samples::signing_key("example.org", key)).to_vec()
}

fn stuff(message: &[u8]) -> Bytes {
    let mut stuffed = Vec::with_capacity(message.len());
    for line in message.split_inclusive(|&octet| octet == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.into()
}

async fn prefix(signer: &Signer, list_host: &str, message: &[u8]) -> Bytes {
    let content = stuff(message);
    let hash = digest(&SHA256, &content).as_ref().try_into().expect("32 octets");
    signer.sign(&list_host.into(), ContentHash(hash), &content).await.expect("signed")
}

/// The message as a receiver has it.
async fn signed(signer: &Signer, message: &[u8]) -> Vec<u8> {
    [b"Received: from x by y; z\r\n", &prefix(signer, "lists", message).await[..], message].concat()
}

async fn assert_verified(message: &[u8], records: &Records, signatures: usize) {
    let good = vec![Ok(()); signatures];
    let shown = String::from_utf8_lossy(&message[..message.len().min(2000)]);
    assert_eq!(samples::mail_auth(message, records).await, good, "mail-auth: {shown}");
    if let Some(verdicts) = samples::dkimpy(message, records) {
        assert_eq!(verdicts, good, "dkimpy: {shown}");
    }
}

#[tokio::test]
async fn both_signatures_of_every_kind_of_message_verify() {
    let long = format!("References: {}\r\n", "<0123456789@example.org>\r\n ".repeat(200) + "<x@example.org>");
    let header = "From: A <a@example.org>\r\nTo: b@example.net\r\nSubject:  a   b \r\n\tc\t\r\n\
                  List-Unsubscribe: <https://example.org/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n";
    let messages: Vec<Vec<u8>> = vec![
        format!("{header}\r\nHello\r\n").into(),
        format!("{header}\r\n").into(),
        format!("{header}\r\n\r\n\r\n").into(),
        format!("{header}\r\n.\r\n..\r\n.hidden\r\n").into(),
        format!("{header}\r\ntrailing  \t\r\n  leading\r\n\ta \t b\r\n \r\nx\r\n\r\n").into(),
        format!("{long}{header}\r\n{}\r\n", "x".repeat(5000)).into(),
        [header.as_bytes(), b"X: \xfc\r\n\r\n\xe4\xf6\xfc \xff\x00\r\n"].concat(),
        format!("To: one@example.net\r\n{header}Cc:\r\n\r\nx\r\n").into(),
        format!("{header}Subject: \u{fc}ber\r\n\r\n{}", "line\r\n".repeat(20_000)).into(),
    ];
    let (signer, _) = signer(keys());
    for message in messages {
        let message = signed(&signer, &message).await;
        assert_verified(&message, &samples::records(&keys()), 2).await;
    }
}

/// Only `dkimpy` is asked: `mail-auth` 0.13.3 takes blanks in the last lines for text, which section 3.4.4 of RFC 6376 does
/// not.
#[tokio::test]
async fn lines_of_blanks_at_the_end_of_the_body_do_not_count() {
    let (signer, _) = signer(keys());
    for body in ["x\r\n \r\n\t\r\n\r\n", " \t\r\n", ".\r\n\r\n \r\n"] {
        let message = signed(&signer, format!("From: a@example.org\r\n\r\n{body}").as_bytes()).await;
        let verdicts = samples::dkimpy(&message, &samples::records(&keys()));
        assert!(verdicts.is_none_or(|verdicts| verdicts == [Ok(()), Ok(())]), "{body:?}");
    }
}

#[tokio::test]
async fn a_second_from_a_changed_body_or_a_changed_list_unsubscribe_is_noticed() {
    let (signer, _) = signer(keys());
    let message = b"From: a@example.org\r\nList-Unsubscribe: <https://example.org/u>\r\n\r\nHello\r\n";
    let message = String::from_utf8(signed(&signer, message).await).expect("ASCII");
    let forgeries = [
        message.replacen("From:", "From: evil@example.com\r\nFrom:", 1),
        message.replacen("/u>", "/evil>", 1),
        message.replacen("Hello", "Bye", 1),
    ];
    for forgery in forgeries {
        let verdicts = samples::mail_auth(forgery.as_bytes(), &samples::records(&keys())).await;
        assert!(verdicts.iter().all(Result::is_err), "{forgery}");
    }
}

#[tokio::test]
async fn the_signatures_that_a_message_came_with_stay_valid() {
    let origin = samples::signing_key("author.example", samples::old_rsa());
    let (at_origin, _) = signer(vec![origin.clone()]);
    let message = b"From: a@list.author.example\r\nSubject: x\r\nTo: list@example.org\r\n\r\n.dot \r\n\r\n";
    let message = [&prefix(&at_origin, "lists", message).await[..], message].concat();
    let relay = samples::signing_key("list.author.example", samples::rfc8463());
    let (relay_signer, _) = signer(vec![relay.clone()]);
    let message = signed(&relay_signer, &message).await;
    assert_verified(&message, &samples::records(&[origin, relay]), 2).await;
}

#[tokio::test]
async fn an_arc_set_that_a_message_came_with_stays_valid() {
    let forwarder =
        SigningKey { selector: "arc".into(), ..samples::signing_key("forwarder.example", samples::old_rsa()) };
    let message = b"Authentication-Results: forwarder.example; spf=pass smtp.mailfrom=a@example.org\r\n\
                    From: a@example.org\r\nSubject: x\r\nTo: list@example.org\r\n\r\n.dot \r\n\r\n";
    let Some(sealed) = samples::arc_seal(message) else { return };
    let (signer, _) = signer(keys());
    let message = signed(&signer, &[&sealed[..], message].concat()).await;
    assert!(message.windows(9).filter(|at| at == b"ARC-Seal:").count() == 1);
    assert_eq!(samples::arc_verify(&message, &samples::records(&[forwarder])).as_deref(), Some("pass"));
    assert_verified(&message, &samples::records(&keys()), 2).await;
}

#[tokio::test]
async fn fields_that_were_absent_may_be_added_on_the_way() {
    let (signer, _) = signer(keys());
    let message = signed(&signer, b"From: a@example.org\r\nSubject: x\r\n\r\nHello\r\n").await;
    let message = [b"List-Id: <next.example.net>\r\nReply-To: x@example.net\r\n", &message[..]].concat();
    assert_verified(&message, &samples::records(&keys()), 2).await;
}

#[tokio::test]
async fn mail_from_elsewhere_or_of_another_list_host_leaves_as_it_came() {
    let only_one = keys().into_iter().map(|key| SigningKey { list_hosts: vec!["lists".into()], ..key }).collect();
    let (signer, registry) = signer(only_one);
    let ours = b"From: a@example.org\r\n\r\nx\r\n";
    assert!(!prefix(&signer, "lists", ours).await.is_empty());
    assert!(prefix(&signer, "other", ours).await.is_empty());
    assert!(prefix(&signer, "lists", b"From: a@example.com\r\n\r\nx\r\n").await.is_empty());
    assert!(prefix(&signer, "lists", b"").await.is_empty());
    assert_eq!(count(&registry, "posthaste_sign_unsigned_total"), 3.0);
    assert_eq!(count(&registry, "posthaste_sign_signatures_total"), 2.0);
}

#[tokio::test]
async fn a_content_is_signed_once_however_many_attempts_carry_it() {
    let (signer, registry) = signer(keys());
    let message = b"From: a@example.org\r\n\r\nx\r\n";
    let together = futures(&signer, message, 20).await;
    assert!(together.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(count(&registry, "posthaste_sign_signatures_total"), 2.0);
}

async fn futures(signer: &Signer, message: &'static [u8], count: usize) -> Vec<Bytes> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let signer = signer.clone();
        tasks.spawn(async move { prefix(&signer, "lists", message).await });
    }
    tasks.join_all().await
}

#[tokio::test]
async fn after_a_reload_the_new_keys_sign() {
    let (signer, _) = signer(keys());
    let message = b"From: a@example.org\r\n\r\nx\r\n";
    let before = prefix(&signer, "lists", message).await;
    let new = samples::signing_key("example.org", samples::old_rsa());
    signer.reload(Options { keys: vec![new.clone()] });
    let after = signed(&signer, message).await;
    assert_ne!(&after[26..], &before[..]);
    assert_verified(&after, &samples::records(&[new]), 1).await;
    signer.reload(Options::default());
    assert!(prefix(&signer, "lists", message).await.is_empty());
}

fn count(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    family.map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Bodies of blanks, dots, line ends and a few other octets, with text at the end: where canonicalisation goes wrong if it does.
    #[test]
    fn every_body_verifies(body in "(([ \t.x\u{e4}]{0,4}\r\n){0,8}x\r\n)?(\r\n){0,3}", subject in "[ \ta-c]{0,12}") {
        let message = format!("From: a@example.org\r\nSubject:{subject}\r\n\r\n{body}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let key = samples::signing_key("example.org", samples::rfc8463());
        let (signer, _) = signer(vec![key.clone()]);
        let verdicts = runtime.block_on(async {
            let message = signed(&signer, message.as_bytes()).await;
            samples::mail_auth(&message, &samples::records(&[key])).await
        });
        runtime.shutdown_timeout(Duration::from_secs(5));
        prop_assert_eq!(verdicts, vec![Ok(())]);
    }
}
