//! How mail's values are spelt in bytes: one [`Codec`] each. Addresses are checked again when they are read, so that
//! damage that slipped past a checksum still cannot put a control character on the wire.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::api::{End, Fate, Obligation, ObligationKind};
use super::codec::{Codec, Input, Malformed};
use crate::clock::Tick;
use crate::mail::{
    Batch, Body, ContentHash, Destination, Domain, Envelope, EnvelopeParams, Mailbox, MailingId, Notify,
    OriginalRecipient, QueueId, Recipient, RecipientId, RecipientParams, Ret, ReversePath, Trace,
};
use crate::outcome::{Enhanced, Phase, Reason, Reply, Scope};

/// Newtypes around one value.
macro_rules! wrappers {
    ($($type:ident($inner:ty)),*) => {$(
        impl Codec for $type {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }

            fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
                <$inner>::take(input).map($type)
            }
        }
    )*};
}

wrappers!(Tick(u64), QueueId(u64), MailingId(u64));

/// Structs, field by field in the order given, which is the format.
macro_rules! records {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Codec for $type {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
                Ok($type { $($field: Codec::take(input)?),* })
            }
        }
    )*};
}
pub(super) use records;

records! {
    RecipientId { batch, index }
    EnvelopeParams { body, smtputf8, ret, envid, requiretls }
    Envelope { list_host, reverse_path, params, content, content_size, eight_bit, mailing }
    Trace { helo, peer, protocol, at }
    Batch { id, envelope, trace, accepted }
    OriginalRecipient { address_type, address }
    RecipientParams { notify, orcpt }
    Recipient { path, params }
    Enhanced { class, subject, detail }
    Reply { code, enhanced, text }
    Reason { phase, scope, status, reply, text, remote }
    Obligation { kind, recipient, reason, since }
}

/// Enums without fields: the number of a variant is its place in the list. Append only.
macro_rules! tags {
    ($($type:ident[$($variant:ident),*])*) => {$(
        impl Codec for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(*self as u8);
            }

            fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
                let tag = u8::take(input)?;
                $(if tag == $type::$variant as u8 { return Ok($type::$variant); })*
                Err(Malformed(stringify!($type)))
            }
        }
    )*};
}

tags! {
    Body[SevenBit, EightBitMime]
    Ret[Full, Headers]
    End[Relayed, Bounced, Expired, Cancelled]
    ObligationKind[Failed, Delayed, Relayed]
    Scope[Recipient, Message, Session, Site]
    Phase[Resolve, Connect, Greeting, Hello, Tls, Auth, Mail, Rcpt, Data, Content, Dot, Queue]
}

impl Codec for ContentHash {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        input.array().map(ContentHash)
    }
}

impl Codec for Timestamp {
    fn put(&self, out: &mut Vec<u8>) {
        self.as_millisecond().put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        Timestamp::from_millisecond(i64::take(input)?).map_err(|_| Malformed("timestamp"))
    }
}

impl Codec for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            IpAddr::V4(address) => {
                out.push(4);
                out.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                out.push(6);
                out.extend_from_slice(&address.octets());
            }
        }
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match u8::take(input)? {
            4 => input.array::<4>().map(IpAddr::from),
            6 => input.array::<16>().map(IpAddr::from),
            _ => Err(Malformed("IP address")),
        }
    }
}

impl Codec for Mailbox {
    fn put(&self, out: &mut Vec<u8>) {
        super::codec::put_prefixed(out, self.as_str().as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        Mailbox::parse(input.text()?, true).map_err(|_| Malformed("mailbox"))
    }
}

impl Codec for ReversePath {
    fn put(&self, out: &mut Vec<u8>) {
        super::codec::put_prefixed(out, self.as_str().as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match input.text()? {
            "" => Ok(ReversePath::Null),
            text => Mailbox::parse(text, true).map(ReversePath::Mailbox).map_err(|_| Malformed("reverse-path")),
        }
    }
}

impl Codec for Destination {
    /// Prefix-free, because the index uses it at the front of keys.
    fn put(&self, out: &mut Vec<u8>) {
        let (tag, text) = match self {
            Destination::Domain(domain) => (0, domain.as_str()),
            Destination::ListHost(name) => (1, &**name),
        };
        out.push(tag);
        super::codec::put_prefixed(out, text.as_bytes());
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match (u8::take(input)?, input.text()?) {
            (0, text) => Domain::parse(text).map(Destination::Domain).map_err(|_| Malformed("domain")),
            (1, text) => Ok(Destination::ListHost(text.into())),
            _ => Err(Malformed("destination")),
        }
    }
}

impl Codec for Notify {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match *self {
            Notify::Never => 0,
            Notify::On { success, failure, delay } => {
                8 | u8::from(success) | u8::from(failure) << 1 | u8::from(delay) << 2
            }
        });
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(Notify::Never),
            bits @ 8..16 => Ok(Notify::On { success: bits & 1 != 0, failure: bits & 2 != 0, delay: bits & 4 != 0 }),
            _ => Err(Malformed("NOTIFY")),
        }
    }
}

impl Codec for Fate {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Fate::Retry { due, attempts, note, owes } => {
                out.push(0);
                due.put(out);
                attempts.put(out);
                note.put(out);
                owes.put(out);
            }
            Fate::Done { end, note, owes } => {
                out.push(1);
                end.put(out);
                note.put(out);
                owes.put(out);
            }
        }
    }

    fn take(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match u8::take(input)? {
            0 => Ok(Fate::Retry {
                due: Codec::take(input)?,
                attempts: Codec::take(input)?,
                note: Codec::take(input)?,
                owes: Codec::take(input)?,
            }),
            1 => Ok(Fate::Done { end: Codec::take(input)?, note: Codec::take(input)?, owes: Codec::take(input)? }),
            _ => Err(Malformed("fate")),
        }
    }
}

/// A stable hash of what coalesces: recipients with equal envelopes lie side by side in the index (design 7, attempt key).
/// FNV-1a: it only has to spread, and it has to stay the same for ever.
pub(super) fn group_of(envelope: &Envelope) -> u64 {
    let mut bytes = Vec::with_capacity(192);
    envelope.put(&mut bytes);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Shares equal envelopes between the batches that carry them: a mailing of 4,000 batches has one in memory.
#[derive(Debug, Default)]
pub(super) struct Envelopes(std::collections::HashMap<u64, Arc<Envelope>>);

impl Envelopes {
    /// How many envelopes are remembered. When they are more, all are forgotten: it is only about sharing.
    const MOST: usize = 1024;

    /// The envelope that others use already, or this one from now on.
    pub(super) fn share(&mut self, group: u64, envelope: Envelope) -> Arc<Envelope> {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        let shared = self.0.entry(group).or_insert_with(|| Arc::new(envelope.clone()));
        if **shared == envelope { Arc::clone(shared) } else { Arc::new(envelope) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::codec::{bytes_of, whole};
    use super::*;

    fn text() -> impl Strategy<Value = Box<str>> {
        "[ -~]{0,40}".prop_map(Into::into)
    }

    fn mailbox() -> impl Strategy<Value = Mailbox> {
        ("[a-z0-9+]{1,20}", "[a-z]{1,10}\\.(org|example)")
            .prop_map(|(local, domain)| Mailbox::parse(&format!("{local}@{domain}"), false).expect("valid"))
    }

    fn notify() -> impl Strategy<Value = Notify> {
        prop_oneof![
            Just(Notify::Never),
            any::<(bool, bool, bool)>().prop_map(|(success, failure, delay)| Notify::On { success, failure, delay }),
        ]
    }

    /// Any recipient.
    pub(in super::super) fn recipient() -> impl Strategy<Value = Recipient> {
        let orcpt = prop::option::of(
            (text(), text()).prop_map(|(address_type, address)| OriginalRecipient { address_type, address }),
        );
        (mailbox(), prop::option::of(notify()), orcpt)
            .prop_map(|(path, notify, orcpt)| Recipient { path, params: RecipientParams { notify, orcpt } })
    }

    fn reason() -> impl Strategy<Value = Reason> {
        let status = any::<(u8, u16, u16)>().prop_map(|(c, s, d)| Enhanced::new(c, s, d));
        let reply = (any::<u16>(), prop::option::of(status.clone()), text()).prop_map(|(code, enhanced, text)| Reply {
            code,
            enhanced,
            text,
        });
        (status, prop::option::of(reply), text(), prop::option::of(text())).prop_map(|(status, reply, text, remote)| {
            Reason { phase: Phase::Rcpt, scope: Scope::Recipient, status, reply, text, remote }
        })
    }

    fn obligation() -> impl Strategy<Value = Obligation> {
        (recipient(), reason(), any::<u64>()).prop_map(|(recipient, reason, since)| Obligation {
            kind: ObligationKind::Delayed,
            recipient: Arc::new(recipient),
            reason,
            since: Tick(since),
        })
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            (any::<u64>(), any::<u32>(), text(), prop::option::of(obligation()))
                .prop_map(|(due, attempts, note, owes)| Fate::Retry { due: Tick(due), attempts, note, owes }),
            (text(), prop::option::of(obligation())).prop_map(|(note, owes)| Fate::Done {
                end: End::Expired,
                note,
                owes
            }),
        ]
    }

    fn envelope() -> impl Strategy<Value = Envelope> {
        let params =
            (any::<bool>(), any::<bool>(), prop::option::of(text())).prop_map(|(smtputf8, requiretls, envid)| {
                EnvelopeParams { body: Body::EightBitMime, smtputf8, ret: Some(Ret::Headers), envid, requiretls }
            });
        (text(), prop::option::of(mailbox()), params, any::<[u8; 32]>(), any::<(u64, bool, u64)>()).prop_map(
            |(host, path, params, hash, (content_size, eight_bit, mailing))| Envelope {
                list_host: host.as_ref().into(),
                reverse_path: path.map_or(ReversePath::Null, ReversePath::Mailbox),
                params,
                content: ContentHash(hash),
                content_size,
                eight_bit,
                mailing: MailingId(mailing),
            },
        )
    }

    proptest! {
        #[test]
        fn every_value_reads_back_as_it_was_written(
            envelope in envelope(),
            fates in prop::collection::vec(fate(), 0..5),
            peer in any::<Option<IpAddr>>(),
            helo in text(),
            mailbox in mailbox(),
        ) {
            let trace = Trace { helo, peer, protocol: "ESMTP".into(), at: Timestamp::UNIX_EPOCH };
            let batch = Batch { id: QueueId(7), envelope: Arc::new(envelope), trace, accepted: Tick(9) };
            prop_assert_eq!(whole(&bytes_of(&batch)), Ok(batch));
            prop_assert_eq!(whole(&bytes_of(&fates)), Ok(fates));
            for destination in [Destination::Domain(mailbox.domain()), Destination::ListHost("lists".into())] {
                prop_assert_eq!(whole(&bytes_of(&destination)), Ok(destination));
            }
        }

        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = whole::<Batch>(&bytes);
            let _ = whole::<Vec<(RecipientId, Fate)>>(&bytes);
            let _ = whole::<Vec<(Destination, Recipient)>>(&bytes);
        }
    }

    #[test]
    fn equal_envelopes_are_shared_and_unequal_ones_are_not() {
        let envelope = |size| Envelope {
            list_host: "lists".into(),
            reverse_path: ReversePath::Null,
            params: EnvelopeParams::default(),
            content: ContentHash([0; 32]),
            content_size: size,
            eight_bit: false,
            mailing: MailingId(1),
        };
        let mut envelopes = Envelopes::default();
        let first = envelopes.share(1, envelope(1));
        assert!(Arc::ptr_eq(&first, &envelopes.share(1, envelope(1))));
        assert_eq!(envelopes.share(1, envelope(2)).content_size, 2, "a collision of groups is no equality");
    }
}
