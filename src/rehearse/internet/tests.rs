//! The simulated internet against real sockets and against hickory's own encoder.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::*;

const MESSAGE: &[u8] = b"Message-ID: <1@lists.test>\r\nSubject: x\r\n\r\nHello\r\n..dot\r\n";

async fn ask(internet: &Internet, name: &str, wanted: RecordType) -> Option<Message> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).expect("a name"), wanted));
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.send_to(&query.to_vec().expect("encodes"), internet.dns_address).await.expect("sent");
    let mut buffer = [0; 4096];
    let answer = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await.ok()?;
    Some(Message::from_vec(&buffer[..answer.expect("received")]).expect("decodes"))
}

/// Sends `input` in pieces cut at `cuts` and returns all replies up to the end of the connection.
async fn converse(internet: &Internet, exchanger: &str, input: &[u8], cuts: &[usize]) -> String {
    let address = internet.address_of(exchanger).expect("known exchanger");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.set_nodelay(true).expect("nodelay");
    let mut start = 0;
    for end in cuts.iter().copied().chain([input.len()]) {
        let _closed_already = stream.write_all(&input[start..end]).await;
        tokio::task::yield_now().await;
        start = end;
    }
    let mut replies = Vec::new();
    let _reset = stream.read_to_end(&mut replies).await;
    String::from_utf8(replies).expect("text")
}

fn transaction(recipients: &[&str], content: &[u8]) -> Vec<u8> {
    let mut input = b"EHLO relay.test\r\nMAIL FROM:<l-bounces@lists.test>\r\n".to_vec();
    for recipient in recipients {
        write!(input, "RCPT TO:<{recipient}>\r\n").expect("written");
    }
    input.extend_from_slice(b"DATA\r\n");
    input.extend_from_slice(content);
    input.extend_from_slice(b".\r\nQUIT\r\n");
    input
}

fn codes(replies: &str) -> Vec<&str> {
    replies.lines().filter(|line| line.as_bytes().get(3) == Some(&b' ')).map(|line| &line[..3]).collect()
}

#[tokio::test]
async fn the_dns_answers_as_each_domain_is_described() {
    let internet = Internet::builder()
        .domain("two.test", |d| d.mx(["mx1.two.test", "mx2.two.test"]))
        .domain("implicit.test", Domain::implicit_mx)
        .domain("null.test", Domain::null_mx)
        .domain("bare.test", |d| d.mx(["mx.bare.test"]).exchangers_without_address())
        .domain("alias.test", |d| d.cname("two.test"))
        .domain("gone.test", Domain::nxdomain)
        .domain("broken.test", Domain::servfail)
        .domain("silent.test", Domain::dns_timeout)
        .domain("slow.test", |d| d.dns_delay(Duration::from_millis(20)))
        .start()
        .await
        .expect("started");
    let two = ask(&internet, "TWO.test.", RecordType::MX).await.expect("answered");
    assert_eq!(two.answers.len(), 2);
    assert!(matches!(&two.answers[0].data, RData::MX(mx) if mx.preference == 10));
    let address = ask(&internet, "mx2.two.test.", RecordType::A).await.expect("answered");
    assert!(matches!(&address.answers[0].data, RData::A(a) if a.0.is_loopback()));
    let implicit = ask(&internet, "implicit.test.", RecordType::MX).await.expect("answered");
    assert_eq!((implicit.metadata.response_code, implicit.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(ask(&internet, "implicit.test.", RecordType::A).await.expect("answered").answers.len(), 1);
    let null = ask(&internet, "null.test.", RecordType::MX).await.expect("answered");
    assert!(matches!(&null.answers[0].data, RData::MX(mx) if mx.exchange.is_root() && mx.preference == 0));
    let bare = ask(&internet, "mx.bare.test.", RecordType::A).await.expect("answered");
    assert_eq!(bare.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(ask(&internet, "alias.test.", RecordType::MX).await.expect("answered").answers.len(), 3);
    let code = async |name| ask(&internet, name, RecordType::MX).await.map(|answer| answer.metadata.response_code);
    assert_eq!(code("gone.test.").await, Some(ResponseCode::NXDomain));
    assert_eq!(code("never-described.test.").await, Some(ResponseCode::NXDomain));
    assert_eq!(code("broken.test.").await, Some(ResponseCode::ServFail));
    assert_eq!(code("slow.test.").await, Some(ResponseCode::NoError));
    assert_eq!(code("silent.test.").await, None);
    assert_eq!(internet.dns_asked("silent.test"), 1);
}

#[tokio::test]
async fn the_dns_answers_over_tcp_and_knows_names_by_address() {
    let internet = Internet::builder().domain("a.test", |d| d).start().await.expect("started");
    let IpAddr::V4(address) = internet.address_of("mx.a.test").expect("placed").ip() else { panic!("IPv4") };
    let [a, b, c, d] = address.octets();
    let mut query = Message::query();
    let name = Name::from_ascii(format!("{d}.{c}.{b}.{a}.in-addr.arpa.")).expect("a name");
    query.add_query(Query::query(name, RecordType::PTR));
    let wire = query.to_vec().expect("encodes");
    let mut stream = TcpStream::connect(internet.dns_address).await.expect("connected");
    stream.write_u16(wire.len() as u16).await.expect("written");
    stream.write_all(&wire).await.expect("written");
    let mut answer = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
    stream.read_exact(&mut answer).await.expect("an answer");
    let answer = Message::from_vec(&answer).expect("decodes");
    assert!(matches!(&answer.answers[0].data, RData::PTR(ptr) if ptr.0.to_ascii() == "mx.a.test."));
}

#[tokio::test]
async fn pipelined_input_is_understood_however_it_is_cut() {
    let internet = Internet::builder().domain("a.test", |d| d).keep_content().start().await.expect("started");
    let input = transaction(&["u@a.test", "v@A.test"], MESSAGE);
    for cut in 1..input.len() {
        let replies = converse(&internet, "mx.a.test", &input, &[cut]).await;
        assert_eq!(codes(&replies), ["220", "250", "250", "250", "250", "354", "250", "221"], "cut at {cut}");
    }
    let each_octet: Vec<usize> = (1..input.len()).collect();
    converse(&internet, "mx.a.test", &input, &each_octet).await;
    let rounds = input.len() as u32;
    assert_eq!((internet.delivered("u@a.test"), internet.delivered("v@a.test")), (rounds, rounds));
    let plain = b"Message-ID: <1@lists.test>\r\nSubject: x\r\n\r\nHello\r\n.dot\r\n";
    assert!(internet.deliveries().iter().all(|delivered| delivered.content == plain));
}

#[tokio::test]
async fn a_second_copy_counts_as_a_duplicate() {
    let internet = Internet::builder().domain("a.test", |d| d).start().await.expect("started");
    for _ in 0..2 {
        converse(&internet, "mx.a.test", &transaction(&["u@a.test"], MESSAGE), &[]).await;
    }
    let totals = internet.totals();
    assert_eq!((totals.delivered, totals.duplicates, totals.transactions), (1, 1, 2));
}

#[tokio::test]
async fn mailboxes_are_refused_full_or_greylisted_as_described() {
    let internet = Internet::builder()
        .domain("a.test", |d| d.refuse("gone").full("full.*"))
        .domain("grey.test", |d| d.greylist(Duration::from_secs(3600)))
        .start()
        .await
        .expect("started");
    let input = transaction(&["gone@a.test", "full.1@a.test", "ok@a.test", "u@elsewhere.test"], MESSAGE);
    let replies = converse(&internet, "mx.a.test", &input, &[]).await;
    assert_eq!(codes(&replies), ["220", "250", "250", "550", "452", "250", "550", "354", "250", "221"]);
    assert_eq!(internet.strays(), 1);
    let replies = converse(&internet, "mx.grey.test", &transaction(&["u@grey.test"], MESSAGE), &[]).await;
    assert!(replies.contains("451 4.7.1"), "{replies}");
}

#[tokio::test]
async fn limits_of_a_transaction_and_a_connection_trip_where_they_stand() {
    let policy = Policy::new().one_domain().recipients_per_transaction(2).messages_per_connection(1);
    let internet = Internet::builder()
        .provider("big", ["mx.big.test"], policy)
        .domain("a.test", |d| d.mx(["mx.big.test"]))
        .domain("b.test", |d| d.mx(["mx.big.test"]))
        .start()
        .await
        .expect("started");
    let mut input = transaction(&["1@a.test", "2@b.test", "3@a.test", "4@a.test"], MESSAGE);
    input.truncate(input.len() - b"QUIT\r\n".len());
    input.extend_from_slice(b"MAIL FROM:<>\r\n");
    let replies = converse(&internet, "mx.big.test", &input, &[]).await;
    assert_eq!(codes(&replies), ["220", "250", "250", "250", "451", "250", "452", "354", "250", "421"]);
    let broken = internet.provider("big").expect("declared").counts().broken;
    let limits: Vec<_> = broken.iter().map(|broken| (broken.limit, broken.times)).collect();
    assert_eq!(limits, [("one domain per transaction", 1), ("messages per connection", 1)]);
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_and_counted() {
    let policy = Policy::new().connections(1);
    let internet = Internet::builder().domain("a.test", |d| d.policy(policy)).start().await.expect("started");
    let address = internet.address_of("mx.a.test").expect("placed");
    let mut first = TcpStream::connect(address).await.expect("connected");
    let mut greeting = [0; 64];
    let length = first.read(&mut greeting).await.expect("greeted");
    assert!(greeting[..length].starts_with(b"220"));
    assert!(converse(&internet, "mx.a.test", b"QUIT\r\n", &[]).await.starts_with("421 4.7.0"));
    assert_eq!(internet.limits_broken(), 1);
    drop(first);
    assert!(converse(&internet, "mx.a.test", b"QUIT\r\n", &[]).await.starts_with("220"));
    assert_eq!(internet.limits_broken(), 1);
}

#[tokio::test]
async fn doors_are_busy_rejecting_resetting_or_closed() {
    let internet = Internet::builder()
        .domain("busy.test", |d| d.door(Door::Busy))
        .domain("rejecting.test", |d| d.door(Door::Rejecting))
        .domain("resetting.test", |d| d.door(Door::Resetting))
        .domain("hole.test", |d| d.door(Door::BlackHole))
        .domain("refused.test", |d| d.door(Door::Refused))
        .start()
        .await
        .expect("started");
    assert!(converse(&internet, "mx.busy.test", b"", &[]).await.starts_with("421 4.3.2"));
    assert!(converse(&internet, "mx.rejecting.test", b"", &[]).await.starts_with("554 5.7.1"));
    assert_eq!(converse(&internet, "mx.resetting.test", b"", &[]).await, "");
    let hole = TcpStream::connect(internet.address_of("mx.hole.test").expect("placed"));
    assert!(tokio::time::timeout(Duration::from_millis(200), hole).await.is_err(), "SYNs must be dropped");
    let refused = ask(&internet, "mx.refused.test.", RecordType::AAAA).await.expect("answered");
    assert_eq!(refused.answers.len(), 1);
    assert!(TcpStream::connect(("::1", internet.port)).await.is_err());
}

#[tokio::test]
async fn scripts_and_cuts_replace_the_regular_replies() {
    let policy = Policy::new().answer_once(Stage::Mail, "451 4.3.0 later").after_dot(AfterDot::KeepAndCutEvery(2));
    let internet = Internet::builder().domain("a.test", |d| d.policy(policy)).start().await.expect("started");
    let input = transaction(&["u@a.test"], MESSAGE);
    let replies = converse(&internet, "mx.a.test", &input, &[]).await;
    assert_eq!(&codes(&replies)[..4], ["220", "250", "451", "503"]);
    for expected in ["221", "354"] {
        let replies = converse(&internet, "mx.a.test", &input, &[]).await;
        assert_eq!(codes(&replies).last(), Some(&expected));
    }
    converse(&internet, "mx.a.test", &input, &[]).await;
    let totals = internet.totals();
    assert_eq!((totals.delivered, totals.duplicates, totals.explained), (1, 1, 1));
}

#[tokio::test]
async fn hosts_without_extensions_refuse_their_parameters() {
    let internet = Internet::builder()
        .domain("plain.test", |d| d.policy(Policy::new().extensions(Extensions::NONE)))
        .domain("old.test", |d| d.policy(Policy::new().helo_only()))
        .start()
        .await
        .expect("started");
    let input = b"EHLO x\r\nMAIL FROM:<> SIZE=10\r\nMAIL FROM:<> BODY=8BITMIME\r\nMAIL FROM:<>\r\nQUIT\r\n";
    let replies = converse(&internet, "mx.plain.test", input, &[]).await;
    assert_eq!(codes(&replies), ["220", "250", "555", "555", "250", "221"]);
    let replies = converse(&internet, "mx.old.test", b"EHLO x\r\nHELO x\r\nQUIT\r\n", &[]).await;
    assert_eq!(codes(&replies), ["220", "502", "250", "221"]);
}

#[tokio::test]
async fn a_watched_provider_hands_over_what_it_accepts() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let internet = Internet::builder()
        .domain("lists.test", |d| d)
        .watch("lists.test", move |delivered| drop(sender.send(delivered)))
        .start()
        .await
        .expect("started");
    converse(&internet, "mx.lists.test", &transaction(&["l-bounces@lists.test"], MESSAGE), &[]).await;
    let delivered = receiver.try_recv().expect("handed over");
    assert_eq!(delivered.recipients, ["l-bounces@lists.test"]);
    assert_eq!(internet.totals().delivered, 0);
}

#[tokio::test]
async fn starttls_is_offered_with_a_certificate_and_noted_in_deliveries() {
    let made = rcgen::generate_simple_self_signed(["mx.a.test".to_owned()]).expect("made");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let server = rustls::ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![made.cert.der().clone()], key).expect("fits");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("trusted");
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let internet = Internet::builder().domain("a.test", |d| d).tls(Arc::new(server)).keep_content().start().await;
    let internet = internet.expect("started");
    let address = internet.address_of("mx.a.test").expect("placed");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(b"EHLO x\r\nSTARTTLS\r\n").await.expect("written");
    let mut replies = Vec::new();
    while !replies.ends_with(b"Go ahead\r\n") {
        replies.push(stream.read_u8().await.expect("a reply"));
    }
    assert!(String::from_utf8_lossy(&replies).contains("STARTTLS\r\n"));
    let name = rustls::pki_types::ServerName::try_from("mx.a.test").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("TLS");
    stream.write_all(&transaction(&["u@a.test"], MESSAGE)).await.expect("written");
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).await.expect("closed in order");
    assert!(!String::from_utf8_lossy(&replies).contains("STARTTLS"));
    assert!(internet.deliveries()[0].tls);
}
