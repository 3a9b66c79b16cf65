//! MTA-STS policies over HTTPS, from a policy host on loopback.

use std::sync::{Arc, Mutex};

use hickory_resolver::proto::rr::rdata::TXT;
use hickory_resolver::proto::rr::{RData, RecordType};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::testing::{FakeDns, Says, resolver};
use super::{Options, Resolver, StsMode, StsOptions};
use crate::mail::Domain;

const POLICY: &str = "version: STSv1\nmode: enforce\nmx: mx.example.org\nmax_age: 86400\n";

/// A policy host with a certificate for `name`, the DNS that leads to it, and options that trust it.
struct Host {
    dns: FakeDns,
    response: Arc<Mutex<String>>,
    requests: Arc<Mutex<Vec<String>>>,
    options: Options,
    directory: tempfile::TempDir,
}

impl Host {
    async fn start(name: &str) -> Host {
        let (dns, directory) = (FakeDns::start().await, tempfile::tempdir().expect("a directory"));
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let roots = directory.path().join("roots.pem");
        std::fs::write(&roots, made.cert.pem()).expect("written");
        let (response, requests): (Arc<Mutex<String>>, Arc<Mutex<Vec<String>>>) = Default::default();
        tokio::spawn(serve(listener, acceptor(&made), Arc::clone(&response), Arc::clone(&requests)));
        dns.host("mta-sts.example.org", &["127.0.0.1"]);
        let mut options = dns.options();
        options.sts =
            StsOptions { enabled: true, cache: Some(directory.path().join("cache")), roots: Some(roots), port };
        let host = Host { dns, response, requests, options, directory };
        host.announce("1");
        host.answer(&format!("200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}", POLICY.len()), POLICY);
        host
    }

    fn announce(&self, id: &str) {
        let text = TXT::new(vec![format!("v=STSv1; id={id};")]);
        self.dns.says("_mta-sts.example.org", RecordType::TXT, Says::Records(vec![RData::TXT(text)]));
    }

    fn answer(&self, head: &str, body: &str) {
        *self.response.lock().expect("response") = format!("HTTP/1.1 {head}\r\n\r\n{body}");
    }

    fn resolver(&self) -> Resolver {
        resolver(self.options.clone())
    }

    fn requests(&self) -> usize {
        self.requests.lock().expect("requests").len()
    }
}

fn acceptor(made: &rcgen::CertifiedKey<rcgen::KeyPair>) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    TlsAcceptor::from(Arc::new(config.expect("a configuration")))
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    response: Arc<Mutex<String>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = tls.accept(stream).await else { continue };
        let mut request = vec![0; 4096];
        let octets = stream.read(&mut request).await.unwrap_or(0);
        requests.lock().expect("requests").push(String::from_utf8_lossy(&request[..octets]).into_owned());
        let response = response.lock().expect("response").clone();
        let _gone = stream.write_all(response.as_bytes()).await;
        let _gone = stream.shutdown().await;
    }
}

async fn mode(resolver: &Resolver) -> Option<StsMode> {
    resolver.sts(&Domain::parse("example.org").expect("a domain")).await.map(|policy| policy.mode)
}

#[tokio::test]
async fn a_policy_is_fetched_from_its_host_once_and_kept_on_disk() {
    let host = Host::start("mta-sts.example.org").await;
    let resolver = host.resolver();
    let asked = tokio::join!(mode(&resolver), mode(&resolver), mode(&resolver));
    assert_eq!(asked, (Some(StsMode::Enforce), Some(StsMode::Enforce), Some(StsMode::Enforce)));
    assert_eq!(host.requests(), 1);
    let request = host.requests.lock().expect("requests")[0].clone();
    assert!(request.starts_with("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.org\r\n"), "{request}");
    assert_eq!(mode(&host.resolver()).await, Some(StsMode::Enforce));
    assert_eq!(host.requests(), 1, "the next start knows it");
    assert_eq!(std::fs::read_dir(host.directory.path().join("cache")).expect("a directory").count(), 1);
}

#[tokio::test]
async fn a_cached_policy_wins_over_a_fetch_that_fails() {
    let host = Host::start("mta-sts.example.org").await;
    assert_eq!(mode(&host.resolver()).await, Some(StsMode::Enforce));
    host.announce("2");
    for head in
        ["404 Not Found", "301 Moved\r\nLocation: https://elsewhere.example/", "200 OK\r\nContent-Type: text/html"]
    {
        host.answer(head, "");
        assert_eq!(mode(&host.resolver()).await, Some(StsMode::Enforce), "{head}");
    }
    host.answer("200 OK", &POLICY.replace("enforce", "testing"));
    assert_eq!(mode(&host.resolver()).await, Some(StsMode::Testing), "and the new one over it");
}

#[tokio::test]
async fn what_cannot_be_fetched_for_the_first_time_is_no_policy() {
    let long = format!("{POLICY}{}", "mx: a.example\n".repeat(5000));
    for (head, body) in [
        ("404 Not Found", POLICY),
        ("302 Found\r\nLocation: https://mta-sts.example.org/", POLICY),
        ("200 OK\r\nContent-Length: 9999", POLICY),
        ("200 OK", "<html>"),
        ("200 OK", &long),
    ] {
        let host = Host::start("mta-sts.example.org").await;
        host.answer(head, body);
        assert_eq!(mode(&host.resolver()).await, None, "{head}");
        assert_eq!(host.requests(), 1, "asked, and no redirect followed");
    }
    let impostor = Host::start("example.org").await;
    assert_eq!(mode(&impostor.resolver()).await, None);
    assert_eq!(impostor.requests(), 0, "a certificate of another name");
}

#[tokio::test]
async fn a_policy_host_in_a_prohibited_network_is_not_spoken_to() {
    let mut host = Host::start("mta-sts.example.org").await;
    host.options.allow_networks.clear();
    assert_eq!(mode(&host.resolver()).await, None);
    assert_eq!(host.requests(), 0);
}

#[tokio::test]
async fn a_domain_that_announces_nothing_costs_one_question() {
    let host = Host::start("mta-sts.example.org").await;
    host.dns.says("_mta-sts.example.org", RecordType::TXT, Says::Records(Vec::new()));
    let resolver = host.resolver();
    assert_eq!((mode(&resolver).await, mode(&resolver).await), (None, None));
    assert_eq!((host.requests(), host.dns.times_asked("_mta-sts.example.org", RecordType::TXT)), (0, 1));
}
