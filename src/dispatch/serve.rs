//! Serving: whose turn it is, and the attempt that comes of it.

use std::cmp::Reverse;
use std::sync::Arc;

use super::bundle::{BundleId, Gathering};
use super::partners::Way;
use super::scheduler::{Scheduler, Timer};
use crate::attempt::{Attempt, Limits, Route, Site};
use crate::clock::Tick;
use crate::mail::{AttemptId, Destination, Envelope, Queued};

/// The two rings of providers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// List hosts' bounce addresses: never behind outbound mail.
    Bounces,
    /// Everybody else.
    World,
}

impl Scheduler {
    pub(super) fn enter_ring(&mut self, name: &Arc<str>, route: &Route) {
        let Some(provider) = self.providers.get_mut(name) else { return };
        if provider.in_ring || provider.turns.is_empty() {
            return;
        }
        provider.in_ring = true;
        let ring = if matches!(route, Route::ListHost(_)) { &mut self.lanes } else { &mut self.ring };
        ring.push_back(Arc::clone(name));
    }

    /// As [`Scheduler::enter_ring`] where the route is not at hand: only a provider of the world can be held.
    pub(super) fn enter_ring_by_name(&mut self, name: &Arc<str>) {
        let lane = name.starts_with("list-host:");
        let route = if lane { Route::ListHost(Vec::new()) } else { Route::Mx(Vec::new()) };
        self.enter_ring(name, &route);
    }

    /// Starts one attempt of the next provider that can, and sends that provider to the end of the ring.
    pub(super) fn serve(&mut self, now: Tick, lane: Lane) -> Option<Attempt> {
        loop {
            let ring = if lane == Lane::Bounces { &mut self.lanes } else { &mut self.ring };
            let name = ring.pop_front()?;
            if let Some(provider) = self.providers.get_mut(&name) {
                provider.in_ring = false;
            }
            if let Some(attempt) = self.start_one(&name, now) {
                self.enter_ring(&name, &attempt.site.route);
                return Some(attempt);
            }
        }
    }

    /// The next attempt of a provider, if it has a slot, is not held, and has something for a site that can be used.
    pub(super) fn start_one(&mut self, name: &Arc<str>, now: Tick) -> Option<Attempt> {
        loop {
            let provider = self.providers.get_mut(name)?;
            if !provider.has_slot(now) {
                return None;
            }
            let (turn, id) = provider.turns.next()?;
            let taken = self.take(name, id, now);
            if let Taken::Throttled(until) = taken {
                self.take_turn(id, name);
                self.timers.push(Reverse((until, Timer::Provider(Arc::clone(name)))));
            }
            let provider = self.providers.get_mut(name)?;
            match taken {
                Taken::Attempt(attempt) => {
                    provider.turns.charge(&turn, attempt.recipients.len());
                    return Some(*attempt);
                }
                Taken::Nothing => provider.turns.charge(&turn, 0),
                Taken::Throttled(until) => {
                    provider.turns.charge(&turn, 0);
                    provider.held_until = until;
                    return None;
                }
            }
        }
    }

    /// Builds an attempt from a bundle whose turn it is.
    pub(super) fn take(&mut self, provider_name: &Arc<str>, id: BundleId, now: Tick) -> Taken {
        let Some(bundle) = self.bundles.get(&id) else { return Taken::Nothing };
        if bundle.via != *provider_name || bundle.state != Gathering::Ready {
            return Taken::Nothing;
        }
        let Some(Way { site, limits }) = self.way(bundle, now) else { return Taken::Nothing };
        if site.provider != *provider_name {
            self.rethink(id, now);
            return Taken::Nothing;
        }
        self.remember_way(&site, &limits, now);
        let Some(bundle) = self.bundles.get_mut(&id) else { return Taken::Nothing };
        let Some(queue) = self.queues.get_mut(&bundle.destination) else { return Taken::Nothing };
        let Some(state) = self.sites.get_mut(&site.name) else { return Taken::Nothing };
        let Some(provider) = self.providers.get_mut(provider_name) else { return Taken::Nothing };
        if !state.has_slot() {
            state.waiting.push(id);
            return Taken::Nothing;
        }
        let count = match provider.admit(bundle.recipients.len(), now) {
            Ok(count) => count,
            Err(until) => {
                return Taken::Throttled(until);
            }
        };
        let mailing = bundle.envelope.mailing;
        let recipients = bundle.take(self.partners.admit(&site, mailing, count, now));
        let limits = Arc::clone(&provider.limits);
        state.in_flight += 1;
        provider.in_flight += 1;
        queue.resident -= recipients.len();
        let (destination, envelope) = (bundle.destination.clone(), Arc::clone(&bundle.envelope));
        bundle.state = Gathering::Since(now);
        self.resident -= recipients.len();
        self.in_flight += 1;
        self.pins.tried(&recipients);
        self.put_back(id, now);
        self.arm_load(&destination, now);
        Taken::Attempt(Box::new(self.attempt(destination, site, limits, envelope, recipients, now)))
    }

    /// What a bundle has left after an attempt was taken from it: the rest waits for company again if its mailing is
    /// still growing, and takes its next turn otherwise.
    pub(super) fn put_back(&mut self, id: BundleId, now: Tick) {
        let Some(bundle) = self.bundles.get_mut(&id) else { return };
        if bundle.recipients.is_empty() {
            return self.drop_bundle(id);
        }
        if !self.grew.contains_key(&bundle.envelope.mailing) {
            bundle.state = Gathering::Over;
        }
        self.timers.push(Reverse((now + self.options.coalesce_quiet, Timer::Bundle(id))));
        self.consider(id, now);
    }

    pub(super) fn attempt(
        &mut self,
        destination: Destination,
        site: Arc<Site>,
        limits: Arc<Limits>,
        envelope: Arc<Envelope>,
        recipients: Vec<Queued>,
        begun: Tick,
    ) -> Attempt {
        self.next_attempt += 1;
        let earliest = recipients.iter().map(|queued| &queued.batch).min_by_key(|batch| batch.id);
        let trace = earliest.map(|batch| batch.trace.clone()).expect("an attempt has recipients");
        Attempt { id: AttemptId(self.next_attempt), destination, site, envelope, trace, recipients, limits, begun }
    }
}

/// What became of a bundle's turn.
pub(super) enum Taken {
    /// An attempt.
    Attempt(Box<Attempt>),
    /// The bundle is gone, or waits for its site.
    Nothing,
    /// The provider's rate is used up until then; the bundle keeps its turn.
    Throttled(Tick),
}
