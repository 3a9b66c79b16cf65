//! The envelope's parameters: what MAIL and RCPT say beside the paths.

use std::fmt;

/// The BODY parameter of MAIL (RFC 6152 section 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Body {
    /// `BODY=7BIT`, or none given. Content may still hold 8-bit octets: list hosts do that, and it is counted as a lint.
    #[default]
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// The RET parameter of MAIL (RFC 3461 section 4.3): how much of the message a failure DSN returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ret {
    /// The whole message.
    Full,
    /// The header section only, which is also our default.
    Headers,
}

/// The parameters of MAIL that are passed on. SIZE is not among them: it is computed anew for each next hop.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvelopeParams {
    /// BODY (RFC 6152).
    pub body: Body,
    /// SMTPUTF8 (RFC 6531 section 3.4).
    pub smtputf8: bool,
    /// RET (RFC 3461 section 4.3).
    pub ret: Option<Ret>,
    /// ENVID (RFC 3461 section 4.4), decoded from xtext; at most 100 octets encoded, never a control character.
    pub envid: Option<Box<str>>,
    /// REQUIRETLS (RFC 8689 section 2).
    pub requiretls: bool,
}

/// The NOTIFY parameter of RCPT (RFC 3461 section 4.1), if it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Notify {
    /// `NOTIFY=NEVER`.
    Never,
    /// Any of `SUCCESS`, `FAILURE`, `DELAY`; at least one of them is true.
    On {
        /// A DSN when the mail was relayed to a host that does not speak DSN.
        success: bool,
        /// A DSN when it failed.
        failure: bool,
        /// A DSN while it is delayed.
        delay: bool,
    },
}

impl Notify {
    /// Whether a failure is reported: what RFC 3461 section 4.1 calls the default too, when NOTIFY is absent.
    pub fn wants_failure(this: Option<Notify>) -> bool {
        match this {
            None => true,
            Some(Notify::Never) => false,
            Some(Notify::On { failure, .. }) => failure,
        }
    }

    /// Whether a delay is reported. Only when it was asked for: list software counts delay reports as bounces.
    pub fn wants_delay(this: Option<Notify>) -> bool {
        matches!(this, Some(Notify::On { delay: true, .. }))
    }

    /// Whether relaying to a host without DSN is reported (RFC 3461 section 5.2.2).
    pub fn wants_success(this: Option<Notify>) -> bool {
        matches!(this, Some(Notify::On { success: true, .. }))
    }
}

impl fmt::Display for Notify {
    /// As the parameter's value on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Notify::On { success, failure, delay } = *self else { return f.write_str("NEVER") };
        let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
        let given: Vec<_> = words.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        f.write_str(&given.join(","))
    }
}

/// The ORCPT parameter of RCPT (RFC 3461 section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginalRecipient {
    /// The address type: an atom, `rfc822` or `utf-8` in practice.
    pub address_type: Box<str>,
    /// The address, decoded from xtext; never a control character.
    pub address: Box<str>,
}

/// The parameters of RCPT that are passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipientParams {
    /// NOTIFY.
    pub notify: Option<Notify>,
    /// ORCPT.
    pub orcpt: Option<OriginalRecipient>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn on(success: bool, failure: bool, delay: bool) -> Option<Notify> {
        Some(Notify::On { success, failure, delay })
    }

    #[test]
    fn a_failure_is_reported_unless_notify_leaves_it_out() {
        for (notify, failure) in
            [(None, true), (Some(Notify::Never), false), (on(true, false, true), false), (on(false, true, false), true)]
        {
            assert_eq!(Notify::wants_failure(notify), failure, "{notify:?}");
        }
    }

    #[test]
    fn a_delay_or_a_success_is_reported_only_where_it_was_asked_for() {
        assert!(!Notify::wants_delay(None) && !Notify::wants_success(None));
        assert!(!Notify::wants_delay(Some(Notify::Never)));
        assert!(Notify::wants_delay(on(false, false, true)) && !Notify::wants_success(on(false, false, true)));
        assert!(Notify::wants_success(on(true, false, false)));
    }

    #[test]
    fn notify_is_written_as_it_stands_on_the_wire() {
        assert_eq!(Notify::Never.to_string(), "NEVER");
        assert_eq!(Notify::On { success: true, failure: true, delay: true }.to_string(), "SUCCESS,FAILURE,DELAY");
        assert_eq!(Notify::On { success: false, failure: false, delay: true }.to_string(), "DELAY");
    }
}
