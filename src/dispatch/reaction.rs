//! Reactions: what a provider's words make us do (`[[provider.reaction]]` of `providers.toml`).
//!
//! The first rule that matches a reply decides, the provider's own before the general ones. A rule holds for its time
//! and is begun anew by each further match; while several hold, the strictest value of each limit counts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::{Limits, Rate};
use crate::clock::Tick;
use crate::outcome::{Enhanced, Reply};

/// Matches of one rule that are remembered for its threshold: no sensible threshold is higher.
const HITS_MAX: usize = 100;

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Reaction {
    /// What the operator sees: `google: 4.7.28 "unusual rate"`.
    pub label: Arc<str>,
    /// Enhanced codes (RFC 3463); empty: any.
    pub codes: Vec<Enhanced>,
    /// What the text must hold.
    pub text: Option<Pattern>,
    /// How many matches in which time it takes.
    pub after: Option<Rate>,
    /// How long it holds.
    pub lasts: Duration,
    /// What it does.
    pub effect: Effect,
}

/// What a reaction does while it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effect {
    /// No more recipients per time.
    pub slow: Option<Rate>,
    /// No more connections.
    pub connections: Option<u32>,
    /// No more transactions on a connection.
    pub messages_per_connection: Option<u32>,
    /// Nothing goes there for so long.
    pub suspend: Option<Duration>,
    /// The reply speaks of our own configuration: recipients are deferred even by a 5yz, and the operator is alerted.
    pub misconfigured: bool,
}

/// A text to be found, letters of either case alike; `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Vec<String>);

impl Pattern {
    /// `None` if there is nothing to look for.
    pub fn new(text: &str) -> Option<Pattern> {
        let parts: Vec<String> = text.split('*').filter(|part| !part.is_empty()).map(str::to_ascii_lowercase).collect();
        (!parts.is_empty()).then_some(Pattern(parts))
    }

    /// Whether `text` holds all parts in their order.
    pub fn is_in(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let mut rest = text.as_str();
        self.0.iter().all(|part| match rest.find(part.as_str()) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    }

    /// Whether every text that holds `other` holds this one.
    fn covers(&self, other: &Pattern) -> bool {
        // A part of `other` may lie anywhere, so that nothing can be said across two of them.
        let mut parts = other.0.iter();
        self.0.iter().all(|part| parts.any(|found| found.contains(part.as_str())))
    }
}

impl Reaction {
    /// Whether the rule speaks of this reply.
    pub fn matches(&self, reply: &Reply) -> bool {
        let code = self.codes.is_empty() || reply.enhanced.is_some_and(|code| self.codes.contains(&code));
        code && self.text.as_ref().is_none_or(|text| text.is_in(&reply.text))
    }

    /// Whether it matches whatever `later` would, which then never takes effect.
    pub fn shadows(&self, later: &Reaction) -> bool {
        let codes = self.codes.is_empty()
            || (!later.codes.is_empty() && later.codes.iter().all(|code| self.codes.contains(code)));
        let text = match (&self.text, &later.text) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => own.covers(other),
        };
        codes && text
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reactions {
    /// Each provider's own, in order of precedence.
    pub providers: HashMap<Arc<str>, Vec<Arc<Reaction>>>,
    /// For everybody, after the provider's own.
    pub general: Vec<Arc<Reaction>>,
}

impl Reactions {
    /// The rule that decides about this reply of this provider.
    pub fn find(&self, provider: &str, reply: &Reply) -> Option<&Arc<Reaction>> {
        self.all(provider).find(|reaction| reaction.matches(reply))
    }

    fn all(&self, provider: &str) -> impl Iterator<Item = &Arc<Reaction>> {
        self.providers.get(provider).into_iter().flatten().chain(&self.general)
    }
}

/// A rule that has been met, and perhaps holds.
#[derive(Clone, Debug)]
struct Met {
    reaction: Arc<Reaction>,
    /// Its latest matches.
    hits: Vec<Tick>,
    holds: Option<Holding>,
}

/// Since when, until when and why a rule holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Holding {
    pub(super) since: Tick,
    pub(super) until: Tick,
    pub(super) why: Box<str>,
}

/// The rules that a provider has met.
#[derive(Clone, Debug, Default)]
pub(super) struct Temper(Vec<Met>);

impl Temper {
    /// Notes a match. Whether the rule has taken hold by it, or goes on to hold: `Some(true)` if it did not before.
    pub(super) fn note(&mut self, reaction: &Arc<Reaction>, why: &str, now: Tick) -> Option<bool> {
        let at = match self.0.iter().position(|met| met.reaction == *reaction) {
            Some(at) => at,
            None => {
                self.0.push(Met { reaction: Arc::clone(reaction), hits: Vec::new(), holds: None });
                self.0.len() - 1
            }
        };
        let met = &mut self.0[at];
        let threshold = reaction.after.unwrap_or(Rate { count: 1, period: Duration::from_secs(1) });
        met.hits.retain(|hit| now.since(*hit) < threshold.period);
        met.hits.push(now);
        if met.hits.len() > HITS_MAX {
            met.hits.remove(0);
        }
        let held = met.holds.as_ref().filter(|holds| holds.until > now).map(|holds| holds.since);
        if held.is_none() && met.hits.len() < threshold.count as usize {
            return None;
        }
        let until = now + reaction.lasts;
        met.holds = Some(Holding { since: held.unwrap_or(now), until, why: why.into() });
        Some(held.is_none())
    }

    /// The rules that hold now.
    pub(super) fn holding(&self, now: Tick) -> impl Iterator<Item = (&Arc<Reaction>, &Holding)> {
        let holds = move |met: &'_ Met| met.holds.as_ref().is_some_and(|holds| holds.until > now);
        self.0.iter().filter(move |met| holds(met)).filter_map(|met| Some((&met.reaction, met.holds.as_ref()?)))
    }

    /// When the next of them ends.
    pub(super) fn next_end(&self, now: Tick) -> Option<Tick> {
        self.holding(now).map(|(_, holding)| holding.until).min()
    }

    /// Forgets rules that are no longer in the file.
    pub(super) fn keep_known(&mut self, provider: &str, rules: &Reactions) {
        self.0.retain(|met| rules.all(provider).any(|known| *known == met.reaction));
    }

    /// `limits` as the rules that hold leave them.
    pub(super) fn restrain(&self, limits: &Limits, now: Tick) -> Limits {
        let mut limits = limits.clone();
        for (reaction, _) in self.holding(now) {
            let Effect { slow, connections, messages_per_connection, .. } = &reaction.effect;
            limits.recipient_rate = slower(limits.recipient_rate, *slow);
            limits.connections = limits.connections.min(connections.unwrap_or(u32::MAX));
            let messages = messages_per_connection.unwrap_or(u32::MAX);
            limits.messages_per_connection = limits.messages_per_connection.min(messages);
        }
        limits
    }
}

fn slower(a: Option<Rate>, b: Option<Rate>) -> Option<Rate> {
    let per_second = |rate: &Rate| f64::from(rate.count) / rate.period.as_secs_f64().max(f64::MIN_POSITIVE);
    match (a, b) {
        (Some(a), Some(b)) => Some(if per_second(&a) <= per_second(&b) { a } else { b }),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn reaction(code: Option<Enhanced>, text: &str) -> Reaction {
        let label = format!("{code:?} {text}").into();
        let (codes, text, lasts) = (code.into_iter().collect(), Pattern::new(text), HOUR);
        Reaction { label, codes, text, after: None, lasts, effect: Effect::default() }
    }

    fn limits() -> Limits {
        Limits {
            connections: 20,
            connection_rate: None,
            recipient_rate: None,
            recipients_per_transaction: 50,
            messages_per_connection: 100,
            idle_timeout: Duration::from_secs(5),
        }
    }

    #[test]
    fn a_pattern_is_found_in_either_case_and_across_gaps() {
        let pattern = Pattern::new("unusual rate*mail").expect("something");
        assert!(pattern.is_in("An UNUSUAL Rate of unsolicited mail"));
        assert!(!pattern.is_in("mail at an unusual rate"));
        assert!(Pattern::new("**").is_none());
    }

    #[test]
    fn a_rule_shadows_one_that_asks_for_more() {
        let code = Some(Enhanced::new(4, 7, 28));
        assert!(reaction(None, "rate").shadows(&reaction(code, "unusual rate")));
        assert!(reaction(code, "").shadows(&reaction(code, "x")));
        assert!(!reaction(code, "").shadows(&reaction(None, "x")));
        assert!(!reaction(None, "unusual rate").shadows(&reaction(None, "rate")));
        assert!(!reaction(None, "a*b").shadows(&reaction(None, "b*a")));
    }

    #[test]
    fn a_threshold_counts_matches_within_its_time() {
        let rule = Reaction { after: Some(Rate { count: 2, period: HOUR }), ..reaction(None, "slow down") };
        let (rule, mut temper, start) = (Arc::new(rule), Temper::default(), Tick(1_000_000_000));
        assert_eq!(temper.note(&rule, "", start), None);
        assert_eq!(temper.note(&rule, "", start + HOUR), None, "the first is forgotten");
        assert_eq!(temper.note(&rule, "", start + HOUR * 3 / 2), Some(true));
        assert_eq!(temper.note(&rule, "", start + HOUR * 2), Some(false), "it held already");
        assert_eq!(temper.next_end(start + HOUR * 2), Some(start + HOUR * 3));
        assert_eq!(temper.holding(start + HOUR * 3).count(), 0);
    }

    #[test]
    fn the_strictest_of_what_holds_counts() {
        let mut temper = Temper::default();
        let rate = |count| Some(Rate { count, period: Duration::from_secs(60) });
        for (connections, slow) in [(Some(1), rate(10)), (Some(3), rate(5)), (None, None)] {
            let effect = Effect { connections, slow, ..Effect::default() };
            let text = format!("{connections:?}");
            temper.note(&Arc::new(Reaction { effect, ..reaction(None, &text) }), "", Tick(5));
        }
        let restrained = temper.restrain(&limits(), Tick(5));
        assert_eq!((restrained.connections, restrained.recipient_rate), (1, rate(5)));
        assert_eq!(temper.restrain(&limits(), Tick(5) + HOUR), limits());
    }
}
