//! What became of an attempt, per recipient, and how far the reason reaches. Decided once, in `delivery::classify`;
//! applied once, in `settle`.

use std::fmt;

/// An enhanced status code (RFC 3463 section 2). Wide enough for the ones that providers invent (`5.7.509`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Enhanced {
    /// 2, 4 or 5.
    pub class: u8,
    /// The subject, 0 to 999.
    pub subject: u16,
    /// The detail, 0 to 999.
    pub detail: u16,
}

impl Enhanced {
    /// `class.subject.detail`.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Enhanced {
        Enhanced { class, subject, detail }
    }
}

impl fmt::Display for Enhanced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// One reply of a next hop, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The basic code (RFC 5321 section 4.2), 200 to 599.
    pub code: u16,
    /// The enhanced code, if the text began with one of the same class.
    pub enhanced: Option<Enhanced>,
    /// The text after code and enhanced code, lines joined with a space. Control characters are replaced and the length
    /// is capped at 512 octets where it is read, so that it can go to a log, a DSN or a terminal as it is.
    pub text: Box<str>,
}

impl Reply {
    /// Whether the first digit says yes (RFC 5321 section 4.2.1).
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// Whether the first digit says never.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.enhanced {
            Some(enhanced) => write!(f, "{} {} {}", self.code, enhanced, self.text),
            None => write!(f, "{} {}", self.code, self.text),
        }
    }
}

/// Where in an attempt something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// MX or address lookup.
    Resolve,
    /// Opening the TCP connection.
    Connect,
    /// Waiting for the 220 greeting.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS and the handshake.
    Tls,
    /// AUTH.
    Auth,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, up to the 354.
    Data,
    /// The content, up to the final dot.
    Content,
    /// After the final dot was written: an end without a reply is indeterminate (RFC 1047).
    Dot,
    /// Before anything was sent: the queue itself decided (expiry, size, content that cannot be read).
    Queue,
}

impl Phase {
    /// The phase as a metric label and in log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Resolve => "resolve",
            Phase::Connect => "connect",
            Phase::Greeting => "greeting",
            Phase::Hello => "hello",
            Phase::Tls => "tls",
            Phase::Auth => "auth",
            Phase::Mail => "mail",
            Phase::Rcpt => "rcpt",
            Phase::Data => "data",
            Phase::Content => "content",
            Phase::Dot => "dot",
            Phase::Queue => "queue",
        }
    }
}

/// How far a failure reaches: what else would fail for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// This recipient only (`550 5.1.1`).
    Recipient,
    /// This message, whoever it goes to (refused at MAIL or after the dot, too big).
    Message,
    /// This connection only (lost, 421 after good mail): another one may do.
    Session,
    /// The site as a whole: no connection, a refusing greeting, DNS trouble of the domain.
    Site,
}

/// Why a recipient was deferred or failed, complete enough for the log line, the retry and the DSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Where it happened.
    pub phase: Phase,
    /// How far it reaches.
    pub scope: Scope,
    /// The status for log and DSN: the reply's own enhanced code, or one that we chose (RFC 3463).
    pub status: Enhanced,
    /// The reply, if a next hop spoke.
    pub reply: Option<Reply>,
    /// What happened in words, where no reply says it: `connection timed out`.
    pub text: Box<str>,
    /// The next hop, `mx.example.org[192.0.2.1]:25`, if there was one.
    pub remote: Option<Box<str>>,
}

impl fmt::Display for Reason {
    /// For log lines and "last reply" columns: what was said, or what happened.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reply, &self.remote) {
            (Some(reply), Some(remote)) => {
                write!(f, "host {remote} said: {reply} (in reply to {})", self.phase.as_str())
            }
            (Some(reply), None) => write!(f, "{reply} (in reply to {})", self.phase.as_str()),
            (None, Some(remote)) => write!(f, "host {remote}: {}", self.text),
            (None, None) => f.write_str(&self.text),
        }
    }
}

/// What became of one recipient in one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next hop answered the final dot with 2yz.
    Relayed {
        /// The next hop, as in [`Reason::remote`].
        remote: Box<str>,
        /// Its reply to the dot.
        reply: Reply,
        /// Whether the DSN parameters went along; if not and NOTIFY=SUCCESS was asked for, we report "relayed".
        dsn_passed_on: bool,
    },
    /// To be tried again by schedule.
    Deferred(Reason),
    /// After the final dot was written the connection ended without a reply. Tried again later, at the same site and
    /// never at a sibling host, because it may have been accepted (RFC 1047).
    Indeterminate(Reason),
    /// Never to be tried again.
    Failed(Reason),
    /// Not tried in this attempt, through no fault of the recipient: the next hop wanted fewer recipients (452 or 552 at
    /// RCPT, RFC 5321 section 4.5.3.1.10), or an idle connection turned out dead. Offered again at once; no attempt counted.
    NotTried,
}
