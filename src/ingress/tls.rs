//! Certificates for STARTTLS: read whole before they are used, so that a bad one never takes a listener down.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::options::Tls;

/// Reads a certificate chain and its key.
///
/// # Errors
/// A file cannot be read, holds no certificate or key, or they do not belong together; the error names the file.
pub(super) fn load(tls: &Tls) -> io::Result<Arc<ServerConfig>> {
    let chain = certificates(&tls.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| unreadable(&tls.key, "a private key", error))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| mismatch(tls, &error))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = |error| unreadable(path, "a certificate chain", error);
    let chain = CertificateDer::pem_file_iter(path).map_err(read)?.collect::<Result<Vec<_>, _>>().map_err(read)?;
    if chain.is_empty() { Err(read(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn unreadable(path: &Path, what: &str, error: pem::Error) -> io::Error {
    let kind = match &error {
        pem::Error::Io(io) => io.kind(),
        _ => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, format!("{}: cannot be read as {what} in PEM: {error}", path.display()))
}

fn mismatch(tls: &Tls, error: &rustls::Error) -> io::Error {
    let (certificate, key) = (tls.certificate.display(), tls.key.display());
    io::Error::new(io::ErrorKind::InvalidData, format!("{certificate} and {key} cannot be used together: {error}"))
}
