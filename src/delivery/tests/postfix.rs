//! Postfix as a receiver with TLS: another implementation of STARTTLS, held against TLSA records of a signed zone. Skipped,
//! and said so, where Postfix is not installed or the test does not run as root, which Postfix needs to start.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use rcgen::{CertifiedKey, KeyPair};
use tokio::net::TcpStream;

use super::*;

const MX: &str = "mx.example.org";

/// A Postfix of our own. Stopped when dropped.
struct Postfix {
    directory: tempfile::TempDir,
    port: u16,
    certificate: CertifiedKey<KeyPair>,
}

impl Postfix {
    /// `None` where it cannot be run.
    async fn start() -> Option<Postfix> {
        let user = rustix::process::geteuid().is_root().then(postfix_user).flatten()?;
        let directory = tempfile::tempdir().expect("a directory");
        let certificate = rcgen::generate_simple_self_signed(vec![MX.to_owned()]).expect("a certificate");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        configure(directory.path(), port, &certificate, user);
        let postfix = Postfix { directory, port, certificate };
        assert!(postfix.command("start"), "postfix did not start");
        for _ in 0..250 {
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(postfix);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("postfix does not listen: {}", postfix.log());
    }

    fn command(&self, verb: &str) -> bool {
        let directory = self.directory.path().join("etc");
        Command::new("postfix").arg("-c").arg(directory).arg(verb).output().is_ok_and(|ran| ran.status.success())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("mail.log")).unwrap_or_default()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.command("stop");
    }
}

fn postfix_user() -> Option<u32> {
    Command::new("postfix").arg("-h").output().ok()?;
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| line.strip_prefix("postfix:")?.split(':').nth(1)?.parse().ok())
}

fn configure(root: &Path, port: u16, certificate: &CertifiedKey<KeyPair>, user: u32) {
    for name in ["etc", "queue", "data"] {
        std::fs::create_dir(root.join(name)).expect("made");
    }
    // The daemons run as another user and must get at their sockets.
    std::fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("opened");
    chown(root.join("data"), Some(user), None).expect("given away");
    std::fs::write(root.join("cert.pem"), certificate.cert.pem()).expect("written");
    std::fs::write(root.join("key.pem"), certificate.signing_key.serialize_pem()).expect("written");
    let root_path = root.display();
    let main = format!(
        "compatibility_level = 3.6\nqueue_directory = {root_path}/queue\ndata_directory = {root_path}/data\n\
         maillog_file = {root_path}/mail.log\nmaillog_file_prefixes = {root_path}\nmyhostname = {MX}\n\
         inet_interfaces = 127.0.0.1\nmynetworks =\nmydestination =\nlocal_recipient_maps =\nalias_maps =\n\
         relay_domains = example.org\nrelay_transport = discard\nrelay_recipient_maps =\n\
         smtpd_relay_restrictions = permit_auth_destination, reject\nsmtpd_tls_security_level = encrypt\n\
         smtpd_tls_cert_file = {root_path}/cert.pem\nsmtpd_tls_key_file = {root_path}/key.pem\nsmtpd_tls_loglevel = 1\n\
         smtpd_tls_received_header = yes\n"
    );
    std::fs::write(root.join("etc/main.cf"), main).expect("written");
    let services = "cleanup unix n - n - 0 cleanup\nqmgr unix n - n 300 1 qmgr\ntlsmgr unix - - n 1000? 1 tlsmgr\n\
                    rewrite unix - - n - - trivial-rewrite\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n\
                    discard unix - - n - - discard\nanvil unix - - n - 1 anvil\npostlog unix-dgram n - n - 1 postlogd\n";
    std::fs::write(root.join("etc/master.cf"), format!("127.0.0.1:{port} inet n - n - - smtpd\n{services}"))
        .expect("written");
}

/// A house whose DNS is signed and says that Postfix may be held against this.
async fn house_holding(postfix: &Postfix, digest: Vec<u8>) -> House {
    let (dns, registry) = (FakeDns::signed().await, Registry::new());
    dns.mx("example.org", &[(10, "mx.example.org.")]);
    dns.host(MX, &["127.0.0.1"]);
    dns.tlsa(MX, postfix.port, &[(3, 1, 1, digest)]);
    let mut route = dns.options();
    route.dnssec = true;
    route.trust_anchor = Some(dns.trust_anchor(postfix.directory.path()));
    let descriptors = Descriptors::with_limit(512).expect("enough");
    let uplink = Uplink::new(None, &registry).expect("uplink");
    let delivery =
        Delivery::new(options(postfix.port), resolver(route), descriptors, uplink, &registry).expect("delivery");
    House { dns, delivery, registry }
}

#[tokio::test]
async fn postfix_gets_mail_under_dane_and_gets_none_if_its_key_is_another() {
    let Some(postfix) = Postfix::start().await else {
        eprintln!("skipped: no Postfix that could be started");
        return;
    };
    let key = rcgen::PublicKeyData::subject_public_key_info(&postfix.certificate.signing_key);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &key).as_ref().to_vec();
    let house = house_holding(&postfix, digest).await;
    let report = house.send(&["a@example.org", "b@example.org"]).await;
    assert_eq!(words(&report), ["relayed", "relayed"], "{report:?}\n{}", postfix.log());
    let another = house_holding(&postfix, vec![7; 32]).await;
    assert_eq!(words(&another.send(&["a@example.org"]).await), ["deferred 4.7.5 Tls"]);
    assert!(postfix.log().contains("TLS connection established"), "{}", postfix.log());
}
