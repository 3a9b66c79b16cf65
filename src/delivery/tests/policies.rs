//! TLS by policy: what is refused, what is not, and that nothing goes in clear that must not.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use tokio_rustls::TlsAcceptor;

use super::super::TlsRule;
use super::super::testing::attempt;
use super::peer::{CLOSE, Peer, SHAKE, acceptor, polite};
use super::*;
use crate::attempt::{Partner, PartnerTls};
use crate::outcome::Scope;
use crate::route::testing::Says;

const MX: &str = "mx.example.org";

/// A certification authority that nobody but the test trusts.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate"))
    }

    /// A server's certificate, with ours behind it. `until`: the year in which it ends.
    fn server(&self, name: &str, until: i32) -> Server {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Server { chain: vec![certificate.der().clone(), self.0.der().clone()], key }
    }

    fn write(&self, directory: &std::path::Path) -> PathBuf {
        let path = directory.join("roots.pem");
        std::fs::write(&path, self.0.pem()).expect("written");
        path
    }
}

struct Server {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Server {
    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .expect("a configuration");
        TlsAcceptor::from(Arc::new(config))
    }

    /// SHA-256 of the whole certificate, or of its key; 0: the server's, 1: the authority's.
    fn digest(&self, which: usize, selector: u8) -> Vec<u8> {
        let certificate = &self.chain[which];
        let key = ParsedCertificate::try_from(certificate).expect("parsed").subject_public_key_info();
        let octets = if selector == 0 { certificate.as_ref() } else { key.as_ref() };
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, octets).as_ref().to_vec()
    }
}

/// What a host says that offers STARTTLS and REQUIRETLS, the latter under TLS only.
fn secure(line: &str) -> String {
    match line {
        l if l.starts_with("EHLO") => "250-mx\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 REQUIRETLS\r\n".to_owned(),
        "STARTTLS" => format!("{SHAKE}220 2.0.0 go\r\n"),
        _ => polite(line).to_owned(),
    }
}

/// A house, its peer and what they trust.
struct Lab {
    house: House,
    peer: Peer,
    directory: tempfile::TempDir,
}

impl Lab {
    /// A peer with this certificate of the authority's, at a signed name.
    async fn with(server: impl FnOnce(&Authority) -> Option<TlsAcceptor>, change: impl FnOnce(&mut Options)) -> Lab {
        let authority = Authority::new("Test Authority");
        let acceptor = server(&authority);
        let peer = Peer::start("127.0.0.1", 0, acceptor, |_, line| secure(line)).await;
        Lab::around(peer, authority, change).await
    }

    async fn around(peer: Peer, authority: Authority, change: impl FnOnce(&mut Options)) -> Lab {
        let directory = tempfile::tempdir().expect("a directory");
        let mut options = options(peer.address.port());
        options.roots = Some(authority.write(directory.path()));
        change(&mut options);
        let (dns, registry) = (FakeDns::signed().await, Registry::new());
        dns.mx("example.org", &[(10, "mx.example.org.")]);
        dns.host(MX, &["127.0.0.1"]);
        let mut route = dns.options();
        route.dnssec = true;
        route.trust_anchor = Some(dns.trust_anchor(directory.path()));
        route.sts.enabled = true;
        route.sts.cache = Some(directory.path().join("mta-sts"));
        let descriptors = Descriptors::with_limit(512).expect("enough");
        let uplink = Uplink::new(None, &registry).expect("uplink");
        let delivery = Delivery::new(options, resolver(route), descriptors, uplink, &registry).expect("delivery");
        Lab { house: House { dns, delivery, registry }, peer, directory }
    }

    fn tlsa(&self, records: &[(u8, u8, u8, Vec<u8>)]) {
        self.house.dns.tlsa(MX, self.peer.address.port(), records);
    }

    /// Keeps a policy for example.org as if it had been fetched.
    fn sts(&self, mode: &str, mx: &str) {
        self.sts_of("example.org", mode, mx);
    }

    fn sts_of(&self, domain: &str, mode: &str, mx: &str) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let policy = serde_json::json!({ "mode": mode, "mx": [mx], "max_age": 86_400 });
        let entry = serde_json::json!({ "id": "1", "fetched": now, "policy": policy });
        let path = self.directory.path().join("mta-sts").join(domain);
        std::fs::write(path, entry.to_string()).expect("written");
    }

    /// What became of a message, and whether its commands were said under TLS.
    async fn send(&self) -> (String, &'static str) {
        self.send_as(attempt(&["a@example.org"])).await
    }

    async fn send_as(&self, attempt: Attempt) -> (String, &'static str) {
        let before = self.peer.seen.count("MAIL");
        let word = words(&self.house.attempt(attempt).await).remove(0);
        let how = match (self.peer.seen.count("MAIL") > before, self.peer.seen.count("STARTTLS") > 0) {
            (false, _) => "nothing said",
            (true, true) => "after STARTTLS",
            (true, false) => "in clear",
        };
        (word, how)
    }
}

fn good(authority: &Authority) -> Option<TlsAcceptor> {
    Some(authority.server(MX, 2100).acceptor())
}

fn verified(options: &mut Options) {
    options.tls = TlsMode::Verified;
}

fn relayed() -> (String, &'static str) {
    ("relayed".to_owned(), "after STARTTLS")
}

fn refused(status: &str) -> (String, &'static str) {
    (format!("deferred {status} Tls"), "nothing said")
}

#[tokio::test]
async fn a_certificate_is_verified_only_where_that_is_wanted() {
    type Make = fn(&Authority) -> Option<TlsAcceptor>;
    let expired: Make = |authority| Some(authority.server(MX, 2021).acceptor());
    let wrong: Make = |authority| Some(authority.server("elsewhere.example", 2100).acceptor());
    let unknown: Make = |_| Some(Authority::new("Another").server(MX, 2100).acceptor());
    for (certificate, verdict, fit) in [
        (good as Make, "trusted", true),
        (expired, "expired", false),
        (wrong, "wrong_name", false),
        (unknown, "unknown_issuer", false),
    ] {
        for mode in [TlsMode::Opportunistic, TlsMode::Required, TlsMode::Verified] {
            let lab = Lab::with(certificate, |options| options.tls = mode).await;
            let expected = if fit || mode != TlsMode::Verified { relayed() } else { refused("4.7.5") };
            assert_eq!(lab.send().await, expected, "{mode:?} {verdict}");
            assert_eq!(lab.house.metric("posthaste_delivery_tls_total", verdict), 1.0, "{mode:?} {verdict}");
        }
    }
}

#[tokio::test]
async fn nothing_goes_in_clear_after_a_failed_handshake_unless_it_may() {
    for (mode, expected) in [
        (TlsMode::Off, ("relayed".to_owned(), "in clear")),
        (TlsMode::Opportunistic, relayed()),
        (TlsMode::Required, refused("4.7.5")),
        (TlsMode::Verified, refused("4.7.5")),
    ] {
        // No acceptor: the peer closes where the handshake should be.
        let lab = Lab::with(|_| None, |options| options.tls = mode).await;
        assert_eq!(lab.send().await, expected, "{mode:?}");
        // What is remembered of a broken TLS must not make it optional.
        assert_eq!(lab.send().await.0, expected.0, "{mode:?} again");
    }
}

#[tokio::test]
async fn a_host_without_starttls_will_do_unless_tls_is_required() {
    for refusal in ["", "454 4.7.0 not now\r\n"] {
        for (mode, expected) in [(TlsMode::Opportunistic, "relayed"), (TlsMode::Required, "deferred 4.7.10 Tls")] {
            let peer = Peer::start("127.0.0.1", 0, None, move |_, line| match line {
                "STARTTLS" => refusal.to_owned(),
                _ if refusal.is_empty() => polite(line).to_owned(),
                _ => secure(line),
            });
            let lab = Lab::around(peer.await, Authority::new("Test"), |options| options.tls = mode).await;
            assert_eq!(lab.send().await.0, expected, "{mode:?} {refusal:?}");
        }
    }
}

#[tokio::test]
async fn a_rule_asks_more_of_its_destinations_than_of_others() {
    let rule = |domains: &[&str], suffixes: &[&str], names: &[&str]| TlsRule {
        domains: domains.iter().map(|name| (*name).to_owned()).collect(),
        mx_suffixes: suffixes.iter().map(|name| (*name).to_owned()).collect(),
        mode: TlsMode::Verified,
        names: names.iter().map(|name| Box::from(*name)).collect(),
    };
    for (rule, expected) in [
        (rule(&["example.org"], &[], &[]), refused("4.7.5")),
        (rule(&[".org"], &[], &[]), refused("4.7.5")),
        (rule(&[], &[".example.org"], &[]), refused("4.7.5")),
        (rule(&["other.example"], &["ple.org"], &[]), relayed()),
        (rule(&["example.org"], &[], &["a.example", "elsewhere.example"]), relayed()),
    ] {
        let shown = format!("{rule:?}");
        let server = |authority: &Authority| Some(authority.server("elsewhere.example", 2100).acceptor());
        let lab = Lab::with(server, |options| options.tls_rules = vec![rule]).await;
        assert_eq!(lab.send().await, expected, "{shown}");
    }
}

#[tokio::test]
async fn a_list_host_may_ask_for_tls_on_its_bounces() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await;
    let mut options = options(peer.address.port());
    options.list_hosts.insert("lists".into(), TlsMode::Required);
    let house = house_with(&peer, options).await;
    assert_eq!(words(&house.attempt(to_list_host(&peer, false, &["a@example.org"])).await), ["deferred 4.7.10 Tls"]);
}

/// An attempt that takes the way by a partner, at the peer's port.
fn to_partner(lab: &Lab, tls: PartnerTls, requiretls: bool) -> Attempt {
    let partner = Partner {
        name: "friend".into(),
        hosts: vec![(MX.into(), lab.peer.address.port())],
        tls,
        credentials: None,
        other_line: false,
        own_token: "by us (Posthaste)".into(),
    };
    let site = Site { name: "partner:friend".into(), provider: "p".into(), route: Route::Partner(Arc::new(partner)) };
    let mut attempt = Attempt { site: Arc::new(site), ..attempt(&["a@example.org"]) };
    Arc::make_mut(&mut attempt.envelope).params.requiretls = requiretls;
    attempt
}

#[tokio::test]
async fn a_partner_is_asked_for_its_own_tls_and_not_for_what_recipients_domains_publish() {
    for (tls, how) in [(PartnerTls::Off, "in clear"), (PartnerTls::Verified, "after STARTTLS")] {
        let lab = Lab::with(good, |options| options.tls = TlsMode::Verified).await;
        lab.sts("enforce", "mx2.example.org");
        lab.tlsa(&[(3, 1, 1, vec![9; 32])]);
        assert_eq!(lab.send_as(to_partner(&lab, tls, false)).await, ("relayed".to_owned(), how), "{tls:?}");
    }
}

#[tokio::test]
async fn a_partner_that_falls_short_of_its_tls_has_failed_but_not_if_one_message_alone_wants_more() {
    let wrong = |authority: &Authority| Some(authority.server("elsewhere.example", 2100).acceptor());
    let broken = |_: &Authority| None;
    let trouble = async |lab: Lab, tls, requiretls| {
        let report = lab.house.delivery.attempt(to_partner(&lab, tls, requiretls), outgoing()).await;
        assert_eq!(lab.peer.seen.count("MAIL"), 0);
        report.trouble.map(|reason| reason.scope)
    };
    assert_eq!(trouble(Lab::with(broken, |_| {}).await, PartnerTls::Required, false).await, Some(Scope::Site));
    assert_eq!(trouble(Lab::with(wrong, |_| {}).await, PartnerTls::Verified, false).await, Some(Scope::Site));
    assert_eq!(trouble(Lab::with(wrong, |_| {}).await, PartnerTls::Required, true).await, None);
    let plain = Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await;
    let lab = Lab::around(plain, Authority::new("Test"), |_| {}).await;
    assert_eq!(trouble(lab, PartnerTls::Required, false).await, Some(Scope::Site));
}

#[tokio::test]
async fn tlsa_records_decide_alone_where_they_are_usable() {
    // A certificate that no root vouches for, of another name, and expired.
    let odd = |authority: &Authority| Some(authority.server("elsewhere.example", 2021));
    let server = odd(&Authority::new("Odd")).expect("a server");
    let (full, key) = (server.digest(0, 0), server.digest(0, 1));
    let pair = |good: &[u8]| vec![(3, 1, 1, vec![9; 32]), (3, 1, 1, good.to_vec())];
    let hundred: Vec<_> = (0..20).map(|i| (3, 1, 1, vec![i; 32])).collect();
    for (records, expected) in [
        (vec![(3, 1, 1, key.clone())], relayed()),
        (vec![(3, 0, 1, full.clone())], relayed()),
        (vec![(3, 0, 0, server.chain[0].to_vec())], relayed()),
        (pair(&key), relayed()),
        (vec![(3, 1, 1, vec![9; 32])], refused("4.7.5")),
        (hundred, refused("4.7.5")),
        // An issuer's record checks names and dates, which are wrong.
        (vec![(2, 0, 1, server.digest(1, 0))], refused("4.7.5")),
        // Unusable: TLS all the same, whatever the certificate.
        (vec![(1, 1, 1, key.clone()), (3, 1, 1, vec![1; 19]), (9, 9, 9, vec![])], relayed()),
        // One that is usable makes the others of no account.
        (vec![(1, 1, 1, key), (3, 1, 1, vec![9; 32])], refused("4.7.5")),
    ] {
        let acceptor = server.acceptor();
        let lab = Lab::with(|_| Some(acceptor), |_| {}).await;
        lab.tlsa(&records);
        assert_eq!(lab.send().await, expected, "{records:?}");
    }
}

#[tokio::test]
async fn an_issuers_tlsa_record_vouches_for_what_it_issued() {
    let authority = Authority::new("Of the domain");
    let server = authority.server(MX, 2100);
    for records in [
        vec![(2, 0, 1, server.digest(1, 0))],
        vec![(2, 1, 1, server.digest(1, 1))],
        vec![(2, 0, 0, server.chain[1].to_vec())],
    ] {
        let acceptor = server.acceptor();
        let lab = Lab::with(|_| Some(acceptor), |_| {}).await;
        lab.tlsa(&records);
        assert_eq!(lab.send().await, relayed(), "{records:?}");
        assert_eq!(lab.house.metric("posthaste_delivery_tls_total", "dane"), 1.0);
    }
}

#[tokio::test]
async fn dane_allows_neither_clear_text_nor_doubt() {
    let unusable = || vec![(1, 1, 1, vec![0; 32])];
    for records in [unusable(), vec![(3, 1, 1, vec![0; 32])]] {
        let lab = Lab::with(|_| None, |_| {}).await;
        lab.tlsa(&records);
        assert_eq!(lab.send().await, refused("4.7.5"), "{records:?}");
    }
    for says in [Says::Code(hickory_resolver::proto::op::ResponseCode::ServFail), Says::Silence] {
        let lab = Lab::with(good, |_| {}).await;
        let name = format!("_{}._tcp.{MX}", lab.peer.address.port());
        lab.house.dns.says(&name, hickory_resolver::proto::rr::RecordType::TLSA, says);
        assert_eq!(lab.send().await, refused("4.7.5"));
        assert_eq!(lab.peer.seen.made(), 0, "not even connected to");
    }
}

#[tokio::test]
async fn an_mta_sts_policy_is_followed_as_its_mode_says() {
    let wrong = |authority: &Authority| Some(authority.server("elsewhere.example", 2100).acceptor());
    for (mode, mx, fit, expected) in [
        ("enforce", MX, true, relayed()),
        ("enforce", "*.example.org", true, relayed()),
        ("enforce", "*.org", true, refused("4.7.5")),
        ("enforce", "mx2.example.org", true, refused("4.7.5")),
        ("enforce", MX, false, refused("4.7.5")),
        ("testing", MX, false, relayed()),
        ("testing", "mx2.example.org", true, relayed()),
        ("none", "mx2.example.org", false, relayed()),
    ] {
        let lab = if fit { Lab::with(good, |_| {}).await } else { Lab::with(wrong, |_| {}).await };
        lab.sts(mode, mx);
        assert_eq!(lab.send().await, expected, "{mode} {mx} {fit}");
    }
    let lab = Lab::with(|_| None, |_| {}).await;
    lab.sts("enforce", MX);
    assert_eq!(lab.send().await, refused("4.7.5"), "no clear text after a failed handshake");
}

#[tokio::test]
async fn mta_sts_does_not_overrule_dane() {
    let lab = Lab::with(good, |_| {}).await;
    lab.tlsa(&[(3, 1, 1, vec![9; 32])]);
    lab.sts("enforce", MX);
    assert_eq!(lab.send().await, refused("4.7.5"));
}

#[tokio::test]
async fn a_domain_with_a_bad_policy_does_not_hold_its_siblings() {
    let lab = Lab::with(good, |_| {}).await;
    lab.house.dns.mx("sibling.example", &[(10, "mx.example.org.")]);
    lab.sts("enforce", "mx2.example.org");
    let report = lab.house.attempt(attempt(&["a@example.org"])).await;
    assert!(words(&report)[0].starts_with("deferred 4.7.5") && report.trouble.is_none(), "no trouble of the site");
    assert_eq!(lab.send_as(to_domain("sibling.example")).await, relayed());
}

/// An attempt at the same site for another domain.
fn to_domain(domain: &str) -> Attempt {
    let domain = crate::mail::Domain::parse(domain).expect("a domain");
    Attempt { destination: crate::mail::Destination::Domain(domain), ..attempt(&["a@example.org"]) }
}

#[tokio::test]
async fn connections_under_different_obligations_are_never_mixed() {
    let lab = Lab::with(good, |_| {}).await;
    for domain in ["plain.example", "other.example", "strict.example"] {
        lab.house.dns.unsigned(domain);
        lab.house.dns.mx(domain, &[(10, "mx.example.org.")]);
    }
    lab.sts_of("strict.example", "enforce", MX);
    for (domain, connections) in
        [("plain.example", 1), ("other.example", 1), ("strict.example", 2), ("strict.example", 2), ("plain.example", 2)]
    {
        assert_eq!(lab.send_as(to_domain(domain)).await, relayed(), "{domain}");
        assert_eq!(lab.peer.seen.made(), connections, "{domain}");
    }
}

fn with_requiretls() -> Attempt {
    let mut attempt = attempt(&["a@example.org"]);
    Arc::make_mut(&mut attempt.envelope).params.requiretls = true;
    attempt
}

#[tokio::test]
async fn requiretls_goes_only_where_it_is_understood_and_proven() {
    let lab = Lab::with(good, |_| {}).await;
    assert_eq!(lab.send_as(with_requiretls()).await, relayed());
    assert_eq!(lab.peer.seen.count("MAIL FROM:<list-bounces@lists.example.org> REQUIRETLS"), 1);

    let unproven = Lab::with(|_| Some(acceptor()), |_| {}).await;
    assert_eq!(unproven.send_as(with_requiretls()).await, refused("4.7.5"));

    let clear = Peer::start("127.0.0.1", 0, None, |_, line| polite(line).to_owned()).await;
    let clear = Lab::around(clear, Authority::new("Test"), verified).await;
    assert_eq!(clear.send_as(with_requiretls()).await, ("failed 5.7.10 Tls".to_owned(), "nothing said"));

    let authority = Authority::new("Test Authority");
    let ignorant = Peer::start("127.0.0.1", 0, good(&authority), |_, line| secure(line).replace("REQUIRETLS", "HELP"));
    let ignorant = Lab::around(ignorant.await, authority, |_| {}).await;
    assert_eq!(ignorant.send_as(with_requiretls()).await, ("failed 5.7.30 Mail".to_owned(), "nothing said"));
    assert_eq!(ignorant.send().await, relayed(), "others are not affected");
}

fn waiving() -> Outgoing {
    Outgoing { content: Bytes::from_static(b"Subject: x\r\ntls-required: No\r\n\r\nx\r\n"), ..outgoing() }
}

#[tokio::test]
async fn a_message_may_waive_what_its_destination_asks_for() {
    let lab = Lab::with(|_| None, |_| {}).await;
    lab.sts("enforce", "mx2.example.org");
    let report = lab.house.delivery.attempt(attempt(&["a@example.org"]), waiving()).await;
    assert_eq!(words(&report), ["relayed"]);
    let report = lab.house.delivery.attempt(with_requiretls(), waiving()).await;
    assert_ne!(words(&report), ["relayed"], "not where the envelope says the opposite");
}

#[tokio::test]
async fn a_host_that_closes_in_the_midst_of_starttls_is_no_reason_to_speak_in_clear() {
    let peer = Peer::start("127.0.0.1", 0, None, |_, line| match line {
        "STARTTLS" => CLOSE.to_owned(),
        _ => secure(line),
    });
    let lab = Lab::around(peer.await, Authority::new("Test"), |options| options.tls = TlsMode::Required).await;
    let report = lab.house.attempt(attempt(&["a@example.org"])).await;
    assert_eq!(words(&report), ["deferred 4.4.2 Tls"]);
    assert!(report.trouble.is_none());
    assert_eq!(lab.peer.seen.count("MAIL"), 0);
}
