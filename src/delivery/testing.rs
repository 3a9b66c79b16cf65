//! Values for the tests of this part.

use std::sync::Arc;

use crate::attempt::{Attempt, Exchanger, Route, Site};
use crate::clock::Tick;
use crate::mail::{
    AttemptId, Batch, ContentHash, Destination, Domain, Envelope, EnvelopeParams, Mailbox, MailingId, QueueId, Queued,
    Recipient, RecipientId, RecipientParams, ReversePath, Trace,
};
use crate::route::testing::limits;

/// An attempt for these recipients at example.org.
pub(super) fn attempt(recipients: &[&str]) -> Attempt {
    let recipients: Vec<_> = recipients.iter().zip(0..).map(|(path, index)| queued(path, index)).collect();
    Attempt {
        begun: crate::clock::Tick(0),
        id: AttemptId(1),
        destination: destination(),
        site: Arc::new(Site {
            name: "mx.example.org/10".into(),
            provider: "mx.example.org/10".into(),
            route: Route::Mx(vec![Exchanger { preference: 10, host: "mx.example.org".into() }]),
        }),
        envelope: envelope(),
        trace: trace(),
        recipients,
        limits: Arc::new(limits()),
    }
}

fn destination() -> Destination {
    Destination::Domain(Domain::parse("example.org").expect("a domain"))
}

fn envelope() -> Arc<Envelope> {
    Arc::new(Envelope {
        list_host: "lists".into(),
        reverse_path: ReversePath::Mailbox(Mailbox::parse("list-bounces@lists.example.org", false).expect("a mailbox")),
        params: EnvelopeParams::default(),
        content: ContentHash([0; 32]),
        content_size: 100,
        eight_bit: false,
        mailing: MailingId(1),
    })
}

fn trace() -> Trace {
    Trace {
        helo: "lists.example.org".into(),
        peer: Some("192.0.2.1".parse().expect("an address")),
        protocol: "ESMTP".into(),
        at: "2026-11-24T07:11:00Z".parse().expect("a time"),
    }
}

pub(super) fn queued(path: &str, index: u32) -> Queued {
    let batch = Batch { id: QueueId(1), envelope: envelope(), trace: trace(), accepted: Tick(0) };
    let path = Mailbox::parse(path, true).expect("a mailbox");
    Queued {
        id: RecipientId { batch: QueueId(1), index },
        batch: Arc::new(batch),
        recipient: Arc::new(Recipient { path, params: RecipientParams::default() }),
        destination: destination(),
        attempts: 0,
        due: Tick(0),
        delay_reported: false,
    }
}
