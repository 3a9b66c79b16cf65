//! TLSA records (RFC 6698 section 2.1), as far as SMTP uses them (RFC 7672 section 3.1).

use hickory_resolver::proto::rr::rdata::TLSA;

/// A trust anchor that the domain asserts (RFC 6698 section 2.1.1).
pub const DANE_TA: u8 = 2;
/// A certificate that the domain issues itself (RFC 6698 section 2.1.1).
pub const DANE_EE: u8 = 3;

/// One TLSA record, in the numbers of the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tlsa {
    /// Certificate usage; [`DANE_TA`] and [`DANE_EE`] are of use here.
    pub usage: u8,
    /// 0: the whole certificate, 1: its public key.
    pub selector: u8,
    /// 0: the thing itself, 1: its SHA-256, 2: its SHA-512.
    pub matching: u8,
    /// What is compared.
    pub data: Box<[u8]>,
}

impl Tlsa {
    /// Whether a certificate can be held against it. PKIX usages are not for SMTP (RFC 7672 section 3.1.3); unknown numbers
    /// and digests of the wrong length are left out (RFC 7672 section 2.1: "unusable").
    pub fn is_usable(&self) -> bool {
        let length = match self.matching {
            0 => !self.data.is_empty(),
            1 => self.data.len() == 32,
            2 => self.data.len() == 64,
            _ => false,
        };
        length && matches!(self.usage, DANE_TA | DANE_EE) && self.selector <= 1
    }
}

impl From<&TLSA> for Tlsa {
    fn from(record: &TLSA) -> Tlsa {
        Tlsa {
            usage: record.cert_usage.into(),
            selector: record.selector.into(),
            matching: record.matching.into(),
            data: record.cert_data.as_slice().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_certificate_can_be_held_against_is_usable() {
        for (numbers, octets, usable) in [
            ([3, 1, 1], 32, true),
            ([3, 0, 2], 64, true),
            ([2, 0, 0], 700, true),
            ([2, 1, 1], 32, true),
            ([0, 1, 1], 32, false),
            ([1, 1, 1], 32, false),
            ([4, 1, 1], 32, false),
            ([255, 1, 1], 32, false),
            ([3, 2, 1], 32, false),
            ([3, 1, 3], 32, false),
            ([3, 1, 1], 0, false),
            ([3, 1, 1], 16, false),
            ([3, 1, 1], 33, false),
            ([3, 1, 2], 32, false),
            ([3, 0, 0], 0, false),
        ] {
            let [usage, selector, matching] = numbers;
            let record = Tlsa { usage, selector, matching, data: vec![7; octets].into() };
            assert_eq!(record.is_usable(), usable, "{numbers:?} with {octets} octets");
        }
    }
}
