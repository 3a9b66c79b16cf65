//! A session with one next hop: greeting, EHLO, STARTTLS, commands and their replies, over `mail-send`'s client.
//!
//! One deadline per command, however the reply drips in. Replies are read one at a time, and anything that arrives
//! unasked-for is found before the next command is written, so a reply is never taken for the answer to another command.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mail_send::SmtpClient;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::capabilities::Capabilities;
use super::classify::{self, Fault, Setback};
use super::metered::Metered;
use super::options::Timeouts;
use super::reply;
use super::stream::{self, OneLine, Wire};
use super::tls;
use crate::attempt::Credentials;
use crate::outcome::{Enhanced, Phase, Reply, Scope};

/// The slowest that content may be taken, in octets per second, beside one block's time: a receiver that opens its window
/// by single octets must not hold a connection for days.
const CONTENT_RATE_MIN: u64 = 1024;
/// How long a goodbye may take before the connection is dropped all the same.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whom a session is with.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its address.
    pub(super) address: SocketAddr,
    /// Our own address.
    pub(super) local: Option<IpAddr>,
    /// `host[address]:port`, as in [`Reason::remote`](crate::outcome::Reason::remote).
    pub(super) remote: Box<str>,
    /// Its name, for SNI and for "another host than this one".
    pub(super) host: Box<str>,
    /// LMTP (RFC 2033) rather than SMTP.
    pub(super) lmtp: bool,
    /// Whether a peer that bears our name is ourselves. Not for a list host: it may run on this very machine.
    pub(super) may_be_us: bool,
}

impl Peer {
    pub(super) fn new(host: &str, address: SocketAddr, lmtp: bool, may_be_us: bool) -> Peer {
        Peer { address, local: None, remote: remote(host, address), host: host.into(), lmtp, may_be_us }
    }
}

/// A next hop as operators know it: `mx.example.org[192.0.2.1]:25`.
pub(super) fn remote(host: &str, address: SocketAddr) -> Box<str> {
    format!("{host}[{}]:{}", address.ip(), address.port()).into()
}

/// What a session needs to know to begin.
#[derive(Clone, Copy)]
pub(super) struct Manners<'a> {
    /// The name we give.
    pub(super) helo: &'a str,
    /// The name that our own listeners give, by which we recognise ourselves.
    pub(super) hostname: &'a str,
    /// Per command.
    pub(super) timeouts: &'a Timeouts,
    /// For STARTTLS; `None` to go without.
    pub(super) tls: Option<StartTls<'a>>,
    /// With which we make ourselves known (RFC 4954).
    pub(super) credentials: Option<&'a Credentials>,
}

/// How STARTTLS is to go.
#[derive(Clone, Copy)]
pub(super) struct StartTls<'a> {
    /// Shakes hands.
    pub(super) connector: &'a TlsConnector,
    /// Whether a host without it will not do.
    pub(super) mandatory: bool,
}

/// How opening a session failed.
#[derive(Debug)]
pub(super) enum OpenError {
    /// STARTTLS was agreed on and failed: a new connection in clear may do.
    Tls(Setback),
    /// STARTTLS is mandatory, and the host does not offer it or has taken the offer back.
    NoTls,
    /// This host will not do.
    Setback(Setback),
}

/// A conversation with one next hop.
pub(super) struct Session {
    client: SmtpClient<OneLine<Wire>>,
    /// What the host can do.
    pub(super) capabilities: Capabilities,
    /// Whom it is with.
    pub(super) peer: Peer,
}

impl Session {
    /// Greeting to EHLO, with STARTTLS where both sides can. After a failure the connection is closed when this returns.
    pub(super) async fn open(
        stream: Metered<TcpStream>,
        peer: Peer,
        manners: Manners<'_>,
    ) -> Result<Session, OpenError> {
        let mut session = Session::over(Wire::Plain(stream), peer);
        if let Err(setback) = session.introduce(manners).await {
            session.farewell(manners.timeouts.quit).await;
            return Err(OpenError::Setback(setback));
        }
        let mut session = match manners.tls {
            Some(tls) if session.capabilities.start_tls => session.start_tls(tls, manners).await?,
            Some(tls) if tls.mandatory => {
                session.farewell(manners.timeouts.quit).await;
                return Err(OpenError::NoTls);
            }
            _ => session,
        };
        if let Some(credentials) = manners.credentials
            && let Err(setback) = session.authenticate(credentials, manners).await
        {
            session.farewell(manners.timeouts.quit).await;
            return Err(OpenError::Setback(setback));
        }
        Ok(session)
    }

    /// AUTH PLAIN with an initial response (RFC 4954 section 4, RFC 4616). A refusal is temporary: the password may be ours
    /// to correct.
    async fn authenticate(&mut self, credentials: &Credentials, manners: Manners<'_>) -> Result<(), Setback> {
        let Credentials { user, password } = credentials;
        let response = STANDARD.encode(format!("\0{user}\0{password}"));
        let reply = self.command(format!("AUTH PLAIN {response}\r\n").as_bytes(), manners.timeouts.hello).await;
        let reply = reply.map_err(|fault| classify::unusable(Phase::Auth, &fault, &self.peer.remote))?;
        if reply.is_positive() { Ok(()) } else { Err(classify::unwelcome(Phase::Auth, reply, &self.peer.remote)) }
    }

    async fn introduce(&mut self, manners: Manners<'_>) -> Result<(), Setback> {
        self.greeting(manners).await?;
        self.hello(manners).await
    }

    fn over(wire: Wire, peer: Peer) -> Session {
        let client = SmtpClient { stream: OneLine::new(wire), timeout: FAREWELL };
        Session { client, capabilities: Capabilities::default(), peer }
    }

    async fn greeting(&mut self, manners: Manners<'_>) -> Result<(), Setback> {
        let reply = self.read(manners.timeouts.greeting).await;
        let reply = reply.map_err(|fault| classify::unusable(Phase::Greeting, &fault, &self.peer.remote))?;
        if reply.code != 220 {
            return Err(classify::unwelcome(Phase::Greeting, reply, &self.peer.remote));
        }
        self.refuse_ourselves(Phase::Greeting, &reply, manners.hostname)
    }

    /// EHLO; HELO for a host that does not know it (RFC 5321 section 3.2); LHLO for LMTP.
    async fn hello(&mut self, manners: Manners<'_>) -> Result<(), Setback> {
        let verb = if self.peer.lmtp { "LHLO" } else { "EHLO" };
        let mut reply = self.say_hello(verb, manners).await?;
        self.capabilities = Capabilities::default();
        if reply.is_positive() {
            self.capabilities = Capabilities::parse(self.client.stream.reply());
        } else if reply.is_permanent() && !self.peer.lmtp {
            reply = self.say_hello("HELO", manners).await?;
        }
        if !reply.is_positive() {
            return Err(classify::unwelcome(Phase::Hello, reply, &self.peer.remote));
        }
        self.refuse_ourselves(Phase::Hello, &reply, manners.hostname)
    }

    async fn say_hello(&mut self, verb: &str, manners: Manners<'_>) -> Result<Reply, Setback> {
        let line = format!("{verb} {}\r\n", manners.helo);
        let reply = self.command(line.as_bytes(), manners.timeouts.hello).await;
        reply.map_err(|fault| classify::unusable(Phase::Hello, &fault, &self.peer.remote))
    }

    /// A peer that bears our name is ourselves: the message would come back for ever (RFC 5321 section 6.3).
    fn refuse_ourselves(&self, phase: Phase, reply: &Reply, hostname: &str) -> Result<(), Setback> {
        if !self.peer.may_be_us || !reply::first_word(reply).eq_ignore_ascii_case(hostname) {
            return Ok(());
        }
        let text = "mail loop: the host bears our own name";
        Err(classify::decided(phase, Scope::Site, Enhanced::new(5, 4, 6), text, Some(&self.peer.remote)))
    }

    /// STARTTLS (RFC 3207). A host that takes its offer back goes on in clear, unless TLS is mandatory; what was learned before
    /// the handshake is forgotten.
    async fn start_tls(mut self, tls: StartTls<'_>, manners: Manners<'_>) -> Result<Session, OpenError> {
        match self.agree_on_tls(manners).await {
            Ok(true) => {}
            Ok(false) if !tls.mandatory => return Ok(self),
            Ok(false) => {
                self.farewell(manners.timeouts.quit).await;
                return Err(OpenError::NoTls);
            }
            Err(error) => {
                self.farewell(manners.timeouts.quit).await;
                return Err(error);
            }
        }
        let Session { client, peer, .. } = self;
        let Wire::Plain(tcp) = client.stream.into_inner() else {
            unreachable!("TLS is started once, on a connection in clear")
        };
        let handshake = timeout(manners.timeouts.hello, tls::handshake(tls.connector, &peer.host, tcp)).await;
        let wire = handshake.unwrap_or(Err(Fault::Tls("timed out".into())));
        let wire = wire.map_err(|fault| OpenError::Tls(classify::unusable(Phase::Tls, &fault, &peer.remote)))?;
        let mut session = Session::over(wire, peer);
        if let Err(setback) = session.hello(manners).await {
            session.farewell(manners.timeouts.quit).await;
            // With TLS 1.3 a host says only after the handshake that it wants a certificate of ours.
            let broken = setback.reason.reply.is_none() && !setback.permanent;
            return Err(if broken { OpenError::Tls(setback) } else { OpenError::Setback(setback) });
        }
        Ok(session)
    }

    /// `Ok(false)`: the host will not after all, and the session goes on in clear.
    async fn agree_on_tls(&mut self, manners: Manners<'_>) -> Result<bool, OpenError> {
        let remote = &self.peer.remote.clone();
        match self.command(b"STARTTLS\r\n", manners.timeouts.hello).await {
            Ok(reply) if reply.code == 421 => {
                return Err(OpenError::Setback(classify::unwelcome(Phase::Tls, reply, remote)));
            }
            Ok(reply) if reply.code != 220 => return Ok(false),
            Ok(_) => {}
            Err(fault) => return Err(OpenError::Tls(classify::unusable(Phase::Tls, &fault, remote))),
        }
        if self.expect_silence().is_err() {
            // Plain text slipped in before the handshake (CVE-2011-0411, the other way round).
            let fault = Fault::Protocol("octets in clear after STARTTLS");
            return Err(OpenError::Setback(classify::unusable(Phase::Tls, &fault, remote)));
        }
        Ok(true)
    }

    /// Sends one command and reads its reply.
    pub(super) async fn command(&mut self, line: &[u8], within: Duration) -> Result<Reply, Fault> {
        self.expect_silence()?;
        self.client.timeout = within;
        self.client.stream.begin_reply();
        let result = self.client.cmd(line).await.map(drop);
        self.heard(result)
    }

    /// Reads the next reply.
    pub(super) async fn read(&mut self, within: Duration) -> Result<Reply, Fault> {
        self.client.stream.begin_reply();
        let result = match timeout(within, self.client.read()).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(mail_send::Error::Timeout),
        };
        self.heard(result)
    }

    /// `mail-send` found the end of a reply (or not); what it says is read from the raw lines.
    fn heard(&self, result: mail_send::Result<()>) -> Result<Reply, Fault> {
        match result {
            Ok(()) => reply::parse(self.client.stream.reply()).ok_or(Fault::Protocol("unreadable reply")),
            Err(mail_send::Error::Timeout) => Err(Fault::Timeout),
            Err(mail_send::Error::Io(error)) => Err(Fault::from(error)),
            Err(_) if self.client.stream.is_eof() => Err(Fault::Closed),
            Err(_) => Err(Fault::Protocol("unreadable reply")),
        }
    }

    /// A reply that is there before its command was sent belongs to nothing.
    pub(super) fn expect_silence(&self) -> Result<(), Fault> {
        if self.client.stream.has_unread() { Err(Fault::Protocol("reply without a command")) } else { Ok(()) }
    }

    /// Sends commands, whose replies are then read one by one.
    pub(super) async fn send(&mut self, commands: &[u8], within: Duration) -> Result<(), Fault> {
        self.expect_silence()?;
        let stream = &mut self.client.stream;
        let sending = async {
            stream.write_all(commands).await?;
            stream.flush().await
        };
        timeout(within, sending).await.map_err(|_| Fault::Timeout)?.map_err(Fault::from)
    }

    /// Sends the content in as few writes as the socket takes, without copying it. `Err(true)`: all of it, the final dot
    /// included, was handed to the system before the failure, so that it may have arrived.
    pub(super) async fn send_content(&mut self, parts: [&[u8]; 4], block: Duration) -> Result<(), (bool, Fault)> {
        let stream = &mut self.client.stream;
        write_all_vectored(stream, parts, block).await.map_err(|fault| (false, fault))?;
        let flushing = timeout(block, stream.flush()).await;
        flushing.map_err(|_| Fault::Timeout).and_then(|flushed| flushed.map_err(Fault::from)).map_err(|f| (true, f))
    }

    /// Whether the connection at rest can no longer be used.
    pub(super) fn is_disturbed(&mut self) -> bool {
        self.client.stream.is_disturbed()
    }

    /// Octets written so far, before TLS.
    pub(super) fn written(&self) -> u64 {
        self.client.stream.written()
    }

    /// Says QUIT, waits for the reply and for the peer to close, all within a bound, so that when this returns the peer no
    /// longer counts the connection (RFC 5321 section 4.1.1.10).
    pub(super) async fn farewell(mut self, quit: Duration) {
        let quit = quit.min(FAREWELL);
        if !self.client.stream.is_eof() && self.send(b"QUIT\r\n", quit).await.is_ok() {
            let _ = self.read(quit).await;
        }
        self.hang_up().await;
    }

    /// Closes our side and waits for the peer's, within a bound.
    pub(super) async fn hang_up(self) {
        stream::hang_up(self.client.stream.into_inner()).await;
    }
}

/// Writes all parts. Each write may take `block` at most, and all of them as long as the slowest peer that is put up with,
/// beside the time for which our own uplink holds them.
async fn write_all_vectored(stream: &mut OneLine<Wire>, parts: [&[u8]; 4], block: Duration) -> Result<(), Fault> {
    let octets: usize = parts.iter().map(|part| part.len()).sum();
    let deadline = Instant::now() + block + Duration::from_secs(octets as u64 / CONTENT_RATE_MIN);
    let held_before = stream.get_ref().held();
    let mut slices = parts.map(IoSlice::new);
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let until = (Instant::now() + block).min(deadline + (stream.get_ref().held() - held_before));
        match timeout_at(until, stream.write_vectored(slices)).await {
            Err(_) => return Err(Fault::Timeout),
            Ok(Ok(0)) => return Err(Fault::from(io::Error::from(io::ErrorKind::WriteZero))),
            Ok(Ok(written)) => IoSlice::advance_slices(&mut slices, written),
            Ok(Err(error)) => return Err(Fault::from(error)),
        }
    }
    Ok(())
}
