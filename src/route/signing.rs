//! A signed root for tests: one key signs whatever the fake name server answers, and denials are proven by an NSEC record for
//! the very name that was asked for.

use std::time::{SystemTime, UNIX_EPOCH};

use hickory_resolver::proto::dnssec::crypto::Ed25519SigningKey;
use hickory_resolver::proto::dnssec::rdata::sig::SigInput;
use hickory_resolver::proto::dnssec::rdata::{DNSKEY, DNSSECRData, NSEC, RRSIG};
use hickory_resolver::proto::dnssec::{DnssecSigner, PublicKey, SigningKey, TBS};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};

const DAY: u32 = 86_400;

/// The root's key.
pub(crate) struct Signer(DnssecSigner);

impl Signer {
    pub(crate) fn new() -> Signer {
        let pkcs8 = Ed25519SigningKey::generate_pkcs8().expect("a key");
        let key = Ed25519SigningKey::from_pkcs8(&pkcs8).expect("a key");
        let dnskey = DNSKEY::from_key(&key.to_public_key().expect("a public key"));
        let lifetime = std::time::Duration::from_secs(DAY.into());
        Signer(DnssecSigner::new(dnskey, Box::new(key), Name::root(), lifetime))
    }

    /// What a validating resolver is to trust, as a file.
    pub(crate) fn trust_anchor(&self) -> String {
        use base64::Engine as _;
        let key = base64::engine::general_purpose::STANDARD.encode(self.0.dnskey().public_key().public_bytes());
        format!(". 3600 IN DNSKEY 257 3 15 {key}\n")
    }

    pub(crate) fn dnskey(&self) -> RData {
        RData::DNSSEC(DNSSECRData::DNSKEY(self.0.to_dnskey()))
    }

    /// The signature over records of one name and type. A forged one is of the right shape and wrong.
    pub(crate) fn sign(&self, records: &[Record], forged: bool) -> Record {
        let first = records.first().expect("something to sign");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() as u32;
        let input = SigInput {
            type_covered: first.record_type(),
            algorithm: self.0.key().algorithm(),
            num_labels: first.name.num_labels(),
            original_ttl: first.ttl,
            sig_expiration: SerialNumber::new(now + DAY),
            sig_inception: SerialNumber::new(now - DAY),
            key_tag: self.0.calculate_key_tag().expect("a tag"),
            signer_name: Name::root(),
        };
        let tbs = TBS::from_input(&first.name, DNSClass::IN, &input, records.iter()).expect("octets");
        let mut signature = self.0.sign(&tbs).expect("a signature");
        signature[0] ^= u8::from(forged);
        let data = RData::DNSSEC(DNSSECRData::RRSIG(RRSIG::from_sig(input, signature)));
        Record::from_rdata(first.name.clone(), first.ttl, data)
    }

    /// The proof that `name` has records of these types only.
    pub(crate) fn deny(&self, name: &Name, types: Vec<RecordType>) -> [Record; 2] {
        let next = name.prepend_label("\\000").unwrap_or_else(|_| name.clone());
        let nsec = RData::DNSSEC(DNSSECRData::NSEC(NSEC::new_cover_self(next, types)));
        let record = Record::from_rdata(name.clone(), 300, nsec);
        let signature = self.sign(std::slice::from_ref(&record), false);
        [record, signature]
    }
}
