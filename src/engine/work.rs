//! The engine's tasks: each does one thing and comes back with a value.

use std::sync::Arc;

use super::Engine;
use crate::attempt::{Attempt, AttemptReport, Delays, Route, Site};
use crate::dispatch::Resolution;
use crate::mail::{Destination, Queued};
use crate::outcome::{Enhanced, Outcome, Phase, Reason, Scope};
use crate::partner;
use crate::spool::{ContentError, Loaded};

/// What a task came back with.
pub(super) enum Done {
    Resolved(Destination, Result<Resolution, Reason>),
    Loaded(Destination, std::io::Result<Loaded>),
    Attempted(Box<AttemptReport>),
    NoContent(Box<Attempt>, ContentError),
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
        let (spool, delivery) = (self.parts.spool.clone(), self.parts.delivery.clone());
        let stake = Stake {
            destination: attempt.destination.clone(),
            site: Arc::clone(&attempt.site),
            recipients: attempt.recipients.clone(),
        };
        let partners = self.parts.partners.clone();
        let task = self.tasks.spawn(async move {
            match spool.content(attempt.envelope.content).await {
                Ok(content) if has_been_here(&attempt.site, &content.bytes, &partners) => {
                    Done::Attempted(Box::new(untried(attempt)))
                }
                Ok(content) => Done::Attempted(Box::new(delivery.attempt(attempt, content.bytes).await)),
                Err(error) => Done::NoContent(Box::new(attempt), error),
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
        delays: Delays::default(),
        peer: None,
        bytes: 0,
        transaction: false,
    }
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
