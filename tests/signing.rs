//! What receivers find on mail that the relay signs, and what `check --dns` says of the keys.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::TXT;
use mail_auth::hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator};
use posthaste::rehearse::internet::{Builder, Internet};
use posthaste::rehearse::relay::{Program, Relay, Setting, Workspace, compose, free_address};
use posthaste::sign::PrivateKey;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const KEYS: [(&str, &str); 2] = [("ed", "dkim-ed25519.pem"), ("rsa", "dkim-rsa-2048.pem")];

/// Every odd thing that a body may hold, dot-stuffed as the list host sends it.
const BODY: &str = "..\r\n... two dots\r\ntrailing \t \r\n\r\n\u{fc}ber\r\n\r\n\r\n";

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

fn record(key: &str) -> String {
    PrivateKey::read(Path::new(&data(key))).expect("a key").record()
}

/// Publishes a key, in strings of at most 255 octets as the DNS has them.
fn publish(internet: &Internet, name: &str, text: &str) {
    let strings = text.as_bytes().chunks(255).map(|chunk| String::from_utf8_lossy(chunk).into_owned()).collect();
    internet.change_dns(|zone| zone.node(name).records = vec![RData::TXT(TXT::new(strings))]);
}

/// The simulated internet with the public keys, and the relay's configuration with the private ones.
struct Stage {
    internet: Internet,
    workspace: Workspace,
    listen: SocketAddr,
    program: Program,
}

async fn stage() -> Stage {
    let builder: Builder = Internet::builder().domain("receiver.test", |d| d).domain("lists.test", |d| d);
    let internet = builder.keep_content().start().await.expect("started");
    let workspace = Workspace::new(None).expect("a directory");
    let setting = Setting {
        listen: free_address().expect("free"),
        admin: free_address().expect("free"),
        dns: internet.dns_address,
        port: internet.port,
        bounces: internet.address_of("mx.lists.test").expect("described"),
        list_domain: "lists.test".to_owned(),
        expire_after: Duration::from_secs(60),
        initial_rate: 1_000_000,
    };
    let mut text = compose(&setting, None).expect("composed");
    for (selector, key) in KEYS {
        publish(&internet, &format!("{selector}._domainkey.lists.test"), &record(key));
        text += &format!("\n[[dkim]]\ndomain = \"lists.test\"\nselector = \"{selector}\"\nkey = {:?}\n", data(key));
    }
    std::fs::write(workspace.path().join("providers.toml"), "").expect("written");
    let config = workspace.path().join("posthaste.toml");
    std::fs::write(&config, text).expect("written");
    let program = Program {
        path: env!("CARGO_BIN_EXE_posthaste").into(),
        config,
        log: workspace.path().join("log"),
        admin: setting.admin,
        fd_limit: None,
        patience: Duration::from_secs(20),
    };
    Stage { internet, workspace, listen: setting.listen, program }
}

impl Stage {
    /// Hands a message to the relay and waits until the receiver has it; returns it as it came, without dot-stuffing.
    async fn relay(&self, content: &str) -> Vec<u8> {
        let before = self.internet.deliveries().len();
        hand_over(self.listen, content).await;
        let start = Instant::now();
        while self.internet.deliveries().len() == before {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing arrived");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.internet.deliveries()[before].content.to_vec()
    }

    /// What an independent verifier finds, with the keys from the simulated DNS: d= and the verdict, from the top.
    async fn verify(&self, message: &[u8]) -> Vec<(String, bool)> {
        let mut udp = ConnectionConfig::udp();
        udp.port = self.internet.dns_address.port();
        let mut tcp = ConnectionConfig::tcp();
        tcp.port = udp.port;
        let server = NameServerConfig::new(self.internet.dns_address.ip(), true, vec![udp, tcp]);
        let config = ResolverConfig::from_name_servers(vec![server]);
        let authenticator = MessageAuthenticator::new(config, ResolverOpts::default()).expect("a resolver");
        let parsed = AuthenticatedMessage::parse(message).expect("a message");
        let outputs = authenticator.verify_dkim(&parsed).await;
        let domain = |output: &mail_auth::DkimOutput<'_>| output.signature().map(|s| s.d.clone()).unwrap_or_default();
        outputs.iter().map(|output| (domain(output), *output.result() == DkimResult::Pass)).collect()
    }

    fn check_dns(&self) -> Output {
        let config = self.program.config.display().to_string();
        let mut check = Command::new(&self.program.path);
        check.args(["check", "--dns", "--config", &config]).output().expect("it runs")
    }
}

async fn hand_over(relay: SocketAddr, content: &str) {
    let stream = TcpStream::connect(relay).await.expect("connected");
    let (reader, mut writer) = stream.into_split();
    let mut replies = BufReader::new(reader).lines();
    let content = format!("{content}.\r\n");
    let lines = [
        "",
        "HELO lists.test\r\n",
        "MAIL FROM:<bounces@lists.test>\r\n",
        "RCPT TO:<a@receiver.test>\r\n",
        "DATA\r\n",
        &content,
    ];
    for line in lines {
        writer.write_all(line.as_bytes()).await.expect("written");
        let reply = replies.next_line().await.expect("read").expect("a reply");
        assert!(reply.starts_with('2') || reply.starts_with("354"), "{line}: {reply}");
    }
}

/// The header of a posting, with a long field.
fn header(from: &str) -> String {
    let references = "<0123456789@lists.test>\r\n ".repeat(100);
    format!(
        "From: List <{from}>\r\nTo: a@receiver.test\r\nSubject:  odd \t blanks \r\nReferences: {references}<x@y.test>\r\n\
         List-Unsubscribe: <https://lists.test/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
    )
}

#[tokio::test]
async fn mail_of_a_configured_domain_arrives_with_signatures_that_verify() {
    let stage = stage().await;
    let _relay = Relay::start(stage.program.clone()).await.expect("started");
    let both = vec![("lists.test".to_owned(), true); 2];
    let posting = stage.relay(&(header("list@news.lists.test") + BODY)).await;
    assert_eq!(stage.verify(&posting).await, both);
    let text = String::from_utf8_lossy(&posting);
    assert!(text.starts_with("Received: ") && text.matches("DKIM-Signature: ").count() == 2, "{text}");
    let content = (header("list@news.lists.test") + BODY).replace("\r\n..", "\r\n.");
    assert!(text.ends_with(&content), "the content changed: {text}");
    let bodiless = stage.relay(&header("list@lists.test")).await;
    assert_eq!(stage.verify(&bodiless).await, both);
}

#[tokio::test]
async fn a_message_that_is_signed_already_keeps_its_own_signature() {
    let stage = stage().await;
    let _relay = Relay::start(stage.program.clone()).await.expect("started");
    let signed_by_us = stage.relay(&(header("list@lists.test") + BODY)).await;
    // Handed to the relay again, with the signatures it bears: those of the author, as far as this relay is concerned.
    let first_signature = signed_by_us.windows(15).position(|at| at == b"DKIM-Signature:").expect("signed");
    let again = String::from_utf8(signed_by_us[first_signature..].to_vec()).expect("UTF-8");
    let again = stage.relay(&again.replace("\r\n.", "\r\n..")).await;
    assert_eq!(stage.verify(&again).await, vec![("lists.test".to_owned(), true); 4]);
    let elsewhere = stage.relay(&(header("someone@elsewhere.test") + BODY)).await;
    assert_eq!(stage.verify(&elsewhere).await, []);
}

/// The name server must answer while `check` is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_key_that_does_not_match_its_dns_record() {
    let stage = stage().await;
    let output = stage.check_dns();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("publish ed._domainkey.lists.test TXT \"v=DKIM1; k=ed25519;")
    );
    publish(&stage.internet, "ed._domainkey.lists.test", &record("dkim-rsa-2048.pem"));
    stage.internet.change_dns(|zone| zone.remove("rsa._domainkey.lists.test"));
    let output = stage.check_dns();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ed._domainkey.lists.test: the record holds another key: rsa "), "{said}");
    assert!(
        said.contains("rsa._domainkey.lists.test: there is no such TXT record; publish: v=DKIM1; k=rsa; p="),
        "{said}"
    );
    assert!(stage.workspace.path().exists());
}
