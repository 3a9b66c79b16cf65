//! Partners: smarthosts that take over part of our mail (design 9).
//!
//! **The promise.** Mail goes to a partner only where a rule says so and its condition holds at that moment; never twice round:
//! what bears our own token, or came from a partner, goes direct. What a partner cannot take goes back to the direct route at
//! once, and nothing is ever bounced on a partner's word alone, except an address that it says does not exist.
//!
//! [`Partners`] decides and does no I/O: conditions and time are handed in. Dispatch asks it at every attempt.

mod gate;
mod metrics;
mod options;
mod quota;
mod table;

use crate::mail::header::{Field, fields};
use crate::outcome::{Outcome, Phase, Reason};

pub use gate::Conditions;
pub use metrics::Metrics;
pub use options::{Condition, Mark, Options, Rule, Suffix};
pub use table::{Partners, Question, Status};

/// What our own Received lines say, by which we know mail that has passed through here: `by HOSTNAME (Posthaste)`.
pub fn own_token(hostname: &str) -> String {
    format!("by {hostname} (Posthaste)")
}

/// Whether the content has passed through here before.
pub fn bears(content: &[u8], token: &str) -> bool {
    fields(content).filter(|field: &Field<'_>| field.is("Received")).any(|field| {
        let words: Vec<String> = field.value().split_ascii_whitespace().map(str::to_ascii_lowercase).collect();
        let ours: Vec<String> = token.split_ascii_whitespace().map(str::to_ascii_lowercase).collect();
        words.windows(ours.len()).any(|window| window == ours)
    })
}

/// What a partner's answer means for us. An address that does not exist is the same for everybody; any other refusal is
/// between the partner and us, and the direct route has the last word. `Err`: given back, for this reason.
///
/// # Errors
/// The reason, where the recipient is to be offered to the direct route.
pub fn judge(outcome: Outcome) -> Result<Outcome, Reason> {
    match outcome {
        Outcome::Failed(reason) if reason.phase == Phase::Rcpt && reason.status.subject == 1 => {
            Ok(Outcome::Failed(reason))
        }
        Outcome::Failed(reason) | Outcome::Deferred(reason) => Err(reason),
        Outcome::Relayed { .. } | Outcome::Indeterminate(_) | Outcome::NotTried => Ok(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Enhanced, Scope};

    #[test]
    fn our_own_token_is_found_in_any_received_line_however_it_is_folded() {
        let token = own_token("relay.example.net");
        let header = |received: &str| format!("Received: from x\r\n{received}Subject: s\r\n\r\nbody\r\n");
        let seen = |received: &str| bears(header(received).as_bytes(), &token);
        assert!(seen("Received: from a\r\n\tby Relay.example.net\r\n\t(Posthaste) with ESMTP\r\n\tid 1; date\r\n"));
        assert!(!seen("Received: from a by other-relay.example.net (Posthaste) with ESMTP\r\n"));
        assert!(!seen("Received: from a by relay.example.net (Postfix) with ESMTP\r\n"));
        assert!(!seen("X-Note: by relay.example.net (Posthaste)\r\n"));
        assert!(!bears(b"Subject: s\r\n\r\nReceived: by relay.example.net (Posthaste)\r\n", &token));
    }

    #[test]
    fn only_an_address_that_does_not_exist_fails_on_a_partners_word() {
        let reason = |phase, status| Reason {
            phase,
            scope: Scope::Recipient,
            status,
            reply: None,
            text: "".into(),
            remote: None,
        };
        let failed = |phase, status| judge(Outcome::Failed(reason(phase, status)));
        assert!(failed(Phase::Rcpt, Enhanced::new(5, 1, 1)).is_ok());
        assert!(failed(Phase::Rcpt, Enhanced::new(5, 7, 1)).is_err());
        assert!(failed(Phase::Dot, Enhanced::new(5, 1, 1)).is_err());
        assert!(judge(Outcome::Deferred(reason(Phase::Mail, Enhanced::new(4, 3, 1)))).is_err());
        assert!(judge(Outcome::Indeterminate(reason(Phase::Dot, Enhanced::new(4, 4, 2)))).is_ok());
    }
}
