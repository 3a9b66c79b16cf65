//! The simulated DNS: answers over UDP and TCP on one loopback port, from a [`Zone`] that may change while it runs.
//!
//! It answers as a recursive resolver would (RA set, CNAMEs followed), because that is what a relay asks. A slow name
//! waits in a task of its own, so it holds up nobody else; such tasks are bounded, and what exceeds the bound is simply
//! not answered, as an overloaded server would do.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::zone::{Answer, Behaviour, Zone};

/// Answers that wait at a time.
const WAITING_MAX: usize = 4096;
/// What fits into a UDP answer without EDNS (RFC 1035 section 4.2.1).
const UDP_PLAIN_MAX: usize = 512;
/// Attempts to find a port that is free for both UDP and TCP.
const BIND_ATTEMPTS: usize = 16;

/// The server's shared half: its zone and what it was asked.
#[derive(Debug)]
pub(super) struct Dns {
    zone: Mutex<Zone>,
    asked: Mutex<HashMap<String, u32>>,
    waiting: Semaphore,
}

/// What becomes of a query.
enum Reply {
    Send(Vec<u8>, std::time::Duration),
    Nothing,
}

impl Dns {
    /// A server's state; [`bind`] and [`serve`] put it on the network.
    pub(super) fn new(zone: Zone) -> Dns {
        Dns { zone: Mutex::new(zone), asked: Mutex::default(), waiting: Semaphore::new(WAITING_MAX) }
    }

    /// Changes the zone; the next question sees it.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often `name` was asked for, whatever the type.
    pub(super) fn asked(&self, name: &str) -> u32 {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(&name.to_ascii_lowercase()).copied().unwrap_or(0)
    }

    /// Answers one wire message. `max` is the transport's own limit on the answer's length.
    fn answer(&self, query: &[u8], transport_max: Option<usize>) -> Reply {
        let Ok(query) = Message::from_vec(query) else { return Reply::Nothing };
        let Some(question) = query.queries.first() else { return Reply::Nothing };
        let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        let answer = self.change(|zone| zone.lookup(question.name(), question.query_type()));
        match answer.behaviour {
            Behaviour::Timeout => Reply::Nothing,
            Behaviour::Garbage => Reply::Send(b"\xff\xffnot DNS".to_vec(), answer.delay),
            _ => wire(&query, &answer, transport_max).map_or(Reply::Nothing, |wire| Reply::Send(wire, answer.delay)),
        }
    }
}

fn wire(query: &Message, answer: &Answer, transport_max: Option<usize>) -> Option<Vec<u8>> {
    let response = response(query, answer);
    let wire = response.to_vec().ok()?;
    let max = transport_max.map(|plain| query.edns.as_ref().map_or(plain, |edns| usize::from(edns.max_payload())));
    if max.is_some_and(|max| wire.len() > max) { response.truncate().to_vec().ok() } else { Some(wire) }
}

fn response(query: &Message, answer: &Answer) -> Message {
    let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.authentic_data = answer.authentic;
    response.metadata.response_code =
        if query.metadata.op_code == OpCode::Query { answer.code } else { ResponseCode::NotImp };
    response.add_queries(query.queries.iter().cloned());
    response.add_answers(answer.records.iter().cloned());
    response.add_authorities(answer.authorities.iter().cloned());
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(asked.max_payload()).set_dnssec_ok(asked.flags().dnssec_ok);
        response.set_edns(edns);
    }
    response
}

/// Takes `address`, or a loopback port that is free for both transports.
///
/// # Errors
/// When the address is taken, or no such port is found.
pub(super) async fn bind(address: Option<SocketAddr>) -> io::Result<(UdpSocket, TcpListener)> {
    let wanted = address.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..BIND_ATTEMPTS {
        let udp = UdpSocket::bind(wanted).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Serves both transports until the task is dropped.
pub(super) async fn serve(dns: Arc<Dns>, udp: UdpSocket, tcp: TcpListener) {
    tokio::join!(serve_udp(Arc::clone(&dns), Arc::new(udp)), serve_tcp(dns, tcp));
}

async fn serve_udp(dns: Arc<Dns>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    let mut waiting = JoinSet::new();
    loop {
        // An error here is an ICMP answer to a datagram of ours: somebody who asked has gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        while waiting.try_join_next().is_some() {}
        if let Reply::Send(wire, delay) = dns.answer(&buffer[..length], Some(UDP_PLAIN_MAX)) {
            if delay.is_zero() {
                let _gone = socket.send_to(&wire, peer).await;
            } else {
                waiting.spawn(send_later(Arc::clone(&dns), Arc::clone(&socket), wire, peer, delay));
            }
        }
    }
}

async fn send_later(
    dns: Arc<Dns>,
    socket: Arc<UdpSocket>,
    wire: Vec<u8>,
    peer: SocketAddr,
    delay: std::time::Duration,
) {
    let Ok(_slot) = dns.waiting.try_acquire() else { return };
    tokio::time::sleep(delay).await;
    let _gone = socket.send_to(&wire, peer).await;
}

async fn serve_tcp(dns: Arc<Dns>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve_stream(Arc::clone(&dns), stream));
    }
}

/// Messages with a length of two octets before each (RFC 1035 section 4.2.2).
async fn serve_stream(dns: Arc<Dns>, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let mut query = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut query).await?;
        if let Reply::Send(wire, delay) = dns.answer(&query, None) {
            tokio::time::sleep(delay).await;
            let length = u16::try_from(wire.len()).unwrap_or(u16::MAX);
            stream.write_u16(length).await?;
            stream.write_all(&wire[..usize::from(length)]).await?;
        }
    }
}
