//! Settle: applies outcomes. The only place where the paper path loops back.
//!
//! What an attempt reported is turned into one [`Settlement`] (which the engine has recorded before anything else is
//! done with it), the lines of the log, and what is to be offered again at once. Pure: the clock's reading and the
//! chance for the jitter are arguments.

use std::sync::Arc;
use std::time::Duration;

use crate::attempt::{AttemptReport, Delays};
use crate::bounce::{Event, obligation_for};
use crate::clock::Tick;
use crate::dispatch::RetrySchedule;
use crate::log::OutcomeLine;
use crate::mail::{Destination, Queued, RecipientId, ReversePath};
use crate::outcome::{Enhanced, Outcome, Phase, Reason, Scope};
use crate::spool::{End, Fate, Obligation, ObligationKind, Settlement};

/// Longest note kept with a recipient ("last reply"), in octets.
const NOTE_MAX: usize = 512;

/// What settle is told.
#[derive(Clone, Debug)]
pub struct Rules {
    /// When the next attempt is, and when there is none.
    pub retry: RetrySchedule,
    /// Age from which a delay is worth a report, where NOTIFY=DELAY asked for one.
    pub delay_after: Duration,
}

/// What an attempt comes to.
#[derive(Debug, Default)]
pub struct Settled {
    /// To be recorded first.
    pub fates: Vec<(RecipientId, Fate)>,
    /// When mail of which destination is due again.
    pub due: Option<(Destination, Tick)>,
    /// To be offered again at once.
    pub again: Vec<Queued>,
    /// Reports of ours that their list host will never take, each with how it ends. They are not among `fates`: the
    /// postmaster gets them first.
    pub undeliverable_reports: Vec<(Queued, Fate)>,
    /// One line per recipient whose outcome is known.
    pub lines: Vec<OutcomeLine>,
    /// Recipients relayed.
    pub relayed: usize,
    /// Whether a DSN is owed from now on.
    pub owes: bool,
}

impl Settled {
    /// What the spool is to record.
    pub fn settlement(&mut self, at: Tick) -> Settlement {
        Settlement { at, fates: std::mem::take(&mut self.fates) }
    }
}

/// Where and when the outcome was seen, for log lines and jitter.
struct Scene<'a> {
    rules: &'a Rules,
    now: Tick,
    chance: f64,
    delays: Delays,
}

/// Settles a finished attempt. `chance` in 0.0..1.0 is drawn once per attempt, so that what was deferred together comes
/// due together.
pub fn settle(report: AttemptReport, rules: &Rules, chance: f64, now: Tick) -> Settled {
    let scene = Scene { rules, now, chance, delays: report.delays };
    let mut settled = Settled::default();
    for (queued, outcome) in report.attempt.recipients.into_iter().zip(report.outcomes) {
        scene.apply(queued, outcome, &mut settled);
    }
    settled
}

/// Settles recipients that will not be attempted: their lifetime is over (`reason`: what kept them, if it is known).
pub fn expire(recipients: Vec<Queued>, reason: Option<Reason>, rules: &Rules, now: Tick) -> Settled {
    let reason = reason.unwrap_or_else(|| Reason {
        phase: Phase::Queue,
        scope: Scope::Recipient,
        status: Enhanced::new(4, 4, 7),
        reply: None,
        text: "held in the queue until its lifetime was over".into(),
        remote: None,
    });
    let scene = Scene { rules, now, chance: 0.5, delays: Delays::default() };
    let mut settled = Settled::default();
    recipients.into_iter().for_each(|queued| scene.expire(queued, reason.clone(), &mut settled));
    settled
}

/// Settles recipients whose destination does not exist, or takes no mail.
pub fn refuse(recipients: Vec<Queued>, reason: &Reason, rules: &Rules, now: Tick) -> Settled {
    let scene = Scene { rules, now, chance: 0.5, delays: Delays::default() };
    let mut settled = Settled::default();
    for queued in recipients {
        scene.apply(queued, Outcome::Failed(reason.clone()), &mut settled);
    }
    settled
}

/// Holds recipients whose content cannot be read: no attempt is counted, and they are looked at again after `pause`.
pub fn hold(recipients: Vec<Queued>, why: &str, pause: Duration, now: Tick) -> Settled {
    let mut settled = Settled::default();
    for queued in recipients {
        let (due, attempts, note) = (now + pause, queued.attempts, clip(why));
        settled.fates.push((queued.id, Fate::Retry { due, attempts, note, owes: None }));
        settled.due = Some((queued.destination, due));
    }
    settled
}

impl Scene<'_> {
    fn apply(&self, queued: Queued, outcome: Outcome, settled: &mut Settled) {
        match outcome {
            Outcome::Relayed { remote, reply, dsn_passed_on } => {
                let reason = Reason {
                    phase: Phase::Dot,
                    scope: Scope::Recipient,
                    status: reply.enhanced.unwrap_or(Enhanced::new(2, 0, 0)),
                    text: "relayed".into(),
                    reply: Some(reply),
                    remote: Some(remote),
                };
                settled.relayed += 1;
                self.finish(queued, End::Relayed, Event::Relayed { dsn_passed_on }, reason, settled);
            }
            Outcome::Failed(reason) => self.finish(queued, End::Bounced, Event::Failed, reason, settled),
            Outcome::Deferred(reason) | Outcome::Indeterminate(reason) => {
                if self.rules.retry.is_overdue(&queued, self.now) {
                    self.expire(queued, reason, settled);
                } else {
                    self.retry(queued, reason, settled);
                }
            }
            Outcome::NotTried => settled.again.push(queued),
        }
    }

    fn retry(&self, queued: Queued, reason: Reason, settled: &mut Settled) {
        settled.lines.push(self.line(&queued, "deferred", &reason));
        let attempts = queued.attempts + 1;
        let due = self.rules.retry.due(&queued, attempts, self.chance, self.now);
        let is_late = self.now.since(queued.batch.accepted) >= self.rules.delay_after;
        let event = Event::Delayed { reported: queued.delay_reported };
        let owes = is_late.then(|| self.obligation(&queued, event, &reason)).flatten();
        settled.owes |= owes.is_some();
        settled.fates.push((queued.id, Fate::Retry { due, attempts, note: clip(&reason.to_string()), owes }));
        if settled.due.as_ref().is_none_or(|(_, earliest)| due < *earliest) {
            settled.due = Some((queued.destination, due));
        }
    }

    /// The end of a lifetime: what was temporary is now final (RFC 3463: 5.4.7), and the last reason is told.
    fn expire(&self, queued: Queued, reason: Reason, settled: &mut Settled) {
        let status = Enhanced::new(5, reason.status.subject, reason.status.detail);
        let status = if reason.status.class == 5 { reason.status } else { status };
        let status = if reason.reply.is_some() { status } else { Enhanced::new(5, 4, 7) };
        self.finish(queued, End::Expired, Event::Expired, Reason { status, ..reason }, settled);
    }

    fn finish(&self, queued: Queued, end: End, event: Event, reason: Reason, settled: &mut Settled) {
        let status = match end {
            End::Relayed => "sent",
            End::Bounced => "bounced",
            End::Expired => "expired",
            End::Cancelled => "cancelled",
        };
        settled.lines.push(self.line(&queued, status, &reason));
        let owes = self.obligation(&queued, event, &reason);
        settled.owes |= owes.is_some();
        let fate = Fate::Done { end, note: clip(&reason.to_string()), owes };
        if end != End::Relayed && is_report(&queued) {
            settled.undeliverable_reports.push((queued, fate));
        } else {
            settled.fates.push((queued.id, fate));
        }
    }

    fn obligation(&self, queued: &Queued, event: Event, reason: &Reason) -> Option<Obligation> {
        let kind: ObligationKind =
            obligation_for(&queued.batch.envelope.reverse_path, queued.recipient.params.notify, event)?;
        Some(Obligation { kind, recipient: Arc::clone(&queued.recipient), reason: reason.clone(), since: self.now })
    }

    fn line(&self, queued: &Queued, status: &'static str, reason: &Reason) -> OutcomeLine {
        let delay = self.now.since(queued.batch.accepted);
        let Delays { wait, connect, transmit } = self.delays;
        let before = delay.saturating_sub(wait + connect + transmit);
        OutcomeLine {
            id: queued.id,
            mailing: queued.batch.envelope.mailing,
            list_host: Arc::clone(&queued.batch.envelope.list_host),
            to: queued.recipient.path.as_str().into(),
            relay: reason.remote.clone().unwrap_or_else(|| "none".into()),
            delay,
            delays: [before, wait, connect, transmit],
            dsn: reason.status,
            status,
            text: reason.reply.as_ref().map_or_else(|| reason.text.clone(), |reply| reply.to_string().into()),
        }
    }
}

fn is_report(queued: &Queued) -> bool {
    matches!(queued.destination, Destination::ListHost(_)) && queued.batch.envelope.reverse_path == ReversePath::Null
}

fn clip(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(NOTE_MAX)].into()
}
