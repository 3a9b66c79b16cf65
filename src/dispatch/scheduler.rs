//! The scheduler: facts in, actions out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use super::bundle::{Bundle, BundleId, Gathering};
use super::growth::Growth;
use super::partners::Pins;
use super::provider::{Provider, SiteState};
use super::queue::{OnDisk, Queue, Target};
use super::serve::Lane;
use super::{Options, Reacted};
use crate::attempt::{Attempt, Limits, Pushback, Site};
use crate::clock::Tick;
use crate::mail::{AttemptId, Destination, MailingId, Queued, RecipientId};
use crate::outcome::Reason;
use crate::partner::Partners;

/// What the engine is to do.
#[derive(Debug)]
pub enum Action {
    /// Look up where this destination goes and report by [`Scheduler::resolved`].
    Resolve(Destination),
    /// Read up to `limit` due recipients of this destination from the spool and report by [`Scheduler::loaded`].
    Load {
        /// Whose.
        destination: Destination,
        /// How many at most.
        limit: usize,
    },
    /// Make this attempt and report by [`Scheduler::finished`].
    Start(Box<Attempt>),
    /// Give these recipients back to the spool: there is no room for them, or their site is suspended.
    Release(Vec<RecipientId>),
    /// Tell the operator: a rule took hold.
    Reacted(Box<Reacted>),
    /// Settle these as expired, for this reason: their lifetime is over.
    Expire(Vec<Queued>, Option<Reason>),
}

/// What a resolver found.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// The site that serves the destination, and its provider's limits.
    Site(Arc<Site>, Arc<Limits>),
    /// Nothing now, for this reason; to be asked again.
    Temporary(Reason),
    /// Nothing, for good: the engine settles what is waiting as failed, and what comes until then likewise.
    Permanent,
}

/// The end of an attempt, as far as it concerns the scheduler.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Where it went.
    pub destination: Destination,
    /// The site it used.
    pub site: Arc<Site>,
    /// Recipients relayed.
    pub relayed: usize,
    /// What troubles the site or provider, if anything.
    pub trouble: Option<Reason>,
    /// What it said about how much it takes.
    pub pushback: Pushback,
    /// When the attempt was begun.
    pub begun: Tick,
    /// What else the next hop said, each thing once.
    pub said: Vec<Reason>,
    /// Recipients to be offered again at once.
    pub again: Vec<Queued>,
}

impl Finished {
    /// An attempt that never came to speak with anybody, and says nothing of the site.
    pub fn without_attempt(destination: Destination, site: Arc<Site>) -> Finished {
        let (pushback, begun) = (Pushback::default(), Tick(0));
        Finished { destination, site, relayed: 0, trouble: None, pushback, begun, said: Vec::new(), again: Vec::new() }
    }
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Recipients in memory, those in flight not counted.
    pub resident: usize,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Destinations with a queue in memory.
    pub destinations: usize,
    /// Sites known.
    pub sites: usize,
    /// Sites suspended.
    pub suspended_sites: usize,
    /// Providers held by a rate or suspended.
    pub held_providers: usize,
    /// Queues that wait for room in memory.
    pub hungry: usize,
}

/// Destinations whose queues are remembered while their mail lies on disk, and sites and providers that are remembered
/// while nothing waits for them. Beyond, they are found again through the spool's wake-ups.
pub(super) const REMEMBERED: usize = 20_000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Bundle(BundleId),
    Provider(Arc<str>),
    Site(Arc<str>),
    Destination(Destination),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Scheduler {
    pub(super) options: Options,
    pub(super) partners: Partners,
    pub(super) pins: Pins,
    pub(super) queues: HashMap<Destination, Queue>,
    pub(super) bundles: HashMap<BundleId, Bundle>,
    pub(super) sites: HashMap<Arc<str>, SiteState>,
    pub(super) providers: HashMap<Arc<str>, Provider>,
    /// How each mailing grows, as long as that holds a bundle back.
    pub(super) grew: HashMap<MailingId, Growth>,
    /// When `grew` was last cleared of quiet mailings.
    pub(super) swept: Tick,
    pub(super) timers: BinaryHeap<Reverse<(Tick, Timer)>>,
    /// Providers that may be able to start something: the bounce lanes, which no limit on attempts holds, and the rest.
    pub(super) lanes: VecDeque<Arc<str>>,
    pub(super) ring: VecDeque<Arc<str>>,
    pub(super) actions: VecDeque<Action>,
    pub(super) hungry: VecDeque<Destination>,
    pub(super) resident: usize,
    pub(super) in_flight: usize,
    pub(super) next_bundle: u64,
    pub(super) next_attempt: u64,
}

impl Scheduler {
    /// An empty scheduler. Attempt ids count from `first_attempt`.
    pub fn new(options: Options, first_attempt: AttemptId) -> Scheduler {
        let partners = Partners::new(options.partners.clone());
        Scheduler {
            options,
            partners,
            pins: Pins::default(),
            queues: HashMap::new(),
            bundles: HashMap::new(),
            sites: HashMap::new(),
            providers: HashMap::new(),
            grew: HashMap::new(),
            swept: Tick(0),
            timers: BinaryHeap::new(),
            lanes: VecDeque::new(),
            ring: VecDeque::new(),
            actions: VecDeque::new(),
            hungry: VecDeque::new(),
            resident: 0,
            in_flight: 0,
            next_bundle: 0,
            next_attempt: first_attempt.0,
        }
    }

    /// Takes over changed options; limits of providers follow with the next resolution.
    pub fn reload(&mut self, options: Options, now: Tick) {
        self.partners.reload(options.partners.clone());
        self.options = options;
        self.review_reactions(now);
        self.rethink_all(now);
    }

    /// Newly accepted recipients. Those for which there is no room go back to the spool.
    pub fn offer(&mut self, recipients: Vec<Queued>, now: Tick) {
        let mut declined = Vec::new();
        for queued in recipients {
            match self.room_for(&queued.destination, now) {
                Ok(()) => self.admit(queued, Gathering::Since(now), now),
                Err(look_at) => {
                    self.queues.entry(queued.destination.clone()).or_default().more_on_disk(look_at);
                    self.arm_load(&queued.destination, now);
                    declined.push(queued.id);
                }
            }
        }
        if !declined.is_empty() {
            self.actions.push_back(Action::Release(declined));
        }
    }

    /// The spool holds mail for `destination` that is due.
    pub fn wake(&mut self, destination: Destination, now: Tick) {
        self.queues.entry(destination.clone()).or_default().more_on_disk(now);
        self.arm_load(&destination, now);
    }

    /// Mail for `destination` was recorded as due again at `due`.
    pub fn deferred(&mut self, destination: &Destination, due: Tick, now: Tick) {
        if self.queues.len() < REMEMBERED || self.queues.contains_key(destination) {
            self.queues.entry(destination.clone()).or_default().more_on_disk(due);
            self.arm_load(destination, now);
        } // else the spool's own wake-ups bring it, at a coarser time
    }

    /// Whether more destinations should not be woken for now: what is known of them would fill the memory.
    pub fn is_crowded(&self) -> bool {
        self.queues.len() >= REMEMBERED
    }

    /// The end of an [`Action::Load`]; the first of what was left behind is due at `next` ([`Tick::NEVER`]: nothing was).
    pub fn loaded(&mut self, destination: &Destination, recipients: Vec<Queued>, next: Tick, now: Tick) {
        let Some(queue) = self.queues.get_mut(destination) else { return };
        let again = matches!(queue.disk, OnDisk::Loading { again: true });
        queue.disk = match next {
            _ if again => OnDisk::From(now),
            Tick::NEVER => OnDisk::Nothing,
            next => OnDisk::From(next),
        };
        let (dead, alive): (Vec<_>, Vec<_>) =
            recipients.into_iter().partition(|queued| self.options.retry.is_past_hard_cap(queued, now));
        if !dead.is_empty() {
            self.actions.push_back(Action::Expire(dead, None));
        }
        alive.into_iter().for_each(|queued| self.admit(queued, Gathering::Over, now));
        self.shed_if_unusable(destination, now);
        self.arm_load(destination, now);
        self.forget_if_idle(destination);
    }

    /// The end of an [`Action::Resolve`]. Where there is no site for good, returns what waited in memory: the engine
    /// settles it as failed.
    pub fn resolved(&mut self, destination: &Destination, resolution: Resolution, now: Tick) -> Vec<Queued> {
        let Some(queue) = self.queues.get_mut(destination) else { return Vec::new() };
        queue.asked = false;
        match resolution {
            Resolution::Site(site, limits) => self.settle_on(destination, site, limits, now),
            Resolution::Temporary(reason) => self.unresolved(destination, reason, now),
            Resolution::Permanent => {
                queue.target = Target::Unknown;
                let waiting = self.withdraw(destination);
                self.arm_load(destination, now);
                self.forget_if_idle(destination);
                return waiting;
            }
        }
        Vec::new()
    }

    /// The end of an attempt.
    pub fn finished(&mut self, finished: Finished, now: Tick) {
        let Finished { destination, site, relayed, trouble, pushback, begun, said, again } = finished;
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(state) = self.sites.get_mut(&site.name) {
            state.in_flight = state.in_flight.saturating_sub(1);
        }
        if let Some(provider) = self.providers.get_mut(&site.provider) {
            provider.in_flight = provider.in_flight.saturating_sub(1);
            provider.used = now;
        }
        self.given_back(&site, &again);
        again.into_iter().for_each(|queued| self.admit(queued, Gathering::Over, now));
        self.learn(&site, relayed, pushback, begun, now);
        match trouble {
            // The pace takes care of it; the site and its connections are well.
            Some(_) if pushback.crowded || pushback.refused > 0 => {}
            Some(reason) => self.on_trouble(&site, reason, now),
            None => self.on_success(&site, relayed, now),
        }
        self.react(&site, &said, now);
        self.requeue_waiting(&site.name);
        self.enter_ring(&site.provider, &site.route);
        self.arm_load(&destination, now);
        self.forget_if_idle(&destination);
    }

    /// What to do next; `None`: nothing until a new fact comes or [`Scheduler::next_wakeup`] is reached.
    pub fn poll(&mut self, now: Tick) -> Option<Action> {
        self.fire_timers(now);
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if let Some(attempt) = self.serve(now, Lane::Bounces) {
            return Some(Action::Start(Box::new(attempt)));
        }
        if self.in_flight < self.options.attempts
            && let Some(attempt) = self.serve(now, Lane::World)
        {
            return Some(Action::Start(Box::new(attempt)));
        }
        self.feed_hungry(now);
        self.actions.pop_front()
    }

    /// When [`Scheduler::poll`] will have something to do although no new fact came.
    pub fn next_wakeup(&self) -> Option<Tick> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Figures for metrics.
    pub fn stats(&self, now: Tick) -> Stats {
        Stats {
            resident: self.resident,
            in_flight: self.in_flight,
            destinations: self.queues.len(),
            sites: self.sites.len(),
            suspended_sites: self.sites.values().filter(|site| site.suspended_until(now).is_some()).count(),
            held_providers: self.providers.values().filter(|provider| provider.is_held(now)).count(),
            hungry: self.hungry.len(),
        }
    }
}
