//! Providers and sites: how much may go there now, and whether anything may.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::bundle::BundleId;
use super::fairness::Turns;
use super::learned::Learned;
use super::pace::{Pacer, Window};
use super::reaction::Temper;
use crate::attempt::{Limits, Rate};
use crate::clock::Tick;
use crate::mail::Destination;

/// A provider's state: limits, pace and what waits for a slot.
#[derive(Debug)]
pub(super) struct Provider {
    /// The ceilings of its rule.
    configured: Arc<Limits>,
    /// What holds now: the ceilings, and what reactions made of them.
    pub(super) limits: Arc<Limits>,
    /// The reactions that it has met.
    pub(super) temper: Temper,
    pub(super) window: Window,
    /// The pace that it was found to allow.
    pub(super) learned: Learned,
    /// Whether it was the rate, and not the window, that held its last attempt: the window then proves nothing.
    paced: bool,
    pub(super) pacer: Option<Pacer>,
    pub(super) in_flight: u32,
    pub(super) turns: Turns<BundleId>,
    /// Whether it stands in the scheduler's ring of providers to be served.
    pub(super) in_ring: bool,
    /// Held by its rate until then.
    pub(super) held_until: Tick,
    /// Left alone as a whole, if it is.
    pub(super) suspension: Option<Suspension>,
    /// The last thing it said that was no success, with its time.
    pub(super) last_reply: Option<(Tick, Box<str>)>,
    /// Troubles in a row.
    pub(super) troubles: u32,
    pub(super) used: Tick,
}

impl Provider {
    pub(super) fn new(limits: Arc<Limits>, initial_window: u32, initial_rate: Option<Rate>, now: Tick) -> Provider {
        let window = Window::new(initial_window, limits.connections);
        let pacer = pacer(&limits, now);
        Provider {
            configured: Arc::clone(&limits),
            limits,
            temper: Temper::default(),
            window,
            learned: Learned::new(initial_rate.map(|rate| f64::from(rate.count) / rate.period.as_secs_f64()), now),
            paced: false,
            pacer,
            in_flight: 0,
            turns: Turns::default(),
            in_ring: false,
            held_until: Tick(0),
            suspension: None,
            last_reply: None,
            troubles: 0,
            used: now,
        }
    }

    /// Takes over changed limits. A rate that did not change keeps its state, so that a reload gives no fresh burst.
    pub(super) fn set_limits(&mut self, limits: &Arc<Limits>, now: Tick) {
        if *self.configured != **limits {
            self.configured = Arc::clone(limits);
            self.restrain(now);
        }
    }

    /// Applies the reactions that hold now to the ceilings.
    pub(super) fn restrain(&mut self, now: Tick) {
        let mut limits = self.temper.restrain(&self.configured, now);
        self.learned.restrain(&mut limits, now);
        if *self.limits == limits {
            return;
        }
        if self.pacer.as_ref().map(Pacer::rate) != limits.recipient_rate {
            self.pacer = pacer(&limits, now);
        }
        self.window.set_ceiling(limits.connections);
        self.limits = Arc::new(limits);
    }

    /// Whether another attempt may start now.
    pub(super) fn has_slot(&self, now: Tick) -> bool {
        self.in_flight < self.window.size() && now >= self.held_until && self.suspended_until(now).is_none()
    }

    /// Whether it is held by its rate or suspended.
    pub(super) fn is_held(&self, now: Tick) -> bool {
        self.held_until > now || self.suspended_until(now).is_some()
    }

    /// Until when the provider is suspended, if it is.
    pub(super) fn suspended_until(&self, now: Tick) -> Option<Tick> {
        self.suspension.as_ref().map(|suspension| suspension.until).filter(|until| *until > now)
    }

    /// Whether it is suspended for what it did or said. An operator who suspends it does not thereby send its mail elsewhere.
    pub(super) fn has_failed(&self, now: Tick) -> bool {
        self.suspension.as_ref().is_some_and(|held| held.until > now && held.by != Suspender::Operator)
    }

    /// Recipients for the next transaction: what the limits and the rate allow, up to `wanted`; or when to come again.
    pub(super) fn admit(&mut self, wanted: usize, now: Tick) -> Result<usize, Tick> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.limits.recipients_per_transaction.max(1));
        let allowed = self.learned.admit(wanted, now);
        self.paced = allowed.is_err();
        let allowed = allowed?;
        let Some(pacer) = &mut self.pacer else { return Ok(allowed as usize) };
        let count = allowed.min(pacer.burst());
        match pacer.admit(count, now) {
            Ok(()) => Ok(count as usize),
            Err(until) => {
                self.learned.give_back(allowed, now);
                self.paced = true;
                Err(until)
            }
        }
    }

    /// Notes that mail was taken.
    pub(super) fn succeeded(&mut self) {
        self.troubles = 0;
        if !self.paced {
            self.window.on_success();
        }
    }
}

/// A provider as a whole is left alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Suspension {
    pub(super) since: Tick,
    /// [`Tick::NEVER`]: until the operator resumes it.
    pub(super) until: Tick,
    pub(super) by: Suspender,
    /// In words: the reply, or what the operator said.
    pub(super) why: Box<str>,
}

/// Who suspended a provider. The order is that of precedence: a later one is not undone by an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Suspender {
    /// Too much trouble in a row.
    Trouble,
    /// The reaction of that label.
    Rule(Arc<str>),
    /// The operator.
    Operator,
}

fn pacer(limits: &Limits, now: Tick) -> Option<Pacer> {
    limits.recipient_rate.map(|rate| Pacer::new(rate, limits.recipients_per_transaction, now))
}

/// A site's reachability. One failing site of a provider never holds its others.
#[derive(Debug)]
pub(super) struct SiteState {
    pub(super) provider: Arc<str>,
    /// The destinations that resolve to it.
    pub(super) destinations: HashSet<Destination>,
    pub(super) in_flight: u32,
    pub(super) reach: Reach,
    /// Since when and why it could not be used lately.
    pub(super) failure: Option<(Tick, Box<str>)>,
    /// Bundles whose turn came while the site was being probed.
    pub(super) waiting: Vec<BundleId>,
}

/// Whether a site can be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// As far as we know.
    #[default]
    Fine,
    /// Left alone until then, after that many failures in a row.
    Suspended { until: Tick, failures: u32 },
    /// The suspension is over: one attempt at a time until one succeeds.
    Probing { failures: u32 },
}

impl SiteState {
    pub(super) fn new(provider: Arc<str>) -> SiteState {
        let (destinations, waiting) = (HashSet::new(), Vec::new());
        SiteState { provider, destinations, in_flight: 0, reach: Reach::Fine, failure: None, waiting }
    }

    /// Until when the site is suspended, if it is.
    pub(super) fn suspended_until(&self, now: Tick) -> Option<Tick> {
        match self.reach {
            Reach::Suspended { until, .. } if until > now => Some(until),
            _ => None,
        }
    }

    /// Notes a failure to use the site and suspends it: `first` at the first failure, doubled with each further one, at
    /// most `longest`. Failures of attempts that were already under way when it was suspended count as one.
    pub(super) fn suspend(&mut self, first: Duration, longest: Duration, now: Tick) -> Tick {
        if let Some(until) = self.suspended_until(now) {
            return until;
        }
        let failures = match self.reach {
            Reach::Fine => 1,
            Reach::Suspended { failures, .. } | Reach::Probing { failures } => failures + 1,
        };
        let until = now + backoff(first, longest, failures);
        self.reach = Reach::Suspended { until, failures };
        until
    }

    /// Ends a suspension whose time is over.
    pub(super) fn wake(&mut self, now: Tick) {
        if let Reach::Suspended { until, failures } = self.reach
            && until <= now
        {
            self.reach = Reach::Probing { failures };
        }
    }

    /// Whether an attempt may start: not while suspended, and one at a time while probing.
    pub(super) fn has_slot(&self) -> bool {
        match self.reach {
            Reach::Fine => true,
            Reach::Probing { .. } => self.in_flight == 0,
            Reach::Suspended { .. } => false,
        }
    }
}

/// `first`, doubled with each failure after the first, at most `longest`.
pub(super) fn backoff(first: Duration, longest: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest)
}
