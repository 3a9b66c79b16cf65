//! The report as a whole: a header section and three parts (RFC 6522, RFC 3464 section 2).

use jiff::{SignedDuration, Timestamp};
use memchr::memmem;

use super::Options;
use super::original::{Returned, returned};
use super::status::{delivery_status, is_international};
use super::text::human;
use super::wire::{date, dot_stuffed};
use crate::clock::Tick;
use crate::mail::{EnvelopeParams, Mailbox, QueueId, RecipientId, Ret};
use crate::spool::{ObligationKind, Owed};

/// What is to be reported.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// The batch and everything that it owes now, of whatever kinds.
    pub owed: &'a Owed,
    /// The batch's content, dot-stuffed as the spool keeps it; `None` if it cannot be read.
    pub original_content: Option<&'a [u8]>,
    /// Now, on the spool's time line.
    pub at: Tick,
    /// Now, as a person reads it.
    pub now: Timestamp,
    /// When a delayed recipient's lifetime ends.
    pub retry_until: Option<Timestamp>,
    /// Makes the Message-ID and the boundary unique. Any number that is not used twice for one batch.
    pub seed: u64,
}

impl Report<'_> {
    /// The wall time of a tick that lies behind.
    pub(super) fn wall(&self, tick: Tick) -> Timestamp {
        let ago = SignedDuration::try_from(self.at.since(tick)).unwrap_or_default();
        self.now.checked_sub(ago).unwrap_or(self.now)
    }
}

/// A composed report, to be submitted from the null reverse-path (RFC 3464 section 2) to its list host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    /// Whom it goes to: the batch's reverse-path, untouched.
    pub recipient: Mailbox,
    /// The octets, **dot-stuffed** as the spool stores content; every line ends in CRLF.
    pub content: Vec<u8>,
    /// Octets as RFC 1870 counts them, without stuffing.
    pub size: u64,
    /// Whether there is an octet above 127, so that BODY=8BITMIME is due.
    pub eight_bit: bool,
    /// Whether the envelope and the header section need SMTPUTF8 (RFC 6531): the reverse-path is not ASCII. UTF-8 in a
    /// part does not: the types of RFC 6533 are bodies like any other, and a list host whose bounce port lacks SMTPUTF8
    /// must hear of its failures all the same.
    pub smtputf8: bool,
    /// How much of the original is in it.
    pub returned: Returned,
    /// The obligations that it pays.
    pub pays: Vec<(RecipientId, ObligationKind)>,
}

/// Composes the one report on all that a batch owes. `None` if there is nobody to tell: the reverse-path is null (RFC 5321
/// section 6.1) or nothing is owed.
pub fn compose(report: &Report<'_>, options: &Options) -> Option<Dsn> {
    let recipient = report.owed.batch.envelope.reverse_path.mailbox()?;
    if report.owed.obligations.is_empty() {
        return None;
    }
    let (returned, parts) = parts(report, options);
    let plain = assemble(&header(report, options, recipient), &boundary(report, &parts), &parts);
    Some(Dsn {
        recipient: recipient.clone(),
        size: plain.len() as u64,
        eight_bit: !plain.is_ascii(),
        smtputf8: !recipient.is_ascii(),
        content: dot_stuffed(&plain),
        returned,
        pays: report.owed.obligations.iter().map(|(id, obligation)| (*id, obligation.kind)).collect(),
    })
}

/// One part of the report.
struct Part {
    content_type: &'static str,
    description: &'static str,
    body: Vec<u8>,
}

impl Part {
    /// 8bit or nothing: 7bit is what the absence of the field means (RFC 2045 section 6.1).
    fn encoding(&self) -> &'static str {
        if self.body.is_ascii() { "" } else { "Content-Transfer-Encoding: 8bit\r\n" }
    }
}

fn parts(report: &Report<'_>, options: &Options) -> (Returned, Vec<Part>) {
    let params = &report.owed.batch.envelope.params;
    let (returned, original) = returned(report.original_content, full_bytes(report, options));
    let text = human(report, &options.hostname, returned);
    let status = delivery_status(report, &options.hostname);
    let mut parts = vec![
        Part { content_type: text_type(&text), description: "Notification", body: text.into_bytes() },
        Part { content_type: status_type(report), description: "Delivery report", body: status.into_bytes() },
    ];
    if let Some((content_type, description)) = original_type(returned, params) {
        parts.push(Part { content_type, description, body: original });
    }
    (returned, parts)
}

/// Most octets of a whole message to return, if the whole is to be returned: RET=FULL counts for failures only (RFC 3461
/// section 4.3).
fn full_bytes(report: &Report<'_>, options: &Options) -> Option<usize> {
    let failed = report.owed.obligations.iter().any(|(_, obligation)| obligation.kind == ObligationKind::Failed);
    let params = &report.owed.batch.envelope.params;
    // What must not travel in clear does not travel back in full either (RFC 8689 section 5).
    (failed && params.ret == Some(Ret::Full) && !params.requiretls).then_some(options.return_bytes)
}

fn text_type(text: &str) -> &'static str {
    if text.is_ascii() { "text/plain; charset=us-ascii" } else { "text/plain; charset=utf-8" }
}

fn status_type(report: &Report<'_>) -> &'static str {
    if is_international(report) { "message/global-delivery-status" } else { "message/delivery-status" }
}

fn original_type(returned: Returned, params: &EnvelopeParams) -> Option<(&'static str, &'static str)> {
    match (returned, params.smtputf8) {
        (Returned::Nothing, _) => None,
        (Returned::Headers, false) => Some(("text/rfc822-headers", "Undelivered message header")),
        (Returned::Headers, true) => Some(("message/global-headers", "Undelivered message header")),
        (Returned::Message, false) => Some(("message/rfc822", "Undelivered message")),
        (Returned::Message, true) => Some(("message/global", "Undelivered message")),
    }
}

/// A boundary that occurs in no part. The seed makes a collision unlikely, the search makes it impossible.
fn boundary(report: &Report<'_>, parts: &[Part]) -> String {
    let (batch, seed) = (report.owed.batch.id, QueueId(report.seed));
    let occurs = |boundary: &String| parts.iter().any(|part| memmem::find(&part.body, boundary.as_bytes()).is_some());
    (0u64..)
        .map(|n| format!("dsn-{batch}-{seed}-{n}"))
        .find(|candidate| !occurs(candidate))
        .expect("finite parts cannot hold every boundary")
}

/// The header section, up to MIME-Version. `Auto-Submitted: auto-replied` as RFC 3834 section 3.1.7 has it for DSNs.
fn header(report: &Report<'_>, options: &Options, recipient: &Mailbox) -> String {
    let hostname = &options.hostname;
    let from = options.from.as_ref().map_or_else(|| format!("MAILER-DAEMON@{hostname}"), Mailbox::to_string);
    let id = format!("{}.{}.dsn@{hostname}", report.owed.batch.id, QueueId(report.seed));
    format!(
        "From: Mail Delivery System <{from}>\r\nTo: <{recipient}>\r\nSubject: {}\r\nDate: {}\r\nMessage-ID: <{id}>\r\n\
         Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n",
        subject(report),
        date(report.now)
    )
}

/// A fixed text: the original's subject is the sender's to choose, and does not get into a header of ours.
fn subject(report: &Report<'_>) -> &'static str {
    let gravest = report.owed.obligations.iter().map(|(_, obligation)| obligation.kind).min();
    match gravest {
        Some(ObligationKind::Delayed) => "Delayed Mail (still being retried)",
        Some(ObligationKind::Relayed) => "Mail Relayed (no further notice)",
        Some(ObligationKind::Failed) | None => "Undelivered Mail Returned to Sender",
    }
}

fn assemble(header: &str, boundary: &str, parts: &[Part]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024 + parts.iter().map(|part| part.body.len() + 256).sum::<usize>());
    out.extend_from_slice(header.as_bytes());
    let eight_bit = parts.iter().find(|part| !part.body.is_ascii()).map_or("", Part::encoding);
    let multipart = format!(
        "Content-Type: multipart/report; report-type=delivery-status;\r\n    boundary=\"{boundary}\"\r\n{eight_bit}\r\n\
         This is a delivery report in MIME format.\r\n"
    );
    out.extend_from_slice(multipart.as_bytes());
    for part in parts {
        let (content_type, description, encoding) = (part.content_type, part.description, part.encoding());
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Description: {description}\r\n{encoding}\r\n"
        );
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&part.body);
    }
    out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    out
}

#[cfg(test)]
mod tests;
