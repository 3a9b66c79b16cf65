//! STARTTLS and AUTH, and certificates that change.

use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

struct Secured {
    relay: Relay,
    directory: TempDir,
    certificate: CertificateDer<'static>,
}

/// Writes a new certificate for `relay.example`.
fn certify(directory: &TempDir) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("made");
    std::fs::write(directory.path().join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    made.cert.der().clone()
}

fn secured_options(directory: &TempDir, options: Options) -> Options {
    let tls = Tls { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
    let listeners = options.listeners.iter().map(|l| Listener { tls: Some(tls.clone()), ..l.clone() }).collect();
    Options { listeners, ..options }
}

fn secured(options: Options) -> Secured {
    let directory = TempDir::new().expect("a directory");
    let certificate = certify(&directory);
    let relay = Relay::start(secured_options(&directory, options));
    Secured { relay, directory, certificate }
}

fn connector(trusted: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("valid").with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn start_tls(
    mut client: Client<TcpStream>,
    trusted: &CertificateDer<'static>,
) -> io::Result<Client<TlsStream<TcpStream>>> {
    let reply = client.say("EHLO x").await;
    assert!(reply.contains("STARTTLS") && !reply.contains("AUTH"), "{reply}");
    client.expect("STARTTLS", "220 2.0.0").await;
    let name = ServerName::try_from("relay.example").expect("a name");
    let stream = connector(trusted).connect(name, client.stream.into_inner()).await?;
    Ok(Client::new(stream))
}

#[tokio::test]
async fn a_transaction_under_tls_is_traced_as_such() {
    let Secured { relay, certificate, directory: _directory } = secured(options());
    let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
    client.expect("MAIL FROM:<l@lists.example>", "503 5.5.1").await;
    let reply = client.say("EHLO x").await;
    assert!(reply.contains("AUTH PLAIN LOGIN") && !reply.contains("STARTTLS"), "{reply}");
    client.reach_content().await;
    client.expect(&format!("{MESSAGE}."), "250 2.0.0").await;
    assert_eq!(&*relay.store.taken()[0].trace.protocol, "ESMTPS");
    client.expect("QUIT", "221").await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn requiretls_is_offered_under_tls_only_and_goes_with_the_message() {
    let Secured { relay, certificate, directory: _directory } = secured(options());
    let mut client = relay.greeted().await;
    assert!(!client.say("EHLO x").await.contains("REQUIRETLS"));
    client.expect("MAIL FROM:<l@lists.example> REQUIRETLS", "555 5.5.4").await;
    let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
    assert!(client.say("EHLO x").await.contains("REQUIRETLS"));
    client.expect("MAIL FROM:<l@lists.example> REQUIRETLS", "250 2.1.0").await;
    client.expect("RCPT TO:<a@example.org>", "250").await;
    client.expect("DATA", "354").await;
    client.expect(&format!("{MESSAGE}."), "250 2.0.0").await;
    assert!(relay.store.taken()[0].params.requiretls);
}

#[tokio::test]
async fn commands_sent_in_the_clear_behind_starttls_are_dropped_with_the_connection() {
    let Secured { relay, directory: _directory, .. } = secured(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.send(b"STARTTLS\r\nMAIL FROM:<l@lists.example>\r\n").await;
    assert_eq!(client.reply().await, "");
    relay.until("sessions", 0.0).await;
    assert_eq!(relay.metric_at("starttls_total", "injected"), 1.0);
}

#[tokio::test]
async fn a_user_of_a_list_host_may_relay_from_anywhere() {
    let Secured { relay, certificate, directory: _directory } = secured(strangers_only());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("AUTH PLAIN AHVzZXIAc2VjcmV0", "538 5.7.11").await;
    let mut client = start_tls(client, &certificate).await.expect("secured");
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1").await;
    client.expect("AUTH PLAIN AHVzZXIAc2VjcmV0", "235 2.7.0").await;
    client.reach_content().await;
    client.expect(".", "250 2.0.0").await;
    let taken = &relay.store.taken()[0];
    assert_eq!((&*taken.list_host, &*taken.trace.protocol), ("lists", "ESMTPSA"));
}

#[tokio::test]
async fn login_works_and_wrong_passwords_end_the_session() {
    let Secured { relay, certificate, directory: _directory } = secured(strangers_only());
    let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
    client.expect("EHLO x", "250-").await;
    client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6").await;
    client.expect("dXNlcg==", "334 UGFzc3dvcmQ6").await;
    client.expect("c2VjcmV0", "235 2.7.0").await;
    tokio::time::pause();
    let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
    client.expect("EHLO x", "250-").await;
    let since = Instant::now();
    client.expect("AUTH PLAIN AHVzZXIAd3Jvbmc=", "535 5.7.8").await;
    client.expect("AUTH PLAIN AG5vYm9keQB4", "535 5.7.8").await;
    client.expect("AUTH PLAIN AHVzZXIAd3Jvbmc=", "421 4.7.0").await;
    assert_eq!(since.elapsed().as_secs(), 1 + 2 + 4);
    assert_eq!(relay.metric_at("auth_total", "denied"), 3.0);
}

#[tokio::test]
async fn a_reload_reads_the_certificate_again_and_a_bad_one_changes_nothing() {
    let Secured { relay, certificate: old, directory } = secured(options());
    let address = relay.ingress.local_addresses();
    let new = certify(&directory);
    start_tls(relay.greeted().await, &old).await.expect("the old one still");
    relay.ingress.reload(secured_options(&directory, options())).expect("reloaded");
    assert!(start_tls(relay.greeted().await, &old).await.is_err());
    start_tls(relay.greeted().await, &new).await.expect("the new one now");
    std::fs::write(directory.path().join("key.pem"), "nothing").expect("written");
    let error = relay.ingress.reload(secured_options(&directory, options())).expect_err("no key").to_string();
    assert!(error.contains("key.pem") && error.contains("PEM"), "{error}");
    start_tls(relay.greeted().await, &new).await.expect("still");
    assert_eq!(relay.ingress.local_addresses(), address);
}
