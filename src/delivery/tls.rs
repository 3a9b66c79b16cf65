//! Opportunistic TLS (RFC 7435): whatever the certificate, an encrypted connection is better than a clear one. What a
//! checking client would have said is counted, so that an operator sees what a stricter policy would cost.

use std::sync::Arc;

use prometheus::IntCounterVec;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::classify::Fault;
use super::metered::Metered;
use super::stream::{self, Wire};

/// The one connector that all connections share.
pub(super) fn connector(verdicts: IntCounterVec) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Permissive { strict: strict_verifier(&provider), provider: Arc::clone(&provider), verdicts };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A connector that accepts only a certificate for the host's name that the system's authorities vouch for.
pub(super) fn verified_connector() -> TlsConnector {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(system_roots())
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// The verifier whose verdict is counted; `None` where the system has no root certificates.
fn strict_verifier(provider: &Arc<CryptoProvider>) -> Option<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(system_roots()), Arc::clone(provider)).build().ok()
}

/// Shakes hands. The name is for SNI only; a host name that cannot be one goes without. After a failure the connection is
/// closed before this returns, so that another may take its place.
pub(super) async fn handshake(connector: &TlsConnector, host: &str, stream: Metered<TcpStream>) -> Result<Wire, Fault> {
    let name = match ServerName::try_from(host) {
        Ok(name) => name.to_owned(),
        Err(_) => ServerName::from(stream.get_ref().peer_addr().map_err(Fault::from)?.ip()),
    };
    match connector.connect(name, stream).into_fallible().await {
        Ok(stream) => Ok(Wire::Tls(Box::new(stream))),
        Err((error, stream)) => {
            stream::hang_up(stream).await;
            Err(Fault::Tls(error.to_string().into()))
        }
    }
}

#[derive(Debug)]
struct Permissive {
    strict: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    verdicts: IntCounterVec,
}

impl ServerCertVerifier for Permissive {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = match &self.strict {
            Some(strict) => {
                label(strict.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now))
            }
            None => "unchecked",
        };
        self.verdicts.with_label_values(&[verdict]).inc();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tolerate_unreadable(verify_tls12_signature(message, cert, dss, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tolerate_unreadable(verify_tls13_signature(message, cert, dss, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A signature that is wrong ends the handshake; a certificate too old or odd to read a key from does not.
fn tolerate_unreadable(result: Result<HandshakeSignatureValid, Error>) -> Result<HandshakeSignatureValid, Error> {
    match result {
        Err(Error::InvalidCertificate(CertificateError::BadSignature)) => result,
        _ => Ok(HandshakeSignatureValid::assertion()),
    }
}

/// A verdict as a metric label: a handful of values.
fn label(verdict: Result<ServerCertVerified, Error>) -> &'static str {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    match verdict {
        Ok(_) => "trusted",
        Err(Error::InvalidCertificate(UnknownIssuer)) => "unknown_issuer",
        Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => "wrong_name",
        Err(Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })) => {
            "expired"
        }
        Err(_) => "invalid",
    }
}
