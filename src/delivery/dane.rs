//! Certificates held against TLSA records (RFC 6698, RFC 7671, RFC 7672 section 3).
//!
//! One record that matches is enough. DANE-EE(3) vouches for the certificate itself, so that neither names nor dates nor
//! issuers count (RFC 7672 section 3.1.1). DANE-TA(2) vouches for an issuer, below which all the usual rules hold, with the
//! exchanger's name (RFC 7672 section 3.1.2).

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};

use crate::route::{DANE_EE, DANE_TA, Tlsa};

/// What a server showed.
pub(super) struct Shown<'a> {
    pub(super) end_entity: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
    /// The exchanger, which is the TLSA base domain.
    pub(super) name: &'a ServerName<'a>,
    pub(super) now: UnixTime,
}

/// Holds what was shown against usable records.
///
/// # Errors
/// [`CertificateError::ApplicationVerificationFailure`] if no record matches; what is wrong below a trust anchor if one does.
pub(super) fn verify(records: &[Tlsa], shown: &Shown<'_>, provider: &Arc<CryptoProvider>) -> Result<(), Error> {
    let usable = |usage: u8| records.iter().filter(move |record| record.usage == usage && record.is_usable());
    if usable(DANE_EE).any(|record| matches(record, shown.end_entity)) {
        return Ok(());
    }
    let anchors = usable(DANE_TA).flat_map(|record| anchors(record, shown));
    let none = Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
    anchors.fold(none, |verdict, anchor| verdict.or_else(|_| verify_below(anchor, shown, provider)))
}

/// The issuers that a record vouches for: among the certificates that were shown, or the record's own content.
fn anchors<'a>(record: &'a Tlsa, shown: &Shown<'a>) -> Vec<CertificateDer<'a>> {
    let matching = shown.intermediates.iter().filter(|certificate| matches(record, certificate));
    let mut anchors: Vec<CertificateDer<'a>> = matching.cloned().collect();
    if (record.selector, record.matching) == (0, 0) {
        anchors.push(CertificateDer::from(&*record.data));
    }
    anchors
}

fn verify_below(anchor: CertificateDer<'_>, shown: &Shown<'_>, provider: &Arc<CryptoProvider>) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(anchor.into_owned())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
    verifier.verify_server_cert(shown.end_entity, shown.intermediates, shown.name, &[], shown.now).map(drop)
}

fn matches(record: &Tlsa, certificate: &CertificateDer<'_>) -> bool {
    let selected = match record.selector {
        0 => certificate.to_vec(),
        _ => match ParsedCertificate::try_from(certificate) {
            Ok(parsed) => parsed.subject_public_key_info().to_vec(),
            Err(_) => return false,
        },
    };
    match record.matching {
        0 => *record.data == *selected,
        1 => *record.data == *digest::digest(&digest::SHA256, &selected).as_ref(),
        _ => *record.data == *digest::digest(&digest::SHA512, &selected).as_ref(),
    }
}
