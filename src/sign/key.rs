//! Private keys, and the record in the DNS that each of them belongs to.

use std::fmt;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

/// A key that signs. Never shown: not by `Debug` either.
pub enum PrivateKey {
    /// `rsa-sha256` (RFC 6376 section 3.3.1), 2048 to 8192 bits: what RFC 8301 section 3.2 asks of signers.
    Rsa(RsaKeyPair),
    /// `ed25519-sha256` (RFC 8463).
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({}, {})", self.kind(), self.fingerprint())
    }
}

impl PrivateKey {
    /// Reads a key in PEM: `PRIVATE KEY` (PKCS #8) or `RSA PRIVATE KEY` (PKCS #1).
    ///
    /// # Errors
    /// In words: what is wrong with the file.
    pub fn read(path: &Path) -> Result<PrivateKey, String> {
        let der = PrivateKeyDer::from_pem_file(path)
            .map_err(|error| format!("{} cannot be read as a private key in PEM: {error}", path.display()))?;
        PrivateKey::from_der(&der).map_err(|message| format!("{}: {message}", path.display()))
    }

    fn from_der(der: &PrivateKeyDer<'_>) -> Result<PrivateKey, String> {
        let rsa = match der {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) => {
                if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der()) {
                    return Ok(PrivateKey::Ed25519(key));
                }
                RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            }
            _ => return Err("neither an RSA nor an Ed25519 key; DKIM knows no other".to_owned()),
        };
        rsa.map(PrivateKey::Rsa).map_err(|error| {
            format!("neither an Ed25519 key nor an RSA key of 2048 to 8192 bits (RFC 8301 section 3.2): {error}")
        })
    }

    /// The `a=` tag.
    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            PrivateKey::Rsa(_) => "rsa-sha256",
            PrivateKey::Ed25519(_) => "ed25519-sha256",
        }
    }

    /// The `k=` tag.
    fn kind(&self) -> &'static str {
        match self {
            PrivateKey::Rsa(_) => "rsa",
            PrivateKey::Ed25519(_) => "ed25519",
        }
    }

    /// Signs what [`super::signature`] has put together.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        match self {
            PrivateKey::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
            // RFC 8463 section 3: the hash is what is signed.
            PrivateKey::Ed25519(key) => Ok(key.try_sign(digest(&SHA256, message).as_ref())?.as_ref().to_vec()),
        }
    }

    /// The public key as a record holds it: SubjectPublicKeyInfo for RSA, the 32 octets for Ed25519 (RFC 8463 section 4).
    fn public(&self) -> Vec<u8> {
        match self {
            PrivateKey::Rsa(key) => {
                let spki: Result<PublicKeyX509Der<'_>, Unspecified> = key.public_key().as_der();
                spki.map(|der| der.as_ref().to_vec()).unwrap_or_default()
            }
            PrivateKey::Ed25519(key) => key.public_key().as_ref().to_vec(),
        }
    }

    /// The first 8 octets of the SHA-256 of the public key: enough for a person to tell two keys apart.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.public())
    }

    /// The text of the TXT record that publishes the public key.
    pub fn record(&self) -> String {
        format!("v=DKIM1; k={}; p={}", self.kind(), STANDARD.encode(self.public()))
    }

    /// Compares the key with the TXT records of its name (RFC 6376 section 3.6.2.2).
    ///
    /// # Errors
    /// In words: why receivers would not accept its signatures.
    pub fn compare(&self, records: &[String]) -> Result<(), String> {
        let text = match records {
            [] => return Err(format!("there is no such TXT record; publish: {}", self.record())),
            [text] => text,
            several => return Err(format!("there are {} TXT records; a receiver may take any", several.len())),
        };
        let tag = |name: &str| tags(text).find(|(key, _)| *key == name).map(|(_, value)| value);
        let published = tag("p").ok_or("the TXT record has no p= tag: it is no DKIM key")?;
        if published.is_empty() {
            return Err("the key is revoked: p= is empty".to_owned());
        }
        let kind = tag("k").unwrap_or_else(|| "rsa".to_owned());
        let published = STANDARD.decode(&published).map_err(|error| format!("p= is not base64: {error}"))?;
        if kind != self.kind() || !self.is(&published) {
            return Err(format!(
                "the record holds another key: {kind} {} in the DNS, {} {} in the file; publish: {}",
                fingerprint(&published),
                self.kind(),
                self.fingerprint(),
                self.record()
            ));
        }
        match tag("h") {
            Some(hashes) if !hashes.split(':').any(|hash| hash == "sha256") => {
                Err(format!("the record permits the hashes {hashes:?} only; signatures are made with sha256"))
            }
            _ => Ok(()),
        }
    }

    /// Whether this is our public key. RSA keys are published in either of two forms (RFC 6376 erratum 3017).
    fn is(&self, published: &[u8]) -> bool {
        published == self.public() || matches!(self, PrivateKey::Rsa(key) if key.public_key().as_ref() == published)
    }
}

fn fingerprint(public: &[u8]) -> String {
    digest(&SHA256, public).as_ref()[..8].iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The tags of a record, without blanks (RFC 6376 section 3.2).
fn tags(text: &str) -> impl Iterator<Item = (&str, String)> {
    text.split(';').filter_map(|tag| {
        let (name, value) = tag.split_once('=')?;
        Some((name.trim(), value.chars().filter(|c| !c.is_ascii_whitespace()).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn the_record_of_a_key_is_what_rfc_8463_prints() {
        let record = samples::rfc8463().record();
        assert_eq!(record, "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
    }

    #[test]
    fn a_key_matches_its_own_record_in_any_legal_spelling() {
        for key in [samples::rfc8463(), samples::rsa()] {
            let record = key.record();
            let spaced = record.replace("; ", " ;\t").replace("p=", "p = ") + "; t=s";
            for text in [record.clone(), record.replace("v=DKIM1; ", ""), spaced, record + "; h=sha1:sha256"] {
                assert_eq!(key.compare(std::slice::from_ref(&text)), Ok(()), "{text}");
            }
        }
        let rsa = samples::rsa();
        let PrivateKey::Rsa(pair) = &rsa else { panic!("an RSA key") };
        let old = format!("p={}", STANDARD.encode(pair.public_key().as_ref()));
        assert_eq!(rsa.compare(&[old]), Ok(()));
    }

    #[test]
    fn what_receivers_would_not_accept_is_said_with_both_fingerprints() {
        let (key, other) = (samples::rfc8463(), samples::rsa());
        let reasons = [
            (vec![], "publish: v=DKIM1; k=ed25519; p=11qYAYKx"),
            (vec![key.record(), key.record()], "2 TXT records"),
            (vec!["v=spf1 -all".to_owned()], "no p= tag"),
            (vec!["k=ed25519; p=".to_owned()], "revoked"),
            (vec!["p=*".to_owned()], "base64"),
            (vec![other.record()], &other.fingerprint()),
            (vec![other.record()], &key.fingerprint()),
            (vec![key.record() + "; h=sha1"], "sha256"),
        ];
        for (records, reason) in reasons {
            let found = key.compare(&records).expect_err("no match");
            assert!(found.contains(reason), "{records:?}: {found}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", samples::rfc8463());
        assert_eq!(shown, format!("PrivateKey(ed25519, {})", samples::rfc8463().fingerprint()));
    }

    #[test]
    fn a_file_that_holds_no_usable_key_is_refused_by_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let refused = |path: &Path| PrivateKey::read(path).expect_err("refused");
        assert!(refused(&directory.path().join("missing.pem")).contains("missing.pem cannot be read"));
        assert!(refused(&write("empty.pem", "")).contains("empty.pem"));
        let ec = rcgen::KeyPair::generate().expect("a P-256 key").serialize_pem();
        assert!(refused(&write("ec.pem", &ec)).contains("neither an Ed25519 key nor an RSA key"));
        let small = include_str!("../../tests/data/rsa-1024.pem");
        assert!(refused(&write("small.pem", small)).contains("2048 to 8192 bits"));
    }
}
