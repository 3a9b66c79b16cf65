//! The admin endpoint's socket: who may connect, how many at a time, and how long they may dawdle.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ipnet::IpNet;
use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// Connections at a time. The descriptor ledger's own reserve holds them, so it is small; others wait in the backlog.
const CONNECTIONS_MAX: usize = 8;

/// How long a connection may go without an octet in either direction: longer than the usual 15 s between scrapes.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Accepts who may ask, and drops who may not.
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) networks: Vec<IpNet>,
    pub(super) refused: IntCounter,
    slots: Slots,
}

/// Places for connections of one listener.
pub(super) struct Slots(Arc<Semaphore>);

impl Default for Slots {
    fn default() -> Slots {
        Slots(Arc::new(Semaphore::new(CONNECTIONS_MAX)))
    }
}

impl Slots {
    pub(super) async fn take(&self) -> OwnedSemaphorePermit {
        match Arc::clone(&self.0).acquire_owned().await {
            Ok(slot) => slot,
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }
}

/// Out of descriptors or a connection that was gone already: neither passes by asking at once again.
pub(super) async fn accept_failed(error: &io::Error) {
    tracing::warn!(%error, "admin: accept failed");
    sleep(Duration::from_millis(100)).await;
}

impl Listener {
    pub(super) fn new(socket: TcpListener, networks: Vec<IpNet>, refused: IntCounter) -> Listener {
        Listener { socket, networks, refused, slots: Slots::default() }
    }

    fn may_ask(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.networks.iter().any(|network| network.contains(&peer))
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<TcpStream>, SocketAddr) {
        let slot = self.slots.take().await;
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) if self.may_ask(peer.ip()) => return (Connection::new(stream, slot), peer),
                Ok((_, peer)) => {
                    self.refused.inc();
                    tracing::warn!(%peer, "admin: connection refused, not in [admin] networks");
                }
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A connection that ends by itself when nothing moves on it, so that neither a slow client nor one that never reads
/// keeps its slot.
pub(super) struct Connection<S> {
    stream: S,
    idle: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S, slot: OwnedSemaphorePermit) -> Connection<S> {
        Connection { stream, idle: Box::pin(sleep_until(Instant::now() + IDLE_TIMEOUT)), _slot: slot }
    }

    /// Passes on what is ready; what is not fails once the connection has been idle for too long.
    fn watched<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
            return result;
        }
        match self.idle.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.watched(cx, result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.watched(cx, result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.watched(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watched(cx, result)
    }
}
