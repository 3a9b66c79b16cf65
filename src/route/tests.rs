//! The resolver against a name server on loopback: rows D1 to D17 of the fault catalogue.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;

use super::testing::{FakeDns, Says, limits, resolver};
use super::{ProviderRule, Resolver};
use crate::attempt::{BounceAddress, Limits, Rate, Route};
use crate::mail::{Destination, Domain};

fn destination(domain: &str) -> Destination {
    Destination::Domain(Domain::parse(domain).expect("a domain"))
}

/// The site's name, or the status and text of the reason.
async fn site(resolver: &Resolver, domain: &str) -> String {
    match resolver.resolve(&destination(domain)).await {
        Ok(resolved) => resolved.site.name.to_string(),
        Err(reason) => format!("{} {}", reason.status, reason.text),
    }
}

async fn addresses(resolver: &Resolver, host: &str, port: u16) -> String {
    match resolver.addresses(host, port).await {
        Ok(addresses) => addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" "),
        Err(reason) => format!("{} {}", reason.status, reason.text),
    }
}

#[tokio::test]
async fn a_domain_leads_to_its_exchangers_and_is_asked_for_once() {
    let dns = FakeDns::start().await;
    dns.mx("a.example", &[(20, "b.mx.example."), (10, "A.mx.example.")]);
    dns.mx("b.example", &[(10, "a.mx.example."), (20, "b.mx.example.")]);
    let resolver = resolver(dns.options());
    let asking = (0..50).map(|_| {
        let resolver = resolver.clone();
        tokio::spawn(async move { site(&resolver, "a.example").await })
    });
    for asked in asking.collect::<Vec<_>>() {
        assert_eq!(asked.await.expect("no panic"), "a.mx.example/10,b.mx.example/20");
    }
    assert_eq!(dns.times_asked("a.example", RecordType::MX), 1);
    assert_eq!(site(&resolver, "b.example").await, site(&resolver, "a.example").await, "equal sets, one site");
}

#[tokio::test]
async fn what_can_be_wrong_with_a_domain() {
    let dns = FakeDns::start().await;
    dns.mx("null.example", &[(0, ".")]);
    dns.host("implicit.example", &["127.0.0.2"]);
    dns.mx("us.example", &[(10, "relay.example.net."), (20, "backup.example.")]);
    dns.mx("odd.example", &[(10, "192.0.2.1."), (20, "localhost.")]);
    dns.says("servfail.example", RecordType::MX, Says::Code(ResponseCode::ServFail));
    dns.says("refused.example", RecordType::MX, Says::Code(ResponseCode::Refused));
    dns.says("silent.example", RecordType::MX, Says::Silence);
    dns.says("garbage.example", RecordType::MX, Says::Garbage);
    let resolver = resolver(dns.options());
    for (domain, expected) in [
        ("null.example", "5.1.10 the domain null.example takes no mail (null MX)"),
        ("nowhere.example", "5.1.2 the domain nowhere.example does not exist"),
        ("implicit.example", "implicit.example/0"),
        ("us.example", "5.4.6 mail loop: we are the best MX of us.example ourselves"),
        ("odd.example", "5.4.4 no MX of odd.example names a usable host"),
        ("servfail.example", "4.4.3 "),
        ("refused.example", "4.4.3 "),
        ("silent.example", "4.4.3 "),
        ("garbage.example", "4.4.3 "),
    ] {
        let found = site(&resolver, domain).await;
        assert!(found.starts_with(expected), "{domain}: {found}");
    }
}

#[tokio::test]
async fn a_cname_is_followed_and_a_loop_of_them_ends() {
    let dns = FakeDns::start().await;
    dns.cname("alias.example", "real.example.");
    dns.mx("real.example", &[(10, "mx.example.")]);
    dns.cname("one.example", "two.example.");
    dns.cname("two.example", "one.example.");
    let resolver = resolver(dns.options());
    assert_eq!(site(&resolver, "alias.example").await, "mx.example/10");
    let looped = site(&resolver, "one.example").await;
    assert!(looped.starts_with("4.4.3") || looped.starts_with("one.example"), "{looped}");
}

#[tokio::test]
async fn the_addresses_of_a_host_take_turns_and_prohibited_ones_are_left_out() {
    let dns = FakeDns::start().await;
    dns.host("mx.example", &["192.0.2.1", "192.0.2.2", "2001:db8::1", "10.0.0.1", "169.254.169.254"]);
    dns.host("private.example", &["10.0.0.1", "fd00::1"]);
    dns.host("us.example", &["192.0.2.1", "127.0.0.1"]);
    dns.host("my_mx.example", &["192.0.2.9"]);
    dns.cname("alias.example", "mx.example.");
    dns.says("silent.example", RecordType::A, Says::Silence);
    dns.says("half.example", RecordType::A, Says::Code(ResponseCode::ServFail));
    dns.host("empty.example", &[]);
    let mut options = dns.options();
    options.own_addresses = vec!["127.0.0.1:25".parse().expect("an address")];
    let resolver = resolver(options);
    let three = "[2001:db8::1]:25 192.0.2.1:25 192.0.2.2:25";
    assert_eq!(addresses(&resolver, "mx.example", 25).await, three);
    assert_eq!(addresses(&resolver, "alias.example", 25).await, three);
    assert_eq!(addresses(&resolver, "my_mx.example", 25).await, "192.0.2.9:25");
    assert!(addresses(&resolver, "private.example", 25).await.starts_with("4.4.4 "));
    assert!(addresses(&resolver, "us.example", 25).await.starts_with("5.4.6 "));
    assert_eq!(addresses(&resolver, "us.example", 26).await, "192.0.2.1:26 127.0.0.1:26");
    assert!(addresses(&resolver, "silent.example", 25).await.starts_with("4.4.3 "));
    assert!(addresses(&resolver, "half.example", 25).await.starts_with("4.4.3 "));
    for host in ["empty.example", "nowhere.example"] {
        assert!(addresses(&resolver, host, 25).await.starts_with("5.4.4 "), "{host}");
        assert_eq!(dns.times_asked(host, RecordType::A), 2, "asked again before it counts as final");
    }
}

#[tokio::test]
async fn a_provider_is_found_by_all_its_exchangers_or_by_the_domain() {
    let dns = FakeDns::start().await;
    dns.mx("one.example", &[(10, "one.mail.provider.example.")]);
    dns.mx("two.example", &[(10, "two.mail.provider.example."), (20, "three.mail.provider.example.")]);
    dns.mx("mixed.example", &[(10, "one.mail.provider.example."), (20, "mx.elsewhere.example.")]);
    dns.mx("alike.example", &[(10, "mx.notmail.provider.example.")]);
    dns.mx("listed.example", &[(10, "mx.elsewhere.example.")]);
    let mut options = dns.options();
    options.providers = vec![ProviderRule {
        name: "provider".into(),
        mx_suffixes: vec![".mail.provider.example".to_owned()],
        domains: vec!["listed.example".to_owned()],
        limits: Arc::new(Limits { connections: 3, ..limits() }),
    }];
    let resolver = resolver(options);
    for (domain, provider, connections) in [
        ("one.example", "provider", 3),
        ("two.example", "provider", 3),
        ("listed.example", "provider", 3),
        ("mixed.example", "one.mail.provider.example/10,mx.elsewhere.example/20", 10),
        ("alike.example", "mx.notmail.provider.example/10", 10),
    ] {
        let resolved = resolver.resolve(&destination(domain)).await.expect("a site");
        assert_eq!((&*resolved.site.provider, resolved.limits.connections), (provider, connections), "{domain}");
    }
}

#[tokio::test]
async fn a_list_host_has_a_lane_of_its_own_and_may_be_on_this_machine() {
    let dns = FakeDns::start().await;
    dns.host("lists.example", &["127.0.0.5"]);
    let mut options = dns.options();
    options.allow_networks.clear();
    options.own_addresses = vec!["127.0.0.1:2525".parse().expect("an address")];
    let rate = Some(Rate { count: 1, period: std::time::Duration::from_secs(60) });
    options.default_limits = Arc::new(Limits { connection_rate: rate, ..limits() });
    let declared = vec![BounceAddress { lmtp: true, host: "127.0.0.1".into(), port: 8024 }];
    options.list_hosts.insert("lists".into(), declared.clone());
    let resolver = resolver(options);
    let resolved = resolver.resolve(&Destination::ListHost("lists".into())).await.expect("a site");
    assert_eq!((&*resolved.site.name, &*resolved.site.provider), ("lists", "list-host:lists"));
    assert_eq!(resolved.site.route, Route::ListHost(declared));
    assert_eq!(resolved.limits.connection_rate, None);
    let gone = resolver.resolve(&Destination::ListHost("gone".into())).await.expect_err("not configured");
    assert_eq!(gone.status.class, 4);
    let found = |host: &'static str, port| {
        let resolver = resolver.clone();
        async move { resolver.declared_addresses(host, port).await.map_err(|reason| reason.status.to_string()) }
    };
    assert_eq!(found("lists.example", 24).await, Ok(vec!["127.0.0.5:24".parse().expect("an address")]));
    assert_eq!(found("[::1]", 24).await, Ok(vec!["[::1]:24".parse().expect("an address")]));
    assert_eq!(found("127.0.0.1", 2525).await, Err("4.4.6".to_owned()));
    assert_eq!(found("nowhere.example", 24).await, Err("4.4.4".to_owned()));
}

#[tokio::test]
async fn a_reload_forgets_and_takes_the_new_rules() {
    let dns = FakeDns::start().await;
    dns.mx("a.example", &[(10, "mx.example.")]);
    let resolver = resolver(dns.options());
    assert_eq!(site(&resolver, "a.example").await, "mx.example/10");
    let mut options = dns.options();
    options.own_names.push("mx.example".to_owned());
    resolver.reload(options).expect("reloaded");
    assert!(site(&resolver, "a.example").await.starts_with("5.4.6"));
}

#[tokio::test]
async fn a_thousand_domains_are_asked_for_within_the_bounds() {
    let dns = FakeDns::start().await;
    let resolver = resolver(dns.options());
    let asking: Vec<_> = (0..1000)
        .map(|i| {
            let (resolver, domain) = (resolver.clone(), format!("d{i}.example"));
            dns.mx(&domain, &[(10, "mx.example.")]);
            tokio::spawn(async move { site(&resolver, &domain).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.expect("no panic"), "mx.example/10");
    }
}
