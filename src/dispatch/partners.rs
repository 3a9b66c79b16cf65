//! Which way a bundle goes: to the exchangers of its domain, or to a partner. Decided when it becomes ready and again when its
//! turn comes, so that a condition that changed meanwhile holds for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::bundle::{Bundle, BundleId, Gathering, Pin};
use super::provider::SiteState;
use super::queue::Target;
use super::scheduler::Scheduler;
use crate::attempt::{AttemptReport, Limits, Route, Site};
use crate::clock::Tick;
use crate::mail::{Destination, Envelope, Queued, RecipientId};
use crate::outcome::Outcome;
use crate::partner::{Conditions, Question, Status};

/// Recipients whose way is remembered. Beyond, a recipient that may have arrived can go another way next time.
const PINS_MAX: usize = 100_000;

/// Where a bundle goes now.
pub(super) struct Way {
    pub(super) site: Arc<Site>,
    pub(super) limits: Arc<Limits>,
}

/// Recipients that may not go whichever way is best.
#[derive(Debug, Default)]
pub(super) struct Pins {
    known: HashMap<RecipientId, Pinned>,
}

#[derive(Debug)]
enum Pinned {
    /// A partner gave it back: its next attempt is direct.
    Once,
    /// It may have arrived: the same way until its fate is known.
    For(Pin),
}

impl Pins {
    pub(super) fn pin_of(&self, id: RecipientId) -> Pin {
        if self.known.is_empty() {
            return Pin::Free;
        }
        match self.known.get(&id) {
            None => Pin::Free,
            Some(Pinned::Once) => Pin::Direct,
            Some(Pinned::For(pin)) => pin.clone(),
        }
    }

    /// An attempt has begun: what was for one attempt is over.
    pub(super) fn tried(&mut self, recipients: &[Queued]) {
        if !self.known.is_empty() {
            let over = |queued: &&Queued| matches!(self.known.get(&queued.id), Some(Pinned::Once));
            let ids: Vec<_> = recipients.iter().filter(over).map(|queued| queued.id).collect();
            ids.iter().for_each(|id| drop(self.known.remove(id)));
        }
    }

    fn insert(&mut self, id: RecipientId, pinned: Pinned) {
        if self.known.len() < PINS_MAX || self.known.contains_key(&id) {
            self.known.insert(id, pinned);
        }
    }
}

impl Scheduler {
    /// Says how things stand: how much of the uplink is used. Opens and closes overflows.
    pub fn observe(&mut self, uplink: f64, now: Tick) {
        if self.partners.is_empty() {
            return;
        }
        let oldest = if self.partners.ask_for_age() { self.oldest(now) } else { Duration::ZERO };
        if self.partners.observe(Conditions { uplink, oldest }) {
            self.rethink_all(now);
        }
    }

    /// How overdue the oldest recipient in memory is.
    fn oldest(&self, now: Tick) -> Duration {
        let due = self.bundles.values().filter_map(|bundle| bundle.recipients.front()).map(|queued| queued.due).min();
        due.map_or(Duration::ZERO, |due| now.since(due))
    }

    /// Notes from a report, before its outcomes are settled, which recipients may have arrived although nobody said so: they
    /// stay on their way, because another next hop would not know the message.
    pub fn note_doubts(&mut self, report: &AttemptReport) {
        if self.partners.is_empty() && self.pins.known.is_empty() {
            return;
        }
        let pin = match &report.attempt.site.route {
            Route::Partner(partner) => Pin::Partner(Arc::clone(&partner.name)),
            Route::Mx(_) | Route::ListHost(_) => Pin::Direct,
        };
        for (queued, outcome) in report.attempt.recipients.iter().zip(&report.outcomes) {
            match outcome {
                Outcome::Indeterminate(_) => self.pins.insert(queued.id, Pinned::For(pin.clone())),
                Outcome::Relayed { .. } | Outcome::Failed(_) => drop(self.pins.known.remove(&queued.id)),
                Outcome::Deferred(_) | Outcome::NotTried => {}
            }
        }
    }

    /// Suspends a partner or resumes it, on the operator's word. `false`: there is none of that name.
    pub fn suspend_partner(&mut self, name: &str, suspended: bool, now: Tick) -> bool {
        let known = self.partners.set_suspended(name, suspended);
        self.rethink_all(now);
        known
    }

    /// The state of all partners; one whose breaker is open is not.
    pub fn partners(&self, now: Tick) -> Vec<Status> {
        let mut partners = self.partners.status(now);
        for status in &mut partners {
            status.open &= self.partners.named(&status.name).is_some_and(|rule| self.works(&rule.site, now));
        }
        partners
    }

    /// What a partner did not take goes direct next.
    pub(super) fn given_back(&mut self, site: &Site, again: &[Queued]) {
        let Route::Partner(partner) = &site.route else { return };
        for queued in again {
            self.partners.refund(&partner.name, queued.batch.envelope.mailing, 1);
            // One that may have arrived there stays with the partner.
            if self.pins.pin_of(queued.id) == Pin::Free {
                self.pins.insert(queued.id, Pinned::Once);
            }
        }
    }

    /// Where a bundle goes now; `None` as long as its destination is not resolved.
    pub(super) fn way(&self, bundle: &Bundle, now: Tick) -> Option<Way> {
        let Target::Known { site, limits, .. } = &self.queues.get(&bundle.destination)?.target else { return None };
        let direct = || Way { site: Arc::clone(site), limits: Arc::clone(limits) };
        let rule = match &bundle.pin {
            Pin::Direct => None,
            Pin::Partner(name) => self.partners.named(name),
            Pin::Free => {
                return Some(
                    self.detour(site, Some(&bundle.envelope), &bundle.destination, now).unwrap_or_else(direct),
                );
            }
        };
        Some(rule.map_or_else(direct, |rule| Way { site: Arc::clone(&rule.site), limits: Arc::clone(&rule.limits) }))
    }

    /// The partner that takes over from `direct`, if one does now.
    fn detour(&self, direct: &Site, envelope: Option<&Envelope>, destination: &Destination, now: Tick) -> Option<Way> {
        let Destination::Domain(domain) = destination else { return None };
        if self.partners.is_empty() {
            return None;
        }
        let reachable = self.sites.get(&direct.name).is_none_or(|state| state.suspended_until(now).is_none());
        let direct_usable = reachable && self.providers.get(&direct.provider).is_none_or(|p| !p.has_failed(now));
        let question = Question { domain: domain.as_str(), envelope, direct_usable };
        let rule = self.partners.choose(question, |site| self.works(site, now), now)?;
        Some(Way { site: Arc::clone(&rule.site), limits: Arc::clone(&rule.limits) })
    }

    /// Whether a partner's breaker is closed and it is neither held by its rate nor suspended: it is a site like others.
    fn works(&self, site: &Site, now: Tick) -> bool {
        let reachable = self.sites.get(&site.name).is_none_or(SiteState::has_slot);
        reachable && self.providers.get(&site.provider).is_none_or(|provider| !provider.is_held(now))
    }

    /// Whether mail of a destination whose site or provider is suspended can go by way of a partner.
    pub(super) fn has_detour(&self, destination: &Destination, now: Tick) -> bool {
        match self.queues.get(destination).map(|queue| &queue.target) {
            Some(Target::Known { site, .. }) => self.detour(site, None, destination, now).is_some(),
            _ => false,
        }
    }

    /// Makes sure that dispatch knows a way's site and provider.
    pub(super) fn remember_way(&mut self, site: &Site, limits: &Arc<Limits>, now: Tick) {
        if matches!(site.route, Route::Partner(_)) {
            self.remember_provider(site, limits, now);
            let fresh = || SiteState::new(Arc::clone(&site.provider));
            self.sites.entry(Arc::clone(&site.name)).or_insert_with(fresh);
        }
    }

    /// Decides anew which way a bundle that stands in somebody's turns goes.
    pub(super) fn rethink(&mut self, id: BundleId, now: Tick) {
        if let Some(bundle) = self.bundles.get_mut(&id)
            && bundle.state == Gathering::Ready
        {
            bundle.state = Gathering::Over;
        }
        self.consider(id, now);
    }

    pub(super) fn rethink_destination(&mut self, destination: &Destination, now: Tick) {
        let Some(queue) = self.queues.get(destination) else { return };
        let ids: Vec<BundleId> = queue.bundles.values().copied().collect();
        ids.into_iter().for_each(|id| self.rethink(id, now));
    }

    /// Decides anew for everything that is ready to go and would now go another way. Rare: only where a condition changed.
    pub(super) fn rethink_all(&mut self, now: Tick) {
        let moved = |bundle: &Bundle| {
            bundle.state == Gathering::Ready && self.way(bundle, now).is_some_and(|way| way.site.provider != bundle.via)
        };
        let ids: Vec<BundleId> = self.bundles.iter().filter(|(_, bundle)| moved(bundle)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.rethink(id, now));
    }
}
