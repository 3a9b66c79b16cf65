//! Reading ahead and timers: what makes the scheduler act although no new fact came.

use std::cmp::Reverse;
use std::sync::Arc;

use super::bundle::BundleId;
use super::queue::{OnDisk, Target};
use super::scheduler::{Action, Scheduler, Timer};
use crate::clock::Tick;
use crate::mail::Destination;

impl Scheduler {
    /// Loads more of a queue if it has become short, or sets a timer for when that makes sense.
    pub(super) fn arm_load(&mut self, destination: &Destination, now: Tick) {
        let suspended = self.unusable_until(destination, now);
        let Some(queue) = self.queues.get_mut(destination) else { return };
        let OnDisk::From(at) = queue.disk else { return };
        let at = if queue.sweep { now } else { at.max(suspended.unwrap_or(at)) };
        if at > now {
            self.set_alarm(destination, at);
            return;
        }
        if queue.resident > self.options.read_ahead / 2 || queue.hungry {
            return;
        }
        if self.resident >= self.options.resident {
            queue.hungry = true;
            self.hungry.push_back(destination.clone());
            return;
        }
        let limit = self.options.read_ahead - queue.resident;
        queue.disk = OnDisk::Loading { again: false };
        queue.sweep = false;
        self.actions.push_back(Action::Load { destination: destination.clone(), limit });
    }

    /// Has a destination looked at when `at` has come. One timer is set at a time, however often this is asked for.
    pub(super) fn set_alarm(&mut self, destination: &Destination, at: Tick) {
        if let Some(queue) = self.queues.get_mut(destination)
            && queue.alarm.is_none_or(|alarm| at < alarm)
            && at != Tick::NEVER
        {
            queue.alarm = Some(at);
            self.timers.push(Reverse((at, Timer::Destination(destination.clone()))));
        }
    }

    /// Until when mail for a destination cannot go, if it cannot: its site or provider is suspended and no partner takes
    /// over, or it does not resolve.
    pub(super) fn unusable_until(&self, destination: &Destination, now: Tick) -> Option<Tick> {
        match &self.queues.get(destination)?.target {
            Target::Known { site, .. } => {
                let unreachable = self.sites.get(&site.name).and_then(|state| state.suspended_until(now));
                let unwanted = self.providers.get(&site.provider).and_then(|provider| provider.suspended_until(now));
                let until = unreachable.max(unwanted)?;
                (!self.has_detour(destination, now)).then_some(until)
            }
            Target::Unresolved(until) => (*until > now).then_some(*until),
            Target::Unknown => None,
        }
    }

    /// Room came free: the queues that wait for it may load, longest waiting first.
    pub(super) fn feed_hungry(&mut self, now: Tick) {
        while self.resident < self.options.resident && self.actions.is_empty() {
            let Some(destination) = self.hungry.pop_front() else { return };
            if let Some(queue) = self.queues.get_mut(&destination) {
                queue.hungry = false;
            }
            self.arm_load(&destination, now);
        }
    }

    pub(super) fn fire_timers(&mut self, now: Tick) {
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, timer))) = self.timers.pop() else { return };
            match timer {
                Timer::Bundle(id) => self.reconsider(id, now),
                Timer::Provider(name) => self.wake_provider(&name, now),
                Timer::Site(name) => self.wake_site(&name, now),
                Timer::Destination(destination) => {
                    if let Some(queue) = self.queues.get_mut(&destination) {
                        queue.alarm = None;
                    }
                    self.resolve_if_needed(&destination, now);
                    self.arm_load(&destination, now);
                    self.forget_if_idle(&destination);
                }
            }
        }
        self.forget_quiet_mailings(now);
    }

    /// A mailing that has been quiet for a window holds nothing back. Looked for once per window, so that the memory is
    /// bounded by what grows in two of them.
    pub(super) fn forget_quiet_mailings(&mut self, now: Tick) {
        if now.since(self.swept) >= self.options.coalesce_window {
            self.swept = now;
            self.grew.retain(|_, growth| now.since(growth.at()) < self.options.coalesce_window);
        }
    }

    pub(super) fn reconsider(&mut self, id: BundleId, now: Tick) {
        let Some(bundle) = self.bundles.get(&id) else { return };
        let grew = self.grew_at(bundle.envelope.mailing);
        let at = bundle.leaves_at(grew, self.options.coalesce_quiet, self.options.coalesce_window);
        if at > now {
            self.timers.push(Reverse((at, Timer::Bundle(id))));
        } else {
            self.consider(id, now);
        }
    }

    pub(super) fn wake_site(&mut self, name: &Arc<str>, now: Tick) {
        let Some(state) = self.sites.get_mut(name) else { return };
        state.wake(now);
        let (provider, destinations) = (Arc::clone(&state.provider), state.destinations.clone());
        self.requeue_waiting(name);
        destinations.iter().for_each(|destination| self.arm_load(destination, now));
        self.enter_ring_by_name(&provider);
    }
}
