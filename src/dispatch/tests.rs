//! Scenarios: facts go in at chosen times, and what comes out is compared. No clock, no I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::attempt::{Attempt, Exchanger, Limits, Pushback, Rate, Route, Site};
use crate::clock::Tick;
use crate::mail::{
    AttemptId, Batch, ContentHash, Destination, Domain, Envelope, EnvelopeParams, Mailbox, MailingId, QueueId, Queued,
    Recipient, RecipientId, RecipientParams, ReversePath, Trace,
};
use crate::outcome::{Enhanced, Phase, Reason, Reply, Scope};

pub(super) const NOW: Tick = Tick(1_000_000_000);
pub(super) const MS: Duration = Duration::from_millis(1);

pub(super) fn options() -> Options {
    Options {
        coalesce_quiet: 250 * MS,
        coalesce_window: 2000 * MS,
        attempts: 100,
        initial_window: 5,
        initial_rate: None,
        read_ahead: 1000,
        resident: 10_000,
        retry: RetrySchedule {
            delays: vec![Duration::from_secs(300)],
            jitter_percent: 0,
            expire_after: Duration::from_secs(3600),
            reports_expire_after: Duration::from_secs(7200),
        },
        suspend: (Duration::from_secs(30), Duration::from_secs(600)),
        weights: HashMap::new(),
        reactions: Arc::default(),
        partners: crate::partner::Options::default(),
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        connections: 20,
        connection_rate: None,
        recipient_rate: None,
        recipients_per_transaction: 50,
        messages_per_connection: 100,
        idle_timeout: Duration::from_secs(5),
    }
}

fn site(name: &str) -> Arc<Site> {
    let exchanger = Exchanger { preference: 10, host: format!("mx.{name}").into() };
    Arc::new(Site { name: name.into(), provider: name.into(), route: Route::Mx(vec![exchanger]) })
}

fn domain(name: &str) -> Destination {
    Destination::Domain(Domain::parse(name).expect("a domain"))
}

/// A list host that hands over batches.
pub(super) struct Lists {
    next: u64,
    host: &'static str,
    accepted: Tick,
}

impl Lists {
    pub(super) fn new() -> Lists {
        Lists { next: 0, host: "lists", accepted: NOW }
    }

    /// One batch of `mailing` with recipients `names` at `to`.
    fn batch(&mut self, mailing: u64, to: &str, names: &[String]) -> Vec<Queued> {
        self.next += 1;
        let envelope = Arc::new(Envelope {
            list_host: self.host.into(),
            reverse_path: ReversePath::Null,
            params: EnvelopeParams::default(),
            content: ContentHash([mailing as u8; 32]),
            content_size: 10_000,
            eight_bit: false,
            mailing: MailingId(mailing),
        });
        let trace =
            Trace { helo: "lists".into(), peer: None, protocol: "ESMTP".into(), at: jiff::Timestamp::UNIX_EPOCH };
        let batch = Arc::new(Batch { id: QueueId(self.next), envelope, trace, accepted: self.accepted });
        let queued = |(index, name): (usize, &String)| Queued {
            id: RecipientId { batch: batch.id, index: index as u32 },
            batch: Arc::clone(&batch),
            recipient: Arc::new(Recipient {
                path: Mailbox::parse(&format!("{name}@{to}"), false).expect("an address"),
                params: RecipientParams::default(),
            }),
            destination: domain(to),
            attempts: 0,
            due: self.accepted,
            delay_reported: false,
        };
        names.iter().enumerate().map(queued).collect()
    }

    pub(super) fn many(&mut self, mailing: u64, to: &str, count: usize) -> Vec<Queued> {
        let first = self.next;
        let names: Vec<String> = (0..count).map(|i| format!("u{first}-{i}")).collect();
        self.batch(mailing, to, &names)
    }
}

/// Runs the scheduler until it has nothing to do at `now`, resolving each destination to a site of its own name.
pub(super) fn run(scheduler: &mut Scheduler, limits: &Limits, now: Tick) -> (Vec<Attempt>, Vec<Action>) {
    let (mut attempts, mut others) = (Vec::new(), Vec::new());
    while let Some(action) = scheduler.poll(now) {
        match action {
            Action::Start(attempt) => attempts.push(*attempt),
            Action::Resolve(destination) => {
                let resolution = Resolution::Site(site(&destination.to_string()), Arc::new(limits.clone()));
                assert!(scheduler.resolved(&destination, resolution, now).is_empty());
            }
            other => others.push(other),
        }
    }
    (attempts, others)
}

pub(super) fn scheduler(options: Options) -> Scheduler {
    Scheduler::new(options, AttemptId(0))
}

pub(super) fn finish(scheduler: &mut Scheduler, attempt: &Attempt, trouble: Option<Reason>, now: Tick) {
    let relayed = if trouble.is_some() { 0 } else { attempt.recipients.len() };
    let (destination, site) = (attempt.destination.clone(), Arc::clone(&attempt.site));
    scheduler.finished(
        Finished {
            relayed,
            said: trouble.iter().cloned().collect(),
            trouble,
            begun: attempt.begun,
            ..Finished::without_attempt(destination, site)
        },
        now,
    );
}

pub(super) fn trouble(scope: Scope) -> Reason {
    let status = Enhanced::new(4, 4, 1);
    Reason { phase: Phase::Connect, scope, status, reply: None, text: "connection refused".into(), remote: None }
}

#[test]
fn a_full_transaction_leaves_at_once_and_the_rest_waits_until_its_mailing_is_quiet() {
    let mut s = scheduler(options());
    s.offer(Lists::new().many(1, "a.test", 70), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.iter().map(|a| a.recipients.len()).collect::<Vec<_>>(), [50]);
    assert_eq!(s.next_wakeup(), Some(NOW + 250 * MS));
    let (attempts, _) = run(&mut s, &limits(), NOW + 250 * MS);
    assert_eq!(attempts[0].recipients.len(), 20);
}

#[test]
fn recipients_of_one_mailing_are_regrouped_across_batches() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    for i in 0..40 {
        let now = NOW + i * 10 * MS;
        s.offer(lists.many(1, "a.test", 1), now);
        assert!(run(&mut s, &limits(), now).0.is_empty());
    }
    let (attempts, _) = run(&mut s, &limits(), NOW + 640 * MS);
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].recipients.len(), 40);
}

#[test]
fn a_mailing_that_never_falls_quiet_holds_its_first_recipient_no_longer_than_the_window() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    let mut now = NOW;
    let mut first = None;
    while first.is_none() && now < NOW + 5000 * MS {
        s.offer(lists.many(1, "a.test", 1), now);
        first = run(&mut s, &limits(), now).0.first().map(|_| now);
        now = now + 100 * MS;
    }
    assert_eq!(first, Some(NOW + 2000 * MS));
}

#[test]
fn where_every_message_has_an_envelope_of_its_own_nobody_waits_for_company() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    let mut personal = |n: u8| {
        let mut queued = lists.many(1, "a.test", 1);
        let batch = Arc::make_mut(&mut queued[0].batch);
        Arc::make_mut(&mut batch.envelope).content = ContentHash([n; 32]);
        queued
    };
    for n in 0..15 {
        s.offer(personal(n), NOW);
        assert!(run(&mut s, &limits(), NOW).0.is_empty());
    }
    s.offer(personal(15), NOW);
    assert_eq!(run(&mut s, &limits(), NOW).0.len(), 1, "the sixteenth in a row is believed");
    s.offer(personal(15), NOW);
    assert!(run(&mut s, &limits(), NOW).0.is_empty(), "one that came again may come a third time");
}

#[test]
fn different_envelopes_never_share_a_transaction() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "a.test", 3), NOW);
    s.offer(lists.many(2, "a.test", 3), NOW);
    let later = NOW + 3000 * MS;
    let _ = run(&mut s, &limits(), NOW);
    let (attempts, _) = run(&mut s, &limits(), later);
    assert_eq!(attempts.len(), 2);
}

#[test]
fn a_forward_path_stands_once_in_a_transaction() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.batch(1, "a.test", &["bob".into()]), NOW);
    s.offer(lists.batch(1, "a.test", &["bob".into(), "eve".into()]), NOW);
    let _ = run(&mut s, &limits(), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW + 250 * MS);
    assert_eq!(attempts.iter().map(|a| a.recipients.len()).collect::<Vec<_>>(), [2]);
    let (attempts, _) = run(&mut s, &limits(), NOW + 500 * MS);
    assert_eq!(attempts.iter().map(|a| a.recipients.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn the_window_starts_small_and_grows_with_success() {
    let mut s = scheduler(options());
    s.offer(Lists::new().many(1, "a.test", 1000), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 5);
    attempts.iter().for_each(|attempt| finish(&mut s, attempt, None, NOW));
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 10);
}

#[test]
fn connections_of_a_provider_never_pass_its_ceiling() {
    let mut s = scheduler(options());
    let limits = Limits { connections: 2, ..limits() };
    s.offer(Lists::new().many(1, "a.test", 1000), NOW);
    let (mut attempts, _) = run(&mut s, &limits, NOW);
    for _ in 0..10 {
        assert!(attempts.len() <= 2);
        attempts.iter().for_each(|attempt| finish(&mut s, attempt, None, NOW));
        attempts = run(&mut s, &limits, NOW).0;
    }
}

#[test]
fn a_rate_holds_the_provider_and_says_when_it_goes_on() {
    let mut s = scheduler(options());
    let rate = Rate { count: 100, period: Duration::from_secs(10) };
    let limits = Limits { recipient_rate: Some(rate), ..limits() };
    s.offer(Lists::new().many(1, "a.test", 200), NOW);
    let (attempts, _) = run(&mut s, &limits, NOW);
    assert_eq!(attempts.len(), 1);
    finish(&mut s, &attempts[0], None, NOW);
    assert!(run(&mut s, &limits, NOW + 1000 * MS).0.is_empty());
    assert_eq!(run(&mut s, &limits, NOW + 5001 * MS).0.len(), 1);
}

#[test]
fn a_dead_site_is_suspended_and_its_mail_goes_back_to_disk() {
    let mut s = scheduler(options());
    s.offer(Lists::new().many(1, "a.test", 100), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 2);
    finish(&mut s, &attempts[0], Some(trouble(Scope::Site)), NOW);
    finish(&mut s, &attempts[1], Some(trouble(Scope::Site)), NOW);
    assert_eq!(s.stats(NOW).suspended_sites, 1);
    s.offer(Lists::new().many(1, "a.test", 10), NOW);
    let (attempts, others) = run(&mut s, &limits(), NOW + 29_000 * MS);
    assert!(attempts.is_empty());
    assert!(matches!(&others[..], [Action::Release(ids)] if ids.len() == 10));
    let (_, others) = run(&mut s, &limits(), NOW + 30_000 * MS);
    assert!(matches!(&others[..], [Action::Load { .. }]), "{others:?}");
}

#[test]
fn a_site_is_probed_with_one_attempt_after_its_suspension() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "a.test", 50), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    finish(&mut s, &attempts[0], Some(trouble(Scope::Site)), NOW);
    s.wake(domain("a.test"), NOW);
    let later = NOW + 30_000 * MS;
    let _ = run(&mut s, &limits(), later);
    s.loaded(&domain("a.test"), lists.many(1, "a.test", 300), Tick::NEVER, later);
    let (attempts, _) = run(&mut s, &limits(), later);
    assert_eq!(attempts.len(), 1);
    finish(&mut s, &attempts[0], None, later);
    assert!(run(&mut s, &limits(), later).0.len() > 1);
}

#[test]
fn a_failure_of_its_site_is_the_last_attempt_of_mail_whose_lifetime_is_over() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    lists.accepted = NOW - Duration::from_secs(3601);
    s.offer(lists.many(1, "a.test", 100), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 2);
    s.offer(lists.many(1, "a.test", 30), NOW);
    finish(&mut s, &attempts[0], Some(trouble(Scope::Site)), NOW);
    let (_, others) = run(&mut s, &limits(), NOW);
    assert!(others.iter().any(|a| matches!(a, Action::Expire(dead, Some(_)) if dead.len() == 30)), "{others:?}");
    assert!(others.iter().any(|a| matches!(a, Action::Load { .. })), "looks for more of them: {others:?}");
}

#[test]
fn mail_past_the_hard_cap_expires_without_an_attempt() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    lists.accepted = NOW - Duration::from_secs(7201);
    s.wake(domain("a.test"), NOW);
    s.loaded(&domain("a.test"), lists.many(1, "a.test", 5), Tick::NEVER, NOW);
    let (attempts, others) = run(&mut s, &limits(), NOW);
    assert!(attempts.is_empty());
    assert!(others.iter().any(|a| matches!(a, Action::Expire(dead, None) if dead.len() == 5)), "{others:?}");
}

#[test]
fn what_does_not_fit_in_memory_stays_on_disk_and_is_loaded_as_room_comes_free() {
    let (mut s, mut lists) = (scheduler(Options { read_ahead: 100, ..options() }), Lists::new());
    s.offer(lists.many(1, "a.test", 500), NOW);
    let (attempts, others) = run(&mut s, &limits(), NOW);
    assert!(others.iter().any(|a| matches!(a, Action::Release(ids) if ids.len() == 400)), "{others:?}");
    assert_eq!(attempts.len(), 2);
    assert!(others.iter().any(|a| matches!(a, Action::Load { limit, .. } if *limit >= 50)), "{others:?}");
}

#[test]
fn memory_in_all_is_bounded_and_hungry_queues_are_fed_in_turn() {
    let (mut s, mut lists) = (scheduler(Options { resident: 100, ..options() }), Lists::new());
    s.offer(lists.many(1, "a.test", 90), NOW);
    s.offer(lists.many(1, "b.test", 90), NOW);
    assert_eq!(s.stats(NOW).resident, 100);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert!(!attempts.is_empty());
    assert!(s.stats(NOW).resident <= 100);
}

#[test]
fn a_small_mailing_overtakes_a_big_one_at_the_same_provider() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    let limits = Limits { connections: 1, ..limits() };
    s.offer(lists.many(1, "a.test", 1000), NOW);
    let (attempts, _) = run(&mut s, &limits, NOW);
    s.offer(lists.many(2, "a.test", 20), NOW);
    let later = NOW + 300 * MS;
    finish(&mut s, &attempts[0], None, later);
    let mut mailings = Vec::new();
    for _ in 0..3 {
        let (attempts, _) = run(&mut s, &limits, later);
        mailings.push(attempts[0].envelope.mailing.0);
        finish(&mut s, &attempts[0], None, later);
    }
    assert!(mailings.contains(&2), "{mailings:?}");
}

#[test]
fn a_domain_that_cannot_be_resolved_holds_no_other() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "bad.test", 50), NOW);
    s.offer(lists.many(1, "good.test", 50), NOW);
    let mut released = 0;
    let mut started = Vec::new();
    while let Some(action) = s.poll(NOW) {
        match action {
            Action::Resolve(d) if d == domain("bad.test") => {
                drop(s.resolved(&d, Resolution::Temporary(trouble(Scope::Site)), NOW));
            }
            Action::Release(ids) => released += ids.len(),
            Action::Resolve(d) => drop(s.resolved(&d, Resolution::Site(site("good"), Arc::new(limits())), NOW)),
            Action::Start(attempt) => started.push(attempt.destination.clone()),
            _ => {}
        }
    }
    assert_eq!(released, 50);
    assert_eq!(started, [domain("good.test")]);
    assert!(s.next_wakeup().expect("asks again") <= NOW + Duration::from_secs(600));
}

#[test]
fn a_provider_that_says_slow_down_gets_half_and_in_the_end_a_pause() {
    let mut s = scheduler(options());
    let mut lists = Lists::new();
    s.offer(lists.many(1, "a.test", 1000), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 5);
    for attempt in &attempts {
        finish(&mut s, attempt, Some(trouble(Scope::Session)), NOW);
    }
    assert_eq!(s.stats(NOW).held_providers, 1);
    assert!(run(&mut s, &limits(), NOW).0.is_empty());
    let later = NOW + Duration::from_secs(601);
    let (_, others) = run(&mut s, &limits(), later);
    assert!(others.iter().any(|a| matches!(a, Action::Load { .. })), "its mail lay on disk meanwhile: {others:?}");
    s.loaded(&domain("a.test"), lists.many(1, "a.test", 300), Tick::NEVER, later);
    assert_eq!(run(&mut s, &limits(), later).0.len(), 1);
}

#[test]
fn what_an_operator_suspends_goes_back_to_disk_and_comes_back_when_it_is_resumed() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "a.test", 100), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    s.offer(lists.many(1, "a.test", 30), NOW);
    let status = s.suspend("a.test", None, "complaints", NOW).expect("known");
    assert_eq!(status.standing, Standing::Suspended);
    let suspension = status.suspension.expect("told");
    assert_eq!((&*suspension.by, &*suspension.why, suspension.left_ms), ("operator", "complaints", None));
    attempts.iter().for_each(|attempt| finish(&mut s, attempt, None, NOW));
    s.offer(lists.many(1, "a.test", 10), NOW);
    let later = NOW + Duration::from_secs(600);
    let (attempts, others) = run(&mut s, &limits(), later);
    let released: usize = others.iter().map(|a| if let Action::Release(ids) = a { ids.len() } else { 0 }).sum();
    assert_eq!((attempts.len(), released), (0, 40), "{others:?}");
    let status = s.resume("A.test", later).expect("known by its domain");
    assert!(status.suspension.is_none());
    assert!(run(&mut s, &limits(), later).1.iter().any(|a| matches!(a, Action::Load { .. })));
}

#[test]
fn mail_whose_lifetime_ends_at_a_suspended_provider_expires_although_nothing_goes() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "a.test", 10), NOW);
    let _ = run(&mut s, &limits(), NOW);
    s.suspend("a.test", None, "", NOW).expect("known");
    let _ = run(&mut s, &limits(), NOW);
    let later = NOW + Duration::from_secs(3601);
    assert!(run(&mut s, &limits(), later).1.iter().any(|a| matches!(a, Action::Load { .. })));
    s.loaded(&domain("a.test"), lists.many(1, "a.test", 10), Tick::NEVER, later);
    let (_, others) = run(&mut s, &limits(), later);
    assert!(others.iter().any(|a| matches!(a, Action::Expire(dead, Some(_)) if dead.len() == 10)), "{others:?}");
}

#[test]
fn an_unknown_name_is_answered_with_names_that_are_near() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "google.test", 1), NOW);
    let _ = run(&mut s, &limits(), NOW);
    let unknown = s.provider_status("gogle.test", NOW).expect_err("unknown");
    assert_eq!(unknown.near, ["google.test"]);
}

#[test]
fn one_timer_per_queue_is_enough_however_often_mail_comes_for_a_suspended_provider() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    s.offer(lists.many(1, "a.test", 1), NOW);
    let _ = run(&mut s, &limits(), NOW);
    s.suspend("a.test", Some(Duration::from_secs(7200)), "", NOW).expect("known");
    (0..500).for_each(|_| s.offer(lists.many(1, "a.test", 10), NOW));
    assert!(s.timers.len() < 10, "{}", s.timers.len());
}

/// A scheduler where "come back" suspends for an hour, and 5.7.27 is our own fault.
fn touchy() -> Scheduler {
    let rule = |codes: &[Enhanced], text: &str, misconfigured: bool| {
        let effect = Effect { suspend: Some(Duration::from_secs(3600)), misconfigured, ..Effect::default() };
        let (label, text) = (format!("all: {text}").into(), Pattern::new(text));
        let lasts = Duration::from_secs(3600);
        Arc::new(Reaction { label, codes: codes.to_vec(), text, after: None, lasts, effect })
    };
    let general = vec![rule(&[Enhanced::new(5, 7, 27)], "", true), rule(&[], "come back", false)];
    let reactions = Arc::new(Reactions { general, ..Reactions::default() });
    scheduler(Options { reactions, ..options() })
}

fn said(code: u16, enhanced: Enhanced, text: &str) -> Reason {
    let reply = Reply { code, enhanced: Some(enhanced), text: text.into() };
    Reason { reply: Some(reply), ..trouble(Scope::Recipient) }
}

#[test]
fn a_reply_that_a_rule_knows_suspends_the_provider_and_says_by_which_rule_and_why() {
    let (mut s, mut lists) = (touchy(), Lists::new());
    s.offer(lists.many(1, "a.test", 100), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    let said = vec![said(450, Enhanced::new(4, 2, 1), "come back later")];
    let (destination, site) = (attempts[0].destination.clone(), Arc::clone(&attempts[0].site));
    s.finished(Finished { said, ..Finished::without_attempt(destination, site) }, NOW);
    let (_, others) = run(&mut s, &limits(), NOW);
    assert!(others.iter().any(|a| matches!(a, Action::Reacted(reacted) if &*reacted.rule == "all: come back")));
    let status = s.provider_status("a", NOW).expect("known by its first label");
    let suspension = status.suspension.expect("suspended");
    assert!(suspension.by == "all: come back" && suspension.why.contains("come back later"), "{suspension:?}");
    assert_eq!(status.rules.len(), 1);
    s.reload(s.options.clone(), NOW);
    assert!(s.provider_status("a.test", NOW).expect("known").suspension.is_some(), "a reload lets it run on");
    s.reload(options(), NOW);
    let status = s.provider_status("a.test", NOW).expect("known");
    assert!(status.suspension.is_none() && status.rules.is_empty(), "a rule that is gone holds nothing");
}

#[test]
fn a_refusal_for_our_own_configuration_is_told_from_others() {
    let s = touchy();
    let ours = said(550, Enhanced::new(5, 7, 27), "SPF did not pass").reply.expect("a reply");
    let theirs = said(550, Enhanced::new(5, 1, 1), "come back as somebody else").reply.expect("a reply");
    assert!(s.is_our_fault(&site("a.test"), &ours) && !s.is_our_fault(&site("a.test"), &theirs));
}

#[test]
fn a_connection_too_many_costs_neither_the_site_nor_half_of_the_window() {
    let mut s = scheduler(options());
    s.offer(Lists::new().many(1, "a.test", 1000), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    assert_eq!(attempts.len(), 5);
    let (destination, site) = (attempts[0].destination.clone(), Arc::clone(&attempts[0].site));
    let pushback = Pushback { crowded: true, ..Pushback::default() };
    let refused =
        Finished { pushback, trouble: Some(trouble(Scope::Site)), ..Finished::without_attempt(destination, site) };
    s.finished(refused, NOW);
    assert_eq!(s.stats(NOW).suspended_sites, 0);
    attempts[1..].iter().for_each(|attempt| finish(&mut s, attempt, None, NOW));
    assert_eq!(run(&mut s, &limits(), NOW).0.len(), 4, "as many as worked");
}

#[test]
fn a_provider_that_refuses_for_our_pace_is_sent_less_and_not_suspended() {
    let mut s = scheduler(options());
    s.offer(Lists::new().many(1, "a.test", 1000), NOW);
    let (attempts, _) = run(&mut s, &limits(), NOW);
    let later = NOW + 1500 * MS;
    attempts[1..].iter().for_each(|attempt| finish(&mut s, attempt, None, later));
    let (destination, site) = (attempts[0].destination.clone(), Arc::clone(&attempts[0].site));
    let pushback = Pushback { refused: 20, ..Pushback::default() };
    let begun = attempts[0].begun;
    let answer = Finished { pushback, begun, relayed: 30, ..Finished::without_attempt(destination, site) };
    s.finished(answer, later);
    let status = s.provider_status("a.test", later).expect("known");
    assert!(
        status.suspension.is_none() && status.pace.is_some_and(|pace| (100.0..200.0).contains(&pace)),
        "{status:?}"
    );
    assert!(run(&mut s, &limits(), later).0.is_empty(), "a moment of silence first");
    assert!(!run(&mut s, &limits(), later + 1000 * MS).0.is_empty());
}

#[test]
fn nothing_is_remembered_of_mail_that_is_gone() {
    let mut s = scheduler(options());
    let mut lists = Lists::new();
    for i in 0..50 {
        s.offer(lists.many(i, &format!("d{i}.test"), 3), NOW);
    }
    let later = NOW + 3000 * MS;
    let mut attempts = run(&mut s, &limits(), NOW).0;
    attempts.extend(run(&mut s, &limits(), later).0);
    assert_eq!(attempts.len(), 50);
    attempts.iter().for_each(|attempt| finish(&mut s, attempt, None, later));
    let _ = run(&mut s, &limits(), later + Duration::from_secs(60));
    let stats = s.stats(later);
    assert_eq!((stats.resident, stats.in_flight, stats.destinations), (0, 0, 0));
    assert!(s.bundles.is_empty() && s.grew.is_empty());
}

#[test]
fn what_was_deferred_is_loaded_when_it_is_due_and_not_before() {
    let mut s = scheduler(options());
    s.deferred(&domain("a.test"), NOW + 500 * MS, NOW);
    assert!(run(&mut s, &limits(), NOW + 499 * MS).1.is_empty());
    assert!(matches!(run(&mut s, &limits(), NOW + 500 * MS).1[..], [Action::Load { .. }]));
}

#[test]
fn mail_that_is_loaded_while_its_domain_does_not_resolve_is_not_forgotten() {
    let (mut s, mut lists) = (scheduler(Options { read_ahead: 10, ..options() }), Lists::new());
    let bad = domain("bad.test");
    s.offer(lists.many(1, "bad.test", 5), NOW);
    s.wake(bad.clone(), NOW);
    let (mut asked, mut loading) = (false, false);
    while let Some(action) = s.poll(NOW) {
        asked |= matches!(action, Action::Resolve(_));
        loading |= matches!(action, Action::Load { .. });
    }
    assert!(asked && loading);
    drop(s.resolved(&bad, Resolution::Temporary(trouble(Scope::Site)), NOW));
    s.loaded(&bad, lists.many(1, "bad.test", 8), NOW, NOW);
    let mut released = 0;
    while let Some(action) = s.poll(NOW) {
        if let Action::Release(ids) = action {
            released += ids.len();
        }
    }
    assert_eq!((released, s.stats(NOW).resident), (13, 0));
    let later = NOW + Duration::from_secs(61);
    let (_, others) = run(&mut s, &limits(), later);
    assert!(matches!(others[..], [Action::Load { .. }]), "{others:?}");
}

#[test]
fn what_is_due_later_than_the_first_of_a_domain_is_not_forgotten_when_the_first_was_loaded() {
    let (mut s, mut lists) = (scheduler(options()), Lists::new());
    let a = domain("a.test");
    s.deferred(&a, NOW + 500 * MS, NOW);
    s.deferred(&a, NOW + 700 * MS, NOW);
    let first = NOW + 500 * MS;
    let (_, others) = run(&mut s, &limits(), first);
    assert!(matches!(others[..], [Action::Load { .. }]), "{others:?}");
    s.loaded(&a, lists.many(1, "a.test", 1), NOW + 700 * MS, first);
    let (attempts, _) = run(&mut s, &limits(), first);
    finish(&mut s, &attempts[0], None, first);
    assert!(matches!(run(&mut s, &limits(), NOW + 700 * MS).1[..], [Action::Load { .. }]));
}
