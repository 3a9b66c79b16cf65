//! The operator's desk: what is held and why, and the verbs that hold and release.
//!
//! A name is looked for as provider, as site, as domain with queued mail, and as the first label of such a domain
//! (`gmail` for `gmail.com`); whatever it is found as, the provider is meant, because pace and reputation are its.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::provider::{Provider, Reach, SiteState, Suspender, Suspension};
use super::queue::OnDisk;
use super::reaction::{Holding, Reaction};
use super::scheduler::Scheduler;
use super::status::{ProviderList, ProviderStatus, SiteStatus, Standing, SuspensionStatus, Unknown};
use crate::clock::Tick;
use crate::mail::{Destination, Domain};

/// Providers in one list, sites of a provider, and domains of a site that are named.
const PROVIDERS_MAX: usize = 500;
const SITES_MAX: usize = 100;
const DOMAINS_MAX: usize = 20;
/// Names offered for one that is unknown.
const NEAR_MAX: usize = 5;

impl Scheduler {
    /// The providers that are known now: suspended ones first, then those with most mail in memory.
    pub fn provider_list(&self, now: Tick) -> ProviderList {
        let mut providers: Vec<_> = self.providers.iter().map(|(name, state)| self.status(name, state, now)).collect();
        providers.sort_by(|a, b| (a.standing, b.resident, &a.name).cmp(&(b.standing, a.resident, &b.name)));
        let more = providers.len().saturating_sub(PROVIDERS_MAX);
        providers.truncate(PROVIDERS_MAX);
        for provider in &mut providers {
            provider.sites.retain(|site| site.suspension.is_some());
        }
        ProviderList { providers, more }
    }

    /// One provider with its sites.
    ///
    /// # Errors
    /// If nothing of that name is known; with names that are near.
    pub fn provider_status(&self, name: &str, now: Tick) -> Result<ProviderStatus, Unknown> {
        let name = self.find_provider(name)?;
        let provider = self.providers.get(&name).ok_or_else(Unknown::default)?;
        Ok(self.status(&name, provider, now))
    }

    /// The operator suspends a provider, for `time` or until it is resumed. It takes effect at once: attempts under way
    /// end, none begins. It does not outlive this process.
    ///
    /// # Errors
    /// As [`Scheduler::provider_status`].
    pub fn suspend(
        &mut self,
        name: &str,
        time: Option<Duration>,
        why: &str,
        now: Tick,
    ) -> Result<ProviderStatus, Unknown> {
        let name = self.find_provider(name)?;
        let until = time.map_or(Tick::NEVER, |time| now + time);
        self.suspend_provider(&name, until, Suspender::Operator, why, now);
        self.provider_status(&name, now)
    }

    /// The operator ends every suspension of a provider and of its sites, whoever began it.
    ///
    /// # Errors
    /// As [`Scheduler::provider_status`].
    pub fn resume(&mut self, name: &str, now: Tick) -> Result<ProviderStatus, Unknown> {
        let name = self.find_provider(name)?;
        for site in self.sites.values_mut().filter(|site| site.provider == name) {
            if let Reach::Suspended { failures, .. } = site.reach {
                site.reach = Reach::Probing { failures };
            }
        }
        self.resume_provider(&name, now);
        self.provider_status(&name, now)
    }

    fn find_provider(&self, name: &str) -> Result<Arc<str>, Unknown> {
        let name = name.trim().to_ascii_lowercase();
        if let Some((known, _)) = self.providers.get_key_value(name.as_str()) {
            return Ok(Arc::clone(known));
        }
        if let Some(site) = self.sites.get(name.as_str()) {
            return Ok(Arc::clone(&site.provider));
        }
        let domain = Domain::parse(&name).ok().map(Destination::Domain);
        if let Some(site) = domain.and_then(|domain| self.site_of(&domain))
            && let Some(state) = self.sites.get(&site)
        {
            return Ok(Arc::clone(&state.provider));
        }
        self.provider_of_label(&name).ok_or_else(|| self.near(&name))
    }

    /// The provider whose name, or whose queued domains, have `label` as their first label (`gmail` for `gmail.com`), if
    /// it is one.
    fn provider_of_label(&self, label: &str) -> Option<Arc<str>> {
        let named = |name: &str| name.split_once('.').is_some_and(|(first, _)| first == label);
        let by_name = self.providers.keys().filter(|name| named(name)).cloned();
        let by_domain = self.queues.keys().filter(|to| named(&to.to_string()));
        let by_domain = by_domain.filter_map(|to| Some(Arc::clone(&self.sites.get(&self.site_of(to)?)?.provider)));
        let mut providers = by_name.chain(by_domain).collect::<BTreeSet<_>>();
        providers.pop_first().filter(|_| providers.is_empty())
    }

    fn near(&self, name: &str) -> Unknown {
        let names = self.providers.keys().map(|known| known.to_string());
        let domains = self.queues.keys().map(ToString::to_string);
        let mut near: Vec<(usize, String)> = names
            .chain(domains)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .filter_map(|known| nearness(name, &known).map(|distance| (distance, known)))
            .collect();
        near.sort();
        near.truncate(NEAR_MAX);
        Unknown { near: near.into_iter().map(|(_, known)| known).collect() }
    }

    fn status(&self, name: &Arc<str>, provider: &Provider, now: Tick) -> ProviderStatus {
        let of_provider = || self.sites.iter().filter(|(_, site)| site.provider == *name);
        let destinations = || of_provider().flat_map(|(_, site)| &site.destinations).filter_map(|d| self.queues.get(d));
        let resident = destinations().map(|queue| queue.resident).sum();
        let mut sites: Vec<_> = of_provider().map(|(name, site)| self.site_status(name, site, now)).collect();
        sites.sort_by(|a, b| (b.resident, &a.name).cmp(&(a.resident, &b.name)));
        sites.truncate(SITES_MAX);
        let suspension = provider.suspension.as_ref().filter(|suspension| suspension.until > now);
        let standing = match suspension {
            Some(_) => Standing::Suspended,
            None if provider.held_until > now => Standing::Throttled,
            None if resident > 0 || provider.in_flight > 0 => Standing::Busy,
            None => Standing::Idle,
        };
        ProviderStatus {
            name: name.to_string(),
            standing,
            suspension: suspension.map(|suspension| suspension.status(now)),
            throttled_ms: (provider.held_until > now).then(|| millis(provider.held_until.since(now))),
            window: provider.window.size(),
            connections: provider.limits.connections,
            pace: provider.learned.rate(),
            in_flight: provider.in_flight,
            resident,
            more_on_disk: destinations().any(|queue| queue.disk != OnDisk::Nothing),
            last_reply: provider.last_reply.as_ref().map(|(_, reply)| reply.to_string()),
            last_reply_ago_ms: provider.last_reply.as_ref().map(|(at, _)| millis(now.since(*at))),
            rules: provider
                .temper
                .holding(now)
                .map(|(reaction, holding)| rule_status(reaction, holding, now))
                .collect(),
            sites,
            site_count: of_provider().count(),
        }
    }

    fn site_status(&self, name: &Arc<str>, site: &SiteState, now: Tick) -> SiteStatus {
        let mut domains: Vec<String> = site.destinations.iter().map(ToString::to_string).collect();
        domains.sort();
        domains.truncate(DOMAINS_MAX);
        let queues = site.destinations.iter().filter_map(|destination| self.queues.get(destination));
        SiteStatus {
            name: name.to_string(),
            domains,
            domain_count: site.destinations.len(),
            in_flight: site.in_flight,
            resident: queues.map(|queue| queue.resident).sum(),
            suspension: site.suspension_status(now),
        }
    }
}

impl Suspension {
    fn status(&self, now: Tick) -> SuspensionStatus {
        let by = match &self.by {
            Suspender::Trouble => "trouble",
            Suspender::Rule(label) => label,
            Suspender::Operator => "operator",
        };
        SuspensionStatus {
            by: by.to_owned(),
            why: self.why.to_string(),
            since_ms: millis(now.since(self.since)),
            left_ms: (self.until != Tick::NEVER).then(|| millis(self.until.since(now))),
        }
    }
}

impl SiteState {
    fn suspension_status(&self, now: Tick) -> Option<SuspensionStatus> {
        let until = self.suspended_until(now)?;
        let (since, why) = self.failure.as_ref().map_or((now, ""), |(since, why)| (*since, why));
        Some(SuspensionStatus {
            by: "unreachable".to_owned(),
            why: why.to_owned(),
            since_ms: millis(now.since(since)),
            left_ms: Some(millis(until.since(now))),
        })
    }
}

fn rule_status(reaction: &Reaction, holding: &Holding, now: Tick) -> SuspensionStatus {
    SuspensionStatus {
        by: reaction.label.to_string(),
        why: holding.why.to_string(),
        since_ms: millis(now.since(holding.since)),
        left_ms: Some(millis(holding.until.since(now))),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How far two names are apart: 0 where one is part of the other, else the number of single changes, if they are few.
fn nearness(name: &str, known: &str) -> Option<usize> {
    if !name.is_empty() && known.contains(name) {
        return Some(0);
    }
    let distance = edits(name.as_bytes(), known.as_bytes());
    (distance <= 1 + name.len() / 4).then_some(distance)
}

/// Levenshtein's distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_name_is_near_and_another_is_not() {
        assert_eq!(nearness("gogle", "google"), Some(1));
        assert_eq!(nearness("outlook", "outlook-com.olc.protection.outlook.com"), Some(0));
        assert_eq!(nearness("gmail", "yahoo"), None);
        assert_eq!(edits(b"kitten", b"sitting"), 3);
    }
}
