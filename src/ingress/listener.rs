//! Listening sockets: bound with a remedy in every error, closed when no more sessions fit, opened again when they do.
//!
//! A refused connection is what every client survives; one that is accepted and dropped is not (mlmmj dies of SIGPIPE).
//! So the socket closes with the last free place, and opens again when a quarter of the places is free.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::places::{Full, Place};
use super::session::Connection;
use super::{Shared, Store};
use crate::budget::Use;

/// Connections that wait to be accepted, at most; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

/// How long to wait after accept(2) or bind(2) failed: what is short now may not be in a moment, and trying again at
/// once would spin.
const AFTER_ERROR: Duration = Duration::from_millis(200);

/// Binds a listening socket.
///
/// # Errors
/// Says which address, why, and what to do.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    open(address).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => "another program (or another Posthaste) listens there: stop it, or choose another port",
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in the systemd unit), or choose another port"
            }
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "see the listener's address in the configuration",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}; {remedy}"))
    })
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Each family has its own listener, so that "0.0.0.0" and "::" can stand beside each other.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// One listener: its socket, while it has one, and its sessions.
pub(super) struct Listening<S: Store> {
    pub(super) shared: Arc<Shared<S>>,
    /// The address that is bound again after an overload: with the port that the kernel chose, if it did.
    pub(super) address: SocketAddr,
    pub(super) tls: Arc<ArcSwapOption<ServerConfig>>,
    /// Cancelled when this listener is to go: its socket at once, its sessions when they are done.
    pub(super) stop: CancellationToken,
    pub(super) sessions: JoinSet<()>,
}

impl<S: Store> Listening<S> {
    /// Listens until it is stopped, then waits for its sessions.
    pub(super) async fn run(mut self, socket: TcpListener) {
        let stop = self.stop.clone();
        let mut socket = Some(socket);
        while !stop.is_cancelled() {
            let listening = async {
                match socket.take() {
                    Some(open) => self.listen(open).await,
                    None => self.reopen().await,
                }
            };
            socket = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                next = listening => next,
            };
        }
        drop(socket);
        self.wind_up().await;
    }

    /// Accepts connections until no place is left; the socket is gone then.
    async fn listen(&mut self, socket: TcpListener) -> Option<TcpListener> {
        let shared = Arc::clone(&self.shared);
        loop {
            tokio::select! {
                biased;
                Some(ended) = self.sessions.join_next() => self.ended(ended),
                () = shared.places.full(|| shared.limits()) => {
                    self.shared.metrics.overloads.inc();
                    warn!(address = %self.address, "no more sessions fit: listening socket closed until some have ended");
                    return None;
                }
                accepted = socket.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer),
                    Err(error) => self.failed("accept a connection", &error).await,
                },
            }
        }
    }

    /// Waits until there are places again, then listens again.
    async fn reopen(&mut self) -> Option<TcpListener> {
        let shared = Arc::clone(&self.shared);
        let calm = shared.places.calm(|| shared.limits());
        tokio::pin!(calm);
        loop {
            tokio::select! {
                () = &mut calm => break,
                Some(ended) = self.sessions.join_next() => self.ended(ended),
            }
        }
        match bind(self.address) {
            Ok(socket) => {
                info!(address = %self.address, "listening again");
                Some(socket)
            }
            Err(error) => {
                self.failed("listen again", &error).await;
                None
            }
        }
    }

    async fn failed(&self, what: &str, error: &io::Error) {
        self.shared.metrics.socket_errors.inc();
        warn!(address = %self.address, %error, "cannot {what}; trying again");
        sleep(AFTER_ERROR).await;
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        // Refused only for a connection that is gone already.
        let _ = stream.set_nodelay(true);
        let policy = self.shared.policy.load_full();
        let relay = policy.admission.by_address(peer.ip()).cloned();
        match self.place(relay.is_none()) {
            Ok(place) => {
                let outcome = if relay.is_some() { "list_host" } else { "stranger" };
                self.shared.metrics.connections.with_label_values(&[outcome]).inc();
                let tls = self.tls.load_full();
                let connection = Connection::new(Arc::clone(&self.shared), policy, stream, peer, relay, tls, place);
                self.sessions.spawn(connection.run());
            }
            Err(why) => {
                self.shared.metrics.connections.with_label_values(&[why]).inc();
                // Best effort: whoever comes too much is not waited for.
                let _ = stream.try_write(b"421 4.7.0 too many connections, try again later\r\n");
            }
        }
    }

    fn place(&self, stranger: bool) -> Result<Place, &'static str> {
        let lease = self.shared.descriptors.try_lease(Use::Ingress).ok_or("descriptors")?;
        self.shared.places.take(self.shared.limits(), stranger, lease).map_err(|full| match full {
            Full::All => "full",
            Full::Strangers => "strangers_full",
        })
    }

    /// A panic is a bug of ours; it ends one session and is counted, and the others go on.
    fn ended(&self, ended: Result<(), JoinError>) {
        match ended {
            Err(error) if error.is_panic() => {
                self.shared.metrics.panics.inc();
                error!(address = %self.address, %error, "a session panicked; nothing that was answered 250 is lost");
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Waits for the sessions; at the deadline of a drain they are cut off.
    async fn wind_up(mut self) {
        let mut phase = self.shared.phase.clone();
        let deadline = async move {
            let draining = phase.wait_for(|phase| phase.deadline().is_some()).await.map(|phase| phase.deadline());
            if let Ok(Some(deadline)) = draining {
                sleep_until(deadline).await;
            }
        };
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                ended = self.sessions.join_next() => match ended {
                    Some(ended) => self.ended(ended),
                    None => return,
                },
                () = &mut deadline => return self.cut_off().await,
            }
        }
    }

    async fn cut_off(mut self) {
        let open = self.sessions.len();
        if open > 0 {
            self.shared.metrics.cut_off.inc_by(open as u64);
            warn!(address = %self.address, sessions = open, "deadline reached: open sessions are cut off");
        }
        self.sessions.shutdown().await;
    }
}
