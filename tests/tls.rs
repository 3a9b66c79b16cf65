//! TLS by policy through the whole relay: the program itself, the simulated internet, and policy hosts that speak HTTPS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, TXT};
use posthaste::rehearse::internet::{Domain, Internet};
use posthaste::rehearse::relay::{Program, Relay, Setting, Workspace, compose, free_address};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const PATIENCE: Duration = Duration::from_secs(20);

fn server(made: &CertifiedKey<KeyPair>) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    Arc::new(config.with_single_cert(vec![made.cert.der().clone()], key).expect("a configuration"))
}

fn certificate(names: &[&str]) -> CertifiedKey<KeyPair> {
    generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("a certificate")
}

/// Serves `mode: enforce` with this `mx` to whoever asks, whatever the host's name.
async fn policy_host(made: &CertifiedKey<KeyPair>, mx: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    let tls = TlsAcceptor::from(server(made));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = tls.accept(stream).await else { continue };
            let _request = stream.read(&mut [0; 4096]).await;
            let body = format!("version: STSv1\r\nmode: enforce\r\nmx: {mx}\r\nmax_age: 86400\r\n");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
            let _gone = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _gone = stream.shutdown().await;
        }
    });
    address
}

/// A domain behind the shared exchanger that announces a policy.
fn strict(domain: Domain, name: &str) -> Domain {
    domain
        .mx(["mx.shared.test"])
        .record(&format!("_mta-sts.{name}"), RData::TXT(TXT::new(vec!["v=STSv1; id=1;".to_owned()])))
        .record(&format!("mta-sts.{name}"), RData::A(A::new(127, 0, 0, 1)))
}

async fn start(internet: &Internet, workspace: &Workspace, own: &str) -> (Relay, SocketAddr) {
    let (listen, admin) = (free_address().expect("a port"), free_address().expect("a port"));
    let setting = Setting {
        listen,
        admin,
        dns: internet.dns_address,
        port: internet.port,
        bounces: free_address().expect("a port"),
        list_domain: "lists.test".to_owned(),
        expire_after: Duration::from_secs(60),
        without_rates: false,
    };
    let config = workspace.path().join("posthaste.toml");
    let text = compose(&setting, Some((own, workspace.path()))).expect("composed");
    std::fs::write(&config, text).expect("written");
    let path = env!("CARGO_BIN_EXE_posthaste").into();
    let log = workspace.path().join("relay.log");
    let program = Program { path, config, log, admin, fd_limit: None, patience: PATIENCE };
    (Relay::start(program).await.expect("started"), listen)
}

async fn hand_over(relay: SocketAddr, recipients: &[&str]) {
    let mut stream = TcpStream::connect(relay).await.expect("connected");
    let rcpt: String = recipients.iter().map(|recipient| format!("RCPT TO:<{recipient}>\r\n")).collect();
    let transaction = format!("EHLO lists.test\r\nMAIL FROM:<l-bounces@lists.test>\r\n{rcpt}DATA\r\n");
    stream.write_all(transaction.as_bytes()).await.expect("written");
    let content = "Message-ID: <1@lists.test>\r\nFrom: l@lists.test\r\nSubject: x\r\n\r\nx\r\n.\r\nQUIT\r\n";
    stream.write_all(content.as_bytes()).await.expect("written");
    let mut replies = String::new();
    stream.read_to_string(&mut replies).await.expect("read");
    assert!(replies.contains("250 2.0.0"), "{replies}");
}

/// Waits until the log says all of this.
async fn logged(log: &Path, wanted: &[&str]) -> String {
    let waiting = async {
        loop {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            if wanted.iter().all(|wanted| text.contains(wanted)) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let text = tokio::time::timeout(PATIENCE, waiting).await;
    text.unwrap_or_else(|_| panic!("{wanted:?} is not in {}", std::fs::read_to_string(log).unwrap_or_default()))
}

#[tokio::test]
async fn a_domain_whose_policy_does_not_name_its_exchanger_waits_and_its_siblings_do_not() {
    let certificate = certificate(&["mx.shared.test", "mta-sts.good.test", "mta-sts.bad.test"]);
    let bad = policy_host(&certificate, "mx.elsewhere.test").await;
    let internet = Internet::builder()
        .domain("bad.test", |domain| strict(domain, "bad.test"))
        .domain("sibling.test", |domain| domain.mx(["mx.shared.test"]))
        .tls(server(&certificate))
        .keep_content()
        .start()
        .await
        .expect("started");
    let workspace = Workspace::new(None).expect("a directory");
    std::fs::write(workspace.path().join("roots.pem"), certificate.cert.pem()).expect("written");
    let own = format!("[tls]\nroots = \"roots.pem\"\npolicy_port = {}\n", bad.port());
    let (_relay, listen) = start(&internet, &workspace, &own).await;
    hand_over(listen, &["a@bad.test", "a@sibling.test", "b@sibling.test"]).await;
    let log = logged(&workspace.path().join("relay.log"), &["4.7.5", "MTA-STS policy does not name"]).await;
    let waiting = async {
        while internet.delivered("a@sibling.test") + internet.delivered("b@sibling.test") < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{log}"));
    assert_eq!(internet.delivered("a@bad.test"), 0);
    assert!(internet.deliveries().iter().all(|delivered| delivered.tls));
}

#[tokio::test]
async fn a_policy_that_names_its_exchanger_is_met_by_a_valid_certificate() {
    let good = certificate(&["mx.shared.test", "mta-sts.good.test"]);
    let host = policy_host(&good, "*.shared.test").await;
    let internet = Internet::builder()
        .domain("good.test", |domain| strict(domain, "good.test"))
        .tls(server(&good))
        .keep_content()
        .start()
        .await
        .expect("started");
    let workspace = Workspace::new(None).expect("a directory");
    std::fs::write(workspace.path().join("roots.pem"), good.cert.pem()).expect("written");
    let own = format!("[tls]\nroots = \"roots.pem\"\npolicy_port = {}\n", host.port());
    let (_relay, listen) = start(&internet, &workspace, &own).await;
    hand_over(listen, &["a@good.test"]).await;
    let waiting = async {
        while internet.delivered("a@good.test") == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("delivered");
    assert!(internet.deliveries()[0].tls);
    assert!(workspace.path().join("spool/mta-sts/good.test").exists(), "kept for the next start");
}
