//! One mail transaction: MAIL, RCPTs, DATA, content, dot, and what became of each recipient.
//!
//! Where PIPELINING is offered the whole envelope leaves in one write (RFC 2920); the replies are counted one by one. A
//! recipient is relayed only by a 2yz to the final dot. Everything else that can happen settles whoever is still
//! undecided, in one way: by `classify`.

use std::time::Duration;

use tokio::time::Instant;

use super::classify::{self, Fault, Setback};
use super::client::Session;
use super::envelope::{self, Matter, Plan};
use super::options::Timeouts;
use super::{Outgoing, received};
use crate::attempt::Attempt;
use crate::outcome::{Outcome, Phase, Reason, Reply};

/// Commands written before their replies are read. Bounds what the peer must buffer if it answers as it reads: both sides
/// would otherwise wait for each other's window (RFC 2920 section 3.1).
const GROUP_MAX: usize = 102;
/// How long a reply that explains a broken content write is waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long RSET may take; a host that dawdles over it is not worth its slot.
const RESET: Duration = Duration::from_secs(20);

/// What is sent, beside the attempt itself.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    /// What is sent below the Received line.
    pub(super) outgoing: &'a Outgoing,
    /// Our name.
    pub(super) hostname: &'a str,
    /// Per command.
    pub(super) timeouts: &'a Timeouts,
    /// Whether 8-bit content may go to a host without 8BITMIME.
    pub(super) pass_eight_bit: bool,
}

/// How a transaction ended.
#[derive(Debug)]
pub(super) enum End {
    /// Every recipient has an outcome.
    Done(Conclusion),
    /// The connection had died while it was idle: nothing was said, nothing was counted.
    Stale,
    /// This host cannot take the message; MAIL was not sent.
    Unfit(Setback),
}

/// The outcomes, and what is left of the connection.
#[derive(Debug)]
pub(super) struct Conclusion {
    /// One per recipient of the attempt.
    pub(super) outcomes: Vec<Outcome>,
    /// What dispatch slows down or suspends on.
    pub(super) trouble: Option<Reason>,
    /// Whether the connection may carry another transaction.
    pub(super) reusable: bool,
    /// Whether the connection was refused while others of ours were open.
    pub(super) crowded: bool,
}

/// Runs the transaction. `reused`: the connection has lain idle, so that its death says nothing about the host.
pub(super) async fn run(session: &mut Session, attempt: &Attempt, means: Means<'_>, reused: bool) -> End {
    let received = received::line(&attempt.trace, means.hostname, attempt.id);
    let matter = Matter {
        attempt,
        content: &means.outgoing.content,
        size: attempt.envelope.content_size + (received.len() + means.outgoing.prefix.len()) as u64,
        pass_eight_bit: means.pass_eight_bit,
    };
    let plan = match envelope::plan(&matter, &session.capabilities, &session.peer.remote) {
        Ok(plan) => plan,
        Err(setback) => return End::Unfit(setback),
    };
    let Plan { named, settled } = plan;
    let mut transaction = Transaction {
        session,
        timeouts: means.timeouts,
        deadline: Instant::now() + envelope_deadline(means.timeouts),
        outcomes: settled,
        accepted: Vec::with_capacity(named.len()),
        heard: false,
        open: false,
    };
    let break_off = match transaction.envelope(&matter, &named).await {
        Ok(Progress::Go) => transaction.content(&received, means.outgoing).await,
        Ok(Progress::Over) => Ok(()),
        Err(end) => Err(end),
    };
    match break_off {
        Err(Break::Fault(_, fault)) if reused && !transaction.heard && !matches!(fault, Fault::Timeout) => End::Stale,
        Err(Break::Closing(Phase::Mail, _)) if reused => End::Stale,
        other => End::Done(transaction.conclude(other).await),
    }
}

/// A host may take each command's time once or twice, not for each of a thousand recipients.
fn envelope_deadline(timeouts: &Timeouts) -> Duration {
    timeouts.mail + timeouts.rcpt * 2 + timeouts.data
}

/// A command of the envelope.
#[derive(Clone, Copy)]
enum Command {
    Mail,
    Rcpt(usize),
    Data,
}

impl Command {
    fn phase(self) -> Phase {
        match self {
            Command::Mail => Phase::Mail,
            Command::Rcpt(_) => Phase::Rcpt,
            Command::Data => Phase::Data,
        }
    }

    fn timeout(self, timeouts: &Timeouts) -> Duration {
        match self {
            Command::Mail => timeouts.mail,
            Command::Rcpt(_) => timeouts.rcpt,
            Command::Data => timeouts.data,
        }
    }
}

/// Whether the content is to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Go,
    Over,
}

/// What ends the conversation and the connection with it.
enum Break {
    /// No reply.
    Fault(Phase, Fault),
    /// 421: the host closes the connection (RFC 5321 section 3.8).
    Closing(Phase, Reply),
    /// All was sent, the reply to the dot did not come.
    AfterDot(Fault),
    /// The host answered in the middle of the content.
    Interrupted(Reply),
}

struct Transaction<'a> {
    session: &'a mut Session,
    timeouts: &'a Timeouts,
    /// When the envelope must be through.
    deadline: Instant,
    /// By recipient; `None` while undecided.
    outcomes: Vec<Option<Outcome>>,
    /// Who was accepted at RCPT, in order.
    accepted: Vec<usize>,
    /// Whether the host has said anything.
    heard: bool,
    /// Whether the host holds a transaction of ours that RSET must end.
    open: bool,
}

impl Transaction<'_> {
    /// MAIL to DATA. Without PIPELINING each command is a group of its own.
    async fn envelope(&mut self, matter: &Matter<'_>, named: &[usize]) -> Result<Progress, Break> {
        let mut commands = Vec::with_capacity(named.len() + 2);
        commands.push(Command::Mail);
        commands.extend(named.iter().copied().map(Command::Rcpt));
        commands.push(Command::Data);
        let group_size = if self.session.capabilities.pipelining { GROUP_MAX } else { 1 };
        let mut progress = Progress::Over;
        for group in commands.chunks(group_size) {
            if self.is_hopeless(group) {
                return Ok(Progress::Over);
            }
            self.send_group(matter, group).await?;
            for &command in group {
                progress = self.hear(command).await?;
            }
        }
        Ok(progress)
    }

    /// Whether nothing that `group` says can lead to a delivery.
    fn is_hopeless(&self, group: &[Command]) -> bool {
        let nobody = self.accepted.is_empty();
        match group.first() {
            Some(Command::Mail) => false,
            Some(Command::Data) => nobody,
            _ => self.outcomes.iter().all(Option::is_some),
        }
    }

    async fn send_group(&mut self, matter: &Matter<'_>, group: &[Command]) -> Result<(), Break> {
        let host = &self.session.capabilities;
        let utf8 = host.smtputf8 && matter.attempt.envelope.params.smtputf8;
        let mut lines = Vec::with_capacity(64 * group.len() + 64);
        for command in group {
            match *command {
                Command::Mail => envelope::write_mail(&mut lines, matter, host),
                Command::Rcpt(index) => {
                    envelope::write_rcpt(&mut lines, &matter.attempt.recipients[index].recipient, host, utf8);
                }
                Command::Data => lines.extend_from_slice(b"DATA\r\n"),
            }
        }
        let phase = group.first().map_or(Phase::Mail, |command| command.phase());
        let within = group.first().map_or(self.timeouts.mail, |command| command.timeout(self.timeouts));
        self.session.send(&lines, within).await.map_err(|fault| Break::Fault(phase, fault))
    }

    /// Reads the reply to `command` and draws the consequence.
    async fn hear(&mut self, command: Command) -> Result<Progress, Break> {
        let phase = command.phase();
        let left = self.deadline.saturating_duration_since(Instant::now());
        let reply = self.session.read(command.timeout(self.timeouts).min(left)).await;
        let reply = reply.map_err(|fault| Break::Fault(phase, fault))?;
        if reply.code == 421 {
            return Err(Break::Closing(phase, reply));
        }
        self.heard = true;
        Ok(match command {
            Command::Mail => self.heard_mail(reply),
            Command::Rcpt(index) => self.heard_rcpt(index, reply),
            Command::Data => self.heard_data(reply),
        })
    }

    fn heard_mail(&mut self, reply: Reply) -> Progress {
        self.open = reply.is_positive();
        if !reply.is_positive() {
            let outcome = classify::rejected(Phase::Mail, reply, &self.session.peer.remote);
            self.settle_undecided(&outcome);
        }
        Progress::Over
    }

    /// After a refused MAIL everybody is decided, and the 503 that follow say nothing.
    fn heard_rcpt(&mut self, index: usize, reply: Reply) -> Progress {
        if self.outcomes[index].is_none() {
            match classify::at_rcpt(reply, !self.accepted.is_empty(), &self.session.peer.remote) {
                None => self.accepted.push(index),
                decided => self.outcomes[index] = decided,
            }
        }
        Progress::Over
    }

    /// A 354 is followed up even where nobody was accepted, with a lone dot (RFC 2920 section 3.1).
    fn heard_data(&mut self, reply: Reply) -> Progress {
        if reply.code == 354 {
            return Progress::Go;
        }
        let outcome = classify::rejected(Phase::Data, reply, &self.session.peer.remote);
        self.settle_undecided(&outcome);
        Progress::Over
    }

    /// After the 354.
    async fn content(&mut self, received: &str, outgoing: &Outgoing) -> Result<(), Break> {
        self.session.expect_silence().map_err(|fault| Break::Fault(Phase::Data, fault))?;
        self.open = false;
        if self.accepted.is_empty() {
            return self.lone_dot().await;
        }
        let parts = [received.as_bytes(), &outgoing.prefix, &outgoing.content, b".\r\n"];
        match self.session.send_content(parts, self.timeouts.block).await {
            Ok(()) => self.after_dot().await,
            Err((true, fault)) => Err(Break::AfterDot(fault)),
            Err((false, fault)) => Err(self.last_words(fault).await),
        }
    }

    async fn lone_dot(&mut self) -> Result<(), Break> {
        let broken = |fault| Break::Fault(Phase::Dot, fault);
        self.session.send(b".\r\n", self.timeouts.block).await.map_err(broken)?;
        self.session.read(self.timeouts.dot).await.map(drop).map_err(broken)
    }

    /// A host that breaks off in the middle of the content often says why before it closes.
    async fn last_words(&mut self, fault: Fault) -> Break {
        match self.session.read(LAST_WORDS).await {
            Ok(reply) if reply.code >= 400 => Break::Interrupted(reply),
            _ => Break::Fault(Phase::Content, fault),
        }
    }

    /// One reply for all; with LMTP one for each accepted recipient, in the order of the RCPTs (RFC 2033 section 4.2).
    async fn after_dot(&mut self) -> Result<(), Break> {
        if !self.session.peer.lmtp {
            let reply = self.session.read(self.timeouts.dot).await.map_err(Break::AfterDot)?;
            let outcome = self.at_dot(reply)?;
            self.settle_undecided(&outcome);
            return Ok(());
        }
        for index in std::mem::take(&mut self.accepted) {
            let reply = self.session.read(self.timeouts.dot).await.map_err(Break::AfterDot)?;
            self.outcomes[index] = Some(self.at_dot(reply)?);
            self.accepted.push(index);
        }
        Ok(())
    }

    fn at_dot(&self, reply: Reply) -> Result<Outcome, Break> {
        let remote = &self.session.peer.remote;
        match reply.code {
            421 => Err(Break::Closing(Phase::Dot, reply)),
            200..=299 => {
                Ok(Outcome::Relayed { remote: remote.clone(), reply, dsn_passed_on: self.session.capabilities.dsn })
            }
            _ => Ok(classify::rejected(Phase::Dot, reply, remote)),
        }
    }

    fn settle_undecided(&mut self, outcome: &Outcome) {
        for undecided in self.outcomes.iter_mut().filter(|decided| decided.is_none()) {
            *undecided = Some(outcome.clone());
        }
    }

    /// Decides whoever is left and whether the connection is fit for another transaction.
    async fn conclude(mut self, break_off: Result<(), Break>) -> Conclusion {
        let intact = break_off.is_ok();
        let remote = &self.session.peer.remote;
        let end = match break_off {
            Ok(()) => None,
            Err(Break::Fault(phase, fault)) => Some(classify::lost(phase, &fault, remote)),
            Err(Break::Closing(phase, reply)) => Some(classify::rejected(phase, reply, remote)),
            Err(Break::AfterDot(fault)) => Some(classify::lost(Phase::Dot, &fault, remote)),
            Err(Break::Interrupted(reply)) => Some(classify::rejected(Phase::Content, reply, remote)),
        };
        if let Some(outcome) = &end {
            self.settle_undecided(outcome);
        }
        let reusable = intact && self.is_clean().await;
        let anybody = !self.accepted.is_empty();
        let outcomes: Vec<_> = self.outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::NotTried)).collect();
        let trouble =
            end.iter().chain(&outcomes).filter_map(reason).find(|r| classify::is_trouble(r, anybody)).cloned();
        Conclusion { outcomes, trouble, reusable, crowded: false }
    }

    /// Ends a transaction that was left open, and listens for what nobody asked for.
    async fn is_clean(&mut self) -> bool {
        let reset = match self.open {
            true => self.session.command(b"RSET\r\n", RESET).await.is_ok_and(|reply| reply.is_positive()),
            false => true,
        };
        reset && self.session.expect_silence().is_ok()
    }
}

fn reason(outcome: &Outcome) -> Option<&Reason> {
    match outcome {
        Outcome::Deferred(reason) | Outcome::Indeterminate(reason) | Outcome::Failed(reason) => Some(reason),
        Outcome::Relayed { .. } | Outcome::NotTried => None,
    }
}
