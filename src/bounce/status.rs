//! Part two: what machines read (RFC 3464 section 2; RFC 6533 section 3 where an address is not ASCII).
//!
//! ENVID and ORCPT appear decoded, as the examples of RFC 3464 show them: list software compares Original-Recipient with
//! its subscribers' addresses and does not decode xtext.

use super::compose::Report;
use super::wire::{date, one_line, printable, push_folded};
use crate::mail::{OriginalRecipient, RecipientId};
use crate::outcome::{Enhanced, Reason};
use crate::spool::{Obligation, ObligationKind};

/// Whether an address in the report needs `message/global-delivery-status`.
pub(super) fn is_international(report: &Report<'_>) -> bool {
    let foreign = |orcpt: &Option<OriginalRecipient>| orcpt.as_ref().is_some_and(|orcpt| !orcpt.address.is_ascii());
    let foreign = |o: &Obligation| !o.recipient.path.is_ascii() || foreign(&o.recipient.params.orcpt);
    report.owed.obligations.iter().any(|(_, obligation)| foreign(obligation))
}

/// The fields of the message, then a group per recipient.
pub(super) fn delivery_status(report: &Report<'_>, reporting_mta: &str) -> String {
    let mut out = String::with_capacity(256 + 512 * report.owed.obligations.len());
    push_field(&mut out, "Reporting-MTA", &format!("dns; {reporting_mta}"));
    push_field(&mut out, "Arrival-Date", &date(report.owed.batch.trace.at));
    if let Some(envid) = &report.owed.batch.envelope.params.envid {
        push_field(&mut out, "Original-Envelope-Id", &printable(envid));
    }
    for (id, obligation) in &report.owed.obligations {
        out.push_str("\r\n");
        push_recipient(&mut out, report, *id, obligation);
    }
    out
}

/// One recipient's group (RFC 3464 section 2.3), in the order of its grammar.
fn push_recipient(out: &mut String, report: &Report<'_>, id: RecipientId, obligation: &Obligation) {
    let Obligation { kind, recipient, reason, since } = obligation;
    if let Some(orcpt) = &recipient.params.orcpt {
        let address = format!("{}; {}", printable(&orcpt.address_type), one_line(&orcpt.address));
        push_field(out, "Original-Recipient", &address);
    }
    let address_type = if recipient.path.is_ascii() { "rfc822" } else { "utf-8" };
    push_field(out, "Final-Recipient", &format!("{address_type}; {}", recipient.path));
    push_field(out, "Action", action(*kind));
    push_field(out, "Status", &status(*kind, reason).to_string());
    if let Some(host) = remote_host(reason) {
        push_field(out, "Remote-MTA", &format!("dns; {host}"));
    }
    push_folded(out, "Diagnostic-Code: ", "    ", &diagnostic(reason));
    push_field(out, "Last-Attempt-Date", &date(report.wall(*since)));
    push_field(out, "Final-Log-Id", &id.to_string());
    if let (ObligationKind::Delayed, Some(until)) = (kind, report.retry_until) {
        push_field(out, "Will-Retry-Until", &date(until));
    }
}

/// A field whose body must keep its blanks, hence is not folded. Every such body is under 998 octets by its type.
fn push_field(out: &mut String, name: &str, body: &str) {
    out.extend([name, ": ", body, "\r\n"]);
}

fn action(kind: ObligationKind) -> &'static str {
    match kind {
        ObligationKind::Failed => "failed",
        ObligationKind::Delayed => "delayed",
        ObligationKind::Relayed => "relayed",
    }
}

/// The status that goes with the action. A failure of class 4 stands as it is: that is what RFC 3463 section 2 calls
/// a persistent transient failure, given up.
fn status(kind: ObligationKind, reason: &Reason) -> Enhanced {
    let fits = match kind {
        ObligationKind::Failed => matches!(reason.status.class, 4 | 5),
        ObligationKind::Delayed => reason.status.class == 4,
        ObligationKind::Relayed => reason.status.class == 2,
    };
    let general = match kind {
        ObligationKind::Failed => Enhanced::new(5, 0, 0),
        ObligationKind::Delayed => Enhanced::new(4, 0, 0),
        ObligationKind::Relayed => Enhanced::new(2, 0, 0),
    };
    if fits { reason.status } else { general }
}

/// The next hop's name without address and port.
pub(super) fn remote_host(reason: &Reason) -> Option<String> {
    let remote = reason.remote.as_deref()?;
    let host = remote.split_once('[').map_or(remote, |(host, _)| host);
    Some(printable(if host.is_empty() { remote } else { host }))
}

/// What the next hop said, or what we have to say in its place.
fn diagnostic(reason: &Reason) -> String {
    match &reason.reply {
        Some(reply) => format!("smtp; {}", printable(&reply.to_string())),
        None => format!("x-posthaste; {}", printable(&reason.text)),
    }
}
