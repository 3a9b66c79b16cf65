//! The receivers on the network: one listening socket for every exchanger of the simulated internet. All of 127/8 is
//! local on Linux, so each exchanger is an address of its own and the socket, bound to all of them, tells them apart by
//! the local address of what it accepts. Three hundred sites cost one file descriptor.
//!
//! The socket is bound to the loopback device where the kernel lets us, and takes only loopback peers in any case.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::policy::Door;
use super::provider::Provider;
use super::session::{Host, Next, Session};

/// Connections the kernel queues for us.
const BACKLOG: i32 = 4096;
/// What a read asks for.
const READ_SIZE: usize = 32 << 10;
/// A buffer larger than this is given back after the message that needed it.
const BUFFER_KEPT: usize = 256 << 10;
/// A client that closed one connection and opened another at once has not broken a limit, though we may see the new one
/// first.
const LIMIT_GRACE: Duration = Duration::from_millis(50);
/// How long a receiver waits for a command (RFC 5321 section 4.5.3.2.7).
const IDLE_MAX: Duration = Duration::from_secs(300);

/// Binds the receivers' socket to `port`, or to a free one where that is 0.
///
/// # Errors
/// As the system's.
pub(super) fn bind(port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // So that a black hole can have a socket of its own on the same port.
    socket.set_reuse_port(true)?;
    // Refused by old kernels without privileges; the check of the peer's address remains.
    let _unprivileged = socket.bind_device(Some(b"lo"));
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// An address where SYNs are dropped: a listener with the shortest backlog, already full, that nobody accepts from.
#[derive(Debug)]
pub(super) struct BlackHole {
    _held: Vec<Socket>,
}

impl BlackHole {
    pub(super) fn dig(address: Ipv4Addr, port: u16) -> io::Result<BlackHole> {
        let place = SocketAddr::from((address, port)).into();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_port(true)?;
        listener.bind(&place)?;
        listener.listen(0)?;
        let mut held = vec![listener];
        for _ in 0..3 {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            filler.set_nonblocking(true)?;
            // EINPROGRESS at first; nothing is expected of it.
            let _in_progress = filler.connect(&place);
            held.push(filler);
        }
        Ok(BlackHole { _held: held })
    }
}

/// Accepts until the task is dropped, and with it every connection.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors, most likely; what is open will end.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if let (true, Some(host)) = (peer.ip().is_loopback(), host_of(&shared, &stream)) {
            connections.spawn(meet(Arc::clone(&shared), host, stream));
        }
    }
}

fn host_of(shared: &Shared, stream: &TcpStream) -> Option<Arc<Host>> {
    match stream.local_addr().ok()?.ip() {
        IpAddr::V4(address) => shared.hosts.get(&address).cloned(),
        IpAddr::V6(_) => None,
    }
}

/// A place at the provider; given back when dropped or when the client has said QUIT.
struct Place {
    shared: Arc<Shared>,
    provider: Option<Arc<Provider>>,
    /// Whether it is part of the uplink: a watched provider (the list host's bounce address) is not.
    is_uplink: bool,
}

impl Place {
    fn take(shared: &Arc<Shared>, provider: &Arc<Provider>) -> Place {
        provider.enter();
        let is_uplink = shared.watch_of(provider).is_none();
        if is_uplink {
            let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
            shared.peak_open.fetch_max(open, Ordering::Relaxed);
        }
        Place { shared: Arc::clone(shared), provider: Some(Arc::clone(provider)), is_uplink }
    }

    fn give_back(&mut self) {
        if let Some(provider) = self.provider.take() {
            provider.leave();
            if self.is_uplink {
                self.shared.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.give_back();
    }
}

async fn meet(shared: Arc<Shared>, host: Arc<Host>, mut stream: TcpStream) {
    let place = Place::take(&shared, &host.provider);
    let _best_effort = stream.set_nodelay(true);
    sleep_for(host.policy.rtt).await;
    match refusal(&host).await {
        Entry::Open => {}
        Entry::Refused(text) => return turn_away(&host, &mut stream, text).await,
        Entry::Reset => return reset(&stream),
        Entry::Silence => return wait_for_end(&mut stream).await,
    }
    let mut line = Line::new(&host, place);
    line.session.greet();
    // An error means that the client has gone, which needs no comment.
    let ended = line.talk(&shared, &mut stream).await;
    if let (Ok(Next::StartTls), Some(config)) = (&ended, &shared.tls) {
        let Ok(mut stream) = TlsAcceptor::from(Arc::clone(config)).accept(stream).await else { return };
        line.buffer.clear();
        line.session.start_over_in_tls();
        let _gone = line.talk(&shared, &mut stream).await;
        let _gone = stream.shutdown().await;
    }
}

enum Entry {
    Open,
    Refused(&'static str),
    Reset,
    Silence,
}

/// Whether the host lets this connection in.
async fn refusal(host: &Host) -> Entry {
    match host.policy.door {
        Door::Open => {}
        Door::Busy => return Entry::Refused("421 4.3.2 Service not available"),
        Door::Rejecting => return Entry::Refused("554 5.7.1 No SMTP service here"),
        Door::Silent => return Entry::Silence,
        Door::Resetting | Door::Refused | Door::BlackHole => return Entry::Reset,
    }
    if host.provider.is_overcrowded() {
        sleep(LIMIT_GRACE).await;
        if host.provider.is_overcrowded() {
            host.provider.overcrowded();
            return Entry::Refused("421 4.7.0 Too many connections");
        }
    }
    if host.provider.admits_connection(Instant::now()) {
        Entry::Open
    } else {
        Entry::Refused("421 4.7.0 Too many new connections")
    }
}

async fn turn_away(host: &Host, stream: &mut TcpStream, text: &str) {
    host.provider.turned_away(text.as_bytes()[0]);
    let _gone = stream.write_all(format!("{text}\r\n").as_bytes()).await;
}

fn reset(stream: &TcpStream) {
    // Zero linger turns the close into a reset, which needs no room in the peer's queue.
    let _best_effort = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

async fn wait_for_end(stream: &mut TcpStream) {
    let mut ignored = [0; 512];
    while stream.read(&mut ignored).await.is_ok_and(|length| length > 0) {}
}

async fn sleep_for(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

/// A connection in conversation: the session and what it has not understood yet.
struct Line {
    session: Session,
    place: Place,
    rtt: Duration,
    buffer: Vec<u8>,
    /// Octets in the buffer that the session has not seen: what came while a reply was under way.
    unseen: bool,
}

impl Line {
    fn new(host: &Arc<Host>, place: Place) -> Line {
        let session = Session::new(Arc::clone(host), Instant::now());
        Line { session, place, rtt: host.policy.rtt, buffer: Vec::new(), unseen: false }
    }

    /// Talks until the session says otherwise or the client goes.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(&mut self, shared: &Shared, stream: &mut S) -> io::Result<Next> {
        loop {
            self.answer(shared, stream).await?;
            if self.session.next != Next::Read {
                return Ok(self.session.next);
            }
            if !self.unseen {
                self.read(shared, stream).await?;
            }
            self.unseen = false;
            let used = self.session.advance(shared, Instant::now(), &self.buffer);
            self.forget(used);
        }
    }

    /// Reads a block. The end of the stream is an error.
    async fn read<S: AsyncRead + Unpin>(&mut self, shared: &Shared, stream: &mut S) -> io::Result<()> {
        if self.buffer.capacity() - self.buffer.len() < READ_SIZE / 2 {
            self.buffer.reserve(READ_SIZE);
        }
        let length = timeout(IDLE_MAX, stream.read_buf(&mut self.buffer)).await??;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.place.is_uplink {
            shared.bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes the replies of a group after the round-trip time.
    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(&mut self, shared: &Shared, stream: &mut S) -> io::Result<()> {
        if self.session.next == Next::Close {
            // The client counts its connection as gone once it has read our last word, so we must have done so before.
            self.place.give_back();
        }
        if self.session.replies.is_empty() {
            return Ok(());
        }
        if !self.rtt.is_zero() {
            self.travel(shared, stream).await?;
        }
        stream.write_all(&self.session.replies).await?;
        self.session.replies.clear();
        Ok(())
    }

    /// Lets the round-trip time pass, and notices a client that goes meanwhile: a killed relay must not seem to hold
    /// its connections while the next one opens its own.
    async fn travel<S: AsyncRead + Unpin>(&mut self, shared: &Shared, stream: &mut S) -> io::Result<()> {
        let arrival = Instant::now() + self.rtt;
        while self.buffer.len() < READ_SIZE {
            tokio::select! {
                () = sleep_until(arrival) => return Ok(()),
                read = self.read(shared, stream) => read?,
            }
            self.unseen = true;
        }
        sleep_until(arrival).await;
        Ok(())
    }

    fn forget(&mut self, used: usize) {
        if used == self.buffer.len() {
            self.buffer.clear();
            if self.buffer.capacity() > BUFFER_KEPT {
                self.buffer.shrink_to(READ_SIZE);
            }
        } else {
            self.buffer.drain(..used);
        }
    }
}
