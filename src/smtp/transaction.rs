//! A mail transaction from MAIL to the final dot (RFC 5321 section 3.3): what it has gathered, and what is wrong with
//! its content.

use std::collections::HashSet;

use crate::mail::header::fields;
use crate::mail::{Body, Destination, Domain, Mailbox, Recipient, RecipientParams};

use super::command::Mail;
use super::data::{Findings, Scan, Scanner, TEXT_LINE_MAX};
use super::reply::Reply;

/// Octets of the header section that are looked at: Received lines, lints, the mailing's identity.
pub const HEADER_MAX: usize = 65_536;

/// Something that is not as the standards have it, and passes all the same: counted, never repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lint {
    /// A text line is longer than 998 octets (RFC 5321 section 4.5.3.1.6).
    LongLine,
    /// Octets above 127 without BODY=8BITMIME (RFC 6152 section 3).
    UndeclaredEightBit,
    /// No Date field (RFC 5322 section 3.6).
    NoDate,
    /// No From field (RFC 5322 section 3.6).
    NoFrom,
    /// No Message-ID field (RFC 5322 section 3.6.4).
    NoMessageId,
    /// SIZE was given and smaller than what came (RFC 1870 section 6.2).
    SizeUnderstated,
    /// A forward-path was given twice in one transaction; it is kept once.
    RepeatedRecipient,
    /// XVERP would have made a reverse-path that is too long; the recipient kept the plain one.
    VerpTooLong,
}

impl Lint {
    /// All lints.
    pub const ALL: [Lint; 8] = [
        Lint::LongLine,
        Lint::UndeclaredEightBit,
        Lint::NoDate,
        Lint::NoFrom,
        Lint::NoMessageId,
        Lint::SizeUnderstated,
        Lint::RepeatedRecipient,
        Lint::VerpTooLong,
    ];

    /// The lint as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Lint::LongLine => "long_line",
            Lint::UndeclaredEightBit => "undeclared_eight_bit",
            Lint::NoDate => "no_date",
            Lint::NoFrom => "no_from",
            Lint::NoMessageId => "no_message_id",
            Lint::SizeUnderstated => "size_understated",
            Lint::RepeatedRecipient => "repeated_recipient",
            Lint::VerpTooLong => "verp_too_long",
        }
    }
}

/// An open transaction: MAIL was accepted.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) mail: Mail,
    pub(super) recipients: Vec<(Recipient, Destination)>,
    /// Mailboxes that are among the recipients, as they compare: local part as written, domain normalised.
    seen: HashSet<(Box<str>, Domain)>,
    /// Whether a RCPT was refused.
    pub(super) refused: bool,
}

impl Transaction {
    pub(super) fn begin(mail: Mail) -> Transaction {
        Transaction { mail, recipients: Vec::new(), seen: HashSet::new(), refused: false }
    }

    /// Adds a recipient, unless it is there already: a forward-path stands once in a transaction. False if it was.
    pub(super) fn add(&mut self, path: Mailbox, params: RecipientParams) -> bool {
        let domain = path.domain();
        let new = self.seen.insert((path.local().into(), domain.clone()));
        if new {
            self.recipients.push((Recipient { path, params }, Destination::Domain(domain)));
        }
        new
    }

    pub(super) fn contains(&self, path: &Mailbox) -> bool {
        self.seen.contains(&(path.local().into(), path.domain()))
    }
}

/// A transaction whose content is coming in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) transaction: Transaction,
    scanner: Scanner,
    pub(super) head: Vec<u8>,
    size_max: u64,
}

impl Incoming {
    pub(super) fn begin(transaction: Transaction, size_max: u64) -> Incoming {
        Incoming { transaction, scanner: Scanner::default(), head: Vec::new(), size_max }
    }

    pub(super) fn scan(&mut self, buffer: &[u8]) -> Scan {
        let scan = self.scanner.scan(buffer);
        let room = HEADER_MAX - self.head.len();
        self.head.extend_from_slice(&buffer[..scan.content.min(room)]);
        scan
    }

    pub(super) fn findings(&self) -> Findings {
        self.scanner.findings()
    }

    /// Whether the content can still become a message, so that it is worth keeping.
    pub(super) fn is_sound(&self) -> bool {
        let Findings { size, bare, .. } = self.findings();
        !bare && size <= self.size_max
    }

    /// Why the complete content is refused, if it is. Never for a reason of ours.
    pub(super) fn refusal(&self, hops_max: u32) -> Option<Reply> {
        let Findings { size, bare, .. } = self.findings();
        if bare {
            return Some(Reply::new(554, "5.6.0", "bare CR or LF in the message (RFC 5321 section 2.3.8)"));
        }
        if size > self.size_max {
            let text = format!("the message has {size} octets, more than {}", self.size_max);
            return Some(Reply::new(552, "5.3.4", text));
        }
        let hops = fields(&self.head).filter(|field| field.is("Received")).count();
        (hops > hops_max as usize).then(|| Reply::new(554, "5.4.6", "too many hops: the message loops"))
    }

    pub(super) fn lints(&self) -> Vec<Lint> {
        let (found, mail) = (self.findings(), &self.transaction.mail);
        let missing = |name| !fields(&self.head).any(|field| field.is(name));
        let undeclared = found.eight_bit && mail.params.body == Body::SevenBit && !mail.params.smtputf8;
        [
            (Lint::LongLine, found.longest_line > TEXT_LINE_MAX),
            (Lint::UndeclaredEightBit, undeclared),
            (Lint::SizeUnderstated, mail.size.is_some_and(|size| size < found.size)),
            (Lint::NoDate, missing("Date")),
            (Lint::NoFrom, missing("From")),
            (Lint::NoMessageId, missing("Message-ID")),
        ]
        .into_iter()
        .filter_map(|(lint, holds)| holds.then_some(lint))
        .collect()
    }
}
