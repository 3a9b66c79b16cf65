//! TLS by policy through the whole relay: the program itself, the simulated internet, and policy hosts that speak HTTPS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, TXT};
use posthaste::rehearse::internet::{Domain, Internet};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::Plan;

const CONTENT: &[u8] = b"Message-ID: <1@lists.test>\r\nFrom: l@lists.test\r\nSubject: x\r\n\r\nx\r\n";

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

/// What the relay must be told to trust this certificate, which is written into `directory`.
fn trusting(made: &CertifiedKey<KeyPair>, policies: SocketAddr, directory: &Path) -> String {
    let roots = directory.join("roots.pem");
    std::fs::write(&roots, made.cert.pem()).expect("written");
    format!("[tls]\nroots = \"{}\"\npolicy_port = {}\n", roots.display(), policies.port())
}

#[tokio::test]
async fn a_domain_whose_policy_does_not_name_its_exchanger_waits_and_its_siblings_do_not() {
    let (made, directory) = (certificate(&["mx.shared.test", "mta-sts.bad.test"]), tempfile::tempdir().expect("made"));
    let policies = policy_host(&made, "mx.elsewhere.test").await;
    let internet = Internet::builder()
        .domain("bad.test", |domain| strict(domain, "bad.test"))
        .domain("sibling.test", |domain| domain.mx(["mx.shared.test"]))
        .tls(server(&made))
        .keep_content();
    let stage = Plan::new(internet).with(&trusting(&made, policies, directory.path())).start().await;
    stage.post(&["a@bad.test", "a@sibling.test", "b@sibling.test"], CONTENT).await;
    stage.until("the refusal is logged", |stage| stage.log().contains("MTA-STS policy does not name")).await;
    stage.until_delivered(&["a@sibling.test", "b@sibling.test"]).await;
    assert_eq!(stage.internet.delivered("a@bad.test"), 0);
    assert!(stage.internet.deliveries().iter().all(|delivered| delivered.tls));
}

#[tokio::test]
async fn a_policy_that_names_its_exchanger_is_met_by_a_valid_certificate() {
    let (made, directory) = (certificate(&["mx.shared.test", "mta-sts.good.test"]), tempfile::tempdir().expect("made"));
    let policies = policy_host(&made, "*.shared.test").await;
    let internet =
        Internet::builder().domain("good.test", |domain| strict(domain, "good.test")).tls(server(&made)).keep_content();
    let stage = Plan::new(internet).with(&trusting(&made, policies, directory.path())).start().await;
    stage.post(&["a@good.test"], CONTENT).await;
    stage.until_delivered(&["a@good.test"]).await;
    assert!(stage.internet.deliveries()[0].tls);
    assert!(stage.spool().join("mta-sts/good.test").exists(), "kept for the next start");
}
