//! A name server on loopback for the tests of this part and of `delivery`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::{Options, Resolver};
use crate::attempt::Limits;
use crate::budget::Descriptors;

/// What the server says about one name and type.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    Records(Vec<RData>),
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
}

impl FakeDns {
    pub(crate) async fn start() -> FakeDns {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("an address");
        let dns = FakeDns { address, zone: Arc::default(), asked: Arc::default() };
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
        let zone = self.zone.lock().expect("zone");
        let known = zone.keys().any(|(other, _)| *other == name);
        let otherwise = if known { Says::Records(Vec::new()) } else { Says::Code(ResponseCode::NXDomain) };
        let cname = zone.get(&(name.clone(), RecordType::CNAME));
        let says = zone.get(&(name, query.query_type())).or(cname).cloned().unwrap_or(otherwise);
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        match says {
            Says::Silence => return None,
            Says::Garbage => return Some(vec![0xff; 40]),
            Says::Code(code) => answer.metadata.response_code = code,
            Says::Records(records) => {
                answer.add_answers(records.into_iter().map(|data| Record::from_rdata(query.name().clone(), 300, data)));
            }
        }
        Some(answer.to_vec().expect("an answer"))
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

    pub(crate) fn times_asked(&self, name: &str, kind: RecordType) -> usize {
        self.asked.lock().expect("asked").iter().filter(|asked| **asked == (name.to_owned(), kind)).count()
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            servers: vec![self.address],
            timeout: Duration::from_millis(200),
            concurrency: 16,
            cache_entries: 1000,
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
