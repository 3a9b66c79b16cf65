//! The handshake, and certificates as the policy wants them.
//!
//! Opportunistic TLS (RFC 7435) takes any certificate: an encrypted connection is better than a clear one. What a checking
//! client would have said is counted, so that an operator sees what a stricter policy would cost. Where a policy asks for
//! proof, the handshake fails without it.

use std::path::Path;
use std::sync::Arc;

use prometheus::IntCounterVec;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::classify::Fault;
use super::dane::{self, Shown};
use super::metered::Metered;
use super::policy::Policy;
use super::stream::{self, Wire};
use crate::route::roots;

/// Makes connectors, by policy.
pub(super) struct Connectors {
    provider: Arc<CryptoProvider>,
    /// The verifier of certificates; `None` where there are no root certificates, so that nothing is ever verified.
    strict: Option<Arc<WebPkiServerVerifier>>,
    verdicts: IntCounterVec,
    /// Shared by most connections: its sessions can be resumed.
    opportunistic: TlsConnector,
}

impl Connectors {
    /// Reads the root certificates: of the file, or the system's.
    pub(super) fn new(file: Option<&Path>, verdicts: IntCounterVec) -> Connectors {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = roots::load(file).unwrap_or_else(|error| {
            tracing::error!(%error, "no certificate of a next hop can be verified");
            RootCertStore::empty()
        });
        let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().ok();
        let judge = Judge {
            policy: Policy::Opportunistic("opportunistic"),
            strict: strict.clone(),
            provider: Arc::clone(&provider),
            verdicts: verdicts.clone(),
        };
        let opportunistic = TlsConnector::from(Arc::new(config(judge)));
        Connectors { provider, strict, verdicts, opportunistic }
    }

    /// The connector for a policy; `None` for one without TLS. A session is never resumed under another policy than it was
    /// begun under: with a proof of its own, each handshake is a full one.
    pub(super) fn connector(&self, policy: &Policy) -> Option<TlsConnector> {
        match policy {
            Policy::Off => None,
            Policy::Opportunistic("opportunistic") => Some(self.opportunistic.clone()),
            _ => {
                let judge = Judge {
                    policy: policy.clone(),
                    strict: self.strict.clone(),
                    provider: Arc::clone(&self.provider),
                    verdicts: self.verdicts.clone(),
                };
                let mut config = config(judge);
                config.resumption = Resumption::disabled();
                Some(TlsConnector::from(Arc::new(config)))
            }
        }
    }
}

fn config(judge: Judge) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::clone(&judge.provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_no_client_auth()
}

/// Shakes hands. An exchanger's name goes into SNI, which is also the TLSA base domain (RFC 7672 section 8.1); a host name that
/// cannot be one goes without. After a failure the connection is closed before this returns, so that another may take its place.
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

/// Judges certificates as a policy wants it.
#[derive(Debug)]
struct Judge {
    policy: Policy,
    strict: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    verdicts: IntCounterVec,
}

impl Judge {
    fn proof_wanted(&self) -> bool {
        matches!(self.policy, Policy::Verified(..) | Policy::Dane(_))
    }

    /// What a client would say that checks. `None`: it could not, for lack of root certificates.
    fn verdict(&self, shown: &Shown<'_>) -> Option<Result<(), Error>> {
        match &self.policy {
            Policy::Dane(records) => Some(dane::verify(records, shown, &self.provider)),
            Policy::Verified(_, names) if !names.is_empty() => {
                let strict = self.strict.as_ref()?;
                let names = names.iter().filter_map(|name| ServerName::try_from(&**name).ok());
                let wrong = Err(Error::InvalidCertificate(CertificateError::NotValidForName));
                Some(names.fold(wrong, |verdict, name| verdict.or_else(|_| verify(strict, shown, &name))))
            }
            _ => Some(verify(self.strict.as_ref()?, shown, shown.name)),
        }
    }
}

fn verify(strict: &WebPkiServerVerifier, shown: &Shown<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    strict.verify_server_cert(shown.end_entity, shown.intermediates, name, &[], shown.now).map(drop)
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self.verdict(&Shown { end_entity, intermediates, name, now });
        let said = verdict.as_ref().map_or("unchecked", label);
        self.verdicts.with_label_values(&[self.policy.as_str(), said]).inc();
        if self.proof_wanted() {
            verdict
                .unwrap_or_else(|| Err(Error::General("there are no root certificates to check with".to_owned())))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.tolerate_unreadable(verify_tls12_signature(message, cert, dss, algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        self.tolerate_unreadable(verify_tls13_signature(message, cert, dss, algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl Judge {
    /// A signature that is wrong ends the handshake. A certificate too old or odd to read a key from does so only where proof
    /// is wanted.
    fn tolerate_unreadable(
        &self,
        result: Result<HandshakeSignatureValid, Error>,
    ) -> Result<HandshakeSignatureValid, Error> {
        match result {
            Err(Error::InvalidCertificate(CertificateError::BadSignature)) => result,
            _ if self.proof_wanted() => result,
            _ => Ok(HandshakeSignatureValid::assertion()),
        }
    }
}

/// A verdict as a metric label: a handful of values.
fn label(verdict: &Result<(), Error>) -> &'static str {
    use CertificateError::{
        ApplicationVerificationFailure, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let Err(error) = verdict else { return "trusted" };
    match error {
        Error::InvalidCertificate(UnknownIssuer) => "unknown_issuer",
        Error::InvalidCertificate(ApplicationVerificationFailure) => "no_match",
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => "wrong_name",
        Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }) => {
            "expired"
        }
        _ => "invalid",
    }
}
