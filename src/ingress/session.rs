//! Drives one session: octets to lines, lines to steps, steps to effects. What to say is decided in
//! [`crate::smtp::session`]; this file only waits, reads, writes and asks.
//!
//! Replies to pipelined commands leave in one write: they are flushed when the input is exhausted or before an effect
//! is waited for (RFC 2920 section 3.2).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::mailing::Clue;
use crate::smtp::command;
use crate::smtp::line::{Framer, Line};
use crate::smtp::reply::Reply;
use crate::smtp::session::{Accepted, Checked, Conditions, Credentials, Note, Relay, Session, Step, Verdict};
use crate::spool::{AcceptError, NewContent};

use super::compose::{Origin, submissions};
use super::places::Place;
use super::stream::Stream;
use super::{ContentSink, Policy, Shared, Store};

/// Octets that are read at a time: of commands, and of content.
const READ_COMMANDS: usize = 4 * 1024;
const READ_CONTENT: usize = 32 * 1024;

/// Octets of replies that may wait to be written: a client that pipelines for ever is answered in between.
const OUTPUT_MAX: usize = 16 * 1024;

/// How long a stranger may take over a line, and over all it wants to say.
const STRANGER_IDLE: Duration = Duration::from_secs(60);
const STRANGER_STAY: Duration = Duration::from_secs(300);

/// The least pace of content, in octets a second, beside the idle time that every message has.
const PACE_MIN: u64 = 500;

/// While draining: how long a session without a transaction may be silent before it is closed. A client that is about to
/// say MAIL says it at once and gets its 451; closing under its hands would kill mlmmj.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

/// Contents above this are finished on a thread of their own: that may include an fsync of a file.
const FINISH_ELSEWHERE: u64 = 128 * 1024;

/// How a session ended.
enum End {
    /// We said our last word: QUIT, 421, or a refusal that closes.
    Said(&'static str),
    /// The client closed the connection, or it broke.
    Gone,
    /// Nothing more was said in time.
    Idle,
    /// There was input behind STARTTLS.
    Injected,
}

impl End {
    fn as_str(&self) -> &'static str {
        match self {
            End::Said(why) => why,
            End::Gone => "gone",
            End::Idle => "idle",
            End::Injected => "injected",
        }
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

/// What ended a wait for input.
enum Woken {
    Input,
    Deadline,
    Draining,
}

/// One connection with its session.
pub(super) struct Connection<S: Store> {
    shared: Arc<Shared<S>>,
    policy: Arc<Policy>,
    stream: Option<Stream>,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    place: Place,
    session: Session,
    framer: Framer,
    input: BytesMut,
    output: Vec<u8>,
    since: Instant,
}

impl<S: Store> Connection<S> {
    pub(super) fn new(
        shared: Arc<Shared<S>>,
        policy: Arc<Policy>,
        stream: TcpStream,
        peer: SocketAddr,
        relay: Option<Arc<Relay>>,
        tls: Option<Arc<ServerConfig>>,
        place: Place,
    ) -> Connection<S> {
        let session = Session::new(Arc::clone(policy.terms(tls.is_some())), peer.ip().to_canonical(), relay);
        Connection {
            shared,
            policy,
            stream: Some(Stream::Clear(stream)),
            peer,
            tls,
            place,
            session,
            framer: Framer::default(),
            input: BytesMut::new(),
            output: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Runs the session to its end.
    pub(super) async fn run(mut self) {
        let Err(end) = self.converse().await;
        let _ = self.flush().await;
        self.shared.metrics.closed.with_label_values(&[end.as_str()]).inc();
        debug!(peer = %self.peer, end = end.as_str(), "session ended");
        if let Some(stream) = self.stream.take() {
            stream.close().await;
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        let greeting = self.session.greeting();
        self.say(&greeting);
        loop {
            if self.session.awaits_content() {
                self.receive().await?;
            } else {
                let line = self.next_line().await?;
                let step = self.session.line(&line, self.conditions(&line));
                self.take(step).await?;
            }
        }
    }

    /// Only MAIL asks whether there is room.
    fn conditions(&self, line: &Line) -> Conditions {
        let is_mail = matches!(line, Line::Command(text) if command::verb(text).eq_ignore_ascii_case(b"MAIL"));
        let shortage = if is_mail { self.shared.store.shortage() } else { None };
        Conditions { shortage, draining: self.is_draining() }
    }

    fn is_draining(&self) -> bool {
        self.shared.phase.borrow().deadline().is_some()
    }

    /// Does what a step asks for.
    async fn take(&mut self, step: Step) -> Result<(), End> {
        self.count_notes();
        match step {
            Step::Reply(reply) | Step::Receive(reply) => self.say(&reply),
            Step::StartTls(reply) => self.start_tls(&reply).await?,
            Step::CheckPassword(credentials) => self.check_password(credentials).await?,
            Step::Close(reply) => {
                self.say(&reply);
                return Err(End::Said(if reply.code() == 221 { "quit" } else { "refused" }));
            }
        }
        if self.output.len() > OUTPUT_MAX { self.flush().await } else { Ok(()) }
    }

    fn say(&mut self, reply: &Reply) {
        if reply.is_refusal() {
            let said = format!("{} {}", reply.code(), reply.enhanced().unwrap_or_default());
            self.shared.metrics.refusals.with_label_values(&[&*said]).inc();
            debug!(peer = %self.peer, %said, text = ?reply.text(), "refused");
        }
        reply.write_to(&mut self.output);
    }

    fn count_notes(&mut self) {
        for note in self.session.take_notes() {
            match note {
                Note::Lint(lint) => self.shared.metrics.lints.with_label_values(&[lint.as_str()]).inc(),
                Note::Undeclared { relay, reverse_path } => self.undeclared(&relay, &reverse_path),
            }
        }
    }

    fn undeclared(&self, relay: &Arc<str>, reverse_path: &str) {
        self.shared.metrics.undeclared.with_label_values(&[&**relay]).inc();
        if self.shared.complaints.may_log(relay, Instant::now()) {
            warn!(
                list_host = %relay, ?reverse_path,
                "reverse-path domain not declared: mail waits at the list host until it is added to reverse_path_domains"
            );
        }
    }

    /// The next line, however long it takes within the limits.
    async fn next_line(&mut self) -> Result<Line, End> {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.framer.next(&mut self.input, self.session.awaits_exchange()) {
                return Ok(line);
            }
            if command::is_foreign_start(&self.input) && !self.session.in_transaction() {
                self.say(&Reply::new(500, "5.5.1", "this is a mail relay"));
                return Err(End::Said("refused"));
            }
            self.flush().await?;
            let deadline = self.line_deadline(begun);
            match self.wait(deadline).await? {
                Woken::Input | Woken::Draining => {}
                Woken::Deadline => return Err(self.silent()),
            }
        }
    }

    fn line_deadline(&self, begun: Instant) -> Instant {
        let idle = begun + self.policy.idle_timeout;
        let stranger = (begun + STRANGER_IDLE).min(self.since + STRANGER_STAY);
        let deadline = if self.session.relay().is_some() { idle } else { idle.min(stranger) };
        let may_close = self.is_draining() && !self.session.in_transaction();
        if may_close { deadline.min(begun.max(self.shared.phase.borrow().since()) + DRAIN_IDLE) } else { deadline }
    }

    /// Nothing came in time.
    fn silent(&mut self) -> End {
        if self.is_draining() {
            self.say(&Reply::new(421, "4.3.2", "closing down"));
            return End::Said("drained");
        }
        self.say(&Reply::new(421, "4.4.2", "idle for too long"));
        End::Idle
    }

    /// Waits for input, until a deadline; also returns when draining begins.
    async fn wait(&mut self, deadline: Instant) -> Result<Woken, End> {
        let Some(stream) = &mut self.stream else { return Err(End::Gone) };
        let draining = self.shared.phase.borrow().deadline().is_some();
        let mut phase = self.shared.phase.clone();
        make_room(&mut self.input, self.session.awaits_content());
        tokio::select! {
            biased;
            read = stream.read(&mut self.input) => match read? {
                0 => Err(End::Gone),
                _ => Ok(Woken::Input),
            },
            () = sleep_until(deadline) => Ok(Woken::Deadline),
            Ok(_) = phase.wait_for(|phase| phase.deadline().is_some()), if !draining => Ok(Woken::Draining),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let pause = self.shared.places.pause(self.shared.limits());
        if !pause.is_zero() {
            self.shared.metrics.pauses.inc();
            sleep(pause).await;
        }
        let stream = self.stream.as_mut().ok_or(End::Gone)?;
        stream.write(&self.output).await?;
        self.output.clear();
        Ok(())
    }

    /// RFC 3207. Input that is there already was sent in the clear to be taken for what comes under TLS; it and the
    /// connection are dropped unanswered.
    async fn start_tls(&mut self, reply: &Reply) -> Result<(), End> {
        let tls = &self.shared.metrics.tls;
        let Some(config) = self.tls.clone() else { return Err(End::Gone) };
        if !self.input.is_empty() {
            tls.with_label_values(&["injected"]).inc();
            warn!(peer = %self.peer, "input behind STARTTLS in the clear: connection dropped");
            return Err(End::Injected);
        }
        self.say(reply);
        self.flush().await?;
        let stream = self.stream.take().ok_or(End::Gone)?;
        let secured = stream.secure(config).await.inspect_err(|error| {
            self.shared.metrics.tls.with_label_values(&["failed"]).inc();
            debug!(peer = %self.peer, %error, "TLS handshake failed");
        })?;
        self.shared.metrics.tls.with_label_values(&["ok"]).inc();
        self.stream = Some(secured);
        self.framer = Framer::default();
        self.session.tls_started();
        Ok(())
    }

    async fn check_password(&mut self, credentials: Credentials) -> Result<(), End> {
        self.flush().await?;
        let checked = self.policy.admission.authenticator.check(credentials).await;
        let result = match &checked {
            Checked::Granted(relay) => {
                self.place.is_known_now();
                debug!(peer = %self.peer, list_host = %relay.name, "authenticated");
                "ok"
            }
            Checked::Denied => "denied",
            Checked::Unavailable => "unavailable",
        };
        self.shared.metrics.auth.with_label_values(&[result]).inc();
        let denied = matches!(checked, Checked::Denied);
        let step = self.session.password_checked(checked);
        if denied {
            info!(peer = %self.peer, "authentication failed");
            sleep(self.session.penalty()).await;
        }
        match step {
            Step::Close(reply) => {
                self.say(&reply);
                Err(End::Said("refused"))
            }
            Step::Reply(reply) => {
                self.say(&reply);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Receives content up to the final dot, then accepts or refuses it.
    async fn receive(&mut self) -> Result<(), End> {
        let mut keeping: Keeping<S::Writer> = Keeping::Sound(self.shared.store.writer());
        let (begun, mut received) = (Instant::now(), 0);
        loop {
            let taken = self.session.content(&self.input);
            keeping.write(&self.input[..taken.content], taken.keep);
            self.input.advance(taken.content);
            received += taken.content as u64;
            if let Some(end) = taken.end {
                self.input.advance(end);
                return self.complete(keeping).await;
            }
            self.flush().await?;
            let pace = begun + self.policy.idle_timeout + Duration::from_secs(received / PACE_MIN);
            let deadline = pace.min(Instant::now() + self.policy.idle_timeout);
            if let Woken::Deadline = self.wait(deadline).await? {
                self.say(&Reply::new(421, "4.4.2", "the message came too slowly"));
                return Err(End::Idle);
            }
        }
    }

    /// The final dot is there.
    async fn complete(&mut self, keeping: Keeping<S::Writer>) -> Result<(), End> {
        let begun = Instant::now();
        let reply = match self.session.complete() {
            Verdict::Refuse(reply) => reply,
            Verdict::Accept(accepted) => {
                self.flush().await?;
                let reply = self.accept(*accepted, keeping).await;
                self.session.conclude();
                reply
            }
        };
        self.count_notes();
        self.shared.metrics.accept_seconds.observe(begun.elapsed().as_secs_f64());
        self.say(&reply);
        if self.output.len() > OUTPUT_MAX { self.flush().await } else { Ok(()) }
    }

    /// Everything is taken or nothing: with XVERP a transaction is many submissions, and a client that hears 4yz repeats
    /// them all.
    async fn accept(&self, accepted: Accepted, keeping: Keeping<S::Writer>) -> Reply {
        let content = match keeping.finish(accepted.findings.size, accepted.findings.eight_bit).await {
            Ok(content) => content,
            Err(error) => return refusal(&AcceptError::Io(Arc::new(error))),
        };
        let relay = Arc::clone(&accepted.relay);
        let (recipients, octets) = (accepted.recipients.len() as u64, accepted.findings.size);
        let clue = Clue::read(&accepted.head, &self.policy.campaign_headers);
        let mailing = self.shared.recognise(&relay.name, &clue, accepted.recipients.len());
        let origin = Origin { peer: self.peer.ip().to_canonical(), at: self.shared.clock.wall(), mailing };
        let (submissions, lints) = submissions(accepted, content, &origin);
        for lint in lints {
            self.shared.metrics.lints.with_label_values(&[lint.as_str()]).inc();
        }
        match self.shared.store.accept_all(submissions).await {
            Ok(ids) => {
                self.count_batches(&relay.name, ids.len() as u64, recipients, octets);
                Reply::new(250, "2.0.0", queued_as(&ids))
            }
            Err(error) => refusal(&error),
        }
    }

    fn count_batches(&self, list_host: &str, batches: u64, recipients: u64, octets: u64) {
        let metrics = &self.shared.metrics;
        metrics.batches.with_label_values(&[list_host]).inc_by(batches);
        metrics.recipients.with_label_values(&[list_host]).inc_by(recipients);
        metrics.octets.with_label_values(&[list_host]).inc_by(octets);
    }
}

/// Room to read into. A session that waits for its next command gives the large buffer back: most sessions are idle
/// most of the time.
fn make_room(input: &mut BytesMut, content: bool) {
    if !content && input.is_empty() && input.capacity() > 2 * READ_COMMANDS {
        *input = BytesMut::new();
    }
    input.reserve(if content { READ_CONTENT } else { READ_COMMANDS });
}

fn queued_as(ids: &[crate::mail::QueueId]) -> String {
    match ids {
        [] => "ok".to_owned(),
        [id] => format!("queued as {id}"),
        [first, .., last] => format!("queued as {first} to {last}"),
    }
}

/// The one kind of 4yz after the dot: the message is not on disk, and saying otherwise would lose it.
fn refusal(error: &AcceptError) -> Reply {
    let full = match error {
        AcceptError::Full => true,
        AcceptError::Io(io) => io.kind() == io::ErrorKind::StorageFull,
        AcceptError::Closing => return Reply::new(451, "4.3.2", "closing down, try again soon"),
    };
    warn!(%error, "a message could not be taken into the spool");
    match full {
        true => Reply::new(452, "4.3.1", "the spool is full, try again later"),
        false => Reply::new(451, "4.3.0", "the spool could not be written, try again later"),
    }
}

/// Content on its way into the spool.
enum Keeping<W> {
    /// All of it so far.
    Sound(W),
    /// It will be refused: read to its end and dropped.
    Dropped,
    /// The spool could not take it.
    Failed(io::Error),
}

impl<W: ContentSink> Keeping<W> {
    fn write(&mut self, stuffed: &[u8], keep: bool) {
        if !keep {
            *self = Keeping::Dropped;
        } else if let Keeping::Sound(sink) = self
            && let Err(error) = sink.write(stuffed)
        {
            *self = Keeping::Failed(error);
        }
    }

    async fn finish(self, size: u64, eight_bit: bool) -> io::Result<NewContent> {
        match self {
            Keeping::Sound(sink) if size > FINISH_ELSEWHERE => {
                tokio::task::spawn_blocking(move || sink.finish(size, eight_bit)).await?
            }
            Keeping::Sound(sink) => sink.finish(size, eight_bit),
            Keeping::Failed(error) => Err(error),
            Keeping::Dropped => Err(io::Error::other("refused content was to be accepted")),
        }
    }
}
