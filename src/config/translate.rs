//! [`Raw`] to each part's `Options`, with the checks that need more than one key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Config;
use super::document::{Document, Problem};
use super::partners;
use super::providers::{self, InForce};
use super::raw::{self, Raw};
use super::{signing, sources};
use crate::mail::{Domain, Mailbox};
use crate::{admin, bounce, delivery, dispatch, ingress, log, partner, route, sign, spool};

/// The least high mark of memory: caches and runtime take about half of it.
const MEMORY_MIN: u64 = 128 << 20;

/// Longest path of a Unix socket (`sun_path` of unix(7) is 108 octets with its NUL), less one for the name under which it
/// is made.
const SOCKET_PATH_MAX: usize = 106;

/// Checks `raw` as a whole and makes the options. `directory` is where relative paths start.
///
/// # Errors
/// Everything that is wrong.
pub(super) fn translate(
    raw: Raw,
    document: &Document,
    own_providers: Option<&Document>,
    directory: &Path,
) -> Result<Config, Vec<Problem>> {
    let mut findings = Findings { document, errors: Vec::new(), warnings: Vec::new() };
    let hostname = hostname(&raw, &mut findings);
    findings.check_all(&raw, directory);
    let sign = signing::options(&raw, &mut findings, directory);
    let providers = providers::load(own_providers).map_err(|problems| findings.errors.extend(problems));
    let sources = match &providers {
        Ok(providers) => sources::options(&raw, &mut findings, &hostname, &providers.rules),
        Err(()) => Vec::new(),
    };
    match providers {
        Ok(providers) if findings.errors.is_empty() => {
            let mut config = options(raw, &hostname, providers, directory, findings.warnings);
            config.sign = sign;
            config.delivery.sources = sources;
            Ok(config)
        }
        _ => Err(findings.errors),
    }
}

/// What the checks found.
pub(super) struct Findings<'a> {
    document: &'a Document,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings<'_> {
    pub(super) fn error(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(self.document.problem(key, message));
    }

    pub(super) fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.warnings.push(self.document.problem(key, message));
    }

    fn check_all(&mut self, raw: &Raw, directory: &Path) {
        self.check_listeners(raw, directory);
        self.check_list_hosts(raw);
        partners::check(self, raw, directory);
        self.check_counts(raw);
        self.check_times(raw);
        self.check_retry(&raw.delivery);
        self.check_bounce(&raw.bounce);
        self.check_tls_policies(raw, directory);
        self.check_admin(&raw.admin, &control_socket(raw, directory));
    }

    fn check_listeners(&mut self, raw: &Raw, directory: &Path) {
        if raw.listener.is_empty() {
            self.warn("", "no [[listener]]: no mail is taken");
        }
        for (index, listener) in raw.listener.iter().enumerate() {
            let key = format!("listener[{index}]");
            if raw.listener[..index].iter().any(|other| other.address == listener.address) {
                self.error(&format!("{key}.address"), "another [[listener]] has the same address");
            }
            if listener.address == raw.admin.address {
                self.error(&format!("{key}.address"), "this is the address of [admin]; one of them must move");
            }
            self.check_tls(&key, listener, directory);
        }
    }

    fn check_tls(&mut self, key: &str, listener: &raw::Listener, directory: &Path) {
        match (&listener.tls_certificate, &listener.tls_key) {
            (Some(_), None) => self.error(&format!("{key}.tls_certificate"), "tls_key is missing beside it"),
            (None, Some(_)) => self.error(&format!("{key}.tls_key"), "tls_certificate is missing beside it"),
            _ => {}
        }
        for (name, path) in [("tls_certificate", &listener.tls_certificate), ("tls_key", &listener.tls_key)] {
            if let Some(path) = path.as_ref().map(|path| directory.join(path))
                && let Err(error) = std::fs::File::open(&path)
            {
                self.error(&format!("{key}.{name}"), format!("{} cannot be read: {error}", path.display()));
            }
        }
    }

    fn check_list_hosts(&mut self, raw: &Raw) {
        if raw.list_host.is_empty() {
            self.warn("", "no [[list_host]]: Posthaste relays for nobody");
        }
        let tls = raw.listener.iter().any(|listener| listener.tls_certificate.is_some());
        for (index, host) in raw.list_host.iter().enumerate() {
            let key = format!("list_host[{index}]");
            if raw.list_host[..index].iter().any(|other| other.name == host.name) {
                self.error(&format!("{key}.name"), format!("there is a list host {:?} already", host.name));
            }
            self.check_identity(&key, host, tls);
            self.check_reverse_paths(&key, host);
            self.check_bounces_to(&key, host, &raw.listener);
        }
    }

    fn check_identity(&mut self, key: &str, host: &raw::ListHost, tls: bool) {
        self.check_name(key, &host.name);
        if host.weight == 0 {
            self.error(&format!("{key}.weight"), "0 would never give it a turn; at least 1");
        }
        if host.networks.iter().any(|network| network.prefix_len() == 0) {
            self.error(
                &format!("{key}.networks"),
                "this network is the whole Internet: an open relay. Name its addresses",
            );
        }
        if host.networks.is_empty() && host.users.is_empty() {
            self.warn(key, "neither networks nor users: nobody can relay as this list host");
        }
        if !host.users.is_empty() && !tls {
            self.warn(
                &format!("{key}.users"),
                "AUTH is offered over TLS only, and no [[listener]] has a tls_certificate",
            );
        }
        for (at, user) in host.users.iter().enumerate() {
            if argon2::password_hash::phc::PasswordHash::new(&user.password_hash.0).is_err() {
                self.error(
                    &format!("{key}.users[{at}].password_hash"),
                    "not an argon2 hash in PHC format; `posthaste config hash-password` makes one",
                );
            }
        }
    }

    /// The name of a section, as it may stand in a metric.
    pub(super) fn check_name(&mut self, key: &str, name: &str) {
        let well_formed = (1..=64).contains(&name.len()) && name.chars().all(is_name_char);
        if !well_formed {
            self.error(&format!("{key}.name"), "a name is 1 to 64 of the characters a-z A-Z 0-9 . _ -");
        }
    }

    /// Names of list hosts in another section.
    pub(super) fn check_names_of_list_hosts(&mut self, raw: &Raw, key: &str, names: &[String]) {
        for (index, name) in names.iter().enumerate() {
            if !raw.list_host.iter().any(|host| host.name == *name) {
                self.error(&format!("{key}.list_hosts[{index}]"), format!("there is no [[list_host]] {name:?}"));
            }
        }
    }

    fn check_reverse_paths(&mut self, key: &str, host: &raw::ListHost) {
        let key = format!("{key}.reverse_path_domains");
        if host.reverse_path_domains.is_empty() {
            self.error(&key, "empty: this list host could send nothing. Name the domains of its bounce addresses");
        }
        for (at, domain) in host.reverse_path_domains.iter().enumerate() {
            if let Err(error) = Domain::parse(domain) {
                let message =
                    format!("{domain:?}: {error}; write it like \"lists.example.org\" (subdomains are included)");
                self.error(&format!("{key}[{at}]"), message);
            }
        }
    }

    fn check_bounces_to(&mut self, key: &str, host: &raw::ListHost, listeners: &[raw::Listener]) {
        if host.bounces_to.is_empty() {
            self.error(
                &format!("{key}.bounces_to"),
                "empty: bounces have no other way. Name where this list host takes them",
            );
        }
        for (at, url) in host.bounces_to.iter().enumerate() {
            if listeners.iter().any(|listener| is_own(&url.0.host, url.0.port, listener.address)) {
                let message = format!("{url} is our own [[listener]]: bounces would come back to us");
                self.error(&format!("{key}.bounces_to[{at}]"), message);
            }
        }
    }

    fn check_counts(&mut self, raw: &Raw) {
        let counts = [
            ("spool.segment_bytes", raw.spool.segment_bytes.0),
            ("spool.checkpoint_rows", raw.spool.checkpoint_rows as u64),
            ("ingress.message_bytes", raw.ingress.message_bytes.0),
            ("ingress.recipients_per_transaction", raw.ingress.recipients_per_transaction.into()),
            ("ingress.connections", raw.ingress.connections.into()),
            ("ingress.hops", raw.ingress.hops.into()),
            ("dns.concurrency", raw.dns.concurrency as u64),
            ("delivery.port", raw.delivery.port.into()),
            ("delivery.connections", raw.delivery.connections as u64),
            ("delivery.address_limit", raw.delivery.address_limit as u64),
            ("dispatch.attempts", raw.dispatch.attempts as u64),
            ("dispatch.initial_window", raw.dispatch.initial_window.into()),
            ("dispatch.read_ahead", raw.dispatch.read_ahead as u64),
            ("dispatch.resident", raw.dispatch.resident as u64),
        ];
        if raw.budget.memory.is_some_and(|memory| memory.0 < MEMORY_MIN) {
            self.error("budget.memory", "the program itself needs more: at least 128MiB");
        }
        for (key, _) in counts.iter().filter(|(_, count)| *count == 0) {
            self.error(key, "0 would stop all mail; at least 1");
        }
        if raw.dispatch.resident < raw.dispatch.read_ahead {
            self.warn("dispatch.resident", "smaller than read_ahead: one destination can fill it");
        }
    }

    fn check_times(&mut self, raw: &Raw) {
        let timeouts = &raw.delivery.timeouts;
        let times = [
            ("dns.timeout", raw.dns.timeout),
            ("ingress.idle_timeout", raw.ingress.idle_timeout),
            ("delivery.expire_after", raw.delivery.expire_after),
            ("delivery.timeouts.connect", timeouts.connect),
            ("delivery.timeouts.greeting", timeouts.greeting),
            ("delivery.timeouts.hello", timeouts.hello),
            ("delivery.timeouts.mail", timeouts.mail),
            ("delivery.timeouts.rcpt", timeouts.rcpt),
            ("delivery.timeouts.data", timeouts.data),
            ("delivery.timeouts.block", timeouts.block),
            ("delivery.timeouts.dot", timeouts.dot),
            ("dispatch.suspend_min", raw.dispatch.suspend_min),
            ("bounce.expire_after", raw.bounce.expire_after),
        ];
        for (key, _) in times.iter().filter(|(_, span)| span.0.is_zero()) {
            self.error(key, "no time at all: nothing could succeed");
        }
        if raw.dispatch.suspend_max < raw.dispatch.suspend_min {
            self.error("dispatch.suspend_max", "shorter than suspend_min");
        }
        if raw.dispatch.coalesce_window < raw.dispatch.coalesce_quiet {
            self.warn("dispatch.coalesce_window", "shorter than coalesce_quiet, which then has no effect");
        }
        if timeouts.dot.0.as_secs() < 600 {
            self.warn("delivery.timeouts.dot", "below 10m some hosts accept after we gave up, and get the mail twice");
        }
        if raw.ingress.idle_timeout.0.as_secs() < 300 {
            self.warn(
                "ingress.idle_timeout",
                "below 5m (RFC 5321 section 4.5.3.2.7) list software loses mail on closed connections",
            );
        }
    }

    fn check_retry(&mut self, delivery: &raw::Delivery) {
        match delivery.retry.first() {
            None => self.error("delivery.retry", "empty: name at least one delay, for example [\"5m\", \"1h\"]"),
            Some(first) if *first > delivery.expire_after => {
                self.warn(
                    "delivery.expire_after",
                    format!("shorter than the first retry ({first}): mail gets one attempt"),
                );
            }
            Some(_) => {}
        }
        for (at, _) in delivery.retry.iter().enumerate().filter(|(_, delay)| delay.0.is_zero()) {
            self.error(&format!("delivery.retry[{at}]"), "no delay at all would hammer the next hop; at least \"1ms\"");
        }
    }

    fn check_tls_policies(&mut self, raw: &Raw, directory: &Path) {
        if let Some(path) = &raw.tls.roots
            && let Err(error) = route::roots::load(Some(&directory.join(path)))
        {
            self.error("tls.roots", error.to_string());
        }
        for (index, policy) in raw.tls_policy.iter().enumerate() {
            let key = format!("tls_policy[{index}]");
            if policy.domains.is_empty() && policy.mx_suffixes.is_empty() {
                self.error(&key, "neither domains nor mx_suffixes: it can never match");
            }
            if !policy.names.is_empty() && policy.tls != delivery::TlsMode::Verified {
                self.error(&format!("{key}.names"), "names are compared with tls = \"verified\" only");
            }
            for (at, name) in policy.names.iter().enumerate() {
                if let Err(error) = Domain::parse(name) {
                    self.error(&format!("{key}.names[{at}]"), format!("{name:?}: {error}"));
                }
            }
            self.check_tls_domains(&key, &raw.tls_policy[..index], policy);
        }
    }

    fn check_tls_domains(&mut self, key: &str, earlier: &[raw::TlsPolicy], policy: &raw::TlsPolicy) {
        for (at, domain) in policy.domains.iter().enumerate() {
            let key = format!("{key}.domains[{at}]");
            let below = domain.strip_prefix('.').is_some_and(|rest| !rest.is_empty());
            if !below && let Err(error) = Domain::parse(domain) {
                self.error(&key, format!("{domain:?}: {error}; write it like \"example.org\" or \".example.org\""));
            }
            if let Some(other) = earlier.iter().position(|other| other.domains.contains(domain)) {
                self.error(&key, format!("{domain:?} stands in tls_policy[{other}] already, which comes first"));
            }
        }
    }

    fn check_bounce(&mut self, bounce: &raw::Bounce) {
        for (key, mailbox) in [("bounce.from", &bounce.from), ("bounce.postmaster", &bounce.postmaster)] {
            if let Some(text) = mailbox
                && let Err(error) = Mailbox::parse(text, false)
            {
                self.error(key, format!("{text:?}: {error}; write it like \"postmaster@example.org\""));
            }
        }
    }

    fn check_admin(&mut self, admin: &raw::Admin, socket: &Path) {
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            let message = format!(
                "{} is longer than the {SOCKET_PATH_MAX} octets of a socket's name; name another",
                socket.display()
            );
            self.error("admin.socket", message);
        }
        if !admin.address.ip().is_loopback() && admin.networks.is_empty() {
            let message = "not a loopback address: say in `networks` who may ask, or use 127.0.0.1";
            self.error("admin.address", message);
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// Whether `host:port` is our own listener; one on the unspecified address is reached by any loopback address.
pub(super) fn is_own(host: &str, port: u16, listener: SocketAddr) -> bool {
    let Ok(ip) = host.parse::<std::net::IpAddr>() else { return false };
    port == listener.port() && (ip == listener.ip() || listener.ip().is_unspecified() && ip.is_loopback())
}

/// The configured name, or the system's.
fn hostname(raw: &Raw, findings: &mut Findings<'_>) -> Arc<str> {
    if let Some(name) = &raw.hostname {
        return match Domain::parse(name) {
            Ok(domain) => domain.as_str().into(),
            Err(error) => {
                findings.error("hostname", format!("{name:?}: {error}; write it like \"relay.example.net\""));
                Arc::from("")
            }
        };
    }
    let system = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = if system.trim().is_empty() { "localhost" } else { system.trim() };
    if Domain::parse(name).is_err() {
        findings.warn(
            "",
            format!(
                "hostname is not set and the system's ({name:?}) is not fully qualified: many hosts refuse such an EHLO"
            ),
        );
    }
    name.into()
}

fn options(raw: Raw, hostname: &Arc<str>, mut providers: InForce, directory: &Path, warnings: Vec<Problem>) -> Config {
    let reactions = std::mem::take(&mut providers.reactions);
    let list_hosts: Vec<_> = raw.list_host.iter().map(|host| Arc::new(list_host(host))).collect();
    Config {
        hostname: Arc::clone(hostname),
        spool: spool_options(&raw.spool, directory),
        route: route_options(&raw, hostname, providers, &list_hosts, directory),
        delivery: delivery_options(&raw, hostname, directory),
        dispatch: dispatch_options(
            &raw,
            &list_hosts,
            &Arc::new(reactions),
            partners::options(&raw, hostname, directory),
        ),
        uplink: raw.budget.uplink.map(|bandwidth| bandwidth.0),
        memory: raw.budget.memory.map(|size| size.0),
        bounce: bounce_options(&raw.bounce, hostname),
        admin: admin_options(&raw, hostname, directory),
        sign: sign::Options::default(),
        log: log::Options { format: raw.log.format, level: raw.log.level },
        ingress: ingress_options(&raw, hostname, list_hosts, directory),
        raw,
        warnings,
    }
}

fn spool_options(raw: &raw::Spool, directory: &Path) -> spool::Options {
    spool::Options {
        path: directory.join(&raw.path),
        segment_bytes: raw.segment_bytes.0,
        inline_content_bytes: raw.inline_content_bytes.0,
        index_cache_bytes: usize::try_from(raw.index_cache_bytes.0).unwrap_or(usize::MAX),
        content_cache_bytes: raw.content_cache_bytes.0,
        checkpoint_rows: raw.checkpoint_rows,
        commit_interval: raw.commit_interval.0,
        reserve_bytes: raw.reserve_bytes.0,
        downtime_max: raw.downtime_max.0,
    }
}

fn list_host(raw: &raw::ListHost) -> ingress::ListHost {
    let normalise = |domain: &String| Domain::parse(domain).map_or_else(|_| domain.clone(), |d| d.as_str().to_owned());
    let user = |user: &raw::User| (user.name.clone(), ingress::PasswordHash(user.password_hash.0.clone()));
    ingress::ListHost {
        name: raw.name.as_str().into(),
        networks: raw.networks.clone(),
        users: raw.users.iter().map(user).collect(),
        reverse_path_domains: raw.reverse_path_domains.iter().map(normalise).collect(),
        bounces_to: raw.bounces_to.iter().map(|url| url.0.clone()).collect(),
        weight: raw.weight,
    }
}

fn ingress_options(
    raw: &Raw,
    hostname: &Arc<str>,
    list_hosts: Vec<Arc<ingress::ListHost>>,
    directory: &Path,
) -> ingress::Options {
    let tls = |certificate: &PathBuf, key: &PathBuf| ingress::Tls {
        certificate: directory.join(certificate),
        key: directory.join(key),
    };
    let listener = |raw: &raw::Listener| ingress::Listener {
        address: raw.address,
        tls: raw.tls_certificate.as_ref().zip(raw.tls_key.as_ref()).map(|(certificate, key)| tls(certificate, key)),
    };
    ingress::Options {
        hostname: Arc::clone(hostname),
        listeners: raw.listener.iter().map(listener).collect(),
        list_hosts,
        message_bytes: raw.ingress.message_bytes.0,
        recipients_per_transaction: raw.ingress.recipients_per_transaction,
        idle_timeout: raw.ingress.idle_timeout.0,
        connections: raw.ingress.connections,
        stranger_connections: raw.ingress.stranger_connections,
        hops: raw.ingress.hops,
        postmaster: raw.bounce.postmaster.as_deref().and_then(mailbox),
        campaign_headers: raw.ingress.campaign_headers.clone(),
    }
}

fn route_options(
    raw: &Raw,
    hostname: &Arc<str>,
    providers: InForce,
    list_hosts: &[Arc<ingress::ListHost>],
    directory: &Path,
) -> route::Options {
    route::Options {
        servers: raw.dns.servers.iter().map(|server| server.0).collect(),
        timeout: raw.dns.timeout.0,
        concurrency: raw.dns.concurrency,
        cache_entries: raw.dns.cache_entries,
        dnssec: raw.dns.dnssec,
        trust_anchor: raw.dns.trust_anchor.as_ref().map(|path| directory.join(path)),
        sts: sts_options(raw, directory),
        own_names: vec![hostname.to_ascii_lowercase()],
        own_addresses: raw.listener.iter().map(|listener| listener.address).collect(),
        allow_networks: raw.delivery.allow_networks.clone(),
        address_limit: raw.delivery.address_limit,
        providers: providers.rules,
        default_limits: providers.default,
        list_hosts: list_hosts.iter().map(|host| (Arc::clone(&host.name), host.bounces_to.clone())).collect(),
    }
}

fn sts_options(raw: &Raw, directory: &Path) -> route::StsOptions {
    let cache = raw.tls.cache.clone().unwrap_or_else(|| raw.spool.path.join("mta-sts"));
    route::StsOptions {
        enabled: raw.tls.mta_sts,
        cache: Some(directory.join(cache)),
        roots: raw.tls.roots.as_ref().map(|path| directory.join(path)),
        port: raw.tls.policy_port,
    }
}

fn tls_rule(raw: &raw::TlsPolicy) -> delivery::TlsRule {
    let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    delivery::TlsRule {
        domains: lower(&raw.domains),
        mx_suffixes: lower(&raw.mx_suffixes),
        mode: raw.tls,
        names: raw.names.iter().map(|name| name.to_ascii_lowercase().into()).collect(),
    }
}

fn delivery_options(whole: &Raw, hostname: &Arc<str>, directory: &Path) -> delivery::Options {
    let raw = &whole.delivery;
    let raw::Timeouts { connect, greeting, hello, mail, rcpt, data, block, dot, quit } = raw.timeouts.clone();
    delivery::Options {
        hostname: Arc::clone(hostname),
        port: raw.port,
        connect_stagger: raw.connect_stagger.0,
        tls: raw.tls,
        tls_rules: whole.tls_policy.iter().map(tls_rule).collect(),
        list_hosts: whole.list_host.iter().map(|host| (host.name.as_str().into(), host.tls)).collect(),
        roots: whole.tls.roots.as_ref().map(|path| directory.join(path)),
        timeouts: delivery::Timeouts {
            connect: connect.0,
            greeting: greeting.0,
            hello: hello.0,
            mail: mail.0,
            rcpt: rcpt.0,
            data: data.0,
            block: block.0,
            dot: dot.0,
            quit: quit.0,
        },
        connections: raw.connections,
        pass_eight_bit: raw.pass_eight_bit,
        sources: Vec::new(),
    }
}

fn dispatch_options(
    raw: &Raw,
    list_hosts: &[Arc<ingress::ListHost>],
    reactions: &Arc<dispatch::Reactions>,
    partners: partner::Options,
) -> dispatch::Options {
    dispatch::Options {
        coalesce_quiet: raw.dispatch.coalesce_quiet.0,
        coalesce_window: raw.dispatch.coalesce_window.0,
        attempts: raw.dispatch.attempts,
        initial_window: raw.dispatch.initial_window,
        initial_rate: Some(raw.dispatch.initial_rate.0),
        read_ahead: raw.dispatch.read_ahead,
        resident: raw.dispatch.resident,
        retry: dispatch::RetrySchedule {
            delays: raw.delivery.retry.iter().map(|delay| delay.0).collect(),
            jitter_percent: raw.delivery.retry_jitter.0,
            expire_after: raw.delivery.expire_after.0,
            reports_expire_after: raw.bounce.expire_after.0,
        },
        suspend: (raw.dispatch.suspend_min.0, raw.dispatch.suspend_max.0),
        reactions: Arc::clone(reactions),
        weights: list_hosts.iter().map(|host| (Arc::clone(&host.name), host.weight)).collect(),
        partners,
    }
}

/// A mailbox that `check_bounce` has seen already.
fn mailbox(text: &str) -> Option<Mailbox> {
    Mailbox::parse(text, false).ok()
}

fn bounce_options(raw: &raw::Bounce, hostname: &Arc<str>) -> bounce::Options {
    bounce::Options {
        hostname: Arc::clone(hostname),
        from: raw.from.as_deref().and_then(mailbox),
        gather: raw.gather.0,
        delay_after: raw.delay_after.0,
        expire_after: raw.expire_after.0,
        postmaster: raw.postmaster.as_deref().and_then(mailbox),
        return_bytes: usize::try_from(raw.return_bytes.0).unwrap_or(usize::MAX),
    }
}

fn admin_options(raw: &Raw, hostname: &Arc<str>, directory: &Path) -> admin::Options {
    let names = raw.admin.host_names.iter().map(|name| name.to_ascii_lowercase());
    admin::Options {
        address: raw.admin.address,
        networks: raw.admin.networks.clone(),
        host_names: names.chain([hostname.to_ascii_lowercase()]).collect(),
        socket: control_socket(raw, directory),
    }
}

fn control_socket(raw: &Raw, directory: &Path) -> PathBuf {
    let in_spool = || raw.spool.path.join("control.sock");
    directory.join(raw.admin.socket.clone().unwrap_or_else(in_spool))
}
