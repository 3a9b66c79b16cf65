//! What a simulated provider demands of its clients, as plain values. `provider.rs` holds it against what happens.

use std::time::Duration;

/// A rate: `count` per `per`, with a burst of `count` (a full bucket at the start).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Duration,
}

/// What EHLO offers (RFC 5321 section 4.1.1.1 and the extension's own RFC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 1870; the limit itself is [`Policy::size_max`].
    pub size: bool,
    /// RFC 2034.
    pub enhanced_status_codes: bool,
    /// RFC 9422: RCPTMAX and MAILMAX as the policy has them.
    pub limits: bool,
}

impl Extensions {
    /// What a large provider offers.
    pub const ALL: Extensions = Extensions {
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        dsn: true,
        size: true,
        enhanced_status_codes: true,
        limits: false,
    };
    /// A host from before the extensions; it still answers EHLO, with its name alone.
    pub const NONE: Extensions = Extensions {
        pipelining: false,
        eight_bit_mime: false,
        smtputf8: false,
        dsn: false,
        size: false,
        enhanced_status_codes: false,
        limits: false,
    };
}

/// How a host meets a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// `220`.
    #[default]
    Open,
    /// `421 4.3.2`, then closed.
    Busy,
    /// `554 5.7.1`, then closed.
    Rejecting,
    /// Accepted and reset at once, before any greeting.
    Resetting,
    /// Accepted, and never a word.
    Silent,
    /// Nobody listens: connection refused. The host has the address `::1` alone, where the receivers do not listen
    /// (they hold one IPv4 socket for all of 127/8), so the relay's `allow_networks` must include `::1/128`.
    Refused,
    /// SYNs are dropped: the connection attempt times out.
    BlackHole,
}

/// What happens after the final dot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterDot {
    /// `250`, and the message counts as delivered.
    #[default]
    Accept,
    /// In every n-th transaction of the provider the connection is cut without a reply and the message is not kept.
    CutEvery(u32),
    /// In every n-th transaction the message is kept, but the connection is cut without a reply (RFC 1047): the one
    /// fault that makes a duplicate which is nobody's mistake.
    KeepAndCutEvery(u32),
}

/// A moment of the session at which a scripted reply can stand in for the regular one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The greeting.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// The final dot.
    Dot,
    /// RSET.
    Rset,
}

/// A scripted reply. Lines are written as they are; the connection ends after a reply that starts with `421` or `!`
/// (the `!` is not sent; `"!"` alone is a cut without a word).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scripted {
    /// When.
    pub stage: Stage,
    /// How many times; `u32::MAX` is for ever.
    pub times: u32,
    /// The reply without its final CRLF.
    pub reply: String,
}

/// The rules of a provider, or of one host of it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Time between the last command of a group and its replies: the round-trip time, or a tarpit.
    pub rtt: Duration,
    /// Connections at a time over the whole provider; one more gets `421 4.7.0` and is counted as a broken limit.
    pub connections: Option<u32>,
    /// New connections per time; one more gets `421 4.7.0` and is counted as a broken limit.
    pub connection_rate: Option<Rate>,
    /// Recipients per time; one more gets `451 4.7.1` and is counted as a broken limit.
    pub recipient_rate: Option<Rate>,
    /// Recipients per transaction; one more gets `452 4.5.3`, which is a normal part of the protocol
    /// (RFC 5321 section 4.5.3.1.10) and no broken limit.
    pub recipients_per_transaction: u32,
    /// Transactions per connection; one more gets `421 4.7.0` and is counted as a broken limit.
    pub messages_per_connection: Option<u32>,
    /// Ends of the domains that it takes mail for although it is not their exchanger: it is somebody's smarthost.
    pub relays_for: Vec<String>,
    /// Whether a second domain in a transaction gets Google's `451 4.3.0` and is counted as a broken limit.
    pub one_domain: bool,
    /// `421 4.3.2` to every n-th MAIL, as busy hosts say now and then. Not the client's fault, so not counted.
    pub busy_every: Option<u32>,
    /// Octets a message may have.
    pub size_max: u64,
    /// What EHLO offers; `None` refuses EHLO with `502`, so that only HELO remains.
    pub extensions: Option<Extensions>,
    /// How a new connection is met.
    pub door: Door,
    /// What follows the final dot.
    pub after_dot: AfterDot,
    /// Scripted replies, first match first.
    pub script: Vec<Scripted>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            rtt: Duration::ZERO,
            connections: None,
            connection_rate: None,
            recipient_rate: None,
            recipients_per_transaction: 1000,
            messages_per_connection: None,
            relays_for: Vec::new(),
            one_domain: false,
            busy_every: None,
            size_max: 50 << 20,
            extensions: Some(Extensions::ALL),
            door: Door::Open,
            after_dot: AfterDot::Accept,
            script: Vec::new(),
        }
    }
}

impl Policy {
    /// The default: takes everything, at once.
    pub fn new() -> Policy {
        Policy::default()
    }

    /// Sets the round-trip time.
    #[must_use]
    pub fn rtt(self, rtt: Duration) -> Policy {
        Policy { rtt, ..self }
    }

    /// Limits concurrent connections.
    #[must_use]
    pub fn connections(self, max: u32) -> Policy {
        Policy { connections: Some(max), ..self }
    }

    /// Limits the rate of new connections.
    #[must_use]
    pub fn connection_rate(self, count: u32, per: Duration) -> Policy {
        Policy { connection_rate: Some(Rate { count, per }), ..self }
    }

    /// Limits the rate of recipients.
    #[must_use]
    pub fn recipient_rate(self, count: u32, per: Duration) -> Policy {
        Policy { recipient_rate: Some(Rate { count, per }), ..self }
    }

    /// Limits recipients per transaction.
    #[must_use]
    pub fn recipients_per_transaction(self, max: u32) -> Policy {
        Policy { recipients_per_transaction: max, ..self }
    }

    /// Limits transactions per connection.
    #[must_use]
    pub fn messages_per_connection(self, max: u32) -> Policy {
        Policy { messages_per_connection: Some(max), ..self }
    }

    /// Takes mail for all domains that end so.
    #[must_use]
    pub fn relays_for<'a>(self, suffixes: impl IntoIterator<Item = &'a str>) -> Policy {
        Policy { relays_for: suffixes.into_iter().map(str::to_owned).collect(), ..self }
    }

    /// Refuses a second domain in a transaction.
    #[must_use]
    pub fn one_domain(self) -> Policy {
        Policy { one_domain: true, ..self }
    }

    /// Answers every n-th MAIL with 421.
    #[must_use]
    pub fn busy_every(self, n: u32) -> Policy {
        Policy { busy_every: Some(n), ..self }
    }

    /// Limits the size of a message.
    #[must_use]
    pub fn size_max(self, octets: u64) -> Policy {
        Policy { size_max: octets, ..self }
    }

    /// Offers exactly these extensions.
    #[must_use]
    pub fn extensions(self, extensions: Extensions) -> Policy {
        Policy { extensions: Some(extensions), ..self }
    }

    /// Knows HELO only.
    #[must_use]
    pub fn helo_only(self) -> Policy {
        Policy { extensions: None, ..self }
    }

    /// Sets how a connection is met.
    #[must_use]
    pub fn door(self, door: Door) -> Policy {
        Policy { door, ..self }
    }

    /// Sets what follows the final dot.
    #[must_use]
    pub fn after_dot(self, after_dot: AfterDot) -> Policy {
        Policy { after_dot, ..self }
    }

    /// Replies `reply` once at `stage`; see [`Scripted`] for cuts.
    #[must_use]
    pub fn answer_once(self, stage: Stage, reply: &str) -> Policy {
        self.answer_times(stage, 1, reply)
    }

    /// Replies `reply` at `stage` for ever.
    #[must_use]
    pub fn answer_always(self, stage: Stage, reply: &str) -> Policy {
        self.answer_times(stage, u32::MAX, reply)
    }

    /// Replies `reply` the next `times` times at `stage`.
    #[must_use]
    pub fn answer_times(mut self, stage: Stage, times: u32, reply: &str) -> Policy {
        self.script.push(Scripted { stage, times, reply: reply.to_owned() });
        self
    }
}
