//! Where reactions take hold: replies go in, limits and suspensions come out.

use std::cmp::Reverse;
use std::sync::Arc;

use super::learned::Answer;
use super::provider::Suspender;
use super::scheduler::{Action, Scheduler, Timer};
use crate::attempt::{Pushback, Site};
use crate::clock::Tick;
use crate::outcome::{Reason, Reply};

/// A rule took hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reacted {
    /// Whom it restrains.
    pub provider: Arc<str>,
    /// The rule's label.
    pub rule: Arc<str>,
    /// The reply.
    pub why: Box<str>,
    /// Whether an operator must look: it is our own configuration that the provider complains of.
    pub misconfigured: bool,
}

impl Scheduler {
    /// Has the provider's pace learn from an attempt.
    pub(super) fn learn(&mut self, site: &Site, relayed: usize, pushback: Pushback, begun: Tick, now: Tick) {
        let Some(provider) = self.providers.get_mut(&site.provider) else { return };
        let Pushback { refused, transaction_cap, crowded } = pushback;
        if crowded {
            provider.learned.crowded(provider.in_flight, now);
        }
        let answer = Answer { accepted: relayed, refused, transaction_cap };
        let changed = provider.learned.answered(answer, begun, now);
        if changed || crowded || provider.learned.is_crowded() {
            provider.restrain(now);
        }
    }

    /// Whether a refusal speaks of our own configuration, so that its recipients must not be failed by it.
    pub fn is_our_fault(&self, site: &Site, reply: &Reply) -> bool {
        let found = self.options.reactions.find(&site.provider, reply);
        found.is_some_and(|reaction| reaction.effect.misconfigured)
    }

    /// Has the rules look at what a provider said in one attempt.
    pub(super) fn react(&mut self, site: &Site, reasons: &[Reason], now: Tick) {
        for reason in reasons {
            let Some(reply) = &reason.reply else { continue };
            let Some(reaction) = self.options.reactions.find(&site.provider, reply).cloned() else { continue };
            let Some(provider) = self.providers.get_mut(&site.provider) else { return };
            let why: Box<str> = reason.to_string().into();
            provider.last_reply = Some((now, why.clone()));
            let Some(anew) = provider.temper.note(&reaction, &why, now) else { continue };
            provider.restrain(now);
            self.set_temper_timer(&site.provider, now);
            if let Some(time) = reaction.effect.suspend {
                let by = Suspender::Rule(Arc::clone(&reaction.label));
                self.suspend_provider(&site.provider, now + time, by, &why, now);
            }
            if anew {
                let (provider, rule) = (Arc::clone(&site.provider), Arc::clone(&reaction.label));
                let misconfigured = reaction.effect.misconfigured;
                self.actions.push_back(Action::Reacted(Box::new(Reacted { provider, rule, why, misconfigured })));
            }
        }
    }

    /// Has a provider looked at again when the next of its rules ends.
    pub(super) fn set_temper_timer(&mut self, name: &Arc<str>, now: Tick) {
        let Some(end) = self.providers.get(name).and_then(|provider| provider.temper.next_end(now)) else { return };
        self.timers.push(Reverse((end, Timer::Provider(Arc::clone(name)))));
    }

    /// After a reload: what holds by a rule that is gone ends, the rest goes on.
    pub(super) fn review_reactions(&mut self, now: Tick) {
        let rules = &self.options.reactions;
        let mut freed = Vec::new();
        for (name, provider) in &mut self.providers {
            provider.temper.keep_known(name, rules);
            provider.restrain(now);
            if let Some(suspension) = &provider.suspension
                && let Suspender::Rule(label) = &suspension.by
                && !provider.temper.holding(now).any(|(reaction, _)| reaction.label == *label)
            {
                freed.push(Arc::clone(name));
            }
        }
        freed.iter().for_each(|name| self.resume_provider(name, now));
    }
}
