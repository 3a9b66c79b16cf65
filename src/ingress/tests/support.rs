//! A store in memory, a relay on loopback, and a client that speaks line by line.

use std::sync::atomic::{AtomicBool, Ordering};

use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::PasswordHash as Phc;
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::super::*;
use crate::mail::ContentHash;
use crate::spool::NewBody;

/// A hash that costs little.
pub(in crate::ingress) fn hash(password: &str) -> PasswordHash {
    let params = Params::new(Params::MIN_M_COST, 1, 1, None).expect("valid");
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let phc: Phc = argon2.hash_password_with_salt(password.as_bytes(), b"salt of 16 bytes").expect("hashed");
    PasswordHash(phc.to_string())
}

/// A list host on loopback with one user.
pub(in crate::ingress) fn list_host() -> ListHost {
    ListHost {
        name: "lists".into(),
        networks: vec!["127.0.0.0/8".parse().expect("a network")],
        users: vec![("user".to_owned(), hash("secret"))],
        reverse_path_domains: vec!["lists.example".to_owned()],
        bounces_to: vec![],
        weight: 1,
    }
}

/// One listener without TLS for one list host.
pub(in crate::ingress) fn options() -> Options {
    Options {
        hostname: "relay.example".into(),
        listeners: vec![Listener { address: "127.0.0.1:0".parse().expect("an address"), tls: None }],
        list_hosts: vec![Arc::new(list_host())],
        message_bytes: 1 << 20,
        recipients_per_transaction: 1000,
        idle_timeout: Duration::from_secs(300),
        connections: 20,
        stranger_connections: 4,
        hops: 100,
        postmaster: None,
        campaign_headers: vec![],
    }
}

/// What the store does with submissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Fine,
    Full,
    Broken,
    Panicking,
}

#[derive(Clone, Default)]
pub(super) struct Memory(pub(super) Arc<Inner>);

#[derive(Default)]
pub(super) struct Inner {
    taken: Mutex<Vec<Submission>>,
    mood: Mutex<Mood>,
    pub(super) no_room: AtomicBool,
    /// If set, accepting waits for a permit of it.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

impl Memory {
    pub(super) fn taken(&self) -> Vec<Submission> {
        self.0.taken.lock().expect("free").clone()
    }

    pub(super) fn set(&self, mood: Mood) {
        *self.0.mood.lock().expect("free") = mood;
    }

    pub(super) fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().expect("free") = Some(Arc::clone(&gate));
        gate
    }
}

#[derive(Default)]
pub(super) struct Octets(Vec<u8>);

impl ContentSink for Octets {
    fn write(&mut self, stuffed: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(stuffed);
        Ok(())
    }

    fn finish(self, size: u64, eight_bit: bool) -> io::Result<NewContent> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.0);
        let hash = ContentHash(digest.as_ref().try_into().expect("32 octets"));
        Ok(NewContent { hash, size, eight_bit, body: NewBody::Inline(self.0.into()) })
    }
}

impl Store for Memory {
    type Writer = Octets;

    fn writer(&self) -> Octets {
        Octets::default()
    }

    fn shortage(&self) -> Option<Shortage> {
        self.0.no_room.load(Ordering::Relaxed).then_some(Shortage::Disk)
    }

    async fn accept_all(&self, submissions: Vec<Submission>) -> Result<Vec<QueueId>, AcceptError> {
        let gate = self.0.gate.lock().expect("free").clone();
        if let Some(gate) = gate {
            gate.acquire().await.expect("open").forget();
        }
        let mood = *self.0.mood.lock().expect("free");
        match mood {
            Mood::Fine => {}
            Mood::Full => return Err(AcceptError::Full),
            Mood::Broken => return Err(AcceptError::Io(Arc::new(io::Error::other("disk on fire")))),
            Mood::Panicking => panic!("as the test wants it"),
        }
        let mut taken = self.0.taken.lock().expect("free");
        let first = taken.len() as u64;
        taken.extend(submissions);
        Ok((first..taken.len() as u64).map(QueueId).collect())
    }
}

pub(super) struct Relay {
    pub(super) ingress: Ingress<Memory>,
    pub(super) store: Memory,
    registry: Registry,
}

impl Relay {
    pub(super) fn start(options: Options) -> Relay {
        let (store, registry) = (Memory::default(), Registry::new());
        let ledger = Descriptors::with_limit(1000).expect("enough");
        let ingress = Ingress::start(options, store.clone(), ledger, &registry).expect("started");
        Relay { ingress, store, registry }
    }

    pub(super) async fn connect(&self) -> Client<TcpStream> {
        let tcp = TcpStream::connect(self.ingress.local_addresses()[0]).await.expect("connected");
        Client::new(tcp)
    }

    /// Connects and reads the greeting.
    pub(super) async fn greeted(&self) -> Client<TcpStream> {
        let mut client = self.connect().await;
        assert_eq!(client.reply().await, "220 relay.example ESMTP Posthaste");
        client
    }

    /// The sum over the label values of a counter or gauge.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == format!("posthaste_ingress_{name}"));
        metrics
            .flat_map(|family| family.get_metric())
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .sum()
    }

    /// The value of a counter at one label value.
    pub(super) fn metric_at(&self, name: &str, value: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == format!("posthaste_ingress_{name}"));
        metrics
            .flat_map(|family| family.get_metric())
            .filter(|metric| metric.get_label().iter().any(|label| label.value() == value))
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }

    /// Waits until `metric` has that value; what it waits for needs no time, only turns of the runtime.
    pub(super) async fn until(&self, metric: &str, value: f64) {
        for _ in 0..100_000 {
            if self.metric(metric) == value {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{metric} is {} and never became {value}", self.metric(metric));
    }
}

pub(super) struct Client<T> {
    pub(super) stream: BufReader<T>,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<T> {
    pub(super) fn new(stream: T) -> Client<T> {
        Client { stream: BufReader::new(stream) }
    }

    pub(super) async fn send(&mut self, octets: &[u8]) {
        self.stream.get_mut().write_all(octets).await.expect("written");
        self.stream.get_mut().flush().await.expect("flushed");
    }

    /// The next reply, lines joined by `|`; empty at the end of the connection.
    pub(super) async fn reply(&mut self) -> String {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return reply;
            }
            assert!(line.ends_with("\r\n"), "{line:?}");
            reply.push_str(line.trim_end());
            if line.as_bytes().get(3) == Some(&b' ') {
                return reply;
            }
            reply.push('|');
        }
    }

    pub(super) async fn say(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.reply().await
    }

    pub(super) async fn expect(&mut self, line: &str, start: &str) {
        let reply = self.say(line).await;
        assert!(reply.starts_with(start), "{line}: {reply}");
    }

    pub(super) async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.stream.read_to_end(&mut rest).await, Ok(0) | Err(_))
    }

    /// EHLO, MAIL, one RCPT, DATA.
    pub(super) async fn reach_content(&mut self) {
        self.expect("EHLO client.example", "250-relay.example").await;
        self.open().await;
        self.expect("DATA", "354 ").await;
    }

    pub(super) async fn open(&mut self) {
        self.expect("MAIL FROM:<l-bounces@lists.example>", "250 2.1.0").await;
        self.expect("RCPT TO:<a@b.example>", "250 2.1.5").await;
    }
}
