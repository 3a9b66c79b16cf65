//! The configuration as it is written: one documented field per key, with its unit, its default and what follows from
//! it. `config/posthaste.toml` says the same to the operator, and a test holds the two together.
//!
//! Keys that are not listed here are refused. The defaults stand in the `Default` implementations, once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::units::{Bandwidth, BounceUrl, HostPort, NameServer, PerTime, Percent, Size, Span};
use crate::attempt::{PartnerTls, Rate};
use crate::delivery;
use crate::log;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Raw {
    /// Our own name, fully qualified: greeting, EHLO, Received lines, DSNs. Must resolve to us, and our address back to
    /// it, or large providers refuse our mail. Default: the system's host name.
    pub hostname: Option<String>,
    /// File with limits per provider, relative to this file. It changes and extends the rules that are built in.
    /// Default: the built-in ones alone.
    pub providers: Option<PathBuf>,
    /// `[spool]`.
    pub spool: Spool,
    /// `[[listener]]`. None: no mail is taken.
    pub listener: Vec<Listener>,
    /// `[[list_host]]`. None: Posthaste relays for nobody.
    pub list_host: Vec<ListHost>,
    /// `[[partner]]`. None: all mail goes to its domain's exchangers.
    pub partner: Vec<Partner>,
    /// `[[dkim]]`. None: nothing is signed.
    pub dkim: Vec<Dkim>,
    /// `[[source]]`. None: the system chooses the address that mail leaves from.
    pub source: Vec<Source>,
    /// `[ingress]`.
    pub ingress: Ingress,
    /// `[dns]`.
    pub dns: Dns,
    /// `[delivery]`.
    pub delivery: Delivery,
    /// `[tls]`.
    pub tls: Tls,
    /// `[[tls_policy]]`, in order: the first that matches holds.
    pub tls_policy: Vec<TlsPolicy>,
    /// `[dispatch]`.
    pub dispatch: Dispatch,
    /// `[budget]`.
    pub budget: Budget,
    /// `[bounce]`.
    pub bounce: Bounce,
    /// `[admin]`.
    pub admin: Admin,
    /// `[log]`.
    pub log: Log,
}

/// `[spool]`: the queue on disk.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spool {
    /// Directory, relative to the configuration file; made if missing, mode 0700. One process per spool. Default:
    /// `/var/lib/posthaste`.
    pub path: PathBuf,
    /// Size at which a journal segment is closed and the next begun. Smaller ones are freed sooner and are more files.
    /// Default: 64MiB.
    pub segment_bytes: Size,
    /// Contents larger than this are files of their own instead of records in the journal. Default: 256KiB.
    pub inline_content_bytes: Size,
    /// Memory for the cache of the index. Default: 32MiB.
    pub index_cache_bytes: Size,
    /// Memory for contents that were used lately. Default: 32MiB.
    pub content_cache_bytes: Size,
    /// Rows of the index that may change before it is brought up to date. More of them: fewer writes, a longer replay
    /// at start. Default: 50000.
    pub checkpoint_rows: usize,
    /// Longest time between the write of an outcome and its fsync: what a power cut may repeat. Default: 20ms.
    pub commit_interval: Span,
    /// Free space in the spool's file system below which new mail is answered 452. The queue keeps draining.
    /// Default: 256MiB.
    pub reserve_bytes: Size,
    /// Most of a downtime that counts towards retry and expiry, so that a wrong clock at boot expires nothing.
    /// Default: 1d.
    pub downtime_max: Span,
}

impl Default for Spool {
    fn default() -> Spool {
        Spool {
            path: PathBuf::from("/var/lib/posthaste"),
            segment_bytes: Size(64 << 20),
            inline_content_bytes: Size(256 << 10),
            index_cache_bytes: Size(32 << 20),
            content_cache_bytes: Size(32 << 20),
            checkpoint_rows: 50_000,
            commit_interval: Span::milliseconds(20),
            reserve_bytes: Size(256 << 20),
            downtime_max: Span::seconds(86_400),
        }
    }
}

/// `[[listener]]`: one listening socket.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Address and port to listen on. Required.
    pub address: SocketAddr,
    /// Certificate chain for STARTTLS, PEM, relative to the configuration file; read again on SIGHUP. Default: none,
    /// STARTTLS is not offered.
    #[serde(default)]
    pub tls_certificate: Option<PathBuf>,
    /// Its private key, PEM. Required with `tls_certificate`.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
}

/// `[[list_host]]`: a machine that relays to us.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListHost {
    /// Its name in logs, metrics and the spool. Required, and different from the others'.
    pub name: String,
    /// Networks from which it may relay without AUTH. Default: none.
    #[serde(default, deserialize_with = "networks")]
    pub networks: Vec<IpNet>,
    /// Users who may relay as this list host after AUTH over TLS. Default: none.
    #[serde(default)]
    pub users: Vec<User>,
    /// Domains it may use in reverse-paths; each covers its subdomains. Required. A reverse-path outside of them gets
    /// 451, and the list host keeps the mail.
    pub reverse_path_domains: Vec<String>,
    /// Where its bounces go: one address or several in order. Required: bounces have no other way.
    #[serde(deserialize_with = "one_or_many")]
    pub bounces_to: Vec<BounceUrl>,
    /// Share in delivery relative to other list hosts when both have mail waiting. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// STARTTLS towards `bounces_to`, as in `[delivery]`. Default: opportunistic.
    #[serde(default)]
    pub tls: delivery::TlsMode,
    /// The `[[partner]]` that it is: mail that came from a partner goes to none, so that two relays that are each other's
    /// partner do not loop. Default: none.
    #[serde(default)]
    pub partner: Option<String>,
}

/// `[[partner]]`: a smarthost that takes mail over from us. The first whose suffix matches, whose condition holds and that
/// works is used; what it does not take goes direct at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Partner {
    /// Its name in logs and metrics. Required, and different from the others'.
    pub name: String,
    /// Its hosts, tried in this order; port 25 where none is given. Required.
    pub hosts: Vec<HostPort>,
    /// `required` (whatever the certificate), `verified` (the certificate is checked) or `off`. Default: required.
    #[serde(default, with = "partner_tls")]
    pub tls: PartnerTls,
    /// User for AUTH PLAIN. Default: none, it knows us by our address.
    #[serde(default)]
    pub user: Option<String>,
    /// File whose first line is the password, relative to this file. Required with `user`.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Recipient domains that it takes: `.de` (all below), `example.org` (this one), `*` (all). Required. Partners with the
    /// very same suffix share it by `weight`.
    pub suffixes: Vec<String>,
    /// When: `always`, `overflow` (while the line or the queue is too full) or `fallback` (while the direct route is
    /// suspended after failures). Default: overflow.
    #[serde(default)]
    pub condition: PartnerCondition,
    /// Overflow begins when this share of `[budget] uplink` is used. Default: none.
    #[serde(default)]
    pub overflow_above: Option<Percent>,
    /// Overflow by the line ends below this share. Default: four fifths of `overflow_above`.
    #[serde(default)]
    pub overflow_below: Option<Percent>,
    /// Overflow begins when the oldest recipient that could go has waited for so long. Default: none.
    #[serde(default)]
    pub overflow_age: Option<Span>,
    /// Overflow by age ends below this. Default: half of `overflow_age`.
    #[serde(default)]
    pub overflow_age_below: Option<Span>,
    /// Recipients per time. Begins anew at a restart. Default: no limit.
    #[serde(default)]
    pub quota: Option<PerTime>,
    /// Recipients in 24 hours. Default: no limit.
    #[serde(default)]
    pub quota_day: Option<u32>,
    /// Recipients of one mailing. Default: no limit.
    #[serde(default)]
    pub quota_mailing: Option<u64>,
    /// Its share beside partners with the same suffix. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Connections at a time. Default: 10.
    #[serde(default = "ten")]
    pub connections: u32,
    /// Recipients in a transaction. Default: 100.
    #[serde(default = "hundred")]
    pub recipients_per_transaction: u32,
    /// Whether it is reached by another line than the one that `[budget] uplink` speaks of. Default: false.
    #[serde(default)]
    pub other_line: bool,
}

/// When a partner is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PartnerCondition {
    /// As long as it works.
    Always,
    /// While our own line or queue is too full.
    #[default]
    Overflow,
    /// While the direct route is suspended.
    Fallback,
}

/// A user of a list host.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name that AUTH gives.
    pub name: String,
    /// An argon2 hash in PHC string format, as `posthaste config hash-password` prints it.
    pub password_hash: Secret,
}

/// A text that is read but never shown.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(not shown)")
    }
}

/// `[[dkim]]`: a key that signs outgoing mail.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Dkim {
    /// Signs mail whose From is in this domain or below it; the nearest domain's keys sign, all of them. Required.
    pub domain: String,
    /// The public key is published in the TXT record `selector._domainkey.domain`. Required.
    pub selector: String,
    /// Private key, PEM, relative to the configuration file; RSA of 2048 bits or more, or Ed25519; read again on SIGHUP.
    /// Required.
    pub key: PathBuf,
    /// Names of the list hosts whose mail it signs. Default: all.
    #[serde(default)]
    pub list_hosts: Vec<String>,
}

/// `[[source]]`: local addresses that mail leaves from. The first one that fits is taken.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its name in logs and metrics. Required, and different from the others'.
    pub name: String,
    /// Addresses of this machine, IPv4 and IPv6; they take turns. Where there is none of a family, exchangers of that family
    /// are passed over. Required.
    pub addresses: Vec<IpAddr>,
    /// The name that EHLO gives from there; the addresses must resolve to it, and it to them. Default: the global `hostname`.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Names of the list hosts whose mail leaves from here. Default: all.
    #[serde(default)]
    pub list_hosts: Vec<String>,
    /// Names of provider rules that it is for. Default: all, and everybody else.
    #[serde(default)]
    pub providers: Vec<String>,
}

/// `[ingress]`: what list hosts may do.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ingress {
    /// Largest message, advertised as SIZE; a larger one is refused at MAIL. Default: 50MB.
    pub message_bytes: Size,
    /// Recipients per transaction, advertised as LIMITS RCPTMAX; 452 beyond. Default: 50000.
    pub recipients_per_transaction: u32,
    /// Idle time after which a session is closed; at least 5m (RFC 5321 section 4.5.3.2.7). Default: 10m.
    pub idle_timeout: Span,
    /// Sessions at a time. Beyond them the listening sockets are closed until sessions end. Default: 1000.
    pub connections: u32,
    /// Sessions of strangers, who get nothing but a refusal, at a time. Default: 20.
    pub stranger_connections: u32,
    /// Received lines above which a message is taken for looping; at least 100 (RFC 5321 section 6.3). Default: 100.
    pub hops: u32,
    /// Header fields that name a mailing, in order, beside Message-ID and List-Id. Default: `X-Listmonk-Campaign`.
    pub campaign_headers: Vec<String>,
}

impl Default for Ingress {
    fn default() -> Ingress {
        Ingress {
            message_bytes: Size(50_000_000),
            recipients_per_transaction: 50_000,
            idle_timeout: Span::seconds(600),
            connections: 1000,
            stranger_connections: 20,
            hops: 100,
            campaign_headers: vec!["X-Listmonk-Campaign".to_owned()],
        }
    }
}

/// `[dns]`: the resolver.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Name servers to ask. Default: the system's. Use a resolver on this machine: every site costs several questions.
    pub servers: Vec<NameServer>,
    /// Time for one question. Default: 5s.
    pub timeout: Span,
    /// Questions in flight at a time. Default: 64.
    pub concurrency: usize,
    /// Sites that are remembered. Default: 50000.
    pub cache_entries: u64,
    /// Whether answers are validated (DNSSEC), without which there is no DANE. Costs several questions for each one, so the
    /// name server should be near. Default: false.
    pub dnssec: bool,
    /// File of DNSKEY records to trust, relative to this file. Default: the root's keys, which are built in.
    pub trust_anchor: Option<PathBuf>,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns {
            servers: Vec::new(),
            timeout: Span::seconds(5),
            concurrency: 64,
            cache_entries: 50_000,
            dnssec: false,
            trust_anchor: None,
        }
    }
}

/// `[delivery]`: towards the world.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Delivery {
    /// Port at exchangers. Default: 25.
    pub port: u16,
    /// Networks that may be next hops although they are loopback, private or otherwise prohibited. Default: none.
    #[serde(deserialize_with = "networks")]
    pub allow_networks: Vec<IpNet>,
    /// Delay after the 1st, 2nd, ... attempt; the last one repeats. Default: 5m, 10m, 20m, 40m, 1h, 2h, 4h.
    pub retry: Vec<Span>,
    /// How much each delay is varied, so that what was deferred together does not return as one wave. Default: 20%.
    pub retry_jitter: Percent,
    /// Lifetime in the queue; after it a recipient fails with 4.4.7 and its bounce is sent. Default: 5d.
    pub expire_after: Span,
    /// Time between the starts of two connection attempts to one host (RFC 8305 section 5); a lost race costs the
    /// provider a connection. Default: 2s.
    pub connect_stagger: Span,
    /// STARTTLS: `opportunistic` (used where offered, certificates not checked), `required`, `verified` (required, and the
    /// certificate must be valid for the exchanger) or `off`. DANE and MTA-STS come on top. Default: opportunistic.
    pub tls: delivery::TlsMode,
    /// Connections at a time, over all providers; the limit on open files may set a lower one. Default: 500.
    pub connections: usize,
    /// Whether 8-bit content goes to a host without 8BITMIME; otherwise it fails with 5.6.3. Default: true.
    pub pass_eight_bit: bool,
    /// Addresses of one destination that are tried in a round, over all its exchangers. Default: 5.
    pub address_limit: usize,
    /// `[delivery.timeouts]`.
    pub timeouts: Timeouts,
}

impl Default for Delivery {
    fn default() -> Delivery {
        let minutes = |minutes: u64| Span::seconds(60 * minutes);
        Delivery {
            port: 25,
            allow_networks: Vec::new(),
            retry: [5, 10, 20, 40, 60, 120, 240].map(minutes).to_vec(),
            retry_jitter: Percent(20),
            expire_after: Span::seconds(5 * 86_400),
            connect_stagger: Span::seconds(2),
            tls: delivery::TlsMode::Opportunistic,
            connections: 500,
            pass_eight_bit: true,
            address_limit: 5,
            timeouts: Timeouts::default(),
        }
    }
}

/// `[delivery.timeouts]`: how long each command may take (RFC 5321 section 4.5.3.2).
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// TCP connect, per address. Default: 30s.
    pub connect: Span,
    /// The greeting. Default: 5m.
    pub greeting: Span,
    /// EHLO, STARTTLS and the handshake. Default: 5m.
    pub hello: Span,
    /// MAIL. Default: 5m.
    pub mail: Span,
    /// Each RCPT. Default: 5m.
    pub rcpt: Span,
    /// DATA. Default: 2m.
    pub data: Span,
    /// Each block of content. Default: 3m.
    pub block: Span,
    /// The final dot. Shorter than 10m makes duplicates. Default: 10m.
    pub dot: Span,
    /// QUIT. Default: 10s.
    pub quit: Span,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Span::seconds(30),
            greeting: Span::seconds(300),
            hello: Span::seconds(300),
            mail: Span::seconds(300),
            rcpt: Span::seconds(300),
            data: Span::seconds(120),
            block: Span::seconds(180),
            dot: Span::seconds(600),
            quit: Span::seconds(10),
        }
    }
}

/// `[tls]`: how certificates of next hops are checked, where they are.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// PEM file of root certificates, relative to this file. Default: the system's.
    pub roots: Option<PathBuf>,
    /// Whether the MTA-STS policies of recipient domains are fetched and followed (RFC 8461). Default: true.
    pub mta_sts: bool,
    /// Directory in which MTA-STS policies are kept over restarts. Default: `mta-sts` in the spool.
    pub cache: Option<PathBuf>,
    /// Port of the hosts that policies are fetched from. Other than 443 for tests only. Default: 443.
    pub policy_port: u16,
}

impl Default for Tls {
    fn default() -> Tls {
        Tls { roots: None, mta_sts: true, cache: None, policy_port: 443 }
    }
}

/// `[[tls_policy]]`: what certain destinations ask for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPolicy {
    /// Recipient domains; with a leading dot everything below, too. Default: none.
    #[serde(default)]
    pub domains: Vec<String>,
    /// Suffixes of exchanger names; all exchangers of a site must match. Default: none.
    #[serde(default)]
    pub mx_suffixes: Vec<String>,
    /// As in `[delivery]`. Required.
    pub tls: delivery::TlsMode,
    /// With `verified`: names of which the certificate must bear one. Default: the exchanger's.
    #[serde(default)]
    pub names: Vec<String>,
}

/// `[dispatch]`: grouping and pacing.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dispatch {
    /// How long a mailing must be quiet before its partial transactions leave. Default: 250ms.
    pub coalesce_quiet: Span,
    /// The longest that a partial transaction waits for more recipients of its domain. Default: 2s.
    pub coalesce_window: Span,
    /// Attempts in flight at a time, over all providers. Default: 500.
    pub attempts: usize,
    /// Connections that a provider starts with; they grow with success and shrink with trouble. Default: 5.
    pub initial_window: u32,
    /// Recipients per time that a provider starts with, after a first transaction; they grow by a quarter each second
    /// until it refuses some, and then follow what it takes. Default: 50/1s.
    pub initial_rate: PerTime,
    /// Recipients held in memory per destination. Default: 1000.
    pub read_ahead: usize,
    /// Recipients held in memory in all; the rest of the queue stays on disk. Default: 50000.
    pub resident: usize,
    /// How long a site is left alone after it could not be used; doubled at each further failure. Default: 30s.
    pub suspend_min: Span,
    /// The longest that a site is left alone. Default: 10m.
    pub suspend_max: Span,
}

impl Default for Dispatch {
    fn default() -> Dispatch {
        Dispatch {
            coalesce_quiet: Span::milliseconds(250),
            coalesce_window: Span::seconds(2),
            attempts: 500,
            initial_window: 5,
            initial_rate: PerTime(Rate { count: 50, period: Duration::from_secs(1) }),
            read_ahead: 1000,
            resident: 50_000,
            suspend_min: Span::seconds(30),
            suspend_max: Span::seconds(600),
        }
    }
}

/// `[budget]`: what the machine and its line may be asked for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budget {
    /// Octets per second that all deliveries together may send, counted with TLS and without packet headers: set it 4 %
    /// below what the line is sold as. Default: none, as many as the line takes.
    pub uplink: Option<Bandwidth>,
    /// Resident memory above which new mail is refused with 452 at MAIL, until seven eighths of it are reached again; at
    /// least 128MiB. Default: none.
    pub memory: Option<Size>,
}

/// `[bounce]`: failure reports to list hosts.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bounce {
    /// From of the reports. Default: `MAILER-DAEMON@hostname`.
    pub from: Option<String>,
    /// How long a batch's first failure waits for others, so that one report names them all. Default: 5s.
    pub gather: Span,
    /// Age from which a delay is reported, where NOTIFY=DELAY asked for it; nobody else hears of delays. Default: 4h.
    pub delay_after: Span,
    /// How long a report is retried whose list host cannot be reached. Default: 14d.
    pub expire_after: Span,
    /// Mailbox at a list host that gets what could not be reported until then, and mail to `<postmaster>`. Default: none;
    /// the one is dropped, counted and logged, the other gets 550.
    pub postmaster: Option<String>,
    /// Most octets of the original message that a RET=FULL report returns. Default: 64KiB.
    pub return_bytes: Size,
}

impl Default for Bounce {
    fn default() -> Bounce {
        Bounce {
            from: None,
            gather: Span::seconds(5),
            delay_after: Span::seconds(4 * 3600),
            expire_after: Span::seconds(14 * 86_400),
            postmaster: None,
            return_bytes: Size(64 << 10),
        }
    }
}

/// `[admin]`: metrics and health over HTTP.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// Address and port of the admin endpoint, which speaks plain HTTP. Default: 127.0.0.1:8025.
    pub address: SocketAddr,
    /// Networks that may ask, beside loopback. Required if `address` is not a loopback address. Default: none.
    #[serde(deserialize_with = "networks")]
    pub networks: Vec<IpNet>,
    /// Names that a Host header may bear, beside the loopback names, `hostname` and `address`; others get 421, against
    /// DNS rebinding. Default: none.
    pub host_names: Vec<String>,
    /// Unix socket for `posthaste site` and the other verbs that speak with the running relay, relative to the
    /// configuration file; mode 0600. Default: `control.sock` in the spool's directory.
    pub socket: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            address: SocketAddr::from(([127, 0, 0, 1], 8025)),
            networks: Vec::new(),
            host_names: Vec::new(),
            socket: None,
        }
    }
}

/// `[log]`: the log on standard error.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` or `json`. Default: text.
    pub format: log::Format,
    /// `error`, `warn`, `info`, `debug` or `trace`. The line per outcome is written at every level. Default: info.
    pub level: log::Level,
}

fn one() -> u32 {
    1
}

/// Reads networks; a bare address is a network of one.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    struct Network(IpNet);

    impl<'de> Deserialize<'de> for Network {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
            let text = String::deserialize(deserializer)?;
            let bare = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
            let network = text.parse().or_else(|_| bare());
            network.map(Network).map_err(|_| {
                de::Error::custom(format_args!(
                    "{text:?} is not a network such as \"192.0.2.0/24\", \"2001:db8::/32\" or \"192.0.2.7\""
                ))
            })
        }
    }
    Ok(Vec::<Network>::deserialize(deserializer)?.into_iter().map(|network| network.0).collect())
}

/// Reads one bounce address or an array of them.
fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BounceUrl>, D::Error> {
    struct OneOrMany;

    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<BounceUrl>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("\"host:port\", \"smtp://host:port\", \"lmtp://host:port\", or an array of these")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let url = text.parse().map_err(|wanted| E::custom(format_args!("{text:?} is not {wanted}")))?;
            Ok(vec![url])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(sequence))
        }
    }
    deserializer.deserialize_any(OneOrMany)
}

fn ten() -> u32 {
    10
}

fn hundred() -> u32 {
    100
}

/// [`PartnerTls`] by its names.
mod partner_tls {
    use super::*;

    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Name {
        Off,
        Required,
        Verified,
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PartnerTls, D::Error> {
        Ok(match Name::deserialize(deserializer)? {
            Name::Off => PartnerTls::Off,
            Name::Required => PartnerTls::Required,
            Name::Verified => PartnerTls::Verified,
        })
    }

    pub(super) fn serialize<S: Serializer>(tls: &PartnerTls, serializer: S) -> Result<S::Ok, S::Error> {
        match tls {
            PartnerTls::Off => Name::Off,
            PartnerTls::Required => Name::Required,
            PartnerTls::Verified => Name::Verified,
        }
        .serialize(serializer)
    }
}
