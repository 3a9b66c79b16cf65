//! Keys and verifiers for tests.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};

use super::{PrivateKey, SigningKey};
use crate::mail::Domain;

/// The Ed25519 key of RFC 8463 appendix A.1.
pub(super) fn rfc8463() -> PrivateKey {
    read("dkim-ed25519.pem")
}

/// An RSA key of 2048 bits, PKCS #8.
pub(super) fn rsa() -> PrivateKey {
    read("dkim-rsa-2048.pem")
}

/// Another one, PKCS #1.
pub(super) fn old_rsa() -> PrivateKey {
    read("dkim-rsa-2048-pkcs1.pem")
}

fn read(name: &str) -> PrivateKey {
    PrivateKey::read(&path(name)).expect("a key")
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A key for all list hosts, with its kind as the selector.
pub(super) fn signing_key(domain: &str, private: PrivateKey) -> SigningKey {
    SigningKey {
        domain: Domain::parse(domain).expect("a domain"),
        selector: private.algorithm().into(),
        list_hosts: Vec::new(),
        private: Arc::new(private),
    }
}

/// The records of the DNS: name to text.
pub(super) type Records = HashMap<String, String>;

/// The records that publish these keys.
pub(super) fn records(keys: &[SigningKey]) -> Records {
    keys.iter().map(|key| (key.record_name(), key.private.record())).collect()
}

/// The judgement of `mail-auth` on each signature of a message, from the top.
pub(super) async fn mail_auth(message: &[u8], records: &Records) -> Vec<Result<(), String>> {
    let no_network = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
    let authenticator = MessageAuthenticator::new(no_network, ResolverOpts::default()).expect("a resolver");
    let parsed = AuthenticatedMessage::parse(message).expect("a message");
    let cache = Published(records);
    let outputs = authenticator.verify_dkim(Parameters::new(&parsed).with_txt_cache(&cache)).await;
    let judge = |result: &DkimResult| if *result == DkimResult::Pass { Ok(()) } else { Err(format!("{result:?}")) };
    outputs.iter().map(|output| judge(output.result())).collect()
}

/// `mail-auth` asks its cache first, and is never let go further.
struct Published<'a>(&'a Records);

impl ResolverCache<Box<str>, Txt> for Published<'_> {
    fn get<Q: Hash + Eq + ?Sized>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
    {
        let is_asked_for = |known: &str| Borrow::<Q>::borrow(&Box::<str>::from(format!("{known}."))) == name;
        let (_, text) = self.0.iter().find(|(known, _)| is_asked_for(known))?;
        Some(DomainKey::parse(text.as_bytes()).expect("a record").into())
    }

    fn remove<Q: Hash + Eq + ?Sized>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}

const DKIMPY: &str = r#"
import json, sys, dkim
records = json.loads(sys.argv[1])
message = sys.stdin.buffer.read()
judge = dkim.DKIM(message)
count = sum(1 for name, _ in judge.headers if name.lower() == b"dkim-signature")
ask = lambda name, timeout=5: records.get(name.decode().rstrip("."), "").encode() or None
for index in range(count):
    try:
        print(dkim.DKIM(message).verify(idx=index, dnsfunc=ask))
    except dkim.DKIMException as error:
        print(error)
"#;

const ARC_SEAL: &str = r#"
import sys, authres, dkim
key = open(sys.argv[1], "rb").read()
message = sys.stdin.buffer.read()
sealed = dkim.arc_sign(message, b"arc", b"forwarder.example", key, b"forwarder.example")
sys.stdout.buffer.write(b"".join(sealed))
"#;

const ARC_VERIFY: &str = r#"
import json, sys, dkim
records = json.loads(sys.argv[1])
ask = lambda name, timeout=5: records.get(name.decode().rstrip("."), "").encode() or None
print(dkim.arc_verify(sys.stdin.buffer.read(), dnsfunc=ask)[0].decode())
"#;

/// The same by Python's `dkimpy`; `None`, and a word about it, where it is not installed.
pub(super) fn dkimpy(message: &[u8], records: &Records) -> Option<Vec<Result<(), String>>> {
    let output = python(DKIMPY, &serde_json::to_string(records).expect("JSON"), message)?;
    let judge = |line: &str| if line == "True" { Ok(()) } else { Err(line.to_owned()) };
    Some(String::from_utf8_lossy(&output).lines().map(judge).collect())
}

/// An ARC set (RFC 8617) for this message by `arc._domainkey.forwarder.example`, made with [`old_rsa`].
pub(super) fn arc_seal(message: &[u8]) -> Option<Vec<u8>> {
    python(ARC_SEAL, &path("dkim-rsa-2048-pkcs1.pem").display().to_string(), message)
}

/// The verdict on a message's ARC chain.
pub(super) fn arc_verify(message: &[u8], records: &Records) -> Option<String> {
    let output = python(ARC_VERIFY, &serde_json::to_string(records).expect("JSON"), message)?;
    Some(String::from_utf8_lossy(&output).trim().to_owned())
}

/// What a script with `dkimpy` prints.
fn python(script: &str, argument: &str, input: &[u8]) -> Option<Vec<u8>> {
    let mut python = Command::new("python3");
    python.args(["-c", script, argument]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = python.spawn() else {
        eprintln!("SKIPPED: no python3, so dkimpy verified nothing");
        return None;
    };
    let written = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("No module named") {
        eprintln!("SKIPPED: dkimpy is not installed whole (pip install dkimpy[ARC,ed25519]), so it verified nothing");
        return None;
    }
    assert!(output.status.success() && written.is_ok(), "{complaint}");
    Some(output.stdout)
}
