//! The one place where a reply or a failure becomes an [`Outcome`], with how far it reaches.
//!
//! Decided by the first digit of the basic code (RFC 5321 section 4.3.2); the enhanced code refines it and never
//! overrules it. Nothing here does I/O: each rule is a row in the tests below.

use std::fmt;
use std::io;

use crate::attempt::Pushback;
use crate::outcome::{Enhanced, Outcome, Phase, Reason, Reply, Scope};

/// What ended a conversation, where no reply did.
#[derive(Debug)]
pub(super) enum Fault {
    /// The peer took longer than the command's deadline.
    Timeout,
    /// The peer closed or reset the connection.
    Closed,
    /// The system reported an error.
    Io(io::Error),
    /// The peer broke the protocol.
    Protocol(&'static str),
    /// The TLS handshake failed.
    Tls(Box<str>),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        use io::ErrorKind::{
            BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, NotConnected, TimedOut, UnexpectedEof,
        };
        match error.kind() {
            BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof => Fault::Closed,
            TimedOut => Fault::Timeout,
            InvalidData => Fault::Protocol("reply too long or damaged"),
            _ => Fault::Io(error),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Timeout => f.write_str("timed out"),
            Fault::Closed => f.write_str("lost the connection"),
            Fault::Io(error) => write!(f, "{error}"),
            Fault::Protocol(what) => write!(f, "protocol error: {what}"),
            Fault::Tls(what) => write!(f, "TLS handshake failed: {what}"),
        }
    }
}

/// Why one next hop could not be used at all, and whether that is for good.
#[derive(Clone, Debug)]
pub(super) struct Setback {
    pub(super) reason: Reason,
    /// Not worth a retry: no address, mail loop, a host that takes no mail (521), a message no host can take.
    pub(super) permanent: bool,
}

impl Setback {
    /// What it means for each recipient, once no next hop is left.
    pub(super) fn into_outcome(self) -> Outcome {
        if self.permanent { Outcome::Failed(self.reason) } else { Outcome::Deferred(self.reason) }
    }
}

/// A refusal while the connection is being set up: greeting, EHLO, STARTTLS. Another host may do, so only a host that says
/// that it never takes mail is permanent (RFC 7504 section 3): 554 greets whom it thinks a spammer today.
pub(super) fn unwelcome(phase: Phase, reply: Reply, remote: &str) -> Setback {
    let permanent = phase == Phase::Greeting && reply.code == 521;
    Setback { reason: refused(phase, reply, remote), permanent }
}

/// A connection that came to nothing before MAIL.
pub(super) fn unusable(phase: Phase, fault: &Fault, remote: &str) -> Setback {
    Setback { reason: broken(phase, fault, remote), permanent: false }
}

/// A decision of our own about a next hop or a message, in words.
pub(super) fn decided(phase: Phase, scope: Scope, status: Enhanced, text: &str, remote: Option<&str>) -> Setback {
    let reason = Reason { phase, scope, status, reply: None, text: text.into(), remote: remote.map(Into::into) };
    Setback { reason, permanent: status.class == 5 }
}

/// A reply that says no.
pub(super) fn refused(phase: Phase, reply: Reply, remote: &str) -> Reason {
    Reason {
        phase,
        scope: scope(phase, &reply),
        status: status(&reply),
        reply: Some(reply),
        text: "".into(),
        remote: Some(remote.into()),
    }
}

/// A connection that ended without a reply.
pub(super) fn broken(phase: Phase, fault: &Fault, remote: &str) -> Reason {
    let status = match (phase, fault) {
        (Phase::Connect, _) => Enhanced::new(4, 4, 1),
        (_, Fault::Protocol(_)) => Enhanced::new(4, 5, 0),
        (_, Fault::Tls(_)) => Enhanced::new(4, 7, 5),
        _ => Enhanced::new(4, 4, 2),
    };
    let text = match phase {
        Phase::Connect => format!("connect: {fault}"),
        Phase::Dot => format!("{fault} after the final dot: it may have been accepted"),
        _ => format!("{fault} ({})", phase.as_str()),
    };
    let scope = if phase < Phase::Mail { Scope::Site } else { Scope::Session };
    Reason { phase, scope, status, reply: None, text: text.into(), remote: Some(remote.into()) }
}

/// How far a refusal reaches. Before MAIL it is the host's; 421 is the connection's; `4.7.x` and `4.3.x` at MAIL speak of
/// us or of their system, not of the message.
fn scope(phase: Phase, reply: &Reply) -> Scope {
    let subject = reply.enhanced.map_or(0, |enhanced| enhanced.subject);
    match phase {
        _ if phase < Phase::Mail => Scope::Site,
        _ if reply.code == 421 => Scope::Session,
        Phase::Mail if !reply.is_permanent() && matches!(subject, 3 | 7) => Scope::Site,
        Phase::Rcpt => Scope::Recipient,
        _ => Scope::Message,
    }
}

/// The reply's own enhanced code; else `x.0.0`, because a guess would be taken for the host's word.
fn status(reply: &Reply) -> Enhanced {
    let class = if reply.is_permanent() { 5 } else { 4 };
    reply.enhanced.unwrap_or(Enhanced::new(class, 0, 0))
}

/// What a reply to MAIL, DATA or the final dot that is not the hoped-for one means for the recipients it speaks for.
pub(super) fn rejected(phase: Phase, reply: Reply, remote: &str) -> Outcome {
    match reply.code / 100 {
        4 => Outcome::Deferred(refused(phase, reply, remote)),
        5 => Outcome::Failed(refused(phase, reply, remote)),
        // 2yz to DATA, 3yz to the dot: the two sides have lost step.
        _ if phase == Phase::Dot => Outcome::Indeterminate(out_of_step(phase, reply, remote)),
        _ => Outcome::Deferred(out_of_step(phase, reply, remote)),
    }
}

fn out_of_step(phase: Phase, reply: Reply, remote: &str) -> Reason {
    let reason = broken(phase, &Fault::Protocol("unexpected reply"), remote);
    Reason { reply: Some(reply), ..reason }
}

/// A lost connection: before the final dot as if 451 (RFC 5321 section 3.8), after it nobody knows (RFC 1047).
pub(super) fn lost(phase: Phase, fault: &Fault, remote: &str) -> Outcome {
    let reason = broken(phase, fault, remote);
    if phase == Phase::Dot { Outcome::Indeterminate(reason) } else { Outcome::Deferred(reason) }
}

/// A reply to RCPT; `None` if the recipient was accepted so far. "Too many recipients" (452, and 552 by RFC 5321 section
/// 4.5.3.1.10) asks for a further transaction at once, but only where this one has somebody in it: otherwise it would go
/// round and round.
pub(super) fn at_rcpt(reply: Reply, accepted_before: bool, remote: &str) -> Option<Outcome> {
    let too_many = matches!(reply.code, 452 | 552)
        && reply.enhanced.is_none_or(|enhanced| (enhanced.subject, enhanced.detail) == (5, 3));
    match reply.code / 100 {
        2 => None,
        _ if too_many && accepted_before => Some(Outcome::NotTried),
        _ if too_many => Some(Outcome::Deferred(Reason { status: FEWER, ..refused(Phase::Rcpt, reply, remote) })),
        _ => Some(rejected(Phase::Rcpt, reply, remote)),
    }
}

/// "Too many recipients" as a temporary status, because 552 is one here.
const FEWER: Enhanced = Enhanced::new(4, 5, 3);

/// Whether dispatch should slow down or suspend for this reason. A `4.7.x` counts only where nobody was accepted; and not
/// as `4.7.0` or `4.7.1` at RCPT, which is what greylisting says (RFC 6647): with VERP, where every copy is a transaction
/// of its own, each first contact would hold the site.
pub(super) fn is_trouble(reason: &Reason, anybody_accepted: bool) -> bool {
    let asked_to_wait = (reason.status.class, reason.status.subject) == (4, 7);
    let greylisted = asked_to_wait && reason.phase == Phase::Rcpt && reason.status.detail <= 1;
    matches!(reason.scope, Scope::Site | Scope::Session) || (asked_to_wait && !greylisted && !anybody_accepted)
}

/// Whether a host was met that has enough connections: 421 instead of a greeting (RFC 5321 section 3.8).
pub(super) fn is_full(reason: &Reason) -> bool {
    reason.phase == Phase::Greeting && reason.reply.as_ref().is_some_and(|reply| reply.code == 421)
}

/// Words by which a temporary refusal speaks of how much we send. Greylisting has none of them.
const OF_PACE: [&str; 10] = [
    "too many",
    "too much",
    "too fast",
    "throttl",
    "slow down",
    "exceed",
    "rate limit",
    "unusual rate",
    "rate of",
    "limit reached",
];

/// Whether a refusal is for our pace, not for the sake of a recipient.
fn is_of_pace(reason: &Reason) -> bool {
    let Some(reply) = &reason.reply else { return false };
    let text = reply.text.to_ascii_lowercase();
    let too_many_here = reply.enhanced.is_some_and(|code| (code.subject, code.detail) == (5, 3));
    reply.code / 100 == 4
        && !too_many_here
        && matches!(reason.phase, Phase::Mail | Phase::Rcpt | Phase::Data | Phase::Dot)
        && OF_PACE.iter().any(|words| text.contains(words))
}

/// What the outcomes of an attempt say about how much the host takes.
pub(super) fn pushback(outcomes: &[Outcome], trouble: Option<&Reason>, crowded: bool) -> Pushback {
    let count = |which: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| which(outcome)).count();
    let refused = count(|outcome| matches!(outcome, Outcome::Deferred(reason) if is_of_pace(reason)));
    let relayed = count(|outcome| matches!(outcome, Outcome::Relayed { .. }));
    let again = count(|outcome| *outcome == Outcome::NotTried);
    let capped = again > 0 && relayed > 0 && trouble.is_none();
    let transaction_cap = capped.then(|| u32::try_from(relayed).unwrap_or(u32::MAX));
    Pushback { refused, transaction_cap, crowded }
}

#[cfg(test)]
mod tests {
    use super::super::reply;
    use super::*;

    const REMOTE: &str = "mx.example.org[192.0.2.1]:25";

    fn said(text: &str) -> Reply {
        reply::parse(format!("{text}\r\n").as_bytes()).expect("a reply")
    }

    /// The outcome in a word, with scope and status.
    fn word(outcome: &Outcome) -> String {
        let (word, reason) = match outcome {
            Outcome::Relayed { .. } => return "relayed".to_owned(),
            Outcome::NotTried => return "not tried".to_owned(),
            Outcome::Deferred(reason) => ("deferred", reason),
            Outcome::Indeterminate(reason) => ("indeterminate", reason),
            Outcome::Failed(reason) => ("failed", reason),
        };
        format!("{word} {:?} {}", reason.scope, reason.status)
    }

    #[test]
    fn replies_to_rcpt() {
        // Texts as the providers send them.
        for (accepted_before, text, expected) in [
            (false, "250 2.1.5 OK", "accepted"),
            (false, "251 2.1.5 User not local; will forward", "accepted"),
            (true, "252 2.0.0 maybe", "accepted"),
            (false, "550-5.1.1 The email account that you tried to reach does not exist.", "failed Recipient 5.1.1"),
            (false, "550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found", "failed Recipient 5.1.10"),
            (false, "550 Requested action not taken: mailbox unavailable", "failed Recipient 5.0.0"),
            (false, "554 5.7.1 Service unavailable; Client host blocked", "failed Recipient 5.7.1"),
            (false, "550 5.7.509 Access denied, sending domain does not pass DMARC", "failed Recipient 5.7.509"),
            (true, "452 4.2.2 The recipient's inbox is out of storage space.", "deferred Recipient 4.2.2"),
            (true, "452 4.3.1 Insufficient system storage", "deferred Recipient 4.3.1"),
            (true, "452 4.7.1 Too many errors", "deferred Recipient 4.7.1"),
            (true, "452 4.5.3 Error: too many recipients", "not tried"),
            (false, "452 4.5.3 Error: too many recipients", "deferred Recipient 4.5.3"),
            (true, "452 too many recipients", "not tried"),
            (true, "552 too many recipients", "not tried"),
            (true, "552 5.5.3 too many recipients", "not tried"),
            (false, "552 too many recipients", "deferred Recipient 4.5.3"),
            (true, "552 5.2.2 Mailbox full", "failed Recipient 5.2.2"),
            (false, "450 4.2.0 Greylisted, see http://postgrey.schweikert.ch", "deferred Recipient 4.2.0"),
            (false, "451 4.7.650 The mail server has been temporarily rate limited", "deferred Recipient 4.7.650"),
            (true, "421 4.7.0 [TSS04] Messages temporarily deferred", "deferred Session 4.7.0"),
            (true, "550 4.2.1 odd", "failed Recipient 5.0.0"),
            (true, "354 odd", "deferred Session 4.5.0"),
        ] {
            let outcome = at_rcpt(said(text), accepted_before, REMOTE);
            assert_eq!(outcome.as_ref().map_or("accepted".to_owned(), word), expected, "{text}");
        }
    }

    #[test]
    fn replies_to_mail_data_and_dot() {
        for (phase, text, expected) in [
            (Phase::Mail, "421 4.7.28 unusual rate of unsolicited mail", "deferred Session 4.7.28"),
            (Phase::Mail, "451 4.7.500 Server busy. Please try again later", "deferred Site 4.7.500"),
            (Phase::Mail, "452 4.3.1 Insufficient system storage", "deferred Site 4.3.1"),
            (Phase::Mail, "451 4.1.8 Domain of sender does not resolve", "deferred Message 4.1.8"),
            (Phase::Mail, "550 5.7.1 sender refused", "failed Message 5.7.1"),
            (Phase::Mail, "552 5.3.4 Message size exceeds fixed limit", "failed Message 5.3.4"),
            (
                Phase::Data,
                "451 4.3.0 Multiple destination domains per transaction is unsupported",
                "deferred Message 4.3.0",
            ),
            (Phase::Data, "554 5.5.1 no valid recipients", "failed Message 5.5.1"),
            (Phase::Data, "250 odd", "deferred Session 4.5.0"),
            (Phase::Dot, "451 4.7.1 try later", "deferred Message 4.7.1"),
            (Phase::Dot, "421 4.3.2 closing", "deferred Session 4.3.2"),
            (Phase::Dot, "550-5.7.26 Unauthenticated email", "failed Message 5.7.26"),
            (Phase::Dot, "554 Message refused", "failed Message 5.0.0"),
            (Phase::Dot, "354 odd", "indeterminate Session 4.5.0"),
        ] {
            assert_eq!(word(&rejected(phase, said(text), REMOTE)), expected, "{text}");
        }
    }

    #[test]
    fn a_connection_lost_after_the_dot_is_indeterminate_and_before_it_is_not() {
        let faults = || [Fault::Timeout, Fault::Closed, Fault::Io(io::Error::other("x")), Fault::Protocol("x")];
        for fault in faults() {
            assert!(word(&lost(Phase::Dot, &fault, REMOTE)).starts_with("indeterminate Session"));
            for phase in [Phase::Mail, Phase::Rcpt, Phase::Data, Phase::Content] {
                assert!(word(&lost(phase, &fault, REMOTE)).starts_with("deferred Session"), "{phase:?}");
            }
            for phase in [Phase::Connect, Phase::Greeting, Phase::Hello, Phase::Tls] {
                let outcome = unusable(phase, &fault, REMOTE).into_outcome();
                assert!(word(&outcome).starts_with("deferred Site"), "{phase:?}");
            }
        }
    }

    #[test]
    fn only_a_host_that_never_takes_mail_is_unwelcoming_for_good() {
        for (phase, text, permanent) in [
            (Phase::Greeting, "521 mail.example.org does not accept mail", true),
            (Phase::Greeting, "554 5.7.1 blocked using zen.spamhaus.org", false),
            (Phase::Greeting, "421 4.3.2 too many connections", false),
            (Phase::Hello, "550 access denied", false),
        ] {
            let setback = unwelcome(phase, said(text), REMOTE);
            assert_eq!((setback.permanent, setback.reason.scope), (permanent, Scope::Site), "{text}");
        }
    }

    #[test]
    fn greylisting_is_no_trouble_but_refusing_all_for_our_rate_is() {
        let greylisted = refused(Phase::Rcpt, said("450 4.7.1 greylisted"), REMOTE);
        assert!(!is_trouble(&greylisted, true) && !is_trouble(&greylisted, false));
        let limited = refused(Phase::Rcpt, said("451 4.7.650 temporarily rate limited"), REMOTE);
        assert!(!is_trouble(&limited, true) && is_trouble(&limited, false));
        assert!(!is_trouble(&refused(Phase::Rcpt, said("450 4.2.1 busy"), REMOTE), false));
        assert!(is_trouble(&refused(Phase::Rcpt, said("421 4.7.0 bye"), REMOTE), true));
        assert!(is_trouble(&broken(Phase::Connect, &Fault::Timeout, REMOTE), false));
    }

    #[test]
    fn a_refusal_for_our_pace_is_told_from_greylisting_and_full_mailboxes() {
        for (text, expected) in [
            ("451 4.7.1 Too many recipients in a short time", true),
            ("450 4.2.1 The user you are trying to contact is receiving mail at a rate that exceeds the limit", true),
            ("451 4.7.650 The mail server has been temporarily rate limited due to IP reputation", true),
            ("450 4.7.1 Greylisted, try again later", false),
            ("450 4.2.0 Greylisted for 60 seconds, separate copies", false),
            ("452 4.2.2 Mailbox full", false),
            ("452 4.5.3 Too many recipients", false),
            ("550 5.7.1 Too many complaints", false),
        ] {
            assert_eq!(is_of_pace(&refused(Phase::Rcpt, said(text), REMOTE)), expected, "{text}");
        }
    }

    #[test]
    fn the_operator_reads_what_happened_and_with_whom() {
        let reason = broken(Phase::Dot, &Fault::Closed, REMOTE);
        assert_eq!(
            reason.to_string(),
            "host mx.example.org[192.0.2.1]:25: lost the connection after the final dot: it may have been accepted"
        );
    }
}
