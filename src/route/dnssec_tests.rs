//! DNSSEC and TLSA against a signed root on loopback: row D16 of the fault catalogue.

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::NULL;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::testing::{FakeDns, Says, resolver};
use super::{Resolver, Tlsa};
use crate::mail::{Destination, Domain};

fn destination(domain: &str) -> Destination {
    Destination::Domain(Domain::parse(domain).expect("a domain"))
}

/// A signed server for one domain, and a validating resolver.
async fn validating() -> (FakeDns, Resolver, tempfile::TempDir) {
    let (dns, directory) = (FakeDns::signed().await, tempfile::tempdir().expect("a directory"));
    dns.mx("example.org", &[(10, "mx.example.org.")]);
    dns.host("mx.example.org", &["127.0.0.2"]);
    let mut options = dns.options();
    options.dnssec = true;
    options.trust_anchor = Some(dns.trust_anchor(directory.path()));
    let resolver = resolver(options);
    (dns, resolver, directory)
}

/// How many records there are, or the status of the reason.
async fn tlsa(resolver: &Resolver, host: &str) -> Result<usize, String> {
    resolver.tlsa(host, 25).await.map(|records| records.len()).map_err(|reason| reason.status.to_string())
}

#[tokio::test]
async fn a_signed_domain_is_secure_and_its_tlsa_records_are_found() {
    let (dns, resolver, _directory) = validating().await;
    dns.tlsa("mx.example.org", 25, &[(3, 1, 1, vec![7; 32])]);
    assert!(resolver.has_secure_exchangers(&destination("example.org")).await);
    let records = resolver.tlsa("mx.example.org", 25).await.expect("records");
    assert_eq!(*records, [Tlsa { usage: 3, selector: 1, matching: 1, data: vec![7; 32].into() }]);
    assert_eq!(tlsa(&resolver, "mx.example.org").await, Ok(1));
    assert_eq!(dns.times_asked("_25._tcp.mx.example.org", RecordType::TLSA), 1, "kept");
    dns.host("implicit.example", &["127.0.0.3"]);
    assert!(resolver.has_secure_exchangers(&destination("implicit.example")).await, "its addresses will decide");
}

#[tokio::test]
async fn an_unsigned_domain_is_as_good_as_ever_and_its_hosts_are_not_asked_for_tlsa() {
    let (dns, resolver, _directory) = validating().await;
    dns.unsigned("plain.example");
    dns.mx("plain.example", &[(10, "mx.plain.example.")]);
    dns.host("mx.plain.example", &["127.0.0.3"]);
    dns.says("_25._tcp.mx.plain.example", RecordType::TLSA, Says::Code(ResponseCode::ServFail));
    assert!(!resolver.has_secure_exchangers(&destination("plain.example")).await);
    let questions = dns.all_asked();
    assert!((3..=8).contains(&questions), "{questions} questions for one answer: why validation is off by default");
    let found = resolver.resolve(&destination("plain.example")).await.expect("a site");
    assert_eq!(&*found.site.name, "mx.plain.example/10");
    assert_eq!(tlsa(&resolver, "mx.plain.example").await, Ok(0));
    assert_eq!(dns.times_asked("_25._tcp.mx.plain.example", RecordType::TLSA), 0);
    let missing =
        resolver.resolve(&destination("nowhere.plain.example")).await.expect("an implicit exchanger, unsigned");
    assert_eq!(&*missing.site.name, "nowhere.plain.example/0");
}

#[tokio::test]
async fn a_host_that_proves_to_have_no_tlsa_has_none() {
    let (_dns, resolver, _directory) = validating().await;
    assert_eq!(tlsa(&resolver, "mx.example.org").await, Ok(0));
}

#[tokio::test]
async fn tlsa_that_is_forged_or_not_answered_is_no_absence() {
    let record = || RData::Unknown { code: RecordType::TLSA, rdata: NULL::with(vec![3, 1, 1, 7]) };
    for says in [
        Says::Forged(vec![record()]),
        Says::Code(ResponseCode::ServFail),
        Says::Code(ResponseCode::Refused),
        // A denial without proof.
        Says::Code(ResponseCode::NXDomain),
        Says::Silence,
        Says::Garbage,
    ] {
        let (dns, resolver, _directory) = validating().await;
        dns.says("_25._tcp.mx.example.org", RecordType::TLSA, says.clone());
        assert_eq!(tlsa(&resolver, "mx.example.org").await, Err("4.7.5".to_owned()), "{says:?}");
    }
}

#[tokio::test]
async fn forged_exchangers_and_addresses_are_unanswered_questions() {
    let (dns, resolver, _directory) = validating().await;
    let mx = |name| match dns.looked_up(name, RecordType::MX) {
        Says::Records(records) => records,
        _ => unreachable!("set above"),
    };
    dns.says("forged.example", RecordType::MX, Says::Forged(mx("example.org")));
    let reason = resolver.resolve(&destination("forged.example")).await.expect_err("bogus");
    assert_eq!(reason.status.to_string(), "4.4.3");
}

#[tokio::test]
async fn tlsa_of_any_length_is_read_or_refused_and_never_a_panic() {
    for (octets, expected) in [
        (vec![], Err("4.7.5".to_owned())),
        (vec![3], Err("4.7.5".to_owned())),
        (vec![3, 1], Err("4.7.5".to_owned())),
        (vec![3, 1, 1], Ok(1)),
        (vec![3; 19], Ok(1)),
        (vec![200, 200, 200, 1], Ok(1)),
    ] {
        let (dns, resolver, _directory) = validating().await;
        let rdata = if octets.is_empty() { NULL::new() } else { NULL::with(octets.clone()) };
        let record = RData::Unknown { code: RecordType::TLSA, rdata };
        dns.says("_25._tcp.mx.example.org", RecordType::TLSA, Says::Records(vec![record]));
        assert_eq!(tlsa(&resolver, "mx.example.org").await, expected, "{octets:?}");
        let usable = resolver.tlsa("mx.example.org", 25).await.is_ok_and(|found| found.iter().any(Tlsa::is_usable));
        assert!(!usable, "{octets:?}");
    }
}

#[tokio::test]
async fn without_validation_nothing_is_secure_and_no_tlsa_is_asked_for() {
    let (dns, _validating, _directory) = validating().await;
    dns.tlsa("mx.example.org", 25, &[(3, 1, 1, vec![7; 32])]);
    let resolver = resolver(dns.options());
    assert!(!resolver.has_secure_exchangers(&destination("example.org")).await);
    assert_eq!(tlsa(&resolver, "mx.example.org").await, Ok(0));
    assert_eq!(dns.times_asked("_25._tcp.mx.example.org", RecordType::TLSA), 0);
}

#[tokio::test]
async fn a_file_of_trust_anchors_that_cannot_be_read_is_named() {
    let (dns, _resolver, _directory) = validating().await;
    let mut options = dns.options();
    options.dnssec = true;
    options.trust_anchor = Some("/no/such/root.key".into());
    let descriptors = crate::budget::Descriptors::with_limit(256).expect("enough");
    let error = Resolver::new(options, descriptors, &prometheus::Registry::new()).expect_err("no such file");
    assert!(error.to_string().contains("/no/such/root.key"), "{error}");
}
