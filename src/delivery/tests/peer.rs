//! A scripted SMTP peer on loopback.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Instead of a reply: close the connection.
pub(super) const CLOSE: &str = "close";
/// Instead of a reply: say nothing more, and keep the connection.
pub(super) const HANG: &str = "hang";
/// At the start of a reply to STARTTLS: shake hands after it.
pub(super) const SHAKE: &str = "shake ";

/// What a peer that takes everything says. `line` is the command without CRLF; `""` asks for the greeting, `"."` for the
/// reply to the content.
pub(super) fn polite(line: &str) -> &'static str {
    match line.split([' ', ':']).next().unwrap_or("") {
        "" => "220 mx.example.org ESMTP\r\n",
        "EHLO" | "LHLO" => "250-mx.example.org\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-DSN\r\n250 SIZE 1000000\r\n",
        "HELO" => "250 mx.example.org\r\n",
        "MAIL" => "250 2.1.0 sender ok\r\n",
        "RCPT" => "250 2.1.5 recipient ok\r\n",
        "DATA" => "354 go ahead\r\n",
        "." => "250 2.0.0 queued as 42\r\n",
        "QUIT" => "221 2.0.0 bye\r\n",
        _ => "250 2.0.0 ok\r\n",
    }
}

/// What a peer saw.
#[derive(Default)]
pub(super) struct Seen {
    /// Commands, in the order of arrival.
    pub(super) lines: Mutex<Vec<String>>,
    /// Contents between DATA and the dot, as they came.
    pub(super) messages: Mutex<Vec<Vec<u8>>>,
    /// What single reads returned.
    pub(super) reads: Mutex<Vec<String>>,
    /// Where they came from.
    pub(super) clients: Mutex<Vec<IpAddr>>,
    /// Connections: made, open now, and open at most.
    pub(super) made: AtomicUsize,
    pub(super) open: AtomicUsize,
    pub(super) most: AtomicUsize,
}

impl Seen {
    pub(super) fn count(&self, prefix: &str) -> usize {
        self.lines.lock().expect("lines").iter().filter(|line| line.starts_with(prefix)).count()
    }

    pub(super) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    pub(super) fn message(&self, index: usize) -> Vec<u8> {
        self.messages.lock().expect("messages")[index].clone()
    }
}

/// The number of the connection (from 1), and the line.
type Answer = dyn Fn(usize, &str) -> String + Send + Sync;

/// A peer at an address.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Seen>,
}

impl Peer {
    /// Starts a peer at `ip`, on `port` or any.
    pub(super) async fn start(
        ip: &str,
        port: u16,
        tls: Option<TlsAcceptor>,
        answer: impl Fn(usize, &str) -> String + Send + Sync + 'static,
    ) -> Peer {
        let listener = TcpListener::bind(format!("{ip}:{port}")).await.expect("a listener");
        let peer = Peer { address: listener.local_addr().expect("an address"), seen: Arc::default() };
        let (seen, answer): (_, Arc<Answer>) = (Arc::clone(&peer.seen), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, client)) = listener.accept().await {
                seen.clients.lock().expect("clients").push(client.ip());
                tokio::spawn(converse(stream, tls.clone(), Arc::clone(&answer), Arc::clone(&seen)));
            }
        });
        peer
    }
}

async fn converse(stream: TcpStream, tls: Option<TlsAcceptor>, answer: Arc<Answer>, seen: Arc<Seen>) {
    let number = seen.made.fetch_add(1, Ordering::SeqCst) + 1;
    let open = seen.open.fetch_add(1, Ordering::SeqCst) + 1;
    seen.most.fetch_max(open, Ordering::SeqCst);
    let session = Session { number, answer, seen: Arc::clone(&seen) };
    session.run(stream, tls).await;
    seen.open.fetch_sub(1, Ordering::SeqCst);
}

struct Session {
    number: usize,
    answer: Arc<Answer>,
    seen: Arc<Seen>,
}

/// What a conversation wants next.
enum Next {
    End,
    Handshake,
}

impl Session {
    async fn run(self, mut stream: TcpStream, tls: Option<TlsAcceptor>) {
        if !self.reply("", &mut stream).await.unwrap_or(false) {
            return;
        }
        if let Next::Handshake = self.talk(&mut stream).await
            && let Some(tls) = tls
            && let Ok(mut stream) = tls.accept(stream).await
        {
            self.talk(&mut stream).await;
        }
    }

    /// `Some(false)`: hang. `None`: close. `Some(true)`: go on.
    async fn reply(&self, line: &str, stream: &mut (impl AsyncWrite + AsyncRead + Unpin)) -> Option<bool> {
        let text = (self.answer)(self.number, line);
        if text == CLOSE {
            return None;
        }
        if text == HANG {
            let mut rest = [0; 1024];
            while stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
            return None;
        }
        if let Some(text) = text.strip_prefix(SHAKE) {
            stream.write_all(text.as_bytes()).await.ok()?;
            return Some(false);
        }
        stream.write_all(text.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
        Some(true)
    }

    async fn talk(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Next {
        let mut buffer = Vec::new();
        loop {
            let Some(line) = self.line(stream, &mut buffer).await else { return Next::End };
            self.seen.lines.lock().expect("lines").push(line.clone());
            match self.reply(&line, stream).await {
                None => return Next::End,
                Some(false) => return Next::Handshake,
                Some(true) => {}
            }
            let is_data = line == "DATA" && (self.answer)(self.number, &line).starts_with("354");
            if is_data && self.content(stream, &mut buffer).await.is_none() {
                return Next::End;
            }
            if line == "QUIT" {
                return Next::End;
            }
        }
    }

    async fn content(&self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin), buffer: &mut Vec<u8>) -> Option<()> {
        let mut message = Vec::new();
        loop {
            let line = self.raw_line(stream, buffer).await?;
            if line == b".\r\n" {
                break;
            }
            message.extend_from_slice(&line);
        }
        self.seen.messages.lock().expect("messages").push(message);
        if self.reply(".", stream).await? { Some(()) } else { None }
    }

    async fn line(&self, stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<String> {
        let line = self.raw_line(stream, buffer).await?;
        Some(String::from_utf8_lossy(&line).trim_end_matches("\r\n").to_owned())
    }

    async fn raw_line(&self, stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = memchr::memmem::find(buffer, b"\r\n") {
                return Some(buffer.drain(..at + 2).collect());
            }
            let before = buffer.len();
            buffer.reserve(1 << 16);
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
            let read = String::from_utf8_lossy(&buffer[before..]).into_owned();
            self.seen.reads.lock().expect("reads").push(read);
        }
    }
}

/// A certificate that nobody has heard of.
pub(super) fn acceptor() -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(vec!["mx.example.org".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    TlsAcceptor::from(Arc::new(config))
}

/// Waits, within a bound, until `condition` holds.
pub(super) async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("it comes true");
}
