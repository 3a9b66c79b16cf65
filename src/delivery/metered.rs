//! A TCP stream that sends no faster than the uplink's budget grants, and has every octet counted. It lies below TLS, so
//! that handshakes and records are paid for too.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::budget::{Lane, Uplink, Waiting};

/// How often a connection that waits looks whether the rate has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Metered<S> {
    inner: S,
    uplink: Uplink,
    lane: Lane,
    /// Octets that were granted and not yet sent.
    granted: usize,
    turn: Option<Turn>,
    /// Time spent waiting for the uplink.
    held: Duration,
}

/// A grant that lies in the future.
#[derive(Debug)]
struct Turn {
    /// The rate it was granted at.
    rate: u64,
    octets: usize,
    since: Instant,
    at: Instant,
    sleep: Pin<Box<Sleep>>,
    _waiting: Waiting,
}

impl<S> Metered<S> {
    pub(super) fn new(inner: S, uplink: Uplink, lane: Lane) -> Metered<S> {
        Metered { inner, uplink, lane, granted: 0, turn: None, held: Duration::ZERO }
    }

    /// The stream below.
    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    /// How long the uplink has held this connection so far. No fault of the peer's.
    pub(super) fn held(&self) -> Duration {
        self.held + self.turn.as_ref().map_or(Duration::ZERO, |turn| turn.since.elapsed())
    }

    /// How many of `wanted` octets may be sent now.
    fn poll_grant(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<usize> {
        loop {
            let Some(rate) = self.uplink.holds(self.lane) else {
                self.end_turn();
                return Poll::Ready(wanted);
            };
            if self.granted > 0 {
                return Poll::Ready(wanted.min(self.granted));
            }
            let Some(turn) = &mut self.turn else {
                self.ask(wanted, rate);
                continue;
            };
            if turn.rate == rate {
                ready!(turn.sleep.as_mut().poll(cx));
                let now = Instant::now();
                if now < turn.at {
                    turn.sleep.as_mut().reset(turn.at.min(now + LOOK_AGAIN));
                    continue;
                }
                self.granted = turn.octets;
            }
            self.end_turn();
        }
    }

    fn ask(&mut self, wanted: usize, rate: u64) {
        let (octets, at) = self.uplink.reserve(wanted);
        let now = Instant::now();
        if at <= now {
            self.granted = octets;
            return;
        }
        let sleep = Box::pin(sleep_until(at.min(now + LOOK_AGAIN)));
        self.turn = Some(Turn { rate, octets, since: now, at, sleep, _waiting: self.uplink.waiting() });
    }

    fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.held += turn.since.elapsed();
        }
    }

    fn sent(&mut self, octets: usize) {
        self.granted = self.granted.saturating_sub(octets);
        self.uplink.sent(self.lane, octets);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let granted = ready!(this.poll_grant(buf.len(), cx));
        let octets = ready!(Pin::new(&mut this.inner).poll_write(cx, &buf[..granted]))?;
        this.sent(octets);
        Poll::Ready(Ok(octets))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.uplink.holds(self.lane).is_some() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        let this = self.get_mut();
        let octets = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        this.sent(octets);
        Poll::Ready(Ok(octets))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Sends `octets` over a line of 100,000 octets per second, side by side with `others`; seconds it took.
    async fn send(uplink: &Uplink, octets: usize) -> f64 {
        let (ours, mut peer) = duplex(octets.max(1));
        let mut stream = Metered::new(ours, uplink.clone(), Lane::Delivery);
        let started = Instant::now();
        stream.write_all(&vec![b'x'; octets]).await.expect("sent");
        drop(stream);
        assert_eq!(peer.read_to_end(&mut Vec::new()).await.expect("read"), octets);
        started.elapsed().as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn two_connections_share_the_line_evenly() {
        let uplink = Uplink::new(Some(100_000), &Registry::new()).expect("new");
        let (a, b) = tokio::join!(send(&uplink, 500_000), send(&uplink, 500_000));
        assert!((9.6..10.1).contains(&a) && (9.6..10.1).contains(&b), "{a} {b}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_message_does_not_wait_for_a_long_one() {
        let uplink = Uplink::new(Some(100_000), &Registry::new()).expect("new");
        let (long, short) = tokio::join!(send(&uplink, 500_000), send(&uplink, 10_000));
        assert!(short < 0.25 && long > 4.8, "{short} {long}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nothing_waits() {
        let uplink = Uplink::new(None, &Registry::new()).expect("new");
        assert!(send(&uplink, 10_000_000).await < 0.001);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_when_the_limit_is_lifted_goes_on_within_a_second() {
        let uplink = Uplink::new(Some(10), &Registry::new()).expect("new");
        let lifting = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            uplink.set_rate(None);
        };
        let (seconds, ()) = tokio::join!(send(&uplink, 100_000), lifting);
        assert!(seconds < 6.1, "{seconds}");
    }
}
