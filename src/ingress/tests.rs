//! Dialogues over real sockets on loopback, with a store in memory.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use support::{list_host, options};

use super::*;
use crate::mail::{ContentHash, Destination, Domain};
use crate::spool::NewBody;

pub(super) mod support {
    use argon2::password_hash::PasswordHasher;
    use argon2::password_hash::phc::PasswordHash as Phc;
    use argon2::{Algorithm, Argon2, Params, Version};

    use super::super::*;

    /// A hash that costs little.
    pub(in super::super) fn hash(password: &str) -> PasswordHash {
        let params = Params::new(Params::MIN_M_COST, 1, 1, None).expect("valid");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let phc: Phc = argon2.hash_password_with_salt(password.as_bytes(), b"salt of 16 bytes").expect("hashed");
        PasswordHash(phc.to_string())
    }

    /// A list host on loopback with one user.
    pub(in super::super) fn list_host() -> ListHost {
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
    pub(in super::super) fn options() -> Options {
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
}

/// What the store does with submissions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mood {
    #[default]
    Fine,
    Full,
    Broken,
    Panicking,
}

#[derive(Clone, Default)]
struct Memory(Arc<Inner>);

#[derive(Default)]
struct Inner {
    taken: Mutex<Vec<Submission>>,
    mood: Mutex<Mood>,
    no_room: AtomicBool,
    /// If set, accepting waits for a permit of it.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

impl Memory {
    fn taken(&self) -> Vec<Submission> {
        self.0.taken.lock().expect("free").clone()
    }

    fn set(&self, mood: Mood) {
        *self.0.mood.lock().expect("free") = mood;
    }

    fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().expect("free") = Some(Arc::clone(&gate));
        gate
    }
}

#[derive(Default)]
struct Octets(Vec<u8>);

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

    fn has_room(&self) -> bool {
        !self.0.no_room.load(Ordering::Relaxed)
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

struct Relay {
    ingress: Ingress<Memory>,
    store: Memory,
    registry: Registry,
}

impl Relay {
    fn start(options: Options) -> Relay {
        let (store, registry) = (Memory::default(), Registry::new());
        let ledger = Descriptors::with_limit(1000).expect("enough");
        let ingress = Ingress::start(options, store.clone(), ledger, &registry).expect("started");
        Relay { ingress, store, registry }
    }

    async fn connect(&self) -> Client<TcpStream> {
        let tcp = TcpStream::connect(self.ingress.local_addresses()[0]).await.expect("connected");
        Client::new(tcp)
    }

    /// Connects and reads the greeting.
    async fn greeted(&self) -> Client<TcpStream> {
        let mut client = self.connect().await;
        assert_eq!(client.reply().await, "220 relay.example ESMTP Posthaste");
        client
    }

    /// The sum over the label values of a counter or gauge.
    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == format!("posthaste_ingress_{name}"));
        metrics
            .flat_map(|family| family.get_metric())
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .sum()
    }

    /// The value of a counter at one label value.
    fn metric_at(&self, name: &str, value: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == format!("posthaste_ingress_{name}"));
        metrics
            .flat_map(|family| family.get_metric())
            .filter(|metric| metric.get_label().iter().any(|label| label.value() == value))
            .map(|metric| metric.get_counter().get_value())
            .sum()
    }

    /// Waits until `metric` has that value; what it waits for needs no time, only turns of the runtime.
    async fn until(&self, metric: &str, value: f64) {
        for _ in 0..100_000 {
            if self.metric(metric) == value {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{metric} is {} and never became {value}", self.metric(metric));
    }
}

struct Client<T> {
    stream: BufReader<T>,
}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<T> {
    fn new(stream: T) -> Client<T> {
        Client { stream: BufReader::new(stream) }
    }

    async fn send(&mut self, octets: &[u8]) {
        self.stream.get_mut().write_all(octets).await.expect("written");
        self.stream.get_mut().flush().await.expect("flushed");
    }

    /// The next reply, lines joined by `|`; empty at the end of the connection.
    async fn reply(&mut self) -> String {
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

    async fn say(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes()).await;
        self.reply().await
    }

    async fn expect(&mut self, line: &str, start: &str) {
        let reply = self.say(line).await;
        assert!(reply.starts_with(start), "{line}: {reply}");
    }

    async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.stream.read_to_end(&mut rest).await, Ok(0) | Err(_))
    }

    /// EHLO, MAIL, one RCPT, DATA.
    async fn reach_content(&mut self) {
        self.expect("EHLO client.example", "250-relay.example").await;
        self.open().await;
        self.expect("DATA", "354 ").await;
    }

    async fn open(&mut self) {
        self.expect("MAIL FROM:<l-bounces@lists.example>", "250 2.1.0").await;
        self.expect("RCPT TO:<a@b.example>", "250 2.1.5").await;
    }
}

const MESSAGE: &str = "From: l@lists.example\r\nDate: today\r\nMessage-ID: <1@lists.example>\r\n\r\nhello\r\n";

#[tokio::test]
async fn mailmans_dialogue_is_taken_word_for_word() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("ehlo [127.0.0.1]", "250-relay.example|250-PIPELINING|250-SIZE 1048576|").await;
    client.expect("mail FROM:<l-bounces+u=d@lists.example> size=33200", "250 2.1.0").await;
    client.expect("rcpt TO:<user@domain.example>", "250 2.1.5").await;
    client.expect("rcpt TO:<other@example.com>", "250 2.1.5").await;
    client.expect("data", "354 ").await;
    client.send(MESSAGE.as_bytes()).await;
    client.expect(".", "250 2.0.0 queued as 00000000").await;
    client.expect("quit", "221 2.0.0").await;
    assert!(client.is_closed().await);

    let taken = &relay.store.taken()[0];
    assert_eq!((&*taken.list_host, taken.reverse_path.as_str()), ("lists", "l-bounces+u=d@lists.example"));
    assert_eq!(taken.content.size, MESSAGE.len() as u64);
    let NewBody::Inline(body) = &taken.content.body else { panic!("not inline") };
    assert_eq!(body, MESSAGE.as_bytes());
    assert_eq!((&*taken.trace.helo, &*taken.trace.protocol), ("[127.0.0.1]", "ESMTP"));
    assert_eq!(taken.trace.peer, Some("127.0.0.1".parse().expect("an address")));
    let domain = Domain::parse("domain.example").expect("valid");
    assert_eq!(taken.recipients[0].1, Destination::Domain(domain));
    assert_eq!(relay.metric("recipients_total"), 2.0);
}

#[tokio::test]
async fn a_pipelined_transaction_is_answered_in_order() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    let group = "MAIL FROM:<l@lists.example>\r\nRCPT TO:<a@b.example>\r\nRCPT TO:<bad>\r\nDATA\r\n";
    client.send(group.as_bytes()).await;
    for expected in ["250 2.1.0", "250 2.1.5", "501 5.1.3", "354 "] {
        assert!(client.reply().await.starts_with(expected));
    }
    client.send(format!("{MESSAGE}.\r\n{group}").as_bytes()).await;
    for expected in ["250 2.0.0", "250 2.1.0", "250 2.1.5", "501 5.1.3", "354 "] {
        assert!(client.reply().await.starts_with(expected));
    }
    client.send(b".\r\nQUIT\r\n").await;
    assert!(client.reply().await.starts_with("250 2.0.0 queued as 00000001"));
    assert!(client.reply().await.starts_with("221"));
}

#[tokio::test]
async fn a_transaction_octet_by_octet_means_the_same() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let dialogue = format!(
        "EHLO x\r\nMAIL FROM:<l@lists.example>\r\nRCPT TO:<a@b.example>\r\nDATA\r\n{MESSAGE}..\r\n.\r\nQUIT\r\n"
    );
    for octet in dialogue.bytes() {
        client.send(&[octet]).await;
        tokio::task::yield_now().await;
    }
    for expected in ["250-", "250 2.1.0", "250 2.1.5", "354 ", "250 2.0.0", "221 "] {
        assert!(client.reply().await.starts_with(expected), "{expected}");
    }
    let NewBody::Inline(body) = &relay.store.taken()[0].content.body else { panic!("not inline") };
    assert_eq!(body, format!("{MESSAGE}..\r\n").as_bytes());
}

#[tokio::test]
async fn xverp_makes_one_submission_per_recipient_with_one_content() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l-bounces@lists.example> XVERP=-=", "250 2.1.0").await;
    client.expect("RCPT TO:<a@b.example>", "250 2.1.5").await;
    client.expect("RCPT TO:<c@d.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(&format!("{MESSAGE}."), "250 2.0.0 queued as 00000000 to 00000001").await;
    let taken = relay.store.taken();
    let paths: Vec<_> = taken.iter().map(|submission| submission.reverse_path.as_str()).collect();
    assert_eq!(paths, ["l-bounces-a=b.example@lists.example", "l-bounces-c=d.example@lists.example"]);
    assert_eq!(taken[0].content.hash, taken[1].content.hash);
    assert_eq!(taken[0].mailing, taken[1].mailing);
}

#[tokio::test]
async fn the_parameters_of_dsn_reach_the_store() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@lists.example> RET=HDRS ENVID=a+2Bb", "250 2.1.0").await;
    client.expect("RCPT TO:<a@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;x+3Dy@z", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
    let taken = &relay.store.taken()[0];
    assert_eq!(taken.params.envid.as_deref(), Some("a+b"));
    let params = &taken.recipients[0].0.params;
    assert_eq!(params.notify.map(|notify| notify.to_string()).as_deref(), Some("SUCCESS,DELAY"));
    assert_eq!(params.orcpt.as_ref().map(|orcpt| &*orcpt.address), Some("x=y@z"));
}

#[tokio::test]
async fn a_smuggled_message_is_refused_and_never_seen() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b"a\n.\r\nMAIL FROM:<evil@lists.example>\r\nRCPT TO:<v@b.example>\r\nDATA\r\nx\r\n.\r\n").await;
    assert!(client.reply().await.starts_with("554 5.6.0"));
    client.expect("NOOP", "250 2.0.0").await;
    assert!(relay.store.taken().is_empty());
}

#[tokio::test]
async fn a_message_too_big_is_read_to_its_end_and_refused() {
    let relay = Relay::start(Options { message_bytes: 1000, ..options() });
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(&b"0123456789012345678901234567890\r\n".repeat(20_000)).await;
    client.expect(".", "552 5.3.4").await;
    client.open().await;
}

#[tokio::test]
async fn recipients_beyond_the_limit_get_452_and_the_others_their_mail() {
    let relay = Relay::start(Options { recipients_per_transaction: 100, ..options() });
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@lists.example>", "250 ").await;
    for n in 0..100 {
        client.expect(&format!("RCPT TO:<u{n}@b.example>"), "250 2.1.5").await;
    }
    client.expect("RCPT TO:<one-too-many@b.example>", "452 4.5.3").await;
    client.expect("RCPT TO:<u0@B.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
    assert_eq!(relay.store.taken()[0].recipients.len(), 100);
    assert_eq!(relay.metric_at("lints_total", "repeated_recipient"), 1.0);
}

#[tokio::test]
async fn an_undeclared_reverse_path_costs_nothing_but_time() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    client.expect("MAIL FROM:<l@other.example>", "451 4.7.1").await;
    client.open().await;
    assert_eq!(relay.metric_at("undeclared_reverse_paths_total", "lists"), 1.0);
}

#[tokio::test]
async fn a_store_that_cannot_take_a_message_is_never_a_permanent_error() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    for (mood, expected) in [(Mood::Full, "452 4.3.1"), (Mood::Broken, "451 4.3.0"), (Mood::Fine, "250 2.0.0")] {
        relay.store.set(mood);
        client.open().await;
        client.expect("DATA", "354 ").await;
        client.expect(".", expected).await;
    }
    relay.store.0.no_room.store(true, Ordering::Relaxed);
    client.expect("MAIL FROM:<l@lists.example>", "452 4.3.1").await;
    relay.store.0.no_room.store(false, Ordering::Relaxed);
    client.open().await;
    relay.store.0.no_room.store(true, Ordering::Relaxed);
    client.expect("RCPT TO:<c@b.example>", "250 2.1.5").await;
    client.expect("DATA", "354 ").await;
    client.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn the_dot_is_answered_only_when_the_store_has_the_message() {
    let relay = Relay::start(options());
    let gate = relay.store.gate();
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    let early = tokio::select! {
        biased;
        reply = client.reply() => Some(reply),
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => None,
    };
    assert_eq!(early, None);
    gate.add_permits(1);
    assert!(client.reply().await.starts_with("250 2.0.0"));
}

#[tokio::test]
async fn a_client_that_leaves_after_the_dot_has_handed_its_message_over() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    drop(client);
    relay.until("sessions", 0.0).await;
    assert_eq!(relay.store.taken().len(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_dot_has_handed_nothing_over() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b"From: x\r\n\r\n.").await;
    drop(client);
    relay.until("sessions", 0.0).await;
    assert!(relay.store.taken().is_empty());
}

fn strangers_only() -> Options {
    let host = ListHost { networks: vec!["192.0.2.0/24".parse().expect("a network")], ..list_host() };
    Options { list_hosts: vec![Arc::new(host)], ..options() }
}

#[tokio::test]
async fn a_stranger_gets_nothing_for_a_while_and_then_the_door() {
    let relay = Relay::start(strangers_only());
    let mut client = relay.greeted().await;
    client.expect("EHLO x", "250-").await;
    for _ in 0..20 {
        client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1 relaying denied: 127.0.0.1").await;
    }
    client.expect("RCPT TO:<a@b.example>", "421 4.7.0").await;
    assert!(client.is_closed().await);
    assert_eq!(relay.metric_at("connections_total", "stranger"), 1.0);
}

#[tokio::test]
async fn strangers_have_few_places_and_leave_the_others_to_list_hosts() {
    let relay = Relay::start(strangers_only());
    let mut inside = Vec::new();
    for _ in 0..4 {
        inside.push(relay.greeted().await);
    }
    assert!(relay.connect().await.reply().await.starts_with("421 4.7.0"));
    assert_eq!(relay.metric_at("connections_total", "strangers_full"), 1.0);
    drop(inside.pop());
    relay.until("sessions", 3.0).await;
    relay.greeted().await;
}

#[tokio::test]
async fn ten_thousand_noops_are_ten_thousand_replies() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let (reader, mut writer) = client.stream.into_inner().into_split();
    let writing = tokio::spawn(async move {
        writer.write_all(&b"NOOP\r\n".repeat(10_000)).await.expect("written");
        writer
    });
    let mut reader = BufReader::new(reader);
    for _ in 0..10_000 {
        let mut line = String::new();
        reader.read_line(&mut line).await.expect("read");
        assert_eq!(line, "250 2.0.0 ok\r\n");
    }
    let writer = writing.await.expect("written");
    client = Client { stream: BufReader::new(reader.into_inner().reunite(writer).expect("a pair")) };
    client.expect("EHLO x", "250-").await;
    client.open().await;
}

#[tokio::test]
async fn another_protocol_is_shown_the_door() {
    let relay = Relay::start(options());
    for octets in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n"] {
        let mut client = relay.greeted().await;
        client.send(octets).await;
        assert!(client.reply().await.starts_with("500 5.5.1"));
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn an_endless_line_ends_the_session() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.send(&[b'x'; 70_000]).await;
    assert!(client.reply().await.starts_with("421 4.7.0"));
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_is_kept_for_as_long_as_promised_and_then_closed() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let since = Instant::now();
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(since.elapsed().as_secs(), 300);
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_trickles_in_is_given_up_and_so_is_a_message() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    let since = Instant::now();
    client.send(b"NO").await;
    tokio::time::sleep(Duration::from_secs(200)).await;
    client.send(b"O").await;
    assert!(client.reply().await.starts_with("421 4.4.2"));
    assert_eq!(since.elapsed().as_secs(), 300);
    let mut client = relay.greeted().await;
    client.reach_content().await;
    let mut sent = 0;
    let reply = loop {
        tokio::select! {
            reply = client.reply() => break reply,
            () = tokio::time::sleep(Duration::from_secs(100)) => {}
        }
        client.send(b"x").await;
        sent += 1;
    };
    assert!(reply.starts_with("421 4.4.2") && (2..5).contains(&sent), "{reply} after {sent}");
    assert!(relay.store.taken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_is_waited_for() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    for line in MESSAGE.split_inclusive("\r\n") {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.send(line.as_bytes()).await;
    }
    client.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn a_panic_ends_one_session_and_is_counted() {
    let relay = Relay::start(options());
    let mut other = relay.greeted().await;
    relay.store.set(Mood::Panicking);
    let mut client = relay.greeted().await;
    client.reach_content().await;
    client.send(b".\r\n").await;
    assert!(client.is_closed().await);
    relay.until("panics_total", 1.0).await;
    relay.store.set(Mood::Fine);
    other.reach_content().await;
    other.expect(".", "250 2.0.0").await;
}

#[tokio::test]
async fn a_full_relay_closes_its_sockets_and_opens_them_again() {
    let relay = Relay::start(Options { connections: 4, ..options() });
    let address = relay.ingress.local_addresses()[0];
    let mut inside = Vec::new();
    for _ in 0..4 {
        inside.push(relay.greeted().await);
    }
    relay.until("overloads_total", 1.0).await;
    assert!(TcpStream::connect(address).await.is_err(), "must be refused");
    inside[0].reach_content().await;
    inside[0].expect(".", "250 2.0.0").await;
    drop(inside.pop());
    relay.until("sessions", 3.0).await;
    let reopened = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(tcp) => return tcp,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut client = Client::new(reopened.await);
    assert!(client.reply().await.starts_with("220 "));
    assert_eq!(relay.ingress.local_addresses(), [address]);
}

#[tokio::test(start_paused = true)]
async fn draining_finishes_transactions_refuses_new_ones_and_closes_idle_sessions() {
    let relay = Relay::start(options());
    let address = relay.ingress.local_addresses()[0];
    let mut idle = relay.greeted().await;
    let mut busy = relay.greeted().await;
    busy.reach_content().await;
    let relay = Arc::new(relay);
    let draining = tokio::spawn({
        let relay = Arc::clone(&relay);
        async move { relay.ingress.drain(Instant::now() + Duration::from_secs(60)).await }
    });
    assert!(idle.reply().await.starts_with("421 4.3.2"));
    assert!(TcpStream::connect(address).await.is_err(), "must be refused");
    busy.send(MESSAGE.as_bytes()).await;
    busy.expect(".", "250 2.0.0").await;
    busy.expect("MAIL FROM:<l@lists.example>", "451 4.3.2").await;
    busy.expect("QUIT", "221 ").await;
    draining.await.expect("drained");
    assert_eq!(relay.store.taken().len(), 1);
    assert_eq!((relay.metric("sessions"), relay.metric("cut_off_total")), (0.0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_drain_holds() {
    let relay = Relay::start(options());
    let mut client = relay.greeted().await;
    client.reach_content().await;
    let since = Instant::now();
    relay.ingress.drain(since + Duration::from_secs(10)).await;
    assert_eq!(since.elapsed().as_secs(), 10);
    assert!(client.is_closed().await);
    assert_eq!((relay.metric("sessions"), relay.metric("cut_off_total")), (0.0, 1.0));
}

mod tls_and_auth {
    use rustls::ClientConfig;
    use rustls::pki_types::{CertificateDer, ServerName};
    use tempfile::TempDir;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;

    use super::*;

    struct Secured {
        relay: Relay,
        directory: TempDir,
        certificate: CertificateDer<'static>,
    }

    /// Writes a new certificate for `relay.example`.
    fn certify(directory: &TempDir) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("made");
        std::fs::write(directory.path().join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(directory.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        made.cert.der().clone()
    }

    fn secured_options(directory: &TempDir, options: Options) -> Options {
        let tls = Tls { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        let listeners = options.listeners.iter().map(|l| Listener { tls: Some(tls.clone()), ..l.clone() }).collect();
        Options { listeners, ..options }
    }

    fn secured(options: Options) -> Secured {
        let directory = TempDir::new().expect("a directory");
        let certificate = certify(&directory);
        let relay = Relay::start(secured_options(&directory, options));
        Secured { relay, directory, certificate }
    }

    fn connector(trusted: &CertificateDer<'static>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("valid").with_root_certificates(roots).with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    async fn start_tls(
        mut client: Client<TcpStream>,
        trusted: &CertificateDer<'static>,
    ) -> io::Result<Client<TlsStream<TcpStream>>> {
        let reply = client.say("EHLO x").await;
        assert!(reply.contains("STARTTLS") && !reply.contains("AUTH"), "{reply}");
        client.expect("STARTTLS", "220 2.0.0").await;
        let name = ServerName::try_from("relay.example").expect("a name");
        let stream = connector(trusted).connect(name, client.stream.into_inner()).await?;
        Ok(Client::new(stream))
    }

    #[tokio::test]
    async fn a_transaction_under_tls_is_traced_as_such() {
        let Secured { relay, certificate, directory: _directory } = secured(options());
        let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
        client.expect("MAIL FROM:<l@lists.example>", "503 5.5.1").await;
        let reply = client.say("EHLO x").await;
        assert!(reply.contains("AUTH PLAIN LOGIN") && !reply.contains("STARTTLS"), "{reply}");
        client.reach_content().await;
        client.expect(&format!("{MESSAGE}."), "250 2.0.0").await;
        assert_eq!(&*relay.store.taken()[0].trace.protocol, "ESMTPS");
        client.expect("QUIT", "221").await;
        assert!(client.is_closed().await);
    }

    #[tokio::test]
    async fn commands_sent_in_the_clear_behind_starttls_are_dropped_with_the_connection() {
        let Secured { relay, directory: _directory, .. } = secured(options());
        let mut client = relay.greeted().await;
        client.expect("EHLO x", "250-").await;
        client.send(b"STARTTLS\r\nMAIL FROM:<l@lists.example>\r\n").await;
        assert_eq!(client.reply().await, "");
        relay.until("sessions", 0.0).await;
        assert_eq!(relay.metric_at("starttls_total", "injected"), 1.0);
    }

    #[tokio::test]
    async fn a_user_of_a_list_host_may_relay_from_anywhere() {
        let Secured { relay, certificate, directory: _directory } = secured(strangers_only());
        let mut client = relay.greeted().await;
        client.expect("EHLO x", "250-").await;
        client.expect("AUTH PLAIN AHVzZXIAc2VjcmV0", "538 5.7.11").await;
        let mut client = start_tls(client, &certificate).await.expect("secured");
        client.expect("EHLO x", "250-").await;
        client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1").await;
        client.expect("AUTH PLAIN AHVzZXIAc2VjcmV0", "235 2.7.0").await;
        client.reach_content().await;
        client.expect(".", "250 2.0.0").await;
        let taken = &relay.store.taken()[0];
        assert_eq!((&*taken.list_host, &*taken.trace.protocol), ("lists", "ESMTPSA"));
    }

    #[tokio::test]
    async fn login_works_and_wrong_passwords_end_the_session() {
        let Secured { relay, certificate, directory: _directory } = secured(strangers_only());
        let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
        client.expect("EHLO x", "250-").await;
        client.expect("AUTH LOGIN", "334 VXNlcm5hbWU6").await;
        client.expect("dXNlcg==", "334 UGFzc3dvcmQ6").await;
        client.expect("c2VjcmV0", "235 2.7.0").await;
        tokio::time::pause();
        let mut client = start_tls(relay.greeted().await, &certificate).await.expect("secured");
        client.expect("EHLO x", "250-").await;
        let since = Instant::now();
        client.expect("AUTH PLAIN AHVzZXIAd3Jvbmc=", "535 5.7.8").await;
        client.expect("AUTH PLAIN AG5vYm9keQB4", "535 5.7.8").await;
        client.expect("AUTH PLAIN AHVzZXIAd3Jvbmc=", "421 4.7.0").await;
        assert_eq!(since.elapsed().as_secs(), 1 + 2 + 4);
        assert_eq!(relay.metric_at("auth_total", "denied"), 3.0);
    }

    #[tokio::test]
    async fn a_reload_reads_the_certificate_again_and_a_bad_one_changes_nothing() {
        let Secured { relay, certificate: old, directory } = secured(options());
        let address = relay.ingress.local_addresses();
        let new = certify(&directory);
        start_tls(relay.greeted().await, &old).await.expect("the old one still");
        relay.ingress.reload(secured_options(&directory, options())).expect("reloaded");
        assert!(start_tls(relay.greeted().await, &old).await.is_err());
        start_tls(relay.greeted().await, &new).await.expect("the new one now");
        std::fs::write(directory.path().join("key.pem"), "nothing").expect("written");
        let error = relay.ingress.reload(secured_options(&directory, options())).expect_err("no key").to_string();
        assert!(error.contains("key.pem") && error.contains("PEM"), "{error}");
        start_tls(relay.greeted().await, &new).await.expect("still");
        assert_eq!(relay.ingress.local_addresses(), address);
    }
}

#[tokio::test]
async fn a_reload_swaps_list_hosts_and_listeners_whole_or_not_at_all() {
    let relay = Relay::start(options());
    let before = relay.ingress.local_addresses();
    let mut session = relay.greeted().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let mut bad = strangers_only();
    bad.listeners.push(Listener { address: taken.local_addr().expect("bound"), tls: None });
    let error = relay.ingress.reload(bad.clone()).expect_err("taken").to_string();
    assert!(error.contains(&taken.local_addr().expect("bound").to_string()), "{error}");
    assert!(error.contains("another program"), "{error}");
    relay.greeted().await.reach_content().await;

    drop(taken);
    relay.ingress.reload(bad).expect("free now");
    assert_eq!(relay.ingress.local_addresses()[0], before[0]);
    assert_eq!(relay.ingress.local_addresses().len(), 2);
    let mut client = relay.greeted().await;
    client.expect("MAIL FROM:<l@lists.example>", "550 5.7.1").await;

    let mut fewer = options();
    fewer.listeners[0].address = relay.ingress.local_addresses()[1];
    relay.ingress.reload(fewer).expect("reloaded");
    assert_eq!(relay.ingress.local_addresses().len(), 1);
    session.reach_content().await;
    session.expect(".", "250 2.0.0").await;
    while TcpStream::connect(before[0]).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_with_its_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = taken.local_addr().expect("bound");
    let options = Options { listeners: vec![Listener { address, tls: None }], ..options() };
    let ledger = Descriptors::with_limit(100).expect("enough");
    let error = Ingress::start(options, Memory::default(), ledger, &Registry::new()).err().expect("taken").to_string();
    assert!(error.contains(&address.to_string()) && error.contains("another port"), "{error}");
}

#[test]
fn a_complaint_about_a_list_host_is_logged_once_a_minute() {
    let complaints = Complaints::default();
    let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
    let now = Instant::now();
    assert!(complaints.may_log(&a, now) && complaints.may_log(&b, now));
    assert!(!complaints.may_log(&a, now + Duration::from_secs(59)));
    assert!(complaints.may_log(&a, now + Duration::from_secs(60)));
}
