//! What a host can do, as its EHLO reply says (RFC 5321 section 4.1.1.1).
//!
//! Read from the raw lines: `mail-send`'s own reading drops LIMITS, fails as a whole at one malformed value and gives up at
//! 4096 octets. Here an unknown or malformed line is skipped.

use super::reply::keywords;

/// The extensions that matter to a sender. The default, nothing, is what HELO leaves us with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// PIPELINING (RFC 2920).
    pub(super) pipelining: bool,
    /// 8BITMIME (RFC 6152).
    pub(super) eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub(super) smtputf8: bool,
    /// DSN (RFC 3461).
    pub(super) dsn: bool,
    /// STARTTLS (RFC 3207).
    pub(super) start_tls: bool,
    /// REQUIRETLS (RFC 8689).
    pub(super) requiretls: bool,
    /// SIZE (RFC 1870), with the limit in octets; 0 where none is declared.
    pub(super) size: Option<u64>,
    /// LIMITS RCPTMAX (RFC 9422 section 4.2). RCPTDOMAINMAX needs no field: a transaction of ours has one destination.
    pub(super) rcpt_max: Option<u32>,
    /// LIMITS MAILMAX (RFC 9422 section 4.1).
    pub(super) mail_max: Option<u32>,
}

impl Capabilities {
    /// From the raw lines of a 250 reply to EHLO or LHLO.
    pub(super) fn parse(raw: &[u8]) -> Capabilities {
        let mut capabilities = Capabilities::default();
        for line in keywords(raw) {
            capabilities.note(line.split_ascii_whitespace());
        }
        capabilities
    }

    fn note<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) {
        let Some(keyword) = words.next() else { return };
        match keyword.to_ascii_uppercase().as_str() {
            "PIPELINING" => self.pipelining = true,
            "8BITMIME" => self.eight_bit_mime = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "DSN" => self.dsn = true,
            "STARTTLS" => self.start_tls = true,
            "REQUIRETLS" => self.requiretls = true,
            "SIZE" => self.size = Some(words.next().and_then(|limit| limit.parse().ok()).unwrap_or(0)),
            "LIMITS" => words.for_each(|limit| self.note_limit(limit)),
            _ => {}
        }
    }

    /// A limit of zero would leave nothing to do: it is taken for the mistake it is.
    fn note_limit(&mut self, limit: &str) {
        let Some((name, value)) = limit.split_once('=') else { return };
        let value = value.parse().ok().filter(|&value| value > 0);
        match name.to_ascii_uppercase().as_str() {
            "RCPTMAX" => self.rcpt_max = value,
            "MAILMAX" => self.mail_max = value,
            _ => {}
        }
    }

    /// Whether a message of `octets` is more than the host said it takes.
    pub(super) fn is_too_big(&self, octets: u64) -> bool {
        self.size.is_some_and(|limit| limit > 0 && octets > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extension_is_seen_in_any_case_and_order() {
        let raw = b"250-mx.example.org\r\n250-pipelining\r\n250-SIZE 35882577\r\n250-8BITMIME\r\n250-STARTTLS\r\n\
            250-AUTH=LOGIN PLAIN\r\n250-DSN\r\n250-SMTPUTF8\r\n250-REQUIRETLS\r\n250 LIMITS RCPTMAX=20 MAILMAX=5 RCPTDOMAINMAX=1\r\n";
        let expected = Capabilities {
            pipelining: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            start_tls: true,
            requiretls: true,
            size: Some(35_882_577),
            rcpt_max: Some(20),
            mail_max: Some(5),
        };
        assert_eq!(Capabilities::parse(raw), expected);
    }

    #[test]
    fn malformed_values_cost_only_themselves() {
        let raw = b"250-mx\r\n250-SIZE lots\r\n250-\r\n250-LIMITS RCPTMAX=0 MAILMAX=x =\r\n250-\xff\xff\r\n250 DSN\r\n";
        let expected = Capabilities { size: Some(0), dsn: true, ..Capabilities::default() };
        assert_eq!(Capabilities::parse(raw), expected);
        assert!(!expected.is_too_big(u64::MAX));
    }
}
