//! What the simulated DNS knows: names, their records, and how each name misbehaves.
//!
//! A name that is not in the zone does not exist (NXDOMAIN); a name that is there without the asked type has no data.
//! Behaviour belongs to a name, not to a type, so "the MX answers and the address lookup fails" is two names.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, PTR, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Longest chain of CNAMEs that an answer follows; a loop therefore ends here, with the chain as the answer.
const CNAME_CHAIN_MAX: usize = 8;
/// How long a negative answer may be cached, so that a test that adds a name is not held up.
const NEGATIVE_TTL: u32 = 1;

/// How a name answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// With its records.
    #[default]
    Normal,
    /// "No such name", although records may be stored for it.
    NxDomain,
    /// "Server failure" (SERVFAIL), which a relay must take for temporary.
    ServFail,
    /// "Refused".
    Refused,
    /// Not at all.
    Timeout,
    /// With octets that are no DNS message.
    Garbage,
}

/// One name.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// How it answers.
    pub behaviour: Behaviour,
    /// Time that passes before it answers.
    pub delay: Duration,
    /// Whether the answer carries the AD bit, as if a validating resolver had checked it (RFC 4035 section 3.2.3).
    pub authentic: bool,
    /// Its records, of any types.
    pub records: Vec<RData>,
}

/// What the server sends back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// How to answer at all.
    pub behaviour: Behaviour,
    /// Time to wait first.
    pub delay: Duration,
    /// The AD bit.
    pub authentic: bool,
    /// The response code.
    pub code: ResponseCode,
    /// The answer section.
    pub records: Vec<Record>,
    /// The authority section: an SOA record where the answer is negative (RFC 2308).
    pub authorities: Vec<Record>,
}

/// All names that exist.
#[derive(Clone, Debug)]
pub struct Zone {
    nodes: HashMap<String, Node>,
    ttl: u32,
}

impl Zone {
    /// An empty zone whose records live for `ttl` seconds.
    pub fn new(ttl: u32) -> Zone {
        Zone { nodes: HashMap::new(), ttl }
    }

    /// The node of `name`, made if it is missing.
    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.entry(normal(name)).or_default()
    }

    /// Removes a name; it does not exist any more.
    pub fn remove(&mut self, name: &str) {
        self.nodes.remove(&normal(name));
    }

    /// Adds an exchanger. An exchanger of `"."` is the null MX of RFC 7505.
    pub fn mx(&mut self, name: &str, preference: u16, exchanger: &str) {
        let exchanger = dns_name(exchanger);
        self.node(name).records.push(RData::MX(MX::new(preference, exchanger)));
    }

    /// Adds an address, and the name that the address points back to.
    pub fn address(&mut self, name: &str, address: IpAddr) {
        let record = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        self.node(name).records.push(record);
        let back = RData::PTR(PTR(dns_name(name)));
        self.node(&reverse_name(address)).records.push(back);
    }

    /// Makes `name` an alias of `target`.
    pub fn cname(&mut self, name: &str, target: &str) {
        let target = dns_name(target);
        self.node(name).records.push(RData::CNAME(CNAME(target)));
    }

    /// Adds a TXT record of one or more strings.
    pub fn txt(&mut self, name: &str, text: &str) {
        self.node(name).records.push(RData::TXT(TXT::new(vec![text.to_owned()])));
    }

    /// Answers a question, following CNAMEs within the zone.
    pub fn lookup(&self, name: &Name, wanted: RecordType) -> Answer {
        let mut answer = Answer {
            behaviour: Behaviour::Normal,
            delay: Duration::ZERO,
            authentic: false,
            code: ResponseCode::NoError,
            records: Vec::new(),
            authorities: Vec::new(),
        };
        self.follow(name.clone(), wanted, &mut answer);
        if answer.records.is_empty() {
            answer.authorities.push(authority());
        }
        answer
    }

    fn follow(&self, mut name: Name, wanted: RecordType, answer: &mut Answer) {
        for _ in 0..CNAME_CHAIN_MAX {
            let Some(node) = self.nodes.get(&normal(&name.to_ascii())) else {
                answer.code = ResponseCode::NXDomain;
                return;
            };
            answer.delay += node.delay;
            answer.authentic = node.authentic;
            answer.behaviour = node.behaviour;
            answer.code = code_of(node.behaviour);
            if node.behaviour != Behaviour::Normal {
                answer.records.clear();
                return;
            }
            match self.collect(&name, node, wanted, answer) {
                Some(target) => name = target,
                None => return,
            }
        }
    }

    /// Takes what `node` has of the wanted type, or its alias, whose target is returned.
    fn collect(&self, name: &Name, node: &Node, wanted: RecordType, answer: &mut Answer) -> Option<Name> {
        let mut target = None;
        for data in &node.records {
            let alias = match data {
                RData::CNAME(CNAME(alias)) if wanted != RecordType::CNAME => Some(alias.clone()),
                _ if data.record_type() == wanted || wanted == RecordType::ANY => None,
                _ => continue,
            };
            answer.records.push(Record::from_rdata(name.clone(), self.ttl, data.clone()));
            target = target.or(alias);
        }
        target
    }
}

fn code_of(behaviour: Behaviour) -> ResponseCode {
    match behaviour {
        Behaviour::NxDomain => ResponseCode::NXDomain,
        Behaviour::ServFail => ResponseCode::ServFail,
        Behaviour::Refused => ResponseCode::Refused,
        Behaviour::Normal | Behaviour::Timeout | Behaviour::Garbage => ResponseCode::NoError,
    }
}

/// The root's SOA: an ancestor of every name, so one record makes every negative answer cacheable.
fn authority() -> Record {
    let soa =
        SOA::new(dns_name("ns.rehearsal.test"), dns_name("hostmaster.rehearsal.test"), 1, 60, 60, 60, NEGATIVE_TTL);
    Record::from_rdata(Name::root(), NEGATIVE_TTL, RData::SOA(soa))
}

/// Lower case, no trailing dot: how names are keyed.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A name as hickory wants it; one that cannot be a name becomes the root, which is the null MX's spelling.
fn dns_name(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap_or_else(|_| Name::root());
    name.set_fqdn(true);
    name
}

fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => reverse_v4(v4),
        IpAddr::V6(v6) => reverse_v6(v6),
    }
}

fn reverse_v4(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}

fn reverse_v6(address: Ipv6Addr) -> String {
    let nibbles: Vec<String> =
        address.octets().iter().rev().map(|octet| format!("{:x}.{:x}", octet & 15, octet >> 4)).collect();
    format!("{}.ip6.arpa", nibbles.join("."))
}
