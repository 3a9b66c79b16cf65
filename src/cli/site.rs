//! `posthaste site`: where mail goes, what holds it and why; suspend and resume.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use serde::Serialize;

use super::relay::{Relay, segment};
use super::{Failure, print};
use crate::admin::api::Suspend;
use crate::config::units::Span;
use crate::dispatch::{ProviderList, ProviderStatus, SiteStatus, Standing, SuspensionStatus};
use crate::log::Escaped;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// The providers and sites that the relay knows now, what holds them and why
    List {
        #[command(flatten)]
        relay: Relay,
    },
    /// One of them in detail
    Show {
        /// A provider's rule (google), a domain (gmail.com) or a site
        name: String,
        #[command(flatten)]
        relay: Relay,
    },
    /// Send nothing there until it is resumed (or the relay is started again); its mail waits
    Suspend {
        /// A provider's rule (google), a domain (gmail.com) or a site
        name: String,
        /// For so long: 30m, 2h
        #[arg(long = "for", value_name = "TIME")]
        time: Option<Span>,
        /// Why, for whoever looks at it later
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        why: String,
        #[command(flatten)]
        relay: Relay,
    },
    /// End its suspension, whoever began it
    Resume {
        /// A provider's rule (google), a domain (gmail.com) or a site
        name: String,
        #[command(flatten)]
        relay: Relay,
    },
}

pub(super) fn run(verb: &Verb) -> Result<(), Failure> {
    let path = |name: &str, verb: &str| format!("/api/v1/sites/{}{verb}", segment(name));
    match verb {
        Verb::List { relay } => show(&relay.get::<ProviderList>("/api/v1/sites")?, relay, list),
        Verb::Show { name, relay } => show(&relay.get(&path(name, ""))?, relay, detail),
        Verb::Suspend { name, time, why, relay } => {
            let order = Suspend { seconds: time.map(|time| time.0.as_secs()), why: why.clone() };
            show(&relay.post(&path(name, "/suspend"), &order)?, relay, detail)
        }
        Verb::Resume { name, relay } => show(&relay.post(&path(name, "/resume"), &())?, relay, detail),
    }
}

fn show<T: Serialize>(answer: &T, relay: &Relay, text: impl Fn(&T) -> String) -> Result<(), Failure> {
    if relay.json {
        let json = serde_json::to_string(answer).context("the answer cannot be written as JSON")?;
        return print(&(json + "\n"));
    }
    print(&text(answer))
}

fn list(answer: &ProviderList) -> String {
    if answer.providers.is_empty() {
        return "no mail has gone anywhere yet\n".to_owned();
    }
    let width = answer.providers.iter().map(|provider| provider.name.len()).max().unwrap_or(0).clamp(8, 40);
    let mut text = format!(
        "{:<width$}  {:<9}  {:>7}  {:>9}  {:>8}  {}\n",
        "provider", "standing", "waiting", "in flight", "window", "why"
    );
    for provider in &answer.providers {
        let _ = writeln!(
            text,
            "{:<width$}  {:<9}  {:>7}  {:>9}  {:>8}  {}",
            provider.name,
            standing(provider.standing),
            format!("{}{}", provider.resident, if provider.more_on_disk { "+" } else { "" }),
            provider.in_flight,
            format!("{}/{}", provider.window, provider.connections),
            Escaped(&reason(provider)),
        );
    }
    if answer.more > 0 {
        let _ = writeln!(text, "and {} more", answer.more);
    }
    text
}

fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::Suspended => "suspended",
        Standing::Throttled => "throttled",
        Standing::Busy => "busy",
        Standing::Idle => "idle",
    }
}

/// One line: what holds the provider, or how many of its sites are left alone.
fn reason(provider: &ProviderStatus) -> String {
    if let Some(suspension) = &provider.suspension {
        return describe(suspension);
    }
    if let Some(rule) = provider.rules.first() {
        return describe(rule);
    }
    let left_alone = provider.sites.iter().filter_map(|site| site.suspension.as_ref());
    match left_alone.clone().count() {
        0 => String::new(),
        1 if provider.site_count == 1 => left_alone.map(describe).collect(),
        count => format!("{count} of {} sites left alone", provider.site_count),
    }
}

fn describe(suspension: &SuspensionStatus) -> String {
    let left = match suspension.left_ms {
        Some(left) => format!("for {} more", span(left)),
        None => "until it is resumed".to_owned(),
    };
    format!("by {} since {} ago, {left}: {}", suspension.by, span(suspension.since_ms), suspension.why)
}

/// Whole seconds, so that nobody reads precision into it.
fn span(millis: u64) -> Span {
    Span(Duration::from_secs(millis.div_ceil(1000)))
}

fn detail(provider: &ProviderStatus) -> String {
    let mut text = format!("{}\n", provider.name);
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<12} {}", Escaped(value));
    };
    row("standing", standing(provider.standing));
    if let Some(suspension) = &provider.suspension {
        row("suspended", &describe(suspension));
    }
    for rule in &provider.rules {
        row("rule", &describe(rule));
    }
    if let Some(throttled) = provider.throttled_ms {
        row("throttled", &format!("its rate allows more in {throttled} ms"));
    }
    row("window", &format!("{} connections now, {} at most", provider.window, provider.connections));
    if let Some(pace) = provider.pace {
        row("pace", &format!("{pace:.1} recipients a second"));
    }
    row("in flight", &format!("{} attempts", provider.in_flight));
    let more = if provider.more_on_disk { ", more on disk" } else { "" };
    row("waiting", &format!("{} recipients in memory{more}", provider.resident));
    if let (Some(reply), Some(ago)) = (&provider.last_reply, provider.last_reply_ago_ms) {
        row("last reply", &format!("{} ago: {reply}", span(ago)));
    }
    for site in &provider.sites {
        row("site", &site_line(site));
    }
    if provider.site_count > provider.sites.len() {
        row("", &format!("and {} more sites", provider.site_count - provider.sites.len()));
    }
    text
}

fn site_line(site: &SiteStatus) -> String {
    let more = site.domain_count.saturating_sub(site.domains.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let mut line = format!("{} for {}{more}: {} waiting", site.name, site.domains.join(", "), site.resident);
    if let Some(suspension) = &site.suspension {
        let _ = write!(line, "; left alone {}", describe(suspension));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspended() -> ProviderStatus {
        let suspension = SuspensionStatus {
            by: "operator".to_owned(),
            why: "complaints".to_owned(),
            since_ms: 61_000,
            left_ms: Some(7_199_001),
        };
        ProviderStatus {
            name: "google".to_owned(),
            standing: Standing::Suspended,
            suspension: Some(suspension),
            rules: Vec::new(),
            throttled_ms: None,
            window: 3,
            pace: Some(140.0),
            connections: 5,
            in_flight: 0,
            resident: 0,
            more_on_disk: true,
            last_reply: Some("421 4.7.28 \u{1b}[31mslow".to_owned()),
            last_reply_ago_ms: Some(1500),
            sites: Vec::new(),
            site_count: 0,
        }
    }

    #[test]
    fn a_suspension_is_told_with_who_when_and_why() {
        let text = detail(&suspended());
        assert!(text.contains("by operator since 1m 1s ago, for 2h more: complaints"), "{text}");
        let text = list(&ProviderList { providers: vec![suspended()], more: 2 });
        assert!(text.contains("google    suspended") && text.ends_with("and 2 more\n"), "{text}");
    }

    #[test]
    fn what_a_peer_said_cannot_steer_the_terminal() {
        assert!(!detail(&suspended()).contains('\u{1b}'));
    }
}
