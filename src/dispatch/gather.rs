//! Gathering: recipients go into bundles, bundles wait for company and then take their provider's turns.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use super::bundle::{Bundle, BundleId, Gathering};
use super::growth::Growth;
use super::partners::Way;
use super::queue::{OnDisk, Queue, Target};
use super::scheduler::{Action, Scheduler, Timer};
use crate::attempt::Site;
use crate::clock::Tick;
use crate::mail::{Batch, Destination, MailingId, Queued};

impl Scheduler {
    /// Whether one more recipient fits in memory; if not, when its queue may look on disk for it.
    pub(super) fn room_for(&self, destination: &Destination, now: Tick) -> Result<(), Tick> {
        let Some(queue) = self.queues.get(destination) else {
            return if self.resident < self.options.resident { Ok(()) } else { Err(now) };
        };
        match self.unusable_until(destination, now) {
            Some(until) => Err(until),
            None if queue.disk != OnDisk::Nothing => Err(now),
            None if queue.resident >= self.options.read_ahead || self.resident >= self.options.resident => Err(now),
            None => Ok(()),
        }
    }

    /// Puts a recipient into its bundle.
    pub(super) fn admit(&mut self, queued: Queued, state: Gathering, now: Tick) {
        let (destination, envelope) = (queued.destination.clone(), Arc::clone(&queued.batch.envelope));
        let state = match state {
            Gathering::Since(_) => self.note_growth(&queued.batch, state, now),
            _ => state,
        };
        let queue = self.queues.entry(destination.clone()).or_default();
        queue.resident += 1;
        self.resident += 1;
        self.resolve_if_needed(&destination, now);
        let queue = self.queues.entry(destination.clone()).or_default();
        let pin = self.pins.pin_of(queued.id);
        let id = match queue.bundles.get(&(Arc::clone(&envelope), pin.clone())) {
            Some(&id) => id,
            None => {
                self.next_bundle += 1;
                let id = BundleId(self.next_bundle);
                queue.bundles.insert((Arc::clone(&envelope), pin.clone()), id);
                let (recipients, via) = (VecDeque::with_capacity(1), Arc::from(""));
                self.bundles.insert(id, Bundle { destination, envelope, recipients, state, pin, via });
                id
            }
        };
        if let Some(bundle) = self.bundles.get_mut(&id) {
            bundle.recipients.push_back(queued);
            if bundle.state != Gathering::Ready && state == Gathering::Over {
                bundle.state = Gathering::Over;
            }
        }
        self.consider(id, now);
    }

    /// Has a destination resolved whose mail waits in memory and cannot go, or goes by an old resolution.
    pub(super) fn resolve_if_needed(&mut self, destination: &Destination, now: Tick) {
        if let Some(queue) = self.queues.get_mut(destination)
            && queue.resident > 0
            && queue.needs_resolving(now)
        {
            queue.asked = true;
            self.actions.push_back(Action::Resolve(destination.clone()));
        }
    }

    /// Notes that a mailing grew; whether its newcomer has anybody to wait for.
    fn note_growth(&mut self, batch: &Batch, state: Gathering, now: Tick) -> Gathering {
        let growth = self.grew.entry(batch.envelope.mailing).or_default();
        growth.note(batch, now);
        if growth.is_personal() { Gathering::Over } else { state }
    }

    /// When a mailing last grew, if that was not long ago.
    pub(super) fn grew_at(&self, mailing: MailingId) -> Tick {
        self.grew.get(&mailing).map(Growth::at).unwrap_or_default()
    }

    /// Puts a bundle into its provider's turns if it may leave, or sets a timer for when it may.
    pub(super) fn consider(&mut self, id: BundleId, now: Tick) {
        let Some(bundle) = self.bundles.get(&id) else { return };
        if bundle.state == Gathering::Ready {
            return;
        }
        let Some(Way { site, limits }) = self.way(bundle, now) else { return };
        let full = bundle.recipients.len() >= limits.recipients_per_transaction as usize;
        let grew = self.grew_at(bundle.envelope.mailing);
        let leaves_at = bundle.leaves_at(grew, self.options.coalesce_quiet, self.options.coalesce_window);
        if full || leaves_at <= now {
            self.remember_way(&site, &limits, now);
            self.make_ready(id, &site);
        } else if bundle.recipients.len() == 1 {
            // One timer per bundle is enough: when it fires, it is set anew if the mailing has grown meanwhile.
            self.timers.push(Reverse((leaves_at, Timer::Bundle(id))));
        }
    }

    pub(super) fn make_ready(&mut self, id: BundleId, site: &Site) {
        if let Some(bundle) = self.bundles.get_mut(&id) {
            bundle.state = Gathering::Ready;
            bundle.via = Arc::clone(&site.provider);
        }
        self.take_turn(id, &site.provider);
        self.enter_ring(&site.provider, &site.route);
    }

    /// Queues a bundle in its provider's turns.
    pub(super) fn take_turn(&mut self, id: BundleId, provider: &Arc<str>) {
        let (Some(bundle), Some(provider)) = (self.bundles.get(&id), self.providers.get_mut(provider)) else { return };
        let weight = self.options.weights.get(&bundle.envelope.list_host).copied().unwrap_or(1);
        provider.turns.push(&bundle.envelope.list_host, weight, bundle.envelope.mailing, id);
    }

    /// Removes a bundle that has become empty.
    pub(super) fn drop_bundle(&mut self, id: BundleId) {
        if let Some(bundle) = self.bundles.remove(&id)
            && let Some(queue) = self.queues.get_mut(&bundle.destination)
        {
            queue.bundles.remove(&(bundle.envelope, bundle.pin));
        }
    }

    /// Takes everything of a destination out of memory.
    pub(super) fn withdraw(&mut self, destination: &Destination) -> Vec<Queued> {
        let Some(queue) = self.queues.get_mut(destination) else { return Vec::new() };
        let ids: Vec<BundleId> = std::mem::take(&mut queue.bundles).into_values().collect();
        self.resident -= std::mem::take(&mut queue.resident);
        ids.into_iter().filter_map(|id| self.bundles.remove(&id)).flat_map(|bundle| bundle.recipients).collect()
    }

    pub(super) fn forget_if_idle(&mut self, destination: &Destination) {
        if !self.queues.get(destination).is_some_and(Queue::is_idle) {
            return;
        }
        if let Some(site) = self.site_of(destination)
            && let Some(state) = self.sites.get_mut(&site)
        {
            state.destinations.remove(destination);
        }
        self.queues.remove(destination);
    }

    pub(super) fn site_of(&self, destination: &Destination) -> Option<Arc<str>> {
        match &self.queues.get(destination)?.target {
            Target::Known { site, .. } => Some(Arc::clone(&site.name)),
            _ => None,
        }
    }
}
