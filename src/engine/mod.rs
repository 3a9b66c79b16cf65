//! The engine: drives the paper path between spool and delivery.
//!
//! One task owns the [`Scheduler`]. It carries the scheduler's actions out in tasks of their own (resolve, load,
//! attempt), feeds the results back, has `settle` apply them and the spool record them, in this order: *recorded, then
//! visible to the scheduler, then logged*. A panic in one of those tasks is contained: it costs its attempt, whose
//! recipients go back to the spool, and is counted.
//!
//! Bounds: accepted batches wait in a channel ([`ACCEPTED_QUEUE`]); what does not fit is found again in the spool's
//! index. Tasks are bounded by the scheduler's window (attempts), its queues (one load and one resolution each), and
//! the resolver's own limit.

mod control;
mod metrics;
mod payer;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinSet};

pub use self::control::{Control, Gone, Handle};
pub use self::metrics::Metrics;
pub use self::payer::Payer;
use self::work::{Done, Lost, NotReady};
use crate::attempt::{AttemptReport, Route};
use crate::budget::Uplink;
use crate::clock::{Clock, Tick};
use crate::delivery::Delivery;
use crate::dispatch::{Action, Finished, Options as DispatchOptions, Reacted, Resolution, Scheduler};
use crate::log::DeliveryLog;
use crate::mail::{AttemptId, Destination, RecipientId};
use crate::outcome::{Enhanced, Outcome, Reason};
use crate::partner;
use crate::route::Resolver;
use crate::settle::{self, Rules, Settled};
use crate::sign::Signer;
use crate::spool::{Accepted, ContentError, Loaded, Spool};

/// Accepted batches that may wait for the engine.
pub const ACCEPTED_QUEUE: usize = 1024;

/// How often the spool is asked for destinations whose time has come and that the scheduler has forgotten.
const WAKE_INTERVAL: Duration = Duration::from_secs(1);

/// How long the spool need not name a destination again that was woken.
const SNOOZE: Duration = Duration::from_secs(60);

/// Destinations woken per question.
const WAKE_PAGE: usize = 500;

/// How often a recipient may be offered again at once before it is deferred like any other.
const SKIPS_MAX: u8 = 20;

/// How long recipients are held whose content is damaged or missing, or could not be read or signed just now.
const HOLD_DAMAGED: Duration = Duration::from_secs(3600);
const HOLD_UNREADABLE: Duration = Duration::from_secs(60);

/// The parts that the engine joins.
#[derive(Clone)]
pub struct Parts {
    /// Keeps what is queued.
    pub spool: Spool,
    /// Makes attempts.
    pub delivery: Delivery,
    /// Signs what they carry.
    pub signer: Signer,
    /// Finds sites.
    pub resolver: Resolver,
    /// Says how full the line is.
    pub uplink: Uplink,
    /// Counts what partners take.
    pub partners: partner::Metrics,
    /// Takes one line per outcome.
    pub log: DeliveryLog,
    /// Counts.
    pub metrics: Metrics,
}

/// The engine's task. Made by [`Engine::new`], run by [`Engine::run`].
pub struct Engine {
    parts: Parts,
    clock: Clock,
    scheduler: Scheduler,
    rules: Rules,
    payer: Payer,
    tasks: JoinSet<Done>,
    /// What is lost if a task panics.
    at_stake: HashMap<Id, Lost>,
    /// How often recipients were offered again at once, where it was at least once.
    skips: HashMap<RecipientId, u8>,
    /// When the spool is asked for wake-ups next.
    wake_at: Tick,
    draining: Option<oneshot::Sender<()>>,
}

impl Engine {
    /// An engine over `parts`. `delay_after`: age from which delays are reported where that was asked for.
    pub fn new(parts: Parts, options: DispatchOptions, delay_after: Duration, payer: Payer) -> Engine {
        let clock = parts.spool.clock();
        let rules = Rules { retry: options.retry.clone(), delay_after };
        // Ids of this run start above those of any earlier one: an attempt takes longer than a thousandth of a millisecond.
        let scheduler = Scheduler::new(options, AttemptId(clock.now().0.saturating_mul(1000)));
        Engine {
            parts,
            clock,
            scheduler,
            rules,
            payer,
            tasks: JoinSet::new(),
            at_stake: HashMap::new(),
            skips: HashMap::new(),
            wake_at: Tick(0),
            draining: None,
        }
    }

    /// Runs until it is drained, or both channels are closed.
    pub async fn run(mut self, mut accepted: mpsc::Receiver<Accepted>, mut control: mpsc::Receiver<Control>) {
        let mut arrived = Vec::new();
        loop {
            self.act().await;
            if self.draining.is_some() && self.tasks.is_empty() {
                break;
            }
            let wakeup = self.clock.instant(self.next_wakeup());
            tokio::select! {
                Some(told) = control.recv() => self.obey(told),
                Some(done) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.collect(done),
                count = accepted.recv_many(&mut arrived, 64), if self.draining.is_none() => {
                    if count == 0 { break }
                    let now = self.clock.now();
                    arrived.drain(..).for_each(|batch: Accepted| self.scheduler.offer(batch.queued, now));
                }
                () = tokio::time::sleep_until(wakeup) => {}
            }
            while let Some(done) = self.tasks.try_join_next_with_id() {
                self.collect(done);
            }
        }
        if let Some(drained) = self.draining {
            let _ = drained.send(()); // nobody waits any more: the deadline has passed
        }
    }

    fn next_wakeup(&self) -> Tick {
        self.scheduler.next_wakeup().map_or(self.wake_at, |at| at.min(self.wake_at))
    }

    fn obey(&mut self, told: Control) {
        match told {
            Control::Reload(options, delay_after) => {
                self.rules = Rules { retry: options.retry.clone(), delay_after };
                self.scheduler.reload(*options, self.clock.now());
            }
            Control::Drain(drained) => self.draining = Some(drained),
            Control::Ask(question) => question.put(&mut self.scheduler, self.clock.now()),
        }
    }

    /// Carries out whatever the scheduler wants done now.
    async fn act(&mut self) {
        if self.draining.is_some() {
            return;
        }
        self.wake().await;
        while let Some(action) = self.scheduler.poll(self.clock.now()) {
            match action {
                Action::Resolve(destination) => self.start_resolve(destination),
                Action::Load { destination, limit } => self.start_load(destination, limit),
                Action::Start(attempt) => self.start_attempt(*attempt),
                Action::Release(ids) => self.parts.spool.release(ids),
                Action::Reacted(reacted) => self.reacted(&reacted),
                Action::Expire(recipients, reason) => {
                    let settled = settle::expire(recipients, reason, &self.rules, self.clock.now());
                    self.apply(settled);
                }
            }
        }
    }

    /// Wakes destinations whose time has come: after a start, and where memory did not reach for a timer.
    async fn wake(&mut self) {
        let now = self.clock.now();
        if self.parts.spool.take_missed() {
            self.wake_at = now;
        }
        if now < self.wake_at {
            return;
        }
        self.parts.metrics.observe(self.scheduler.stats(now));
        self.scheduler.observe(self.parts.uplink.usage().used, now);
        self.parts.partners.observe(&self.scheduler.partners(now));
        self.wake_at = now + WAKE_INTERVAL;
        if self.scheduler.is_crowded() {
            return;
        }
        let page = match self.parts.spool.wakeups(now, WAKE_PAGE).await {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "the spool's index could not be read; trying again");
                return;
            }
        };
        if page.len() == WAKE_PAGE {
            self.wake_at = now;
        }
        for (_, destination) in page {
            // The scheduler remembers it from here on, also where its mail cannot go for now.
            self.parts.spool.snooze(&destination, now + SNOOZE);
            self.scheduler.wake(destination, now);
        }
    }

    fn collect(&mut self, done: Result<(Id, Done), tokio::task::JoinError>) {
        let now = self.clock.now();
        let id = done.as_ref().map_or_else(tokio::task::JoinError::id, |(id, _)| *id);
        let lost = self.at_stake.remove(&id);
        match done {
            Ok((_, Done::Resolved(destination, found))) => self.resolved(&destination, found, now),
            Ok((_, Done::Loaded(destination, rows))) => self.loaded(&destination, rows, now),
            Ok((_, Done::Attempted(report))) => self.attempted(*report, now),
            Ok((_, Done::NotReady(attempt, error))) => self.not_ready(*attempt, &error, now),
            Err(error) => self.contain(error, lost, now),
        }
    }

    fn resolved(&mut self, destination: &Destination, found: Result<Resolution, Reason>, now: Tick) {
        match found {
            Ok(resolution) => drop(self.scheduler.resolved(destination, resolution, now)),
            Err(reason) if reason.status.class == 5 => {
                let waiting = self.scheduler.resolved(destination, Resolution::Permanent, now);
                let settled = settle::refuse(waiting, &reason, &self.rules, now);
                self.apply(settled);
            }
            Err(reason) => {
                tracing::warn!(%destination, %reason, "cannot be resolved for now; its mail waits");
                drop(self.scheduler.resolved(destination, Resolution::Temporary(reason), now));
            }
        }
    }

    fn loaded(&mut self, destination: &Destination, loaded: std::io::Result<Loaded>, now: Tick) {
        let Loaded { queued, next } = loaded.unwrap_or_else(|error| {
            tracing::error!(%destination, %error, "the spool's index could not be read; trying again");
            Loaded { queued: Vec::new(), next: now + HOLD_UNREADABLE }
        });
        self.scheduler.loaded(destination, queued, next, now);
    }

    fn attempted(&mut self, report: AttemptReport, now: Tick) {
        // What a partner said counts, although its recipients get another chance.
        let said = work::said(&report);
        let mut report = self.bound_skips(self.give_back(report));
        self.spare_our_fault(&mut report);
        self.parts.metrics.attempted(&report);
        self.scheduler.note_doubts(&report);
        let (destination, site) = (report.attempt.destination.clone(), Arc::clone(&report.attempt.site));
        let (trouble, pushback, begun) = (report.trouble.clone(), report.pushback, report.attempt.begun);
        let mut settled = settle::settle(report, &self.rules, rand::random(), now);
        let (relayed, again) = (settled.relayed, std::mem::take(&mut settled.again));
        self.apply(settled);
        self.scheduler.finished(Finished { destination, site, relayed, trouble, pushback, begun, said, again }, now);
    }

    /// What a partner did not take is offered again at once, to the direct route.
    fn give_back(&self, mut report: AttemptReport) -> AttemptReport {
        let Route::Partner(partner) = &report.attempt.site.route else { return report };
        for outcome in &mut report.outcomes {
            self.parts.partners.outcome(&partner.name, outcome);
            let judged = partner::judge(std::mem::replace(outcome, Outcome::NotTried));
            *outcome = judged.unwrap_or_else(|reason| {
                tracing::info!(partner = %partner.name, attempt = %report.attempt.id, %reason, "given back");
                self.parts.partners.given_back(&partner.name, reason.phase.as_str());
                Outcome::NotTried
            });
        }
        report
    }

    /// A recipient that is offered again and again without ever being tried is deferred in the end.
    fn bound_skips(&mut self, mut report: AttemptReport) -> AttemptReport {
        for (queued, outcome) in report.attempt.recipients.iter().zip(&mut report.outcomes) {
            if *outcome != Outcome::NotTried {
                if !self.skips.is_empty() {
                    self.skips.remove(&queued.id);
                }
                continue;
            }
            let skips = self.skips.entry(queued.id).or_insert(0);
            *skips += 1;
            if *skips > SKIPS_MAX {
                self.skips.remove(&queued.id);
                *outcome = Outcome::Deferred(work::never_tried(&report.attempt.site));
            }
        }
        report
    }

    /// A refusal for good that speaks of our own configuration defers: a mistake of ours must not bounce a mailing.
    fn spare_our_fault(&self, report: &mut AttemptReport) {
        for outcome in &mut report.outcomes {
            if let Outcome::Failed(reason) = outcome
                && reason.reply.as_ref().is_some_and(|reply| self.scheduler.is_our_fault(&report.attempt.site, reply))
            {
                let status = Enhanced { class: 4, ..reason.status };
                *outcome = Outcome::Deferred(Reason { status, ..reason.clone() });
            }
        }
    }

    fn reacted(&self, reacted: &Reacted) {
        let Reacted { provider, rule, why, misconfigured } = reacted;
        self.parts.metrics.reacted(provider, *misconfigured);
        if *misconfigured {
            tracing::error!(%provider, %rule, %why, "the provider refuses us for our own configuration; its mail waits");
        } else {
            tracing::warn!(%provider, %rule, %why, "a reaction took hold");
        }
    }

    fn not_ready(&mut self, attempt: crate::attempt::Attempt, error: &NotReady, now: Tick) {
        tracing::error!(%error, attempt = %attempt.id, recipients = attempt.recipients.len(), "recipients are held");
        if matches!(error, NotReady::Content(_)) {
            self.parts.metrics.content_unreadable();
        }
        let pause = match error {
            NotReady::Signature(_) | NotReady::Content(ContentError::Io(..)) => HOLD_UNREADABLE,
            NotReady::Content(_) => HOLD_DAMAGED,
        };
        let (destination, site) = (attempt.destination, attempt.site);
        let settled = settle::hold(attempt.recipients, &error.to_string(), pause, now);
        self.apply(settled);
        self.scheduler.finished(Finished::without_attempt(destination, site), now);
    }

    /// A task panicked. What it held is given back; nothing else is touched.
    fn contain(&mut self, error: tokio::task::JoinError, lost: Option<Lost>, now: Tick) {
        tracing::error!(%error, "a task of the engine was lost");
        self.parts.metrics.panicked();
        match lost {
            Some(Lost::Resolution(destination)) => {
                let reason = work::internal_error();
                drop(self.scheduler.resolved(&destination, Resolution::Temporary(reason), now));
            }
            Some(Lost::Load(destination)) => {
                self.scheduler.loaded(&destination, Vec::new(), now + HOLD_UNREADABLE, now);
            }
            Some(Lost::Attempt(attempt)) => {
                let work::Stake { destination, site, recipients } = *attempt;
                let settled = settle::hold(recipients, "internal error during the attempt", HOLD_UNREADABLE, now);
                self.apply(settled);
                self.scheduler.finished(Finished::without_attempt(destination, site), now);
            }
            None => {}
        }
    }

    /// Records first, then tells the scheduler, then logs.
    fn apply(&mut self, mut settled: Settled) {
        let now = self.clock.now();
        let settlement = settled.settlement(now);
        if !settlement.fates.is_empty() {
            self.parts.spool.settle(settlement);
        }
        if let Some((destination, due)) = settled.due {
            self.scheduler.deferred(&destination, due, now);
        }
        self.parts.metrics.settled(&settled.lines);
        let at = self.clock.wall();
        settled.lines.into_iter().for_each(|line| self.parts.log.write(at, line));
        self.payer.undeliverable(settled.undeliverable_reports);
        if settled.owes {
            self.payer.wake();
        }
    }
}
