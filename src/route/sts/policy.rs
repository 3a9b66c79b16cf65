//! What an MTA-STS policy and its TXT record say (RFC 8461 sections 3.1 and 3.2). No I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest time that a policy may be kept (RFC 8461 section 3.2).
const MAX_AGE: u64 = 31_557_600;
/// Patterns of one policy; what lies beyond is ignored.
const PATTERNS_MAX: usize = 512;

/// What is to happen where an exchanger does not live up to the policy (RFC 8461 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StsMode {
    /// It gets no mail.
    Enforce,
    /// It gets the mail all the same.
    Testing,
    /// As if there were no policy.
    None,
}

/// A domain's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StsPolicy {
    /// What it is for.
    pub mode: StsMode,
    /// Patterns for exchangers, lower case: a name, or `*.` and the rest of one.
    pub mx: Vec<String>,
    /// How long it may be kept, in seconds.
    pub max_age: u64,
}

impl StsPolicy {
    /// Reads a policy file. Unknown keys are skipped; of a key that is given twice the first counts, except `mx`.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub fn parse(text: &str) -> Result<StsPolicy, &'static str> {
        let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.trim() {
                "version" => drop(version.get_or_insert(value)),
                "mode" => drop(mode.get_or_insert(value)),
                "max_age" => drop(max_age.get_or_insert(value)),
                "mx" if mx.len() < PATTERNS_MAX => mx.push(value.trim_end_matches('.').to_ascii_lowercase()),
                _ => {}
            }
        }
        if version != Some("STSv1") {
            return Err("no version STSv1");
        }
        let mode = match mode {
            Some("enforce") => StsMode::Enforce,
            Some("testing") => StsMode::Testing,
            Some("none") => StsMode::None,
            _ => return Err("no known mode"),
        };
        let is_seconds = |text: &&str| !text.is_empty() && text.len() <= 10 && text.bytes().all(|b| b.is_ascii_digit());
        let max_age = max_age.filter(is_seconds).and_then(|text| text.parse().ok()).ok_or("no usable max_age")?;
        if mx.is_empty() && mode != StsMode::None {
            return Err("no mx");
        }
        Ok(StsPolicy { mode, mx, max_age: u64::min(max_age, MAX_AGE) })
    }

    /// Whether an exchanger (lower case) is one of the domain's. `*` stands for exactly one label, the leftmost (RFC 8461
    /// section 4.1).
    pub fn names(&self, host: &str) -> bool {
        let below = host.split_once('.').map(|(first, rest)| (!first.is_empty(), rest));
        self.mx.iter().any(|pattern| match pattern.strip_prefix("*.") {
            Some(suffix) => below == Some((true, suffix)),
            None => pattern == host,
        })
    }

    /// How long it may be kept.
    pub fn max_age(&self) -> Duration {
        Duration::from_secs(self.max_age)
    }
}

/// The id of the policy that the texts of `_mta-sts` announce. Exactly one of them must begin with the version; an id is 1 to
/// 32 letters and digits (RFC 8461 section 3.1).
pub(super) fn announced(texts: &[Vec<u8>]) -> Option<String> {
    let mut records = texts.iter().filter_map(|text| std::str::from_utf8(text).ok()?.strip_prefix("v=STSv1;"));
    let (Some(fields), None) = (records.next(), records.next()) else { return None };
    let id = fields.split(';').find_map(|field| field.trim().strip_prefix("id="))?.trim();
    let well_formed = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    well_formed.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_with_either_line_end_and_unknown_keys() {
        let text =
            "version: STSv1\r\nmode: enforce\nmx: mx1.example.org\r\nmx:*.example.NET.\nmax_age: 604800\nnew: x\n";
        let policy = StsPolicy::parse(text).expect("a policy");
        let mx = vec!["mx1.example.org".to_owned(), "*.example.net".to_owned()];
        assert_eq!(policy, StsPolicy { mode: StsMode::Enforce, mx, max_age: 604_800 });
        let none = StsPolicy::parse("version: STSv1\nmode: none\nmax_age: 9999999999\n").expect("a policy");
        assert_eq!((none.mode, none.max_age), (StsMode::None, MAX_AGE));
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let good = "version: STSv1\nmode: testing\nmx: a.example\nmax_age: 1\n";
        assert!(StsPolicy::parse(good).is_ok());
        for (from, to) in [
            ("STSv1", "STSv2"),
            ("testing", "maybe"),
            ("mx: a.example\n", ""),
            ("max_age: 1", "max_age: -1"),
            ("max_age: 1", "max_age: 99999999999"),
            ("max_age: 1\n", ""),
            ("version", "<html>"),
        ] {
            assert!(StsPolicy::parse(&good.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        let mx = ["mx.example.org", "*.example.net"].map(str::to_owned).to_vec();
        let policy = StsPolicy { mode: StsMode::Enforce, mx, max_age: 1 };
        for (host, named) in [
            ("mx.example.org", true),
            ("a.mx.example.org", false),
            ("a.example.net", true),
            ("a.b.example.net", false),
            ("example.net", false),
            (".example.net", false),
            ("example.org", false),
        ] {
            assert_eq!(policy.names(host), named, "{host}");
        }
    }

    #[test]
    fn exactly_one_record_announces_a_policy() {
        let id = |texts: &[&str]| announced(&texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>());
        assert_eq!(id(&["v=STSv1; id=20160831085700Z;"]).as_deref(), Some("20160831085700Z"));
        assert_eq!(id(&["v=spf1 -all", "v=STSv1;x=y;id=a"]).as_deref(), Some("a"));
        for texts in [
            &[][..],
            &["v=STSv1;"],
            &["v=STSv1; id=;"],
            &["v=STSv1; id=a-b"],
            &["v=STSv1; id=a", "v=STSv1; id=a"],
            &["V=STSV1; id=a"],
            &["v=STSv1; id=abcdefghijklmnopqrstuvwxyz0123456"],
        ] {
            assert_eq!(id(texts), None, "{texts:?}");
        }
    }
}
