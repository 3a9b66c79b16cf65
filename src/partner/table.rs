//! The table of partners: which of them a recipient's domain goes to at this moment, if any.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::gate::{Conditions, Gate};
use super::options::{Condition, Options, Rule, Suffix};
use super::quota::{Mailings, Quota};
use crate::attempt::{Route, Site};
use crate::clock::Tick;
use crate::mail::{Envelope, MailingId};

/// All partners with their state.
#[derive(Clone, Debug, Default)]
pub struct Partners {
    entries: Vec<Entry>,
    from_partners: HashSet<Arc<str>>,
}

#[derive(Clone, Debug)]
struct Entry {
    rule: Rule,
    gate: Gate,
    quotas: Vec<Quota>,
    mailings: Mailings,
    suspended: bool,
}

/// A partner's state, for metrics and the operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Its name.
    pub name: Arc<str>,
    /// `always`, `overflow` or `fallback`.
    pub condition: &'static str,
    /// Whether the condition holds. A fallback's depends on the destination, and counts as holding.
    pub open: bool,
    /// Whether the operator has suspended it.
    pub suspended: bool,
    /// Recipients that it may still be given in the tightest of its windows; `None`: no quota.
    pub quota_left: Option<u64>,
}

impl Entry {
    fn new(rule: Rule) -> Entry {
        let quotas = rule.quotas.iter().copied().map(Quota::new).collect();
        Entry { rule, gate: Gate::default(), quotas, mailings: Mailings::default(), suspended: false }
    }

    /// Takes over a changed rule. A quota that did not change keeps its count, so that a reload gives no fresh one.
    fn renew(&self, rule: Rule) -> Entry {
        let kept = |rate| self.quotas.iter().find(|quota| quota.rate() == rate).cloned();
        let quotas = rule.quotas.iter().map(|rate| kept(*rate).unwrap_or_else(|| Quota::new(*rate))).collect();
        Entry { rule, gate: self.gate, quotas, mailings: self.mailings.clone(), suspended: self.suspended }
    }

    fn suffix_for(&self, domain: &str) -> Option<&Suffix> {
        self.rule.suffixes.iter().find(|suffix| suffix.matches(domain))
    }

    fn condition_holds(&self, direct_usable: bool) -> bool {
        match self.rule.condition {
            Condition::Always => true,
            Condition::Overflow { .. } => self.gate.is_open(),
            Condition::Fallback => !direct_usable,
        }
    }

    /// Recipients of a mailing that it may be given now.
    fn room(&self, mailing: Option<MailingId>, now: Tick) -> u64 {
        let quota = self.rule.quota_mailing.zip(mailing);
        let of_mailing = quota.map(|(quota, mailing)| quota.saturating_sub(self.mailings.used(mailing)));
        of_mailing.into_iter().chain(self.quotas.iter().map(|quota| quota.left(now))).min().unwrap_or(u64::MAX)
    }

    fn status(&self, now: Tick) -> Status {
        let condition = match self.rule.condition {
            Condition::Always => "always",
            Condition::Overflow { .. } => "overflow",
            Condition::Fallback => "fallback",
        };
        let (name, open) = (Arc::clone(&self.rule.name), self.condition_holds(false));
        let quota_left = self.quotas.iter().map(|quota| quota.left(now)).min();
        Status { name, condition, open, suspended: self.suspended, quota_left }
    }
}

/// What is asked of the table.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The recipients' domain, lower case.
    pub domain: &'a str,
    /// What they have in common; `None`: whatever it may be.
    pub envelope: Option<&'a Envelope>,
    /// Whether the direct route can be used.
    pub direct_usable: bool,
}

impl Partners {
    /// All partners at their beginning.
    pub fn new(options: Options) -> Partners {
        let mut partners = Partners::default();
        partners.reload(options);
        partners
    }

    /// Takes over changed rules; what is known of partners of the same name stays.
    pub fn reload(&mut self, options: Options) {
        let before: HashMap<_, _> =
            std::mem::take(&mut self.entries).into_iter().map(|entry| (Arc::clone(&entry.rule.name), entry)).collect();
        let renewed = |rule: Rule| match before.get(&rule.name) {
            Some(entry) => entry.renew(rule),
            None => Entry::new(rule),
        };
        self.entries = options.rules.into_iter().map(renewed).collect();
        self.from_partners = options.from_partners;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether any condition speaks of age, so that somebody must look for the oldest.
    pub fn ask_for_age(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.rule.condition, Condition::Overflow { age: Some(_), .. }))
    }

    /// Takes note of how things stand; whether that opened or closed an overflow.
    pub fn observe(&mut self, conditions: Conditions) -> bool {
        let observe = |entry: &mut Entry| entry.gate.observe(&entry.rule.condition, conditions);
        self.entries.iter_mut().map(observe).fold(false, |changed, now| changed | now)
    }

    /// The partner that mail goes to now: the first rule that matches, whose condition holds, that has quota left and that
    /// `usable` says works. Partners that take the very same suffix share by weight, a domain always with the same one.
    pub fn choose(&self, question: Question<'_>, usable: impl Fn(&Site) -> bool, now: Tick) -> Option<&Rule> {
        if question.envelope.is_some_and(|envelope| self.from_partners.contains(&envelope.list_host)) {
            return None;
        }
        let mailing = question.envelope.map(|envelope| envelope.mailing);
        let may = |entry: &Entry| {
            !entry.suspended
                && entry.condition_holds(question.direct_usable)
                && entry.room(mailing, now) > 0
                && usable(&entry.rule.site)
        };
        let mut fitting = self.entries.iter().filter_map(|entry| {
            let suffix = entry.suffix_for(question.domain)?;
            may(entry).then_some((entry, suffix))
        });
        let (first, suffix) = fitting.next()?;
        let peers: Vec<&Rule> = std::iter::once(first)
            .chain(fitting.filter(|(_, other)| *other == suffix).map(|(entry, _)| entry))
            .map(|entry| &entry.rule)
            .collect();
        weighted(&peers, question.domain)
    }

    /// The partner of this name, if it works: for mail that may have gone there already.
    pub fn named(&self, name: &str) -> Option<&Rule> {
        self.entries.iter().map(|entry| &entry.rule).find(|rule| *rule.name == *name)
    }

    fn room(&self, name: &str, mailing: MailingId, wanted: usize, now: Tick) -> usize {
        let room = self.entry(name).map_or(u64::MAX, |entry| entry.room(Some(mailing), now));
        usize::try_from(room).unwrap_or(usize::MAX).min(wanted)
    }

    /// How many of `wanted` recipients of a mailing go in the next transaction with `site`: all of them unless it is a
    /// partner with a quota. They are counted as given.
    pub fn admit(&mut self, site: &Site, mailing: MailingId, wanted: usize, now: Tick) -> usize {
        let Route::Partner(partner) = &site.route else { return wanted };
        // Mail that may have arrived there goes on with it even if its quota is used up.
        let count = self.room(&partner.name, mailing, wanted, now).max(1);
        self.charge(&partner.name, mailing, count, now);
        count
    }

    fn charge(&mut self, name: &str, mailing: MailingId, count: usize, now: Tick) {
        let Some(entry) = self.entry_mut(name) else { return };
        entry.quotas.iter_mut().for_each(|quota| quota.charge(count as u64, now));
        if entry.rule.quota_mailing.is_some() {
            entry.mailings.charge(mailing, count as u64);
        }
    }

    /// Counts recipients that a partner gave back.
    pub fn refund(&mut self, name: &str, mailing: MailingId, count: usize) {
        let Some(entry) = self.entry_mut(name) else { return };
        entry.quotas.iter_mut().for_each(|quota| quota.refund(count as u64));
        entry.mailings.refund(mailing, count as u64);
    }

    /// Suspends a partner or resumes it, on the operator's word. `false`: there is none of that name.
    pub fn set_suspended(&mut self, name: &str, suspended: bool) -> bool {
        self.entry_mut(name).map(|entry| entry.suspended = suspended).is_some()
    }

    /// The state of all partners.
    pub fn status(&self, now: Tick) -> Vec<Status> {
        self.entries.iter().map(|entry| entry.status(now)).collect()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| *entry.rule.name == *name)
    }

    fn entry_mut(&mut self, name: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| *entry.rule.name == *name)
    }
}

/// One of `rules` by weight, for a domain always the same as long as they are the same.
fn weighted<'a>(rules: &[&'a Rule], domain: &str) -> Option<&'a Rule> {
    let total: u64 = rules.iter().map(|rule| u64::from(rule.weight)).sum();
    let mut hasher = DefaultHasher::new();
    domain.hash(&mut hasher);
    let mut point = hasher.finish() % total.max(1);
    let is_hit = |rule: &&&Rule| {
        let weight = u64::from(rule.weight);
        let hit = point < weight;
        point = point.saturating_sub(weight);
        hit
    };
    rules.iter().find(is_hit).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attempt::{Limits, Partner, PartnerTls, Rate};
    use crate::mail::{ContentHash, EnvelopeParams, ReversePath};
    use crate::partner::Mark;

    const NOW: Tick = Tick(1_000_000_000);

    fn rule(name: &str, suffixes: &[Suffix], condition: Condition) -> Rule {
        let partner = Partner {
            name: name.into(),
            hosts: vec![("smtp.partner.test".into(), 25)],
            tls: PartnerTls::Required,
            credentials: None,
            other_line: false,
            own_token: "by us (Posthaste)".into(),
        };
        let site_name: Arc<str> = format!("partner:{name}").into();
        let route = Route::Partner(Arc::new(partner));
        let limits = Limits {
            connections: 5,
            connection_rate: None,
            recipient_rate: None,
            recipients_per_transaction: 50,
            messages_per_connection: 100,
            idle_timeout: Duration::ZERO,
        };
        Rule {
            name: name.into(),
            site: Arc::new(Site { name: Arc::clone(&site_name), provider: site_name, route }),
            limits: Arc::new(limits),
            suffixes: suffixes.to_vec(),
            condition,
            quotas: Vec::new(),
            quota_mailing: None,
            weight: 1,
        }
    }

    fn envelope(list_host: &str) -> Envelope {
        Envelope {
            list_host: list_host.into(),
            reverse_path: ReversePath::Null,
            params: EnvelopeParams::default(),
            content: ContentHash([0; 32]),
            content_size: 1,
            eight_bit: false,
            mailing: MailingId(1),
        }
    }

    fn below(suffix: &str) -> Suffix {
        Suffix::Below(suffix.into())
    }

    fn choose(partners: &Partners, domain: &str) -> Option<String> {
        let question = Question { domain, envelope: Some(&envelope("lists")), direct_usable: true };
        partners.choose(question, |_| true, NOW).map(|rule| rule.name.to_string())
    }

    fn table(rules: Vec<Rule>) -> Partners {
        Partners::new(Options { rules, from_partners: HashSet::from(["friend-in".into()]) })
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        let exactly = Suffix::Exactly("example.org".into());
        let partners = table(vec![
            rule("one", &[below(".de"), exactly], Condition::Always),
            rule("two", &[below(".co.uk")], Condition::Always),
            rule("rest", &[Suffix::Any], Condition::Always),
        ]);
        let chosen = |domain| choose(&partners, domain).expect("a partner");
        let domains = ["gmx.de", "de", "example.org", "a.example.org", "bbc.co.uk", "xco.uk"];
        assert_eq!(domains.map(chosen), ["one", "rest", "one", "rest", "two", "rest"]);
    }

    #[test]
    fn mail_that_came_from_a_partner_goes_to_none() {
        let partners = table(vec![rule("rest", &[Suffix::Any], Condition::Always)]);
        let question = Question { domain: "a.de", envelope: Some(&envelope("friend-in")), direct_usable: false };
        assert!(partners.choose(question, |_| true, NOW).is_none());
    }

    #[test]
    fn a_fallback_is_used_only_while_the_direct_route_is_not_usable() {
        let partners = table(vec![rule("rest", &[Suffix::Any], Condition::Fallback)]);
        let ask = |direct_usable| Question { domain: "a.de", envelope: None, direct_usable };
        assert!(partners.choose(ask(true), |_| true, NOW).is_none());
        assert!(partners.choose(ask(false), |_| true, NOW).is_some());
        assert!(partners.choose(ask(false), |_| false, NOW).is_none(), "it does not work itself");
    }

    #[test]
    fn a_partner_without_quota_left_is_passed_over_and_a_reload_gives_no_fresh_quota() {
        let limited = Rule {
            quotas: vec![Rate { count: 10, period: Duration::from_secs(3600) }],
            quota_mailing: Some(8),
            ..rule("one", &[Suffix::Any], Condition::Always)
        };
        let rules = vec![limited, rule("two", &[Suffix::Any], Condition::Always)];
        let mut partners = table(vec![rules[0].clone()]);
        assert_eq!(partners.room("one", MailingId(1), 50, NOW), 8);
        partners.charge("one", MailingId(1), 8, NOW);
        assert_eq!(choose(&partners, "a.de"), None, "this mailing has had its part");
        assert_eq!(partners.room("one", MailingId(2), 50, NOW), 2);
        partners.reload(Options { rules, ..Options::default() });
        assert_eq!(partners.status(NOW)[0].quota_left, Some(2));
        assert_eq!(choose(&partners, "a.de").as_deref(), Some("two"));
        partners.refund("one", MailingId(1), 8);
        assert_eq!(partners.room("one", MailingId(1), 50, NOW), 8);
    }

    #[test]
    fn partners_with_the_same_suffix_share_by_weight_and_a_domain_stays_with_one() {
        let heavy = Rule { weight: 3, ..rule("three", &[below(".de")], Condition::Always) };
        let partners = table(vec![rule("one", &[below(".de")], Condition::Always), heavy]);
        let domains = || (0..4000).map(|i| format!("site{i}.de"));
        let ones = domains().filter(|domain| choose(&partners, domain).as_deref() == Some("one")).count();
        assert!((850..1150).contains(&ones), "{ones}");
        assert!(domains().all(|domain| choose(&partners, &domain) == choose(&partners, &domain)));
    }

    #[test]
    fn an_overflow_takes_mail_while_it_is_open_and_the_operator_has_the_last_word() {
        let condition = Condition::Overflow { uplink: Some(Mark { high: 0.9, low: 0.7 }), age: None };
        let mut partners = table(vec![rule("one", &[Suffix::Any], condition)]);
        assert_eq!(choose(&partners, "a.de"), None);
        assert!(partners.observe(Conditions { uplink: 0.95, ..Conditions::default() }));
        assert!(!partners.observe(Conditions { uplink: 0.8, ..Conditions::default() }));
        assert_eq!(choose(&partners, "a.de").as_deref(), Some("one"));
        assert!(partners.set_suspended("one", true) && !partners.set_suspended("none", true));
        assert_eq!(choose(&partners, "a.de"), None);
    }
}
