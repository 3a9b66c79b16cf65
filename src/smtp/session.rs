//! The receiving session (RFC 5321 section 4.1.4) as a state machine without I/O: lines and results of effects in,
//! replies and effects out.
//!
//! The promise to an allowed list host, and why (design 6): list software takes almost any refusal for a lost message
//! or a bounce of every recipient. So it gets 2yz to everything that can be done; what we cannot do for reasons of ours
//! is said with 4yz to MAIL and never inside a transaction; 5yz after the dot is said only of the message itself.
//! Anybody else gets 550 5.7.1 and little patience.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::mail::{Mailbox, RecipientParams, ReversePath};

use super::command::{self, Command, Context, ForwardPath, Mail, MailPath, Rcpt};
use super::line::{Defect, Line};
use super::reply::Reply;
pub use super::sasl::Credentials;
use super::sasl::{self, Exchange, Progress};
pub use super::step::{Accepted, Checked, Note, Step, Taken, Verdict};
pub use super::terms::{Conditions, Relay, Shortage, Terms};
pub use super::transaction::{HEADER_MAX, Lint};
use super::transaction::{Incoming, Transaction};

/// Refusals that a stranger may collect before the connection is closed.
pub const STRANGER_REFUSALS_MAX: u32 = 20;

/// Commands that a stranger may give before the connection is closed.
pub const STRANGER_COMMANDS_MAX: u32 = 100;

/// Lines that are no lines (bare LF, NUL, ..) that anybody may send outside a transaction before the connection is
/// closed: such a client does not speak SMTP.
pub const DEFECTS_MAX: u32 = 3;

/// Failed authentications before the connection is closed.
pub const AUTH_FAILURES_MAX: u32 = 3;

/// One session.
#[derive(Debug)]
pub struct Session {
    terms: Arc<Terms>,
    peer: IpAddr,
    relay: Option<Arc<Relay>>,
    hello: Option<Hello>,
    tls: bool,
    authenticated: bool,
    state: State,
    notes: Vec<Note>,
    commands: u32,
    refusals: u32,
    defects: u32,
    auth_failures: u32,
}

/// How the client introduced itself.
#[derive(Debug)]
struct Hello {
    name: Box<str>,
    extended: bool,
}

/// What the session waits for.
#[derive(Debug)]
enum State {
    /// A command, outside a transaction.
    Ready,
    /// A command, inside a transaction.
    Open(Transaction),
    /// Content.
    Content(Incoming),
    /// The result of accepting.
    Accepting,
    /// A line of an AUTH exchange.
    Exchange(Exchange),
    /// The result of checking a password.
    Checking,
}

impl Session {
    /// A session with `peer`, which relays as `relay` by its address alone or is a stranger.
    pub fn new(terms: Arc<Terms>, peer: IpAddr, relay: Option<Arc<Relay>>) -> Session {
        Session {
            terms,
            peer,
            relay,
            hello: None,
            tls: false,
            authenticated: false,
            state: State::Ready,
            notes: Vec::new(),
            commands: 0,
            refusals: 0,
            defects: 0,
            auth_failures: 0,
        }
    }

    /// What we say first (RFC 5321 section 3.1).
    pub fn greeting(&self) -> Reply {
        Reply::plain(220, format!("{} ESMTP Posthaste", self.terms.hostname))
    }

    /// The list host that this session relays for; `None`: a stranger.
    pub fn relay(&self) -> Option<&Arc<Relay>> {
        self.relay.as_ref()
    }

    /// Whether content is awaited rather than a line.
    pub fn awaits_content(&self) -> bool {
        matches!(self.state, State::Content(_))
    }

    /// Whether the next line belongs to an AUTH exchange.
    pub fn awaits_exchange(&self) -> bool {
        matches!(self.state, State::Exchange(_))
    }

    /// Whether a transaction is open.
    pub fn in_transaction(&self) -> bool {
        matches!(self.state, State::Open(_) | State::Content(_) | State::Accepting)
    }

    /// How long the answer to a failed authentication is withheld: 1, 2, 4 s.
    pub fn penalty(&self) -> Duration {
        match self.auth_failures {
            0 => Duration::ZERO,
            failures => Duration::from_secs(1 << (failures - 1).min(3)),
        }
    }

    /// What was noticed since the last call.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Takes a line.
    pub fn line(&mut self, line: &Line, conditions: Conditions) -> Step {
        let step = match line {
            Line::Defect(defect) => self.defect(*defect),
            Line::Command(text) => self.command_line(text, conditions),
        };
        self.within_budget(step)
    }

    /// Counts what a stranger does, and ends it where the budget is used up.
    fn within_budget(&mut self, step: Step) -> Step {
        self.commands = self.commands.saturating_add(1);
        if matches!(&step, Step::Reply(reply) if reply.is_refusal()) {
            self.refusals = self.refusals.saturating_add(1);
        }
        let spent = self.commands > STRANGER_COMMANDS_MAX || self.refusals > STRANGER_REFUSALS_MAX;
        if self.relay.is_none() && spent {
            return Step::Close(Reply::new(421, "4.7.0", "too many commands or errors"));
        }
        step
    }

    fn defect(&mut self, defect: Defect) -> Step {
        let exchange = self.awaits_exchange();
        if exchange {
            self.state = State::Ready;
        }
        self.defects += 1;
        if defect == Defect::Endless {
            return Step::Close(Reply::new(421, "4.7.0", "the line does not end"));
        }
        if self.defects >= DEFECTS_MAX && !self.in_transaction() {
            return Step::Close(Reply::new(421, "4.7.0", "too many malformed lines"));
        }
        Step::Reply(match defect {
            Defect::BareLineFeed => Reply::new(500, "5.5.2", "bare LF: lines end in CRLF"),
            Defect::BareCarriageReturn => Reply::new(500, "5.5.2", "bare CR: lines end in CRLF"),
            Defect::Nul => Reply::new(501, "5.5.2", "NUL in a command"),
            Defect::TooLong | Defect::Endless if exchange => Reply::new(500, "5.5.6", "line too long"),
            Defect::TooLong | Defect::Endless => Reply::new(500, "5.5.2", "line too long"),
        })
    }

    fn command_line(&mut self, line: &[u8], conditions: Conditions) -> Step {
        if let State::Exchange(_) = self.state {
            return self.proceed(line);
        }
        if command::is_foreign(line) {
            return Step::Close(Reply::new(500, "5.5.1", "this is a mail relay"));
        }
        if self.relay.is_none() && !is_open_to_strangers(command::verb(line)) {
            return Step::Reply(self.denied());
        }
        match command::parse(line, self.context()) {
            Ok(command) => self.command(command, conditions),
            Err(reply) => {
                self.note_refused_rcpt(line);
                Step::Reply(reply)
            }
        }
    }

    /// DATA after nothing but refused RCPTs is answered otherwise than DATA without any (RFC 5321 section 3.3).
    fn note_refused_rcpt(&mut self, line: &[u8]) {
        if let State::Open(transaction) = &mut self.state {
            transaction.refused |= command::verb(line).eq_ignore_ascii_case(b"RCPT");
        }
    }

    fn denied(&self) -> Reply {
        Reply::new(550, "5.7.1", format!("relaying denied: {} is no list host of this relay", self.peer))
    }

    fn context(&self) -> Context {
        let smtputf8 = matches!(&self.state, State::Open(transaction) if transaction.mail.params.smtputf8);
        Context { smtputf8, requiretls: self.terms.requiretls && self.tls }
    }

    fn command(&mut self, command: Command, conditions: Conditions) -> Step {
        let reply = match command {
            Command::Ehlo(name) => self.hello(&name, true),
            Command::Helo(name) => self.hello(&name, false),
            Command::Mail(mail) => self.mail(mail, conditions),
            Command::Rcpt(rcpt) => self.rcpt(rcpt),
            Command::Data => return self.data(),
            Command::Rset => self.reset(),
            Command::Noop => Reply::new(250, "2.0.0", "ok"),
            Command::Vrfy => Reply::new(252, "2.0.0", "cannot verify, but will take mail and try to deliver it"),
            Command::Expn => Reply::new(502, "5.5.1", "not offered"),
            Command::Help => Reply::new(214, "2.0.0", "a relay for list servers; RFC 5321 says the rest"),
            Command::StartTls => return self.start_tls(),
            Command::Auth { mechanism, initial } => return self.auth(&mechanism, initial.as_deref()),
            Command::Quit => return Step::Close(Reply::new(221, "2.0.0", "bye")),
        };
        Step::Reply(reply)
    }

    /// RFC 5321 section 4.1.4: resets the transaction, and never refuses because of the name.
    fn hello(&mut self, name: &str, extended: bool) -> Reply {
        self.state = State::Ready;
        self.hello = Some(Hello { name: sanitised(name), extended });
        let ours = self.terms.hostname.to_string();
        if !extended {
            return Reply::plain(250, ours);
        }
        self.extensions().into_iter().fold(Reply::plain(250, ours), Reply::line)
    }

    fn extensions(&self) -> Vec<String> {
        let terms = &self.terms;
        let offered = [
            (true, "PIPELINING".to_owned()),
            (true, format!("SIZE {}", terms.message_bytes)),
            (true, "8BITMIME".to_owned()),
            (true, "SMTPUTF8".to_owned()),
            (true, "ENHANCEDSTATUSCODES".to_owned()),
            (true, "DSN".to_owned()),
            (true, format!("LIMITS RCPTMAX={}", terms.recipients)),
            (true, "XVERP".to_owned()),
            (terms.starttls && !self.tls, "STARTTLS".to_owned()),
            (terms.auth && self.tls && !self.authenticated, "AUTH PLAIN LOGIN".to_owned()),
            (terms.requiretls && self.tls, "REQUIRETLS".to_owned()),
        ];
        offered.into_iter().filter_map(|(on, text)| on.then_some(text)).collect()
    }

    fn reset(&mut self) -> Reply {
        self.state = State::Ready;
        Reply::new(250, "2.0.0", "ok")
    }

    fn mail(&mut self, mail: Mail, conditions: Conditions) -> Reply {
        let Some(relay) = &self.relay else { return self.denied() };
        if self.hello.is_none() {
            return Reply::new(503, "5.5.1", "EHLO or HELO first");
        }
        if self.in_transaction() {
            return Reply::new(503, "5.5.1", "a transaction is open");
        }
        if conditions.draining {
            return Reply::new(451, "4.3.2", "closing down, try again soon");
        }
        match conditions.shortage {
            Some(Shortage::Disk) => return Reply::new(452, "4.3.1", "the spool is full, try again later"),
            Some(Shortage::Memory) => return Reply::new(452, "4.3.1", "short of memory, try again later"),
            None => {}
        }
        if !is_declared(relay, &mail.path) {
            let reverse_path = as_written(&mail.path).into();
            self.notes.push(Note::Undeclared { relay: Arc::clone(&relay.name), reverse_path });
            let text = "this reverse-path domain is not declared for you; the relay's operator has been told";
            return Reply::new(451, "4.7.1", text);
        }
        if mail.size.is_some_and(|size| size > self.terms.message_bytes) {
            return Reply::new(552, "5.3.4", format!("at most {} octets are taken", self.terms.message_bytes));
        }
        self.state = State::Open(Transaction::begin(mail));
        Reply::new(250, "2.1.0", "ok")
    }

    fn rcpt(&mut self, rcpt: Rcpt) -> Reply {
        let Rcpt { path, params } = rcpt;
        let State::Open(transaction) = &mut self.state else { return Reply::new(503, "5.5.1", "MAIL first") };
        let mailbox = match (path, &self.terms.postmaster) {
            (ForwardPath::Mailbox(mailbox), _) => mailbox,
            (ForwardPath::Postmaster, Some(postmaster)) => postmaster.clone(),
            (ForwardPath::Postmaster, None) => {
                transaction.refused = true;
                return Reply::new(550, "5.1.1", "no postmaster is configured here");
            }
        };
        let full = transaction.recipients.len() >= self.terms.recipients as usize;
        if full && !transaction.contains(&mailbox) {
            transaction.refused = true;
            return Reply::new(452, "4.5.3", format!("at most {} recipients in a transaction", self.terms.recipients));
        }
        self.add_recipient(mailbox, params);
        Reply::new(250, "2.1.5", "ok")
    }

    fn add_recipient(&mut self, mailbox: Mailbox, params: RecipientParams) {
        let State::Open(transaction) = &mut self.state else { return };
        if !transaction.add(mailbox, params) {
            self.notes.push(Note::Lint(Lint::RepeatedRecipient));
        }
    }

    /// RFC 5321 section 3.3. A DATA that fails ends the transaction: nothing of it may leak into the next.
    fn data(&mut self) -> Step {
        let State::Open(transaction) = std::mem::replace(&mut self.state, State::Ready) else {
            return Step::Reply(Reply::new(503, "5.5.1", "MAIL first"));
        };
        if transaction.recipients.is_empty() {
            let refused = Reply::new(554, "5.5.1", "no valid recipients");
            return Step::Reply(if transaction.refused { refused } else { Reply::new(503, "5.5.1", "RCPT first") });
        }
        self.state = State::Content(Incoming::begin(transaction, self.terms.message_bytes));
        Step::Receive(Reply::plain(354, "go ahead, end with CRLF.CRLF"))
    }

    /// Takes what is buffered while content is awaited. Outside of that it takes nothing.
    pub fn content(&mut self, buffer: &[u8]) -> Taken {
        let State::Content(incoming) = &mut self.state else {
            return Taken { content: 0, keep: false, end: None };
        };
        let scan = incoming.scan(buffer);
        Taken { content: scan.content, keep: incoming.is_sound(), end: scan.end }
    }

    /// The content is complete.
    pub fn complete(&mut self) -> Verdict {
        let over = || Verdict::Refuse(Reply::new(503, "5.5.1", "DATA first"));
        let Some(relay) = self.relay.clone() else { return over() };
        let State::Content(incoming) = std::mem::replace(&mut self.state, State::Ready) else { return over() };
        if let Some(reply) = incoming.refusal(self.terms.hops) {
            return Verdict::Refuse(reply);
        }
        self.notes.extend(incoming.lints().into_iter().map(Note::Lint));
        self.state = State::Accepting;
        Verdict::Accept(Box::new(self.accept(relay, incoming)))
    }

    fn accept(&self, relay: Arc<Relay>, incoming: Incoming) -> Accepted {
        let findings = incoming.findings();
        let Transaction { mail, recipients, .. } = incoming.transaction;
        let reverse_path = match mail.path {
            MailPath::Path(path) => path,
            MailPath::Unroutable(_) => unreachable!("an unroutable reverse-path opens no transaction"),
        };
        let helo = self.hello.as_ref().map_or_else(|| "unknown".into(), |hello| hello.name.clone());
        let protocol = self.protocol(mail.params.smtputf8);
        let (params, verp, head) = (mail.params, mail.verp, incoming.head);
        Accepted { relay, reverse_path, params, verp, recipients, head, findings, helo, protocol }
    }

    /// RFC 3848, and RFC 6531 section 4.3 for SMTPUTF8.
    fn protocol(&self, smtputf8: bool) -> &'static str {
        let extended = self.hello.as_ref().is_some_and(|hello| hello.extended);
        match (extended, smtputf8, self.tls, self.authenticated) {
            (_, true, true, true) => "UTF8SMTPSA",
            (_, true, true, false) => "UTF8SMTPS",
            (_, true, false, true) => "UTF8SMTPA",
            (_, true, false, false) => "UTF8SMTP",
            (true, _, true, true) => "ESMTPSA",
            (true, _, true, false) => "ESMTPS",
            (true, _, false, true) => "ESMTPA",
            (true, _, false, false) => "ESMTP",
            (false, ..) => "SMTP",
        }
    }

    /// Accepting has ended, one way or the other; the caller says how.
    pub fn conclude(&mut self) {
        self.state = State::Ready;
    }

    fn start_tls(&mut self) -> Step {
        let refusal = if self.tls {
            Reply::new(503, "5.5.1", "TLS is on")
        } else if !self.terms.starttls {
            Reply::new(502, "5.5.1", "not offered")
        } else if self.in_transaction() {
            Reply::new(503, "5.5.1", "a transaction is open")
        } else {
            return Step::StartTls(Reply::new(220, "2.0.0", "go ahead"));
        };
        Step::Reply(refusal)
    }

    /// TLS is on. What was said before is forgotten (RFC 3207 section 4.2).
    pub fn tls_started(&mut self) {
        self.tls = true;
        self.hello = None;
        self.state = State::Ready;
    }

    fn auth(&mut self, mechanism: &str, initial: Option<&str>) -> Step {
        let refusal = if self.authenticated {
            Reply::new(503, "5.5.1", "already authenticated")
        } else if self.in_transaction() {
            Reply::new(503, "5.5.1", "a transaction is open")
        } else if !self.terms.auth {
            Reply::new(502, "5.5.1", "not offered")
        } else if !self.tls {
            Reply::new(538, "5.7.11", "STARTTLS first")
        } else {
            return self.progress(sasl::begin(mechanism, initial));
        };
        Step::Reply(refusal)
    }

    fn proceed(&mut self, line: &[u8]) -> Step {
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Exchange(exchange) => self.progress(sasl::proceed(exchange, line)),
            _ => Step::Reply(Reply::new(503, "5.5.1", "AUTH first")),
        }
    }

    fn progress(&mut self, progress: Progress) -> Step {
        match progress {
            Progress::Challenge(exchange, reply) => {
                self.state = State::Exchange(exchange);
                Step::Reply(reply)
            }
            Progress::Check(credentials) => {
                self.state = State::Checking;
                Step::CheckPassword(credentials)
            }
            Progress::Refused(reply) => Step::Reply(reply),
        }
    }

    /// The password was checked. The caller waits for [`Session::penalty`] before it says a refusal.
    pub fn password_checked(&mut self, checked: Checked) -> Step {
        self.state = State::Ready;
        match checked {
            Checked::Granted(relay) => {
                self.relay = Some(relay);
                self.authenticated = true;
                self.auth_failures = 0;
                Step::Reply(Reply::new(235, "2.7.0", "welcome"))
            }
            Checked::Unavailable => Step::Reply(Reply::new(454, "4.7.0", "cannot check passwords now")),
            Checked::Denied => {
                self.auth_failures += 1;
                if self.auth_failures >= AUTH_FAILURES_MAX {
                    return Step::Close(Reply::new(421, "4.7.0", "too many failed authentications"));
                }
                Step::Reply(sasl::denied())
            }
        }
    }
}

fn is_open_to_strangers(verb: &[u8]) -> bool {
    const OPEN: [&[u8]; 7] = [b"EHLO", b"HELO", b"STARTTLS", b"AUTH", b"NOOP", b"RSET", b"QUIT"];
    OPEN.iter().any(|open| verb.eq_ignore_ascii_case(open))
}

fn is_declared(relay: &Relay, path: &MailPath) -> bool {
    match path {
        MailPath::Path(ReversePath::Null) => true,
        MailPath::Path(ReversePath::Mailbox(mailbox)) => {
            let domain = mailbox.domain();
            relay.reverse_path_domains.iter().any(|declared| domain.is_within(declared))
        }
        MailPath::Unroutable(_) => false,
    }
}

fn as_written(path: &MailPath) -> &str {
    match path {
        MailPath::Path(path) => path.as_str(),
        MailPath::Unroutable(text) => text,
    }
}

/// The client's name as it may stand in a Received line: it must not be able to close the clause that it stands in.
fn sanitised(name: &str) -> Box<str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'[' | b']');
    if name.len() <= 255 && name.bytes().all(plain) { name.into() } else { "unknown".into() }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
