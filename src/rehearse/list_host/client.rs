//! The sending end of one SMTP connection to the relay.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::mailing::Mailing;

/// Recipients in one pipelined group: few enough that neither side's socket buffer can fill while both write.
const GROUP: usize = 1000;
/// Longest reply that is read.
const REPLY_MAX: usize = 64 << 10;

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum End {
    /// 250 to the final dot, for all but these.
    Accepted {
        /// Recipients answered 4yz.
        later: Vec<u32>,
        /// Recipients answered 5yz, with the reply.
        refused: Vec<(u32, String)>,
        /// From the final dot to its 250.
        wait: Duration,
    },
    /// 4yz to MAIL, to DATA, to every recipient or to the final dot.
    Deferred,
    /// 5yz to MAIL, to DATA, to every recipient or to the final dot.
    Refused(String),
    /// The connection broke.
    Broken {
        /// Whether the final dot was sent, so that the relay may have the message.
        after_dot: bool,
    },
}

/// A reply's last line.
#[derive(Debug)]
struct Reply(String);

impl Reply {
    fn class(&self) -> u8 {
        self.0.as_bytes()[0]
    }
}

/// What RCPT brought.
#[derive(Default)]
struct Takers {
    taken: usize,
    later: Vec<u32>,
    refused: Vec<(u32, String)>,
}

impl Takers {
    fn note(&mut self, recipient: u32, reply: Reply) {
        match reply.class() {
            b'2' => self.taken += 1,
            b'4' => self.later.push(recipient),
            _ => self.refused.push((recipient, reply.0)),
        }
    }

    /// The end of a transaction that nobody is left in.
    fn nobody(mut self) -> End {
        match self.refused.pop() {
            Some((_, text)) if self.later.is_empty() => End::Refused(text),
            _ => End::Deferred,
        }
    }
}

/// An open connection, greeted.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    pipelining: bool,
    patience: Duration,
    line: String,
    /// Whether the final dot of the current transaction was sent.
    after_dot: bool,
}

impl Connection {
    pub(super) async fn open(relay: SocketAddr, patience: Duration, pipelining: bool) -> io::Result<Connection> {
        let stream = timeout(patience, TcpStream::connect(relay)).await??;
        stream.set_nodelay(true)?;
        let stream = BufReader::with_capacity(16 << 10, stream);
        let mut connection = Connection { stream, pipelining: false, patience, line: String::new(), after_dot: false };
        connection.expect_success("").await?;
        let offered = connection.expect_success("EHLO lists.rehearsal.test\r\n").await?;
        connection.pipelining = pipelining && offered;
        Ok(connection)
    }

    /// Sends a command, unless it is empty, and wants a 2yz; whether PIPELINING stood in the reply.
    async fn expect_success(&mut self, command: &str) -> io::Result<bool> {
        self.stream.get_mut().write_all(command.as_bytes()).await?;
        let mut offered = false;
        loop {
            self.read_line().await?;
            offered |= self.line.get(4..).is_some_and(|rest| rest.trim_end().eq_ignore_ascii_case("PIPELINING"));
            if !self.line.starts_with('2') {
                return Err(io::Error::other(format!("relay says {}", self.line.trim_end())));
            }
            if self.line.as_bytes().get(3) != Some(&b'-') {
                return Ok(offered);
            }
        }
    }

    pub(super) async fn quit(&mut self) {
        let _gone = self.expect_success("QUIT\r\n").await;
    }

    /// One mail transaction; `id` names its content.
    pub(super) async fn transact(&mut self, mailing: &Mailing, id: u64, recipients: &[u32], verp: bool) -> End {
        self.after_dot = false;
        let end = self.try_transact(mailing, id, recipients, verp).await;
        end.unwrap_or(End::Broken { after_dot: self.after_dot })
    }

    async fn try_transact(&mut self, mailing: &Mailing, id: u64, recipients: &[u32], verp: bool) -> io::Result<End> {
        let content = mailing.content(id);
        let mail = format!("MAIL FROM:<{}> SIZE={}\r\n", mailing.reverse_path(recipients, verp), content.len());
        let started = if self.pipelining {
            self.pipeline(mailing, mail, recipients).await?
        } else {
            self.step(mailing, mail, recipients).await?
        };
        let takers = match started {
            Ok(takers) => takers,
            Err(end) => return Ok(end),
        };
        self.send_content(&content, takers).await
    }

    /// MAIL, RCPTs and DATA in groups of one write each.
    async fn pipeline(
        &mut self,
        mailing: &Mailing,
        mail: String,
        recipients: &[u32],
    ) -> io::Result<Result<Takers, End>> {
        let mut takers = Takers::default();
        let mut mail_reply = None;
        let mut commands = mail;
        let groups = recipients.chunks(GROUP).count();
        for (i, group) in recipients.chunks(GROUP).enumerate() {
            group.iter().for_each(|recipient| write_rcpt(&mut commands, mailing, *recipient));
            if i + 1 == groups {
                commands.push_str("DATA\r\n");
            }
            self.stream.get_mut().write_all(commands.as_bytes()).await?;
            commands.clear();
            if mail_reply.is_none() {
                mail_reply = Some(self.reply().await?);
            }
            for recipient in group {
                takers.note(*recipient, self.reply().await?);
            }
        }
        let data = self.reply().await?;
        self.judge(mail_reply, takers, data).await
    }

    /// One command at a time, as Mailman does.
    async fn step(&mut self, mailing: &Mailing, mail: String, recipients: &[u32]) -> io::Result<Result<Takers, End>> {
        let mut takers = Takers::default();
        let mail = self.command(&mail).await?;
        if mail.class() != b'2' {
            return Ok(Err(refusal(mail)));
        }
        let mut command = String::new();
        for recipient in recipients {
            command.clear();
            write_rcpt(&mut command, mailing, *recipient);
            takers.note(*recipient, self.command(&command).await?);
        }
        if takers.taken == 0 {
            self.command("RSET\r\n").await?;
            return Ok(Err(takers.nobody()));
        }
        let data = self.command("DATA\r\n").await?;
        self.judge(None, takers, data).await
    }

    /// Whether the content may be sent.
    async fn judge(&mut self, mail: Option<Reply>, takers: Takers, data: Reply) -> io::Result<Result<Takers, End>> {
        if data.class() == b'3' && takers.taken > 0 {
            return Ok(Ok(takers));
        }
        if data.class() == b'3' {
            // A server that wants content for nobody gets none (RFC 2920 section 3.1).
            self.command(".\r\n").await?;
        } else {
            self.command("RSET\r\n").await?;
        }
        match mail {
            Some(mail) if mail.class() != b'2' => Ok(Err(refusal(mail))),
            _ if takers.taken == 0 => Ok(Err(takers.nobody())),
            _ => Ok(Err(refusal(data))),
        }
    }

    async fn send_content(&mut self, content: &[u8], takers: Takers) -> io::Result<End> {
        let stream = self.stream.get_mut();
        // The last octets are held back until the rest is gone: before them the relay cannot have the message.
        stream.write_all(content).await?;
        self.after_dot = true;
        let sent = Instant::now();
        stream.write_all(b".\r\n").await?;
        let reply = self.reply().await?;
        match reply.class() {
            b'2' => Ok(End::Accepted { later: takers.later, refused: takers.refused, wait: sent.elapsed() }),
            _ => Ok(refusal(reply)),
        }
    }

    async fn command(&mut self, command: &str) -> io::Result<Reply> {
        self.stream.get_mut().write_all(command.as_bytes()).await?;
        self.reply().await
    }

    /// The next reply. A 421 means that the connection is going.
    async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            self.read_line().await?;
            if self.line.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        }
        if self.line.starts_with("421") || !self.line.as_bytes()[0].is_ascii_digit() {
            // A 421 is no 250: the message was not taken, so this is no lost reply.
            self.after_dot = false;
            return Err(io::Error::other(self.line.trim_end().to_owned()));
        }
        Ok(Reply(self.line.trim_end().to_owned()))
    }

    async fn read_line(&mut self) -> io::Result<()> {
        self.line.clear();
        let length = timeout(self.patience, self.stream.read_line(&mut self.line)).await??;
        if length == 0 || length > REPLY_MAX { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

fn write_rcpt(text: &mut String, mailing: &Mailing, recipient: u32) {
    text.push_str("RCPT TO:<");
    mailing.recipients.write_mailbox(text, recipient);
    text.push_str(">\r\n");
}

fn refusal(reply: Reply) -> End {
    if reply.class() == b'4' { End::Deferred } else { End::Refused(reply.0) }
}
