//! Root certificates: whose word is taken where a certificate is checked (MTA-STS, `verified`).

use std::io;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The roots in a PEM file, or those of the system. The system's may be none: then no certificate is trusted.
///
/// # Errors
/// If the file cannot be read or holds no certificate.
pub fn load(file: Option<&Path>) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    let certificates = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = certificates.map_err(|error| unreadable(file, &error.to_string()))?;
    match roots.add_parsable_certificates(certificates) {
        (0, _) => Err(unreadable(file, "no usable certificate")),
        _ => Ok(roots),
    }
}

fn unreadable(file: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("root certificates in {}: {what}", file.display()))
}
