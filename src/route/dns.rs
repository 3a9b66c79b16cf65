//! Questions to the DNS, by `hickory-resolver`: how many at a time, and what an answer is.
//!
//! Its cache is switched off: `resolver` has one that keeps answers within bounds of ours. Names are always fully qualified,
//! so that no search list applies, and the hosts file is not looked at.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::dnssec::{Proof, TrustAnchors};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use prometheus::IntCounterVec;
use tokio::sync::Semaphore;

use super::exchangers::MxRecord;
use super::options::Options;
use super::tlsa::Tlsa;
use crate::budget::{Descriptors, Use};

/// Times a question is asked before it counts as unanswered.
const ASKED_MAX: usize = 2;
/// Records of one answer that are looked at.
const RECORDS_MAX: usize = 512;

/// An answer, and how long it may be kept.
#[derive(Clone, Debug)]
pub(super) enum Answer<T> {
    /// Records of the type that was asked for.
    Records(Records<T>),
    /// The name exists, such records do not.
    NoData,
    /// The name does not exist (NXDOMAIN).
    NoName,
    /// No answer that settles anything: timeout, SERVFAIL, REFUSED, garbage. In words.
    Unknown(String),
}

/// Records, and what is known of them.
#[derive(Clone, Debug)]
pub(super) struct Records<T> {
    pub(super) records: Vec<T>,
    pub(super) ttl: Duration,
    /// Whether DNSSEC proves all of the answer, aliases included.
    pub(super) secure: bool,
}

/// Asks, within the bounds of concurrency and descriptors.
#[derive(Debug)]
pub(super) struct Dns {
    resolver: TokioResolver,
    places: Semaphore,
    descriptors: Descriptors,
    questions: IntCounterVec,
}

impl Dns {
    /// # Errors
    /// If the system's configuration cannot be read and no servers are given.
    pub(super) fn new(
        options: &Options,
        anchors: Option<Arc<TrustAnchors>>,
        descriptors: Descriptors,
        questions: IntCounterVec,
    ) -> Result<Dns, NetError> {
        let provider = TokioRuntimeProvider::default();
        let mut builder = if options.servers.is_empty() {
            TokioResolver::builder(provider)?
        } else {
            TokioResolver::builder_with_config(config(&options.servers), provider)
        };
        configure(builder.options_mut(), options);
        if let Some(anchors) = anchors {
            builder = builder.with_trust_anchor(anchors);
        }
        let places = Semaphore::new(options.concurrency.max(1));
        Ok(Dns { resolver: builder.build()?, places, descriptors, questions })
    }

    /// The MX records of a domain.
    pub(super) async fn mx(&self, domain: &str) -> Answer<MxRecord> {
        self.ask(domain, RecordType::MX, |data| match data {
            RData::MX(mx) => Some(MxRecord { preference: mx.preference, target: mx.exchange.to_ascii() }),
            _ => None,
        })
        .await
    }

    /// The TLSA records of a service, `_25._tcp.mx.example.org` (RFC 7672 section 2.2.3).
    pub(super) async fn tlsa(&self, host: &str, port: u16) -> Answer<Tlsa> {
        self.ask(&format!("_{port}._tcp.{host}"), RecordType::TLSA, |data| match data {
            RData::TLSA(tlsa) => Some(Tlsa::from(tlsa)),
            _ => None,
        })
        .await
    }

    /// The texts of a name; the strings of one record are joined (RFC 7208 section 3.3, RFC 8461 section 3.1).
    pub(super) async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        self.ask(name, RecordType::TXT, |data| match data {
            RData::TXT(txt) => Some(txt.txt_data.concat()),
            _ => None,
        })
        .await
    }

    /// The addresses of a host, of one family.
    pub(super) async fn addresses(&self, host: &str, kind: RecordType) -> Answer<IpAddr> {
        self.ask(host, kind, |data| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        })
        .await
    }

    async fn ask<T>(&self, name: &str, kind: RecordType, pick: fn(&RData) -> Option<T>) -> Answer<T> {
        let Ok(name) = Name::from_ascii(format!("{}.", name.trim_end_matches('.'))) else {
            return Answer::Unknown(format!("{name:?} is no name to ask for"));
        };
        let answer = match (self.places.acquire().await, self.descriptors.lease(Use::Dns).await) {
            (Ok(_place), _lease) => self.resolver.lookup(name, kind).await,
            (Err(_), _) => unreachable!("the semaphore is never closed"),
        };
        let answer = match answer {
            Ok(lookup) => records(lookup.answers(), pick),
            Err(error) => nothing(error),
        };
        let result = answer.as_str();
        self.questions.with_label_values(&[kind_label(kind), result]).inc();
        answer
    }
}

fn kind_label(kind: RecordType) -> &'static str {
    match kind {
        RecordType::MX => "mx",
        RecordType::TLSA => "tlsa",
        RecordType::TXT => "txt",
        _ => "address",
    }
}

impl<T> Answer<T> {
    /// The kind of answer as a metric label.
    fn as_str(&self) -> &'static str {
        match self {
            Answer::Records(_) => "records",
            Answer::NoData => "nodata",
            Answer::NoName => "nxdomain",
            Answer::Unknown(_) => "error",
        }
    }
}

fn config(servers: &[SocketAddr]) -> ResolverConfig {
    let server = |address: &SocketAddr| {
        let at_port = |mut connection: ConnectionConfig| {
            connection.port = address.port();
            connection
        };
        let connections = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
        NameServerConfig::new(address.ip(), true, connections)
    };
    ResolverConfig::from_name_servers(servers.iter().map(server).collect())
}

fn configure(hickory: &mut ResolverOpts, options: &Options) {
    hickory.timeout = options.timeout;
    hickory.attempts = ASKED_MAX - 1;
    hickory.use_hosts_file = ResolveHosts::Never;
    hickory.cache_size = 0;
    hickory.num_concurrent_reqs = 1;
    hickory.try_tcp_on_error = false;
    hickory.validate = options.dnssec;
    hickory.edns0 = options.dnssec;
}

fn records<T>(answers: &[Record], pick: fn(&RData) -> Option<T>) -> Answer<T> {
    let ttl = answers.iter().map(|record| record.ttl).min().unwrap_or(0);
    let picked: Vec<T> = answers.iter().filter_map(|record| pick(&record.data)).take(RECORDS_MAX).collect();
    if picked.is_empty() {
        return Answer::NoData;
    }
    let secure = answers.iter().all(|record| record.proof == Proof::Secure);
    Answer::Records(Records { records: picked, ttl: Duration::from_secs(ttl.into()), secure })
}

fn nothing<T>(error: NetError) -> Answer<T> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Answer::NoName,
            ResponseCode::NoError => Answer::NoData,
            code => Answer::Unknown(code.to_string()),
        },
        // Nothing there, and no proof of that is owed: the zone is not signed.
        NetError::Dns(DnsError::Nsec { proof: Proof::Insecure, response, .. }) => match response.metadata.response_code
        {
            ResponseCode::NXDomain => Answer::NoName,
            _ => Answer::NoData,
        },
        error => Answer::Unknown(error.to_string()),
    }
}
