//! Who is told, and when (RFC 3461 section 5.2, RFC 5321 section 6.1).
//!
//! Pure functions of the envelope. The two rules that nothing may override: the null reverse-path is never reported
//! to, so that no report can cause another; and a delay is reported only where it was asked for, because list software
//! counts a "delayed" report as a bounce.

use std::time::Duration;

use super::Options;
use crate::clock::Tick;
use crate::mail::{Destination, Mailbox, Notify, Queued, ReversePath};
use crate::spool::{ObligationKind, Owed};

/// What happened to a recipient, as far as it decides about a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Refused for good.
    Failed,
    /// Its lifetime ended. Reported like a failure.
    Expired,
    /// Still in the queue after the time from which delays are worth a word.
    Delayed {
        /// Whether a delay was reported before: it is at most once.
        reported: bool,
    },
    /// The next hop took it.
    Relayed {
        /// Whether NOTIFY went along, so that reporting is now the next hop's duty (RFC 3461 section 5.2.2).
        dsn_passed_on: bool,
    },
    /// An operator took it out of the queue. Nobody is told: it says nothing about the address, and a list server would
    /// count it against the subscriber.
    Cancelled,
}

/// The report that is owed for `event`, if anybody wants one.
pub fn obligation_for(reverse_path: &ReversePath, notify: Option<Notify>, event: Event) -> Option<ObligationKind> {
    reverse_path.mailbox()?;
    let (kind, wanted) = match event {
        Event::Failed | Event::Expired => (ObligationKind::Failed, Notify::wants_failure(notify)),
        Event::Delayed { reported } => (ObligationKind::Delayed, !reported && Notify::wants_delay(notify)),
        Event::Relayed { dsn_passed_on } => (ObligationKind::Relayed, !dsn_passed_on && Notify::wants_success(notify)),
        Event::Cancelled => return None,
    };
    wanted.then_some(kind)
}

/// Whether the report on `owed` is to be composed now: its oldest obligation has waited `gather` for company. The
/// waiting is bounded by that, however many follow.
pub fn due(owed: &Owed, now: Tick, gather: Duration) -> bool {
    let oldest = owed.obligations.iter().map(|(_, obligation)| obligation.since).min();
    oldest.is_some_and(|since| since + gather <= now)
}

/// Where a report goes that its list host refused, or did not take within [`Options::expire_after`]: to the postmaster,
/// once. `None` for mail that is no report of ours, where no postmaster is configured, and for what already went to
/// the postmaster; the caller then drops it, counted and logged.
///
/// The content is forwarded as it is: it names the batch and the recipients, which is what a postmaster needs.
pub fn last_resort<'a>(report: &Queued, options: &'a Options) -> Option<&'a Mailbox> {
    let is_report = matches!(report.destination, Destination::ListHost(_))
        && report.batch.envelope.reverse_path == ReversePath::Null;
    let postmaster = options.postmaster.as_ref()?;
    (is_report && report.recipient.path != *postmaster).then_some(postmaster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounce::samples;

    const ON_FAILURE: Notify = Notify::On { success: false, failure: true, delay: false };
    const ON_DELAY: Notify = Notify::On { success: false, failure: false, delay: true };
    const ON_SUCCESS: Notify = Notify::On { success: true, failure: false, delay: false };
    const EVERYTHING: Notify = Notify::On { success: true, failure: true, delay: true };
    const EVENTS: [Event; 5] = [
        Event::Failed,
        Event::Expired,
        Event::Delayed { reported: false },
        Event::Relayed { dsn_passed_on: false },
        Event::Cancelled,
    ];

    fn owed_to_list(notify: Option<Notify>, event: Event) -> Option<ObligationKind> {
        obligation_for(&ReversePath::Mailbox(samples::mailbox("list-bounces@lists.example.org")), notify, event)
    }

    #[test]
    fn nothing_is_ever_reported_to_the_null_reverse_path() {
        for notify in [None, Some(Notify::Never), Some(EVERYTHING)] {
            for event in EVENTS {
                assert_eq!(obligation_for(&ReversePath::Null, notify, event), None, "{notify:?} {event:?}");
            }
        }
    }

    #[test]
    fn notify_never_is_honoured_whatever_happens() {
        assert!(EVENTS.iter().all(|&event| owed_to_list(Some(Notify::Never), event).is_none()));
    }

    #[test]
    fn without_notify_only_failures_are_reported() {
        let reported: Vec<_> = EVENTS.iter().map(|&event| owed_to_list(None, event)).collect();
        assert_eq!(reported, [Some(ObligationKind::Failed), Some(ObligationKind::Failed), None, None, None]);
    }

    #[test]
    fn notify_without_failure_means_no_failure_report() {
        assert_eq!(owed_to_list(Some(ON_DELAY), Event::Failed), None);
        assert_eq!(owed_to_list(Some(ON_FAILURE), Event::Failed), Some(ObligationKind::Failed));
    }

    #[test]
    fn a_delay_is_reported_once_and_only_where_it_was_asked_for() {
        assert_eq!(owed_to_list(Some(ON_FAILURE), Event::Delayed { reported: false }), None);
        assert_eq!(owed_to_list(Some(ON_DELAY), Event::Delayed { reported: false }), Some(ObligationKind::Delayed));
        assert_eq!(owed_to_list(Some(ON_DELAY), Event::Delayed { reported: true }), None);
    }

    #[test]
    fn relaying_is_reported_only_where_the_next_hop_will_not() {
        let relayed = |dsn_passed_on| owed_to_list(Some(ON_SUCCESS), Event::Relayed { dsn_passed_on });
        assert_eq!(relayed(false), Some(ObligationKind::Relayed));
        assert_eq!(relayed(true), None);
    }

    #[test]
    fn what_an_operator_cancelled_is_reported_to_nobody() {
        assert_eq!(owed_to_list(Some(EVERYTHING), Event::Cancelled), None);
    }

    #[test]
    fn a_report_waits_for_company_since_its_oldest_obligation() {
        let mut owed = samples::owed(&["a@example.com", "b@example.com"]);
        owed.obligations[0].1.since = Tick(9_000);
        owed.obligations[1].1.since = Tick(5_000);
        let gather = Duration::from_secs(3);
        assert!(!due(&owed, Tick(7_999), gather));
        assert!(due(&owed, Tick(8_000), gather));
    }

    #[test]
    fn a_batch_that_owes_nothing_is_never_due() {
        assert!(!due(&samples::owed(&[]), Tick::NEVER, Duration::ZERO));
    }

    #[test]
    fn an_undeliverable_report_goes_to_the_postmaster_once() {
        let options = samples::options();
        let postmaster = options.postmaster.as_ref().expect("the sample has one");
        assert_eq!(last_resort(&samples::queued_report("list-bounces@lists.example.org"), &options), Some(postmaster));
        assert_eq!(last_resort(&samples::queued_report(postmaster.as_str()), &options), None);
    }

    #[test]
    fn mail_that_is_no_report_of_ours_never_goes_to_the_postmaster() {
        let mut from_list = samples::queued_report("a@example.com");
        from_list.destination = Destination::Domain(from_list.recipient.path.domain());
        assert_eq!(last_resort(&from_list, &samples::options()), None);
    }
}
