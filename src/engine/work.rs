//! The engine's tasks: each does one thing and comes back with a value.

use std::sync::Arc;

use bytes::Bytes;

use super::Engine;
use crate::attempt::{Attempt, AttemptReport, Delays, Pushback, Route, Site};
use crate::delivery::Outgoing;
use crate::dispatch::Resolution;
use crate::mail::{Destination, Queued};
use crate::outcome::{Enhanced, Outcome, Phase, Reason, Scope};
use crate::partner;
use crate::sign::{SignError, Signer};
use crate::spool::{ContentError, Loaded, Spool};

/// Different things said in one attempt that are looked at: personal texts for a hundred recipients are one thing.
const SAID_MAX: usize = 8;

/// What a task came back with.
pub(super) enum Done {
    Resolved(Destination, Result<Resolution, Reason>),
    Loaded(Destination, std::io::Result<Loaded>),
    Attempted(Box<AttemptReport>),
    NotReady(Box<Attempt>, NotReady),
}

/// Why there was nothing to send.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    /// The content is damaged, missing or unreadable.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// It could not be signed.
    #[error(transparent)]
    Signature(#[from] SignError),
}

/// What is lost if a task panics.
pub(super) enum Lost {
    Resolution(Destination),
    Load(Destination),
    Attempt(Box<Stake>),
}

/// What an attempt holds.
pub(super) struct Stake {
    pub(super) destination: Destination,
    pub(super) site: Arc<Site>,
    pub(super) recipients: Vec<Queued>,
}

impl Engine {
    pub(super) fn start_resolve(&mut self, destination: Destination) {
        let resolver = self.parts.resolver.clone();
        let lost = Lost::Resolution(destination.clone());
        let task = self.tasks.spawn(async move {
            let found = resolver.resolve(&destination).await;
            let found = found.map(|found| Resolution::Site(Arc::clone(&found.site), Arc::clone(&found.limits)));
            Done::Resolved(destination, found)
        });
        self.at_stake.insert(task.id(), lost);
    }

    pub(super) fn start_load(&mut self, destination: Destination, limit: usize) {
        let (spool, now) = (self.parts.spool.clone(), self.clock.now());
        let lost = Lost::Load(destination.clone());
        let task = self.tasks.spawn(async move {
            let rows = spool.load(destination.clone(), now, limit).await;
            Done::Loaded(destination, rows)
        });
        self.at_stake.insert(task.id(), lost);
    }

    pub(super) fn start_attempt(&mut self, attempt: Attempt) {
        let (spool, signer) = (self.parts.spool.clone(), self.parts.signer.clone());
        let delivery = self.parts.delivery.clone();
        let stake = Stake {
            destination: attempt.destination.clone(),
            site: Arc::clone(&attempt.site),
            recipients: attempt.recipients.clone(),
        };
        let partners = self.parts.partners.clone();
        let task = self.tasks.spawn(async move {
            match prepare(&spool, &signer, &partners, &attempt).await {
                Ok(Some(outgoing)) => Done::Attempted(Box::new(delivery.attempt(attempt, outgoing).await)),
                Ok(None) => Done::Attempted(Box::new(untried(attempt))),
                Err(error) => Done::NotReady(Box::new(attempt), error),
            }
        });
        self.at_stake.insert(task.id(), Lost::Attempt(Box::new(stake)));
    }
}

/// Whether mail that would go to a partner has passed through here already: it would go round and round.
fn has_been_here(site: &Site, content: &[u8], partners: &partner::Metrics) -> bool {
    let Route::Partner(partner) = &site.route else { return false };
    let seen = partner::bears(content, &partner.own_token);
    if seen {
        partners.given_back(&partner.name, "loop");
    }
    seen
}

/// The report of an attempt that was not made.
fn untried(attempt: Attempt) -> AttemptReport {
    AttemptReport {
        outcomes: vec![Outcome::NotTried; attempt.recipients.len()],
        attempt,
        trouble: None,
        pushback: Pushback::default(),
        delays: Delays::default(),
        peer: None,
        bytes: 0,
        transaction: false,
    }
}

/// Fetches the content and has it signed; `None` if it must not go this way. A report to a list host of ours needs no
/// signature.
async fn prepare(
    spool: &Spool,
    signer: &Signer,
    partners: &partner::Metrics,
    attempt: &Attempt,
) -> Result<Option<Outgoing>, NotReady> {
    let envelope = &attempt.envelope;
    let content = spool.content(envelope.content).await?.bytes;
    if has_been_here(&attempt.site, &content, partners) {
        return Ok(None);
    }
    let prefix = match attempt.destination {
        Destination::Domain(_) => signer.sign(&envelope.list_host, envelope.content, &content).await?,
        Destination::ListHost(_) => Bytes::new(),
    };
    Ok(Some(Outgoing { prefix, content }))
}

/// What the next hop said in an attempt beside yes, each thing once: up to [`SAID_MAX`] things.
pub(super) fn said(report: &AttemptReport) -> Vec<Reason> {
    let mut said: Vec<Reason> = report.trouble.iter().cloned().collect();
    for outcome in &report.outcomes {
        let (Outcome::Deferred(reason) | Outcome::Failed(reason)) = outcome else { continue };
        if said.len() < SAID_MAX && !said.iter().any(|known| known.reply == reason.reply) {
            said.push(reason.clone());
        }
    }
    said
}

/// The reason for deferring a recipient that its next hop never let us try.
pub(super) fn never_tried(site: &Site) -> Reason {
    let text = format!("{} keeps asking for fewer recipients", site.name);
    Reason { text: text.into(), status: Enhanced::new(4, 5, 3), phase: Phase::Rcpt, ..internal_error() }
}

/// The reason where a task of ours was lost.
pub(super) fn internal_error() -> Reason {
    Reason {
        phase: Phase::Queue,
        scope: Scope::Recipient,
        status: Enhanced::new(4, 3, 0),
        reply: None,
        text: "internal error".into(),
        remote: None,
    }
}
