//! The stream below `mail-send`: hands over one reply line per read, keeps the raw octets, bounds them, counts.
//!
//! `mail_send::SmtpClient::read` drops whatever follows a reply in its buffer and reports an end of file and garbage alike;
//! its parser keeps a digit of an enhanced code and gives up at 4096 octets. Below it lies [`OneLine`], which (a) returns at
//! most one line per read, so that pipelined replies are read one by one; (b) keeps the lines as they came, from which
//! `reply` takes codes and text; (c) knows whether the peer closed; (d) counts octets; (e) stops at
//! [`REPLY_OCTETS_MAX`] and [`REPLY_LINES_MAX`]. `mail-send` gets only the head of each line, enough to see where the
//! reply ends, so its own bound is never met.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::metered::Metered;

/// Octets kept of one reply line; RFC 5321 section 4.5.3.1.5 allows 512. What follows is read and dropped.
const LINE_KEPT_MAX: usize = 1024;
/// Octets of one reply, dropped ones included.
const REPLY_OCTETS_MAX: usize = 64 * 1024;
/// Lines of one reply.
const REPLY_LINES_MAX: usize = 256;
/// Octets of a line that `mail-send` gets to see: code, separator, and some text. 256 of them stay below its 4096.
const LINE_SHOWN_MAX: usize = 14;
/// Octets read from the network at a time.
const INPUT_OCTETS: usize = 2048;

/// A connection in clear or under TLS.
#[derive(Debug)]
pub(super) enum Wire {
    /// TCP in clear.
    Plain(Metered<TcpStream>),
    /// TLS over TCP. Boxed, because its state is large and most of a connection's life is spent idle.
    Tls(Box<TlsStream<Metered<TcpStream>>>),
}

impl Wire {
    /// How long the uplink's budget has held it so far.
    pub(super) fn held(&self) -> Duration {
        match self {
            Wire::Plain(stream) => stream.held(),
            Wire::Tls(stream) => stream.get_ref().0.held(),
        }
    }
}

/// How long a peer may take to close after us.
const HANG_UP: Duration = Duration::from_secs(2);

/// Closes our side and waits, within a bound, for the peer's: only then does it no longer count the connection.
pub(super) async fn hang_up(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let closing = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await.is_ok_and(|octets| octets > 0) {}
    };
    let _ = timeout(HANG_UP, closing).await;
}

/// Applies a poll function to whichever stream it is.
macro_rules! either {
    ($self:ident, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown, cx)
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct OneLine<S> {
    inner: S,
    input: Box<[u8; INPUT_OCTETS]>,
    /// What of `input` was read and not yet handed on.
    unread: std::ops::Range<usize>,
    /// The lines of the current reply as they came, each cut to [`LINE_KEPT_MAX`] and ended by LF.
    reply: Vec<u8>,
    /// Where the line that is being read begins in `reply`.
    line_start: usize,
    reply_octets: usize,
    reply_lines: usize,
    eof: bool,
    written: u64,
}

impl<S> OneLine<S> {
    pub(super) fn new(inner: S) -> OneLine<S> {
        OneLine {
            inner,
            input: Box::new([0; INPUT_OCTETS]),
            unread: 0..0,
            reply: Vec::with_capacity(128),
            line_start: 0,
            reply_octets: 0,
            reply_lines: 0,
            eof: false,
            written: 0,
        }
    }

    /// The stream below, for the TLS handshake. Octets that were read ahead are lost: see [`OneLine::has_unread`].
    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    /// The stream below.
    pub(super) fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The raw lines of the reply that was read since [`OneLine::begin_reply`].
    pub(super) fn reply(&self) -> &[u8] {
        &self.reply
    }

    /// Forgets the last reply; its limits start anew.
    pub(super) fn begin_reply(&mut self) {
        self.reply.clear();
        self.line_start = 0;
        self.reply_octets = 0;
        self.reply_lines = 0;
    }

    /// Whether octets lie here that nobody has asked for yet.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether the peer has closed its side.
    pub(super) fn is_eof(&self) -> bool {
        self.eof
    }

    /// Octets written so far, before TLS.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Moves unread input into the current line. `true` once the line is complete.
    fn take_line(&mut self) -> io::Result<bool> {
        let unread = &self.input[self.unread.clone()];
        let (taken, complete) = match memchr::memchr(b'\n', unread) {
            Some(at) => (at + 1, true),
            None => (unread.len(), false),
        };
        let text = &unread[..taken - usize::from(complete)];
        let room = LINE_KEPT_MAX.saturating_sub(self.reply.len() - self.line_start);
        self.reply.extend_from_slice(&text[..text.len().min(room)]);
        self.unread.start += taken;
        self.reply_octets += taken;
        if complete {
            self.reply.push(b'\n');
            self.reply_lines += 1;
        }
        if self.reply_octets > REPLY_OCTETS_MAX || self.reply_lines > REPLY_LINES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "reply too long"));
        }
        Ok(complete)
    }

    /// Hands the head of the complete line to the reader above.
    fn show_line(&mut self, buf: &mut ReadBuf<'_>) {
        let line = &self.reply[self.line_start..self.reply.len() - 1];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let shown = line.len().min(LINE_SHOWN_MAX).min(buf.remaining().saturating_sub(2));
        buf.put_slice(&line[..shown]);
        buf.put_slice(&b"\r\n"[..buf.remaining().min(2)]);
        self.line_start = self.reply.len();
    }
}

impl<S: AsyncRead + Unpin> OneLine<S> {
    /// Whether the peer has closed, failed or said something unasked for. For a connection at rest: anything but silence
    /// means that it cannot be used. Never waits.
    pub(super) fn is_disturbed(&mut self) -> bool {
        if self.has_unread() || self.eof {
            return true;
        }
        let mut probe = ReadBuf::new(&mut self.input[..]);
        Pin::new(&mut self.inner).poll_read(&mut Context::from_waker(Waker::noop()), &mut probe).is_ready()
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(&mut self.input[..]);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
        let filled = buf.filled().len();
        self.unread = 0..filled;
        Poll::Ready(Ok(filled))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for OneLine<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.has_unread() {
                if this.take_line()? {
                    this.show_line(buf);
                    return Poll::Ready(Ok(()));
                }
            } else if ready!(this.poll_fill(cx))? == 0 {
                this.eof = true;
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> OneLine<S> {
    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(octets)) = written {
            self.written += octets as u64;
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OneLine<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.count(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.count(written)
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
    use mail_send::SmtpClient;
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// A client whose peer has said `text` and closed.
    async fn client_hearing(text: &[u8]) -> SmtpClient<OneLine<DuplexStream>> {
        let (mut peer, ours) = duplex(text.len().max(1));
        peer.write_all(text).await.expect("room for all of it");
        SmtpClient { stream: OneLine::new(ours), timeout: Duration::from_secs(1) }
    }

    #[tokio::test]
    async fn pipelined_replies_in_one_segment_are_read_one_by_one() {
        let mut client = client_hearing(b"250 2.1.0 a\r\n250-b\r\n250 c\r\n354 d\r\n").await;
        for (code, raw) in [(250, &b"250 2.1.0 a\r\n"[..]), (250, b"250-b\r\n250 c\r\n"), (354, b"354 d\r\n")] {
            client.stream.begin_reply();
            assert_eq!(client.read().await.expect("a reply").code, code);
            assert_eq!(client.stream.reply(), raw);
        }
        assert!(!client.stream.has_unread() && !client.stream.is_eof());
        assert!(client.read().await.is_err() && client.stream.is_eof());
    }

    #[tokio::test]
    async fn a_long_line_is_cut_and_a_long_reply_ends_the_connection() {
        let line = format!("550 {}\r\n", "x".repeat(5000));
        let mut client = client_hearing(line.as_bytes()).await;
        assert_eq!(client.read().await.expect("a reply").code, 550);
        assert_eq!(client.stream.reply().len(), LINE_KEPT_MAX + 1);

        let mut client = client_hearing(&b"250-x\r\n".repeat(REPLY_LINES_MAX + 1)).await;
        assert!(matches!(client.read().await, Err(mail_send::Error::Io(e)) if e.kind() == io::ErrorKind::InvalidData));
        let mut client = client_hearing(&vec![b'2'; REPLY_OCTETS_MAX + 1]).await;
        assert!(matches!(client.read().await, Err(mail_send::Error::Io(e)) if e.kind() == io::ErrorKind::InvalidData));
    }

    #[tokio::test]
    async fn a_reply_of_many_lines_is_within_what_mail_send_takes() {
        let mut text = b"250-keyword with some text behind it\r\n".repeat(REPLY_LINES_MAX - 1);
        text.extend_from_slice(b"250 end\r\n");
        let mut client = client_hearing(&text).await;
        assert_eq!(client.read().await.expect("a reply").code, 250);
        assert_eq!(client.stream.reply(), &text[..]);
    }

    #[tokio::test]
    async fn only_silence_leaves_a_resting_connection_usable() {
        let (mut peer, ours) = duplex(64);
        let mut stream = OneLine::new(ours);
        assert!(!stream.is_disturbed());
        peer.write_all(b"421 bye\r\n").await.expect("room");
        assert!(stream.is_disturbed());
        let (peer, ours) = duplex(64);
        drop(peer);
        assert!(OneLine::new(ours).is_disturbed());
    }
}
