//! Scenarios with partners: which way mail goes, and when it changes its mind.

use super::provider::Suspender;
use super::tests::{Lists, MS, NOW, finish, limits, options, run, scheduler, trouble};
use super::*;
use crate::attempt::{Attempt, AttemptReport, Delays, Partner, PartnerTls, Pushback, Rate, Route, Site};
use crate::outcome::{Outcome, Scope};
use crate::partner::{self, Condition, Mark, Rule, Suffix};
use std::sync::Arc;
use std::time::Duration;

fn rule(name: &str, condition: Condition) -> Rule {
    let partner = Partner {
        name: name.into(),
        hosts: vec![("smtp.partner.test".into(), 25)],
        tls: PartnerTls::Required,
        credentials: None,
        other_line: false,
        own_token: "by us (Posthaste)".into(),
    };
    let site: Arc<str> = format!("partner:{name}").into();
    Rule {
        name: name.into(),
        site: Arc::new(Site { name: Arc::clone(&site), provider: site, route: Route::Partner(Arc::new(partner)) }),
        limits: Arc::new(limits()),
        suffixes: vec![Suffix::Below(".test".into())],
        condition,
        quotas: Vec::new(),
        quota_mailing: None,
        weight: 1,
    }
}

fn with(rule: Rule) -> Scheduler {
    let partners = partner::Options { rules: vec![rule], ..partner::Options::default() };
    scheduler(Options { partners, ..options() })
}

fn overflow() -> Condition {
    Condition::Overflow { uplink: Some(Mark { high: 0.9, low: 0.7 }), age: None }
}

/// The site of each attempt that starts at `now`.
fn ways(s: &mut Scheduler, now: crate::clock::Tick) -> Vec<String> {
    run(s, &limits(), now).0.iter().map(|attempt| attempt.site.name.to_string()).collect()
}

fn report(attempt: &Attempt, outcome: Outcome) -> AttemptReport {
    AttemptReport {
        outcomes: vec![outcome; attempt.recipients.len()],
        attempt: attempt.clone(),
        trouble: None,
        pushback: Pushback::default(),
        delays: Delays::default(),
        peer: None,
        bytes: 0,
        transaction: true,
    }
}

/// Ends an attempt whose recipients are all given back.
fn give_back(s: &mut Scheduler, attempt: Attempt, reason: Option<crate::outcome::Reason>, now: crate::clock::Tick) {
    let Attempt { destination, site, recipients: again, .. } = attempt;
    s.finished(Finished { trouble: reason, again, ..Finished::without_attempt(destination, site) }, now);
}

#[test]
fn overflow_goes_to_the_partner_while_the_line_is_full_and_comes_back_when_it_is_not() {
    let (mut s, mut lists) = (with(rule("p", overflow())), Lists::new());
    s.observe(0.5, NOW);
    s.offer(lists.many(1, "a.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["a.test"]);
    s.observe(0.95, NOW);
    s.offer(lists.many(1, "b.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"]);
    s.observe(0.8, NOW);
    s.offer(lists.many(1, "c.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"], "between the marks nothing changes");
    s.observe(0.5, NOW);
    s.offer(lists.many(1, "d.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["d.test"]);
}

#[test]
fn a_fallback_takes_over_what_waits_for_a_provider_that_failed_and_not_for_one_that_the_operator_holds() {
    for (by, way) in [(Suspender::Trouble, vec!["partner:p"; 5]), (Suspender::Operator, vec![])] {
        let (mut s, mut lists) = (with(rule("p", Condition::Fallback)), Lists::new());
        s.offer(lists.many(1, "a.test", 1000), NOW);
        assert_eq!(ways(&mut s, NOW), ["a.test"; 5], "the window is used up");
        s.suspend_provider(&"a.test".into(), NOW + Duration::from_secs(50), by, "why", NOW);
        assert_eq!(ways(&mut s, NOW), way);
    }
}

#[test]
fn the_operator_can_suspend_a_partner_like_any_site_and_its_mail_goes_direct() {
    let (mut s, mut lists) = (with(rule("p", Condition::Always)), Lists::new());
    s.offer(lists.many(1, "a.test", 1000), NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"; 5], "the window is used up");
    s.suspend("partner:p", None, "why", NOW).expect("it is known");
    assert_eq!(ways(&mut s, NOW), ["a.test"; 5]);
}

#[test]
fn mail_that_waits_for_its_provider_leaves_by_the_partner_when_the_overflow_opens() {
    let (mut s, mut lists) = (with(rule("p", overflow())), Lists::new());
    s.offer(lists.many(1, "a.test", 500), NOW);
    assert_eq!(ways(&mut s, NOW), ["a.test"; 5], "the window is used up");
    s.observe(1.0, NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"; 5], "and so is the partner's");
}

#[test]
fn what_a_partner_gives_back_goes_direct_at_once_and_is_free_again_afterwards() {
    let (mut s, mut lists) = (with(rule("p", Condition::Always)), Lists::new());
    s.offer(lists.many(1, "a.test", 50), NOW);
    let attempt = run(&mut s, &limits(), NOW).0.remove(0);
    assert_eq!(&*attempt.site.name, "partner:p");
    let recipients = attempt.recipients.clone();
    give_back(&mut s, attempt, None, NOW);
    let direct = run(&mut s, &limits(), NOW).0.remove(0);
    assert_eq!(&*direct.site.name, "a.test");
    finish(&mut s, &direct, None, NOW);
    s.loaded(&direct.destination, recipients, crate::clock::Tick::NEVER, NOW); // never asked for, but harmless
    s.wake(direct.destination.clone(), NOW);
    let (_, others) = run(&mut s, &limits(), NOW);
    assert!(matches!(others[..], [Action::Load { .. }]), "{others:?}");
    s.loaded(&direct.destination, direct.recipients.clone(), crate::clock::Tick::NEVER, NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"]);
}

#[test]
fn a_partner_that_cannot_be_reached_is_left_alone_and_tried_with_one_attempt_later() {
    let (mut s, mut lists) = (with(rule("p", Condition::Always)), Lists::new());
    s.offer(lists.many(1, "a.test", 100), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 2);
    for attempt in attempts {
        give_back(&mut s, attempt, Some(trouble(Scope::Site)), NOW);
    }
    assert_eq!(ways(&mut s, NOW), ["a.test"; 2]);
    s.offer(lists.many(2, "b.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["b.test"], "the breaker is open");
    let later = NOW + Duration::from_secs(31);
    s.offer(lists.many(3, "c.test", 100), later);
    assert_eq!(ways(&mut s, later), ["partner:p", "c.test"], "one probe, and nobody waits for it");
}

#[test]
fn what_may_have_arrived_stays_on_its_way() {
    let (mut s, mut lists) = (with(rule("p", overflow())), Lists::new());
    s.observe(1.0, NOW);
    s.offer(lists.many(1, "a.test", 50), NOW);
    let attempt = run(&mut s, &limits(), NOW).0.remove(0);
    s.note_doubts(&report(&attempt, Outcome::Indeterminate(trouble(Scope::Session))));
    finish(&mut s, &attempt, None, NOW);
    s.observe(0.0, NOW);
    s.wake(attempt.destination.clone(), NOW);
    run(&mut s, &limits(), NOW);
    s.loaded(&attempt.destination, attempt.recipients.clone(), crate::clock::Tick::NEVER, NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"], "although the overflow is over");
}

#[test]
fn a_fallback_takes_over_when_the_direct_route_is_suspended() {
    let (mut s, mut lists) = (with(rule("p", Condition::Fallback)), Lists::new());
    s.offer(lists.many(1, "a.test", 50), NOW);
    let attempt = run(&mut s, &limits(), NOW).0.remove(0);
    assert_eq!(&*attempt.site.name, "a.test");
    finish(&mut s, &attempt, Some(trouble(Scope::Site)), NOW);
    s.offer(lists.many(1, "a.test", 50), NOW + MS);
    assert_eq!(ways(&mut s, NOW + MS), ["partner:p"]);
}

#[test]
fn a_quota_is_never_exceeded_and_what_is_over_goes_direct() {
    let quotas = vec![Rate { count: 60, period: Duration::from_secs(3600) }];
    let (mut s, mut lists) = (with(Rule { quotas, ..rule("p", Condition::Always) }), Lists::new());
    s.offer(lists.many(1, "a.test", 200), NOW);
    let attempts = run(&mut s, &limits(), NOW + Duration::from_secs(3)).0;
    let by = |name: &str| {
        attempts
            .iter()
            .filter(|attempt| &*attempt.site.name == name)
            .map(|attempt| attempt.recipients.len())
            .sum::<usize>()
    };
    assert_eq!((by("partner:p"), by("a.test")), (60, 140));
}

#[test]
fn the_oldest_recipient_opens_an_overflow_by_age() {
    let condition = Condition::Overflow {
        uplink: None,
        age: Some(Mark { high: Duration::from_secs(60), low: Duration::from_secs(30) }),
    };
    let (mut s, mut lists) = (with(rule("p", condition)), Lists::new());
    s.offer(lists.many(1, "a.test", 500), NOW);
    assert_eq!(ways(&mut s, NOW), ["a.test"; 5]);
    s.observe(0.0, NOW + Duration::from_secs(61));
    assert_eq!(ways(&mut s, NOW + Duration::from_secs(61)), ["partner:p"; 5]);
}

#[test]
fn the_operator_can_suspend_a_partner_and_resume_it() {
    let (mut s, mut lists) = (with(rule("p", Condition::Always)), Lists::new());
    assert!(s.suspend_partner("p", true, NOW) && !s.suspend_partner("q", true, NOW));
    s.offer(lists.many(1, "a.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["a.test"]);
    s.suspend_partner("p", false, NOW);
    s.offer(lists.many(1, "b.test", 50), NOW);
    assert_eq!(ways(&mut s, NOW), ["partner:p"]);
}
