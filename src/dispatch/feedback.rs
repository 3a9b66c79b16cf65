//! Feedback: what resolutions and finished attempts say about sites and providers.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use super::bundle::{BundleId, Gathering};
use super::provider::{Provider, Reach, SiteState, Suspender, Suspension, backoff};
use super::queue::{OnDisk, Target};
use super::scheduler::{Action, REMEMBERED, Scheduler, Timer};
use crate::attempt::{Limits, Route, Site};
use crate::clock::Tick;
use crate::mail::Destination;
use crate::outcome::{Enhanced, Phase, Reason, Scope};

/// How often mail whose lifetime is over is looked for at a provider that stays suspended.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// A pause of at most so long is waited for in memory; for a longer one the mail goes back to the spool.
const KEEP_FOR: Duration = Duration::from_secs(60);

/// First and longest pause after a destination could not be resolved.
const DNS_PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));

impl Scheduler {
    pub(super) fn settle_on(&mut self, destination: &Destination, site: Arc<Site>, limits: Arc<Limits>, now: Tick) {
        self.remember_provider(&site, &limits, now);
        if let Some(old) = self.site_of(destination)
            && old != site.name
            && let Some(state) = self.sites.get_mut(&old)
        {
            state.destinations.remove(destination);
        }
        let fresh = || SiteState::new(Arc::clone(&site.provider));
        let state = self.sites.entry(Arc::clone(&site.name)).or_insert_with(fresh);
        state.provider = Arc::clone(&site.provider);
        state.destinations.insert(destination.clone());
        let Some(queue) = self.queues.get_mut(destination) else { return };
        queue.target = Target::Known { site: Arc::clone(&site), limits, since: now };
        queue.dns_failures = 0;
        let ids: Vec<BundleId> = queue.bundles.values().copied().collect();
        for id in ids {
            self.restart_gathering(id);
            self.consider(id, now);
        }
        self.shed_if_unusable(destination, now);
        self.arm_load(destination, now);
    }

    /// A bundle that was ready for the provider of an older resolution is considered anew for this one. Its old turn
    /// finds it in nobody's or in the new provider's name and is harmless.
    pub(super) fn restart_gathering(&mut self, id: BundleId) {
        if let Some(bundle) = self.bundles.get_mut(&id)
            && bundle.state == Gathering::Ready
        {
            bundle.state = Gathering::Over;
        }
        if let Some(bundle) = self.bundles.get(&id)
            && let Gathering::Since(since) = bundle.state
        {
            self.timers.push(Reverse((since + self.options.coalesce_quiet, Timer::Bundle(id))));
        }
    }

    pub(super) fn remember_provider(&mut self, site: &Site, limits: &Arc<Limits>, now: Tick) {
        let initial = self.options.initial_window;
        // A list host takes its own bounces at any pace.
        let rate = self.options.initial_rate.filter(|_| matches!(site.route, Route::Mx(_)));
        self.providers
            .entry(Arc::clone(&site.provider))
            .and_modify(|provider| provider.set_limits(limits, now))
            .or_insert_with(|| Provider::new(Arc::clone(limits), initial, rate, now));
        self.forget_unused(now);
    }

    /// Keeps the memory of sites and providers bounded.
    pub(super) fn forget_unused(&mut self, now: Tick) {
        if self.providers.len() <= REMEMBERED && self.sites.len() <= REMEMBERED {
            return;
        }
        self.sites.retain(|_, site| {
            site.in_flight > 0 || !site.destinations.is_empty() || site.suspended_until(now).is_some()
        });
        let longest = self.options.suspend.1;
        self.providers.retain(|_, provider| {
            let busy = provider.in_flight > 0 || !provider.turns.is_empty();
            busy || provider.suspended_until(now).is_some() || now.since(provider.used) < longest
        });
    }

    pub(super) fn unresolved(&mut self, destination: &Destination, reason: Reason, now: Tick) {
        let Some(queue) = self.queues.get_mut(destination) else { return };
        if let Target::Known { since, .. } = &mut queue.target {
            // What was found before is better than nothing while the name servers are in trouble.
            *since = now;
            return;
        }
        queue.dns_failures += 1;
        let (first, longest) = (DNS_PAUSE.0.min(self.options.suspend.1), DNS_PAUSE.1.min(self.options.suspend.1 * 3));
        let until = now + backoff(first, longest, queue.dns_failures);
        queue.target = Target::Unresolved(until);
        self.hand_back(destination, until, Some(&reason), now);
    }

    pub(super) fn on_success(&mut self, site: &Site, relayed: usize, now: Tick) {
        let Some(provider) = self.providers.get_mut(&site.provider) else { return };
        if relayed > 0 {
            provider.succeeded();
        }
        if let Some(state) = self.sites.get_mut(&site.name) {
            let was_probing = state.reach != Reach::Fine;
            state.reach = Reach::Fine;
            state.failure = None;
            if was_probing {
                let destinations: Vec<_> = state.destinations.iter().cloned().collect();
                destinations.iter().for_each(|destination| self.arm_load(destination, now));
            }
        }
    }

    /// The whole site could not be used: it is suspended. Or the provider asked for less: its window is halved, and if
    /// there is nothing left to halve it is held for a while.
    pub(super) fn on_trouble(&mut self, site: &Site, reason: Reason, now: Tick) {
        let (first, longest) = self.options.suspend;
        if let Some(provider) = self.providers.get_mut(&site.provider) {
            let at_floor = provider.window.size() == 1;
            provider.window.on_trouble();
            provider.troubles += 1;
            provider.last_reply = Some((now, reason.to_string().into()));
            if reason.scope != Scope::Site && at_floor {
                let until = now + backoff(first, longest, provider.troubles);
                self.suspend_provider(&site.provider, until, Suspender::Trouble, &reason.to_string(), now);
            }
        }
        if reason.scope == Scope::Site {
            self.suspend_site(&site.name, reason, now);
        }
        if matches!(site.route, Route::Partner(_)) {
            self.rethink_all(now);
        }
    }

    pub(super) fn suspend_site(&mut self, name: &Arc<str>, reason: Reason, now: Tick) {
        let (first, longest) = self.options.suspend;
        let Some(state) = self.sites.get_mut(name) else { return };
        let until = state.suspend(first, longest, now);
        let since = state.failure.as_ref().map_or(now, |(since, _)| *since);
        state.failure = Some((since, reason.to_string().into()));
        self.timers.push(Reverse((until, Timer::Site(Arc::clone(name)))));
        self.shed(name, Some(reason), now);
    }

    /// Leaves a provider alone until then, unless somebody of higher precedence holds it already; what waits for it goes
    /// back to the spool.
    pub(super) fn suspend_provider(&mut self, name: &Arc<str>, until: Tick, by: Suspender, why: &str, now: Tick) {
        let Some(provider) = self.providers.get_mut(name) else { return };
        if provider.suspension.as_ref().is_some_and(|held| held.until > now && held.by > by) {
            return;
        }
        provider.suspension = Some(Suspension { since: now, until, by, why: why.into() });
        self.timers.push(Reverse((until.min(now + SWEEP_EVERY), Timer::Provider(Arc::clone(name)))));
        if until > now + KEEP_FOR {
            for destination in self.destinations_of(name) {
                self.shed_if_unusable(&destination, now);
            }
        }
        if !self.partners.is_empty() {
            self.rethink_all(now);
        }
    }

    /// Ends a provider's suspension: what lies on disk for it is looked for at once.
    pub(super) fn resume_provider(&mut self, name: &Arc<str>, now: Tick) {
        let Some(provider) = self.providers.get_mut(name) else { return };
        provider.suspension = None;
        for destination in self.destinations_of(name) {
            if let Some(queue) = self.queues.get_mut(&destination) {
                queue.more_on_disk(now);
            }
            self.arm_load(&destination, now);
        }
        self.enter_ring_by_name(name);
    }

    /// A provider's timer: its rate allows more, its suspension is over, or it is time to look for mail among what it
    /// holds whose lifetime is over.
    pub(super) fn wake_provider(&mut self, name: &Arc<str>, now: Tick) {
        let Some(provider) = self.providers.get_mut(name) else { return };
        provider.restrain(now);
        self.set_temper_timer(name, now);
        let Some(provider) = self.providers.get_mut(name) else { return };
        match provider.suspension.as_ref().map(|suspension| suspension.until) {
            Some(until) if until > now => {
                self.timers.push(Reverse((until.min(now + SWEEP_EVERY), Timer::Provider(Arc::clone(name)))));
                for destination in self.destinations_of(name) {
                    if let Some(queue) = self.queues.get_mut(&destination) {
                        queue.more_on_disk(now);
                        queue.sweep = true;
                    }
                    self.arm_load(&destination, now);
                }
            }
            Some(_) => self.resume_provider(name, now),
            None => self.enter_ring_by_name(name),
        }
    }

    pub(super) fn destinations_of(&self, provider: &Arc<str>) -> Vec<Destination> {
        let sites = self.sites.values().filter(|site| site.provider == *provider);
        sites.flat_map(|site| site.destinations.iter().cloned()).collect()
    }

    /// Gives a destination's mail back to the spool if it cannot go for now.
    pub(super) fn shed_if_unusable(&mut self, destination: &Destination, now: Tick) {
        if let Some(until) = self.unusable_until(destination, now) {
            self.hand_back(destination, until, None, now);
        }
    }

    /// Gives what waits for a suspended site back to the spool. A failure of the site counts as an attempt for those
    /// whose lifetime is over: they expire.
    pub(super) fn shed(&mut self, name: &Arc<str>, reason: Option<Reason>, now: Tick) {
        let Some(state) = self.sites.get_mut(name) else { return };
        let until = state.suspended_until(now).unwrap_or(now);
        state.waiting.clear();
        let destinations: Vec<Destination> = state.destinations.iter().cloned().collect();
        for destination in &destinations {
            match self.has_detour(destination, now) {
                true => self.rethink_destination(destination, now),
                false => self.hand_back(destination, until, reason.as_ref(), now),
            }
        }
    }

    /// Gives a destination's mail back to the spool until it can go; what is overdue expires. `reason`: what has just
    /// failed; without it the reason is that mail cannot go for now.
    pub(super) fn hand_back(&mut self, destination: &Destination, until: Tick, reason: Option<&Reason>, now: Tick) {
        let (overdue, waiting): (Vec<_>, Vec<_>) =
            self.withdraw(destination).into_iter().partition(|queued| self.options.retry.is_overdue(queued, now));
        if let Some(queue) = self.queues.get_mut(destination)
            && (!waiting.is_empty() || !overdue.is_empty() || queue.disk != OnDisk::Nothing)
        {
            queue.more_on_disk(until);
            // A page that held overdue mail may have more behind it: looked at now, although nothing can go.
            queue.sweep = !overdue.is_empty();
        }
        self.set_alarm(destination, until);
        if !waiting.is_empty() {
            self.actions.push_back(Action::Release(waiting.iter().map(|queued| queued.id).collect()));
        }
        if !overdue.is_empty() {
            self.actions
                .push_back(Action::Expire(overdue, Some(reason.cloned().unwrap_or_else(|| unusable(destination)))));
            self.arm_load(destination, now);
        }
    }

    /// Bundles that stood aside while their site was probed take their turns again.
    pub(super) fn requeue_waiting(&mut self, name: &Arc<str>) {
        let Some(state) = self.sites.get_mut(name) else { return };
        let (waiting, provider) = (std::mem::take(&mut state.waiting), Arc::clone(&state.provider));
        waiting.into_iter().for_each(|id| self.take_turn(id, &provider));
    }
}

fn unusable(destination: &Destination) -> Reason {
    Reason {
        phase: Phase::Connect,
        scope: Scope::Site,
        status: Enhanced::new(4, 4, 1),
        reply: None,
        text: format!("{destination} could not be reached for a while, and its mail was not tried again yet").into(),
        remote: None,
    }
}
