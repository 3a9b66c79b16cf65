//! DKIM signatures (RFC 6376, RFC 8463) for the mail of list hosts.
//!
//! **The promise.** A message whose From is in a configured domain leaves with a signature of each of that domain's keys; a
//! message of another domain leaves as it came. A signature is a header field put above the content, below our Received
//! line: not an octet of the content changes, so signatures and ARC sets that are in it stay as good as they were. A content
//! is signed once for a list host, however many attempts carry it. A message that should be signed and cannot be does not
//! leave unsigned.
//!
//! Which keys sign follows from the list host and the From field, and both are part of the envelope that an attempt is made
//! of, so that attempts never mix what is signed differently.
//!
//! The cryptography is `aws-lc-rs`; the canonicalisation is ours rather than `mail-auth`'s, for these reasons: its signer
//! wants the message unstuffed and in memory once more, where ours reads the stored one; it names every absent field in h=,
//! so that the next list that adds its List-Id breaks the signature; it hashes lines of blanks at the end of a body, which
//! the RFC leaves out, so that other verifiers refuse such mail; it reads the system's clock; and it brings eleven crates more
//! (gzip, every character set, a message builder), pinned at a version whose successors need a newer compiler. As an
//! independent verifier in the tests it is welcome, and so is Python's `dkimpy`.
//!
//! Bounds: [`CACHE_ENTRIES`] signatures are remembered; what is forgotten is signed again.

mod author;
mod canonical;
mod key;
mod options;
#[cfg(test)]
mod samples;
mod signature;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use moka::future::Cache;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use self::signature::Hashed;
use crate::clock::Clock;
use crate::mail::ContentHash;

pub use self::key::PrivateKey;
pub use self::options::{Options, SigningKey};

/// Contents whose signatures are remembered; about 2 KB each.
const CACHE_ENTRIES: u64 = 4096;

/// What the signer counts.
#[derive(Clone, Debug)]
struct Metrics {
    /// domain: those of the configuration.
    signatures: IntCounterVec,
    unsigned: IntCounter,
    failures: IntCounter,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let signatures = Opts::new("posthaste_sign_signatures_total", "DKIM signatures made, by signing domain.");
        let metrics = Metrics {
            signatures: IntCounterVec::new(signatures, &["domain"])?,
            unsigned: IntCounter::new(
                "posthaste_sign_unsigned_total",
                "Contents that no DKIM key is for: another domain, or no single From.",
            )?,
            failures: IntCounter::new("posthaste_sign_failures_total", "Contents that could not be signed and wait.")?,
        };
        registry.register(Box::new(metrics.signatures.clone()))?;
        registry.register(Box::new(metrics.unsigned.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }
}

/// A signature could not be made; the message should wait.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the DKIM signature for {domain} (selector {selector}) could not be made")]
pub struct SignError {
    domain: String,
    selector: Arc<str>,
}

/// What the signatures of a content depend on. The key set follows from content and list host under one configuration.
type CacheKey = (ContentHash, Arc<str>, u64);

/// Signs. Cheap to clone; clones share keys and memory.
#[derive(Clone)]
pub struct Signer(Arc<Inner>);

struct Inner {
    setup: ArcSwap<Setup>,
    signed: Cache<CacheKey, Bytes>,
    clock: Clock,
    metrics: Metrics,
}

/// What a reload replaces as a whole.
struct Setup {
    options: Options,
    /// Grows with each reload: what was signed before it is signed anew.
    generation: u64,
}

impl Signer {
    /// # Errors
    /// If a metric of the same name is registered already.
    pub fn new(options: Options, clock: Clock, registry: &Registry) -> Result<Signer, prometheus::Error> {
        Ok(Signer(Arc::new(Inner {
            setup: ArcSwap::from_pointee(Setup { options, generation: 0 }),
            signed: Cache::new(CACHE_ENTRIES),
            clock,
            metrics: Metrics::new(registry)?,
        })))
    }

    /// Takes new keys for the attempts to come.
    pub fn reload(&self, options: Options) {
        self.0.setup.rcu(|old| Setup { options: options.clone(), generation: old.generation + 1 });
    }

    /// The header fields to put above `content` (dot-stuffed, of this `hash`) of this list host; empty if no key is for it.
    ///
    /// # Errors
    /// [`SignError`]; it must not leave unsigned then, because receivers refuse that for good where DMARC says so.
    pub async fn sign(&self, list_host: &Arc<str>, hash: ContentHash, content: &Bytes) -> Result<Bytes, SignError> {
        let setup = self.0.setup.load_full();
        if setup.options.keys.is_empty() {
            return Ok(Bytes::new());
        }
        let (list_host, content, inner) = (Arc::clone(list_host), content.clone(), Arc::clone(&self.0));
        let key = (hash, Arc::clone(&list_host), setup.generation);
        // A large body takes a while to hash, and RSA a millisecond: not on a thread of the runtime.
        let signing = async move {
            let work = move || inner.compose(&setup.options, &list_host, &content);
            tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        };
        self.0.signed.try_get_with(key, signing).await.map_err(|error| SignError::clone(&error))
    }
}

impl Inner {
    fn compose(&self, options: &Options, list_host: &str, content: &[u8]) -> Result<Bytes, SignError> {
        let keys = author::domain(content).map(|author| options.keys_for(list_host, &author)).unwrap_or_default();
        if keys.is_empty() {
            self.metrics.unsigned.inc();
            return Ok(Bytes::new());
        }
        let (hashed, at) = (Hashed::new(content), self.clock.wall());
        let mut prefix = String::new();
        for key in keys {
            let signature = hashed.sign(key, at).map_err(|_| self.failed(key))?;
            prefix.push_str(&signature);
            self.metrics.signatures.with_label_values(&[key.domain.as_str()]).inc();
        }
        Ok(prefix.into())
    }

    fn failed(&self, key: &SigningKey) -> SignError {
        self.metrics.failures.inc();
        SignError { domain: key.domain.to_string(), selector: Arc::clone(&key.selector) }
    }
}
