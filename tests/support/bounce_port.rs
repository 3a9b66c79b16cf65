//! A list host's own port for bounces, where the simulated internet has none: LMTP (RFC 2033), and one that comes up late.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What came: the whole dialogue of commands, and the messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) commands: Vec<String>,
    pub(crate) messages: Vec<String>,
}

/// Which protocol it speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Smtp,
    Lmtp,
}

/// See the module. Closed when dropped.
pub(crate) struct BouncePort {
    taken: Arc<Mutex<Taken>>,
    task: JoinHandle<()>,
}

impl Drop for BouncePort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BouncePort {
    pub(crate) async fn open(address: SocketAddr, protocol: Protocol) -> BouncePort {
        let listener = TcpListener::bind(address).await.expect("free");
        let taken: Arc<Mutex<Taken>> = Arc::default();
        let shared = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, protocol, Arc::clone(&shared)));
            }
        });
        BouncePort { taken, task }
    }

    pub(crate) fn taken(&self) -> Taken {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(stream: TcpStream, protocol: Protocol, taken: Arc<Mutex<Taken>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 lists.test\r\n").await?;
    let mut recipients = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        taken.lock().unwrap_or_else(PoisonError::into_inner).commands.push(line.trim_end().to_owned());
        match verb.as_str() {
            "EHLO" | "HELO" if protocol == Protocol::Lmtp => stream.write_all(b"500 LHLO here\r\n").await?,
            "LHLO" if protocol == Protocol::Smtp => stream.write_all(b"500 EHLO here\r\n").await?,
            "EHLO" | "LHLO" => stream.write_all(b"250-lists.test\r\n250 PIPELINING\r\n").await?,
            "DATA" => {
                stream.write_all(b"354 go\r\n").await?;
                let message = content(&mut stream).await?;
                taken.lock().unwrap_or_else(PoisonError::into_inner).messages.push(message);
                // LMTP answers the dot once per recipient.
                let replies = if protocol == Protocol::Lmtp { recipients } else { 1 };
                stream.write_all(&b"250 2.0.0 ok\r\n".repeat(replies)).await?;
            }
            "QUIT" => return stream.write_all(b"221 bye\r\n").await,
            "MAIL" | "RSET" => {
                recipients = 0;
                stream.write_all(b"250 ok\r\n").await?;
            }
            _ => {
                recipients += 1;
                stream.write_all(b"250 ok\r\n").await?;
            }
        }
    }
}

async fn content(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut message = String::new();
    loop {
        let start = message.len();
        if stream.read_line(&mut message).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if &message[start..] == ".\r\n" {
            message.truncate(start);
            return Ok(message);
        }
    }
}
