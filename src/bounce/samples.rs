//! Values that this part's tests share.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Options, Report};
use crate::clock::Tick;
use crate::mail::{
    Batch, ContentHash, Destination, Envelope, EnvelopeParams, Mailbox, MailingId, QueueId, Queued, Recipient,
    RecipientId, RecipientParams, ReversePath, Trace,
};
use crate::outcome::{Enhanced, Phase, Reason, Reply, Scope};
use crate::spool::{Obligation, ObligationKind, Owed};

pub(super) const CONTENT: &[u8] = b"From: editor@lists.example.org\r\nTo: news@lists.example.org\r\nSubject: News\r\n\
      Message-ID: <1@lists.example.org>\r\nList-Id: <news.lists.example.org>\r\n\r\nHello,\r\n..dot\r\n";

pub(super) fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text, true).expect("a good address")
}

pub(super) fn options() -> Options {
    Options {
        hostname: "relay.example.net".into(),
        from: None,
        delay_after: Duration::from_secs(4 * 3600),
        gather: Duration::from_secs(5),
        expire_after: Duration::from_secs(14 * 86_400),
        postmaster: Some(mailbox("postmaster@lists.example.org")),
        return_bytes: 50_000,
    }
}

/// A batch of `news` that arrived at 08:00 and owes a failure to each of `recipients` since 08:01.
pub(super) fn owed(recipients: &[&str]) -> Owed {
    let obligation =
        |(index, path): (usize, &&str)| (RecipientId { batch: QueueId(77), index: index as u32 }, refused(path));
    Owed {
        batch: Arc::new(batch(ReversePath::Mailbox(mailbox("news-bounces@lists.example.org")))),
        obligations: recipients.iter().enumerate().map(obligation).collect(),
    }
}

pub(super) fn batch(reverse_path: ReversePath) -> Batch {
    Batch {
        id: QueueId(77),
        envelope: Arc::new(Envelope {
            list_host: "lists".into(),
            reverse_path,
            params: EnvelopeParams::default(),
            content: ContentHash([0; 32]),
            content_size: CONTENT.len() as u64,
            eight_bit: false,
            mailing: MailingId(1),
        }),
        trace: Trace {
            helo: "lists.example.org".into(),
            peer: None,
            protocol: "ESMTP".into(),
            at: "2026-11-24T08:00:00Z".parse().expect("a timestamp"),
        },
        accepted: Tick(1_000_000),
    }
}

pub(super) fn refused(path: &str) -> Obligation {
    let status = Enhanced::new(5, 1, 1);
    Obligation {
        kind: ObligationKind::Failed,
        recipient: Arc::new(Recipient { path: mailbox(path), params: RecipientParams::default() }),
        reason: Reason {
            phase: Phase::Rcpt,
            scope: Scope::Recipient,
            status,
            reply: Some(Reply { code: 550, enhanced: Some(status), text: "User unknown".into() }),
            text: "".into(),
            remote: Some("mx.example.com[192.0.2.1]:25".into()),
        },
        since: Tick(1_060_000),
    }
}

/// What a report is made from at 08:01:05.
pub(super) fn report(owed: &Owed) -> Report<'_> {
    let now: Timestamp = "2026-11-24T08:01:05Z".parse().expect("a timestamp");
    Report { owed, original_content: Some(CONTENT), at: Tick(1_065_000), now, retry_until: None, seed: 42 }
}

/// A report of ours in the queue, on its way to `recipient`.
pub(super) fn queued_report(recipient: &str) -> Queued {
    Queued {
        id: RecipientId { batch: QueueId(78), index: 0 },
        batch: Arc::new(batch(ReversePath::Null)),
        recipient: Arc::new(Recipient { path: mailbox(recipient), params: RecipientParams::default() }),
        destination: Destination::ListHost("lists".into()),
        attempts: 1,
        due: Tick(0),
        delay_reported: false,
    }
}
