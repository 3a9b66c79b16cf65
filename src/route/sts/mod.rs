//! MTA-STS (RFC 8461): which exchangers a domain vouches for, fetched over HTTPS and kept on disk.
//!
//! A policy that is in force stays in force until it expires, whatever fails in the meantime: DNS, HTTPS, a restart. One that
//! cannot be fetched for the first time counts as none (RFC 8461 section 3.3), and is asked for again soon.

mod cache;
mod https;
mod policy;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tokio_rustls::TlsConnector;

use self::cache::{Cache, Entry};
pub use self::policy::{StsMode, StsPolicy};
use crate::mail::Domain;

/// How long it is believed that a domain has no policy.
pub(super) const NONE_FOR: Duration = Duration::from_secs(3600);
/// How long until a policy that could not be fetched is asked for again (RFC 8461 section 3.3 proposes five minutes).
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(300);
/// How long until a policy is fetched anew although its id has not changed, so that it is in force long before the old one
/// ends (RFC 8461 section 5.1: "at regular intervals").
const REFRESH_AFTER: Duration = Duration::from_secs(86_400);

/// Keeps and fetches policies.
#[derive(Debug)]
pub(super) struct Sts {
    cache: Option<Cache>,
    connector: Connector,
}

/// Says nothing of itself in debug output.
struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector(..)")
    }
}

/// What is in force for a domain, how long that may be believed, and how it was learned (a metric label).
pub(super) struct InForce {
    pub(super) policy: Option<Arc<StsPolicy>>,
    pub(super) until: Duration,
    pub(super) result: &'static str,
}

impl Sts {
    pub(super) fn new(roots: RootCertStore, cache: Option<PathBuf>) -> Sts {
        let cache = cache.map(|directory| Cache::open(&directory));
        Sts { cache, connector: Connector(https::connector(roots)) }
    }

    /// What is in force: `announced` are the texts of `_mta-sts` (none, if there was no answer), `fetch` gets the policy's text.
    pub(super) async fn in_force(
        &self,
        domain: &Domain,
        announced: &[Vec<u8>],
        fetch: impl Future<Output = Result<String, String>>,
    ) -> InForce {
        let kept = match &self.cache {
            Some(cache) => cache.load(domain).await,
            None => None,
        };
        let Some(id) = policy::announced(announced) else {
            return kept.map_or(InForce { policy: None, until: NONE_FOR, result: "none" }, |kept| keep(kept, "kept"));
        };
        match kept {
            Some(kept) if kept.id == id && kept.age() < REFRESH_AFTER.min(kept.policy.max_age() / 2) => {
                keep(kept, "kept")
            }
            kept => self.renewed(domain, id, kept, fetch.await).await,
        }
    }

    async fn renewed(
        &self,
        domain: &Domain,
        id: String,
        kept: Option<Entry>,
        fetched: Result<String, String>,
    ) -> InForce {
        let fetched = fetched.and_then(|text| StsPolicy::parse(&text).map_err(str::to_owned));
        let policy = match fetched {
            Ok(policy) => policy,
            Err(error) => {
                tracing::warn!(%domain, %error, kept = kept.is_some(), "the MTA-STS policy could not be fetched");
                let none = InForce { policy: None, until: RETRY_AFTER, result: "failed" };
                return kept.map_or(none, |kept| keep(kept, "failed_kept"));
            }
        };
        let entry = Entry::new(id, policy);
        if let Some(cache) = &self.cache
            && let Err(error) = cache.store(domain, &entry).await
        {
            tracing::warn!(%domain, %error, "the MTA-STS policy could not be kept on disk");
        }
        keep(entry, "fetched")
    }

    /// Gets the policy file of a domain from its policy host.
    pub(super) async fn fetch(&self, host: &str, addresses: &[std::net::SocketAddr]) -> Result<String, String> {
        let path = "/.well-known/mta-sts.txt";
        https::get(&self.connector.0, host, path, addresses).await.map_err(|error| error.to_string())
    }
}

/// Goes by an entry until it expires or the next look at the announcement, whichever comes first.
fn keep(entry: Entry, result: &'static str) -> InForce {
    let soon = if result == "failed_kept" { RETRY_AFTER } else { NONE_FOR };
    InForce { until: entry.left().min(soon), policy: Some(Arc::new(entry.policy)), result }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENFORCE: &str = "version: STSv1\nmode: enforce\nmx: mx.example.org\nmax_age: 86400\n";

    fn announcement(id: &str) -> Vec<Vec<u8>> {
        vec![format!("v=STSv1; id={id}").into_bytes()]
    }

    async fn asked(sts: &Sts, announced: &[Vec<u8>], fetched: Result<&str, &str>) -> (&'static str, Option<StsMode>) {
        let domain = Domain::parse("a.example").expect("a domain");
        let fetch = std::future::ready(fetched.map(str::to_owned).map_err(str::to_owned));
        let found = sts.in_force(&domain, announced, fetch).await;
        (found.result, found.policy.map(|policy| policy.mode))
    }

    #[tokio::test]
    async fn a_policy_in_force_outlives_whatever_fails() {
        let directory = tempfile::tempdir().expect("a directory");
        let sts = || Sts::new(RootCertStore::empty(), Some(directory.path().to_owned()));
        let enforced = Some(StsMode::Enforce);
        assert_eq!(asked(&sts(), &[], Err("not asked")).await, ("none", None));
        assert_eq!(asked(&sts(), &announcement("1"), Err("no route")).await, ("failed", None));
        assert_eq!(asked(&sts(), &announcement("1"), Ok("<html>")).await, ("failed", None));
        assert_eq!(asked(&sts(), &announcement("1"), Ok(ENFORCE)).await, ("fetched", enforced));
        assert_eq!(
            asked(&sts(), &announcement("1"), Err("not asked")).await,
            ("kept", enforced),
            "after a restart too"
        );
        assert_eq!(asked(&sts(), &announcement("2"), Err("no route")).await, ("failed_kept", enforced));
        assert_eq!(asked(&sts(), &[], Err("not asked")).await, ("kept", enforced), "nor does silence end it");
        let none = ENFORCE.replace("enforce", "none");
        assert_eq!(asked(&sts(), &announcement("2"), Ok(&none)).await, ("fetched", Some(StsMode::None)));
    }

    #[tokio::test]
    async fn a_policy_is_fetched_anew_before_it_expires() {
        let directory = tempfile::tempdir().expect("a directory");
        let sts = Sts::new(RootCertStore::empty(), Some(directory.path().to_owned()));
        let domain = Domain::parse("a.example").expect("a domain");
        let policy = StsPolicy::parse(ENFORCE).expect("a policy");
        let half_way = Entry::new("1".to_owned(), policy);
        let half_way = Entry { fetched: half_way.fetched - 43_201, ..half_way };
        sts.cache.as_ref().expect("a cache").store(&domain, &half_way).await.expect("stored");
        let testing = ENFORCE.replace("enforce", "testing");
        assert_eq!(asked(&sts, &announcement("1"), Ok(&testing)).await, ("fetched", Some(StsMode::Testing)));
    }
}
