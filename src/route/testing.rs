//! A name server on loopback for the tests of this part and of `delivery`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, NS, TLSA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::signing::Signer;
use super::{Options, Resolver, StsOptions};
use crate::attempt::Limits;
use crate::budget::Descriptors;

/// What the server says about one name and type.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    Records(Vec<RData>),
    /// As before, with a signature that is wrong, where the server signs.
    Forged(Vec<RData>),
    Code(ResponseCode),
    Silence,
    Garbage,
}

/// Answers over UDP from what it was told. An unknown name does not exist; a known one has no other records.
#[derive(Clone)]
pub(crate) struct FakeDns {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<HashMap<(String, RecordType), Says>>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    signer: Option<Arc<Signer>>,
    /// Zones that the signed root delegates without DS: nothing in them is signed.
    unsigned: Arc<Mutex<Vec<String>>>,
}

impl FakeDns {
    pub(crate) async fn start() -> FakeDns {
        FakeDns::serving(None).await
    }

    /// A server whose root zone, and whatever it says, is signed.
    pub(crate) async fn signed() -> FakeDns {
        FakeDns::serving(Some(Arc::new(Signer::new()))).await
    }

    async fn serving(signer: Option<Arc<Signer>>) -> FakeDns {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        let dns = FakeDns { address, zone: Arc::default(), asked: Arc::default(), signer, unsigned: Arc::default() };
        tokio::spawn(dns.clone().serve(socket));
        dns
    }

    async fn serve(self, socket: UdpSocket) {
        let mut datagram = [0; 1500];
        while let Ok((octets, client)) = socket.recv_from(&mut datagram).await {
            if let Some(answer) = self.answer(&datagram[..octets]) {
                let _ = socket.send_to(&answer, client).await;
            }
        }
    }

    fn answer(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let question = Message::from_vec(datagram).expect("a question");
        let query = question.queries.first().expect("one question").clone();
        let name = query.name().to_ascii().to_ascii_lowercase().trim_end_matches('.').to_owned();
        self.asked.lock().expect("asked").push((name.clone(), query.query_type()));
        let says = self.looked_up(&name, query.query_type());
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        let mut forged = false;
        let records = |data: Vec<RData>| -> Vec<Record> {
            data.into_iter().map(|data| Record::from_rdata(query.name().clone(), 300, data)).collect()
        };
        match says {
            Says::Silence => return None,
            Says::Garbage => return Some(vec![0xff; 40]),
            Says::Code(code) => answer.metadata.response_code = code,
            Says::Records(data) => drop(answer.add_answers(records(data))),
            Says::Forged(data) => {
                forged = true;
                answer.add_answers(records(data));
            }
        }
        let asked_above =
            query.query_type() == RecordType::DS && self.unsigned.lock().expect("unsigned").contains(&name);
        if let Some(signer) = &self.signer
            && (asked_above || !self.is_unsigned(&name))
        {
            self.sign(signer, &mut answer, &name, forged);
        }
        Some(answer.to_vec().expect("an answer"))
    }

    pub(super) fn looked_up(&self, name: &str, kind: RecordType) -> Says {
        if let (Some(signer), "", RecordType::DNSKEY) = (&self.signer, name, kind) {
            return Says::Records(vec![signer.dnskey()]);
        }
        let zone = self.zone.lock().expect("zone");
        let known = zone.keys().any(|(other, _)| *other == name);
        // A signer denies all names in the same way: by the types that they do not have.
        let otherwise = match known || self.signer.is_some() {
            true => Says::Records(Vec::new()),
            false => Says::Code(ResponseCode::NXDomain),
        };
        let cname = zone.get(&(name.to_owned(), RecordType::CNAME));
        zone.get(&(name.to_owned(), kind)).or(cname).cloned().unwrap_or(otherwise)
    }

    fn is_unsigned(&self, name: &str) -> bool {
        let within =
            |zone: &String| name.strip_suffix(zone.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        self.unsigned.lock().expect("unsigned").iter().any(within)
    }

    fn sign(&self, signer: &Signer, answer: &mut Message, name: &str, forged: bool) {
        if answer.metadata.response_code != ResponseCode::NoError {
            return;
        }
        if !answer.answers.is_empty() {
            let signature = signer.sign(&answer.answers, forged);
            answer.add_answer(signature);
            return;
        }
        let zone = self.zone.lock().expect("zone");
        let types = zone.keys().filter(|(other, _)| other == name).map(|(_, kind)| *kind).collect();
        let owner = answer.queries[0].name().clone();
        answer.add_authorities(signer.deny(&owner, types));
    }

    /// Cuts an unsigned zone out of the signed root.
    pub(crate) fn unsigned(&self, zone: &str) {
        let ns = NS(Name::from_ascii(format!("ns.{zone}.")).expect("a name"));
        self.says(zone, RecordType::NS, Says::Records(vec![RData::NS(ns)]));
        self.unsigned.lock().expect("unsigned").push(zone.to_owned());
    }

    /// Says that a host at `port` may be held against these: usage, selector, matching, data.
    pub(crate) fn tlsa(&self, host: &str, port: u16, records: &[(u8, u8, u8, Vec<u8>)]) {
        let tlsa = |(usage, selector, matching, data): &(u8, u8, u8, Vec<u8>)| {
            RData::TLSA(TLSA::new((*usage).into(), (*selector).into(), (*matching).into(), data.clone()))
        };
        self.says(&format!("_{port}._tcp.{host}"), RecordType::TLSA, Says::Records(records.iter().map(tlsa).collect()));
    }

    /// Writes down what is to be trusted, for [`Options::trust_anchor`].
    pub(crate) fn trust_anchor(&self, directory: &Path) -> PathBuf {
        let path = directory.join("root.key");
        let signer = self.signer.as_ref().expect("a signed server");
        std::fs::write(&path, signer.trust_anchor()).expect("written");
        path
    }

    pub(crate) fn says(&self, name: &str, kind: RecordType, says: Says) {
        self.zone.lock().expect("zone").insert((name.to_owned(), kind), says);
    }

    pub(crate) fn mx(&self, name: &str, records: &[(u16, &str)]) {
        let mx = |&(preference, target): &(u16, &str)| {
            RData::MX(MX::new(preference, Name::from_ascii(target).expect("a name")))
        };
        self.says(name, RecordType::MX, Says::Records(records.iter().map(mx).collect()));
    }

    pub(crate) fn cname(&self, name: &str, target: &str) {
        let target = CNAME(Name::from_ascii(target).expect("a name"));
        self.says(name, RecordType::CNAME, Says::Records(vec![RData::CNAME(target)]));
    }

    pub(crate) fn host(&self, name: &str, addresses: &[&str]) {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        let v4 = addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(RData::A(A(*ip))) } else { None });
        let v6 =
            addresses.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(RData::AAAA(AAAA(*ip))) } else { None });
        self.says(name, RecordType::A, Says::Records(v4.collect()));
        self.says(name, RecordType::AAAA, Says::Records(v6.collect()));
    }

    pub(crate) fn all_asked(&self) -> usize {
        self.asked.lock().expect("asked").len()
    }

    pub(crate) fn times_asked(&self, name: &str, kind: RecordType) -> usize {
        self.asked.lock().expect("asked").iter().filter(|asked| **asked == (name.to_owned(), kind)).count()
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            servers: vec![self.address],
            timeout: Duration::from_millis(200),
            concurrency: 16,
            cache_entries: 1000,
            dnssec: false,
            trust_anchor: None,
            sts: StsOptions { enabled: false, cache: None, roots: None, port: 443 },
            own_names: vec!["relay.example.net".to_owned()],
            own_addresses: Vec::new(),
            allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
            address_limit: 5,
            providers: Vec::new(),
            default_limits: Arc::new(limits()),
            list_hosts: HashMap::new(),
        }
    }
}

pub(crate) fn limits() -> Limits {
    Limits {
        connections: 10,
        connection_rate: None,
        recipient_rate: None,
        recipients_per_transaction: 50,
        messages_per_connection: 100,
        idle_timeout: Duration::from_secs(10),
    }
}

pub(crate) fn resolver(options: Options) -> Resolver {
    let descriptors = Descriptors::with_limit(256).expect("enough");
    Resolver::new(options, descriptors, &prometheus::Registry::new()).expect("a resolver")
}
