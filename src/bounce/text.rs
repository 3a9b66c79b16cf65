//! Part one: what people read. Short: what happened, to whom, who said so, what comes next.

use super::compose::Report;
use super::original::Returned;
use super::status::remote_host;
use super::wire::{date, printable, push_folded};
use crate::outcome::Reason;
use crate::spool::{Obligation, ObligationKind};

/// Recipients that are listed here; part two has them all.
const LISTED: usize = 50;

/// The report in words.
pub(super) fn human(report: &Report<'_>, hostname: &str, returned: Returned) -> String {
    let mut out = String::with_capacity(4096);
    push_folded(&mut out, "", "", &format!("This is the mail relay {hostname}."));
    for kind in [ObligationKind::Failed, ObligationKind::Delayed, ObligationKind::Relayed] {
        push_section(&mut out, report, kind);
    }
    out.push_str("\r\n");
    push_folded(&mut out, "", "", &closing(report, returned));
    out
}

/// What is reported with one action: a sentence, then the recipients.
fn push_section(out: &mut String, report: &Report<'_>, kind: ObligationKind) {
    let of_kind = || report.owed.obligations.iter().map(|(_, obligation)| obligation).filter(|o| o.kind == kind);
    let count = of_kind().count();
    if count == 0 {
        return;
    }
    out.push_str("\r\n");
    push_folded(out, "", "", &sentence(report, kind));
    out.push_str("\r\n");
    of_kind().take(LISTED).for_each(|obligation| push_recipient(out, obligation));
    if count > LISTED {
        let rest = format!("... and {} more; the second part of this report lists all of them.", count - LISTED);
        push_folded(out, "  ", "  ", &rest);
    }
}

fn sentence(report: &Report<'_>, kind: ObligationKind) -> String {
    let arrived = date(report.owed.batch.trace.at);
    match (kind, report.retry_until) {
        (ObligationKind::Failed, _) => format!(
            "The message that it accepted from you on {arrived} could not be delivered to the recipients below. No \
             further attempt will be made."
        ),
        (ObligationKind::Delayed, Some(until)) => format!(
            "The message that it accepted from you on {arrived} has not yet been delivered to the recipients below. \
             Attempts go on until {}; there is no need to send it again.",
            date(until)
        ),
        (ObligationKind::Delayed, None) => format!(
            "The message that it accepted from you on {arrived} has not yet been delivered to the recipients below. \
             Attempts go on; there is no need to send it again."
        ),
        (ObligationKind::Relayed, _) => format!(
            "The message that it accepted from you on {arrived} was handed to hosts that do not report on delivery. For \
             the recipients below this is the last notice."
        ),
    }
}

fn push_recipient(out: &mut String, obligation: &Obligation) {
    out.extend(["  <", obligation.recipient.path.as_str(), ">\r\n"]);
    push_folded(out, "      ", "      ", &what_was_said(&obligation.reason));
}

fn what_was_said(reason: &Reason) -> String {
    match (&reason.reply, remote_host(reason)) {
        (Some(reply), Some(host)) => format!("{host} said: {}", printable(&reply.to_string())),
        (Some(reply), None) => printable(&reply.to_string()),
        (None, Some(host)) => format!("{host}: {}", printable(&reason.text)),
        (None, None) => printable(&reason.text),
    }
}

fn closing(report: &Report<'_>, returned: Returned) -> String {
    let id = report.owed.batch.id;
    let attached = match returned {
        Returned::Nothing => "The message itself could not be read any more and is not attached.",
        Returned::Headers => "The header of the message is attached.",
        Returned::Message => "The message is attached.",
    };
    format!("{attached} The relay's postmaster finds it under queue id {id}.")
}
