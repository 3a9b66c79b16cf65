//! `providers.toml`: ceilings per provider. The shipped rules are compiled in; the operator's file changes them by name
//! and adds its own, which are asked first.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::document::{Document, Problem};
use super::reactions::{self, Reaction};
use super::units::{PerTime, Span};
use crate::attempt::Limits;
use crate::dispatch::Reactions;
use crate::route::ProviderRule;

/// The rules that are shipped.
pub const SHIPPED: &str = include_str!("../../config/providers.toml");

/// A providers file as it is written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Providers {
    /// `[default]`: what holds where no rule matches, and where a rule is silent.
    pub default: Ceilings,
    /// `[[provider]]`, in order of precedence.
    pub provider: Vec<Provider>,
    /// `[[reaction]]`: for everybody, after the reactions of its rule.
    pub reaction: Vec<Reaction>,
}

/// Ceilings as they are written; what is absent comes from `[default]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ceilings {
    /// Open connections at a time, idle ones included.
    pub connections: Option<u32>,
    /// New connections per time.
    pub connection_rate: Option<PerTime>,
    /// Recipients per time.
    pub recipient_rate: Option<PerTime>,
    /// Recipients in a transaction.
    pub recipients_per_transaction: Option<u32>,
    /// Transactions on a connection before it is closed.
    pub messages_per_connection: Option<u32>,
    /// How long an unused connection is kept.
    pub idle_timeout: Option<Span>,
}

/// `[[provider]]`: one rule.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Provider {
    /// Its name: a metric label, and what limits are shared under.
    pub name: String,
    /// Suffixes of exchanger names. Every exchanger of a site must match one.
    pub mx_suffixes: Vec<String>,
    /// Recipient domains, matched exactly.
    pub domains: Vec<String>,
    /// See [`Ceilings::connections`].
    pub connections: Option<u32>,
    /// See [`Ceilings::connection_rate`].
    pub connection_rate: Option<PerTime>,
    /// See [`Ceilings::recipient_rate`].
    pub recipient_rate: Option<PerTime>,
    /// See [`Ceilings::recipients_per_transaction`].
    pub recipients_per_transaction: Option<u32>,
    /// See [`Ceilings::messages_per_connection`].
    pub messages_per_connection: Option<u32>,
    /// See [`Ceilings::idle_timeout`].
    pub idle_timeout: Option<Span>,
    /// `[[provider.reaction]]`, in order of precedence.
    pub reaction: Vec<Reaction>,
}

impl Provider {
    fn ceilings(&self) -> Ceilings {
        Ceilings {
            connections: self.connections,
            connection_rate: self.connection_rate,
            recipient_rate: self.recipient_rate,
            recipients_per_transaction: self.recipients_per_transaction,
            messages_per_connection: self.messages_per_connection,
            idle_timeout: self.idle_timeout,
        }
    }

    /// This rule, with what it does not say taken from `shipped`.
    fn over(self, shipped: Provider) -> Provider {
        let ceilings = self.ceilings().over(&shipped.ceilings());
        let or = |own: Vec<String>, shipped| if own.is_empty() { shipped } else { own };
        Provider {
            name: self.name,
            mx_suffixes: or(self.mx_suffixes, shipped.mx_suffixes),
            domains: or(self.domains, shipped.domains),
            connections: ceilings.connections,
            connection_rate: ceilings.connection_rate,
            recipient_rate: ceilings.recipient_rate,
            recipients_per_transaction: ceilings.recipients_per_transaction,
            messages_per_connection: ceilings.messages_per_connection,
            idle_timeout: ceilings.idle_timeout,
            reaction: [self.reaction, shipped.reaction].concat(),
        }
    }
}

impl Ceilings {
    /// What is built in below `[default]`, so that a providers file of the operator's needs no `[default]`.
    const BUILT_IN: Limits = Limits {
        connections: 10,
        connection_rate: None,
        recipient_rate: None,
        recipients_per_transaction: 100,
        messages_per_connection: 100,
        idle_timeout: std::time::Duration::from_secs(10),
    };

    /// These ceilings, with what they do not say taken from `below`.
    fn over(&self, below: &Ceilings) -> Ceilings {
        Ceilings {
            connections: self.connections.or(below.connections),
            connection_rate: self.connection_rate.or(below.connection_rate),
            recipient_rate: self.recipient_rate.or(below.recipient_rate),
            recipients_per_transaction: self.recipients_per_transaction.or(below.recipients_per_transaction),
            messages_per_connection: self.messages_per_connection.or(below.messages_per_connection),
            idle_timeout: self.idle_timeout.or(below.idle_timeout),
        }
    }

    fn limits(&self) -> Limits {
        let built_in = Ceilings::BUILT_IN;
        Limits {
            connections: self.connections.unwrap_or(built_in.connections),
            connection_rate: self.connection_rate.map(|rate| rate.0),
            recipient_rate: self.recipient_rate.map(|rate| rate.0),
            recipients_per_transaction: self.recipients_per_transaction.unwrap_or(built_in.recipients_per_transaction),
            messages_per_connection: self.messages_per_connection.unwrap_or(built_in.messages_per_connection),
            idle_timeout: self.idle_timeout.map_or(built_in.idle_timeout, |span| span.0),
        }
    }

    /// Names of the counts that are zero, which would stop all mail.
    fn zeroes(&self) -> impl Iterator<Item = &'static str> {
        let counts = [
            ("connections", self.connections),
            ("recipients_per_transaction", self.recipients_per_transaction),
            ("messages_per_connection", self.messages_per_connection),
        ];
        counts.into_iter().filter(|(_, count)| *count == Some(0)).map(|(name, _)| name)
    }
}

/// Rules and default in force, ready for route.
pub(super) struct InForce {
    pub(super) rules: Vec<ProviderRule>,
    pub(super) default: Arc<Limits>,
    pub(super) reactions: Reactions,
}

/// Puts the operator's file, if there is one, over the shipped rules.
///
/// # Errors
/// Everything that is wrong with the operator's file.
pub(super) fn load(own: Option<&Document>) -> Result<InForce, Vec<Problem>> {
    let shipped = Document::new("built-in providers.toml", SHIPPED);
    let mut providers: Providers = shipped.read()?;
    if let Some(document) = own {
        let own: Providers = document.read()?;
        let problems = check(document, &own, &providers);
        if !problems.is_empty() {
            return Err(problems);
        }
        providers = merge(own, providers);
    }
    Ok(in_force(&providers))
}

/// The operator's rules keep the place of the shipped rule that they change; new ones come first.
fn merge(own: Providers, shipped: Providers) -> Providers {
    let default = own.default.over(&shipped.default);
    let mut rules = shipped.provider;
    let mut new = Vec::new();
    for rule in own.provider {
        match rules.iter_mut().find(|shipped| shipped.name == rule.name) {
            Some(shipped) => *shipped = rule.over(std::mem::take(shipped)),
            None => new.push(rule),
        }
    }
    new.extend(rules);
    Providers { default, provider: new, reaction: [own.reaction, shipped.reaction].concat() }
}

fn in_force(providers: &Providers) -> InForce {
    let lower = |names: &[String]| names.iter().map(|name| normalise(name)).collect();
    let rule = |provider: &Provider| ProviderRule {
        name: provider.name.as_str().into(),
        mx_suffixes: lower(&provider.mx_suffixes),
        domains: lower(&provider.domains),
        limits: Arc::new(provider.ceilings().over(&providers.default).limits()),
    };
    let translate = |list: &[Reaction], owner: &str| list.iter().map(|reaction| reaction.translate(owner)).collect();
    let own = |provider: &Provider| (provider.name.as_str().into(), translate(&provider.reaction, &provider.name));
    InForce {
        rules: providers.provider.iter().map(rule).collect(),
        default: Arc::new(providers.default.limits()),
        reactions: Reactions {
            providers: providers.provider.iter().map(own).collect(),
            general: translate(&providers.reaction, "all"),
        },
    }
}

/// Lower case, without leading or trailing dots.
fn normalise(name: &str) -> String {
    name.trim_matches('.').to_ascii_lowercase()
}

fn check(document: &Document, own: &Providers, shipped: &Providers) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut zeroes = |path: String, ceilings: Ceilings| {
        for name in ceilings.zeroes() {
            problems.push(document.problem(&format!("{path}.{name}"), "0 would stop all mail there; at least 1"));
        }
    };
    zeroes("default".to_owned(), own.default.clone());
    for (index, rule) in own.provider.iter().enumerate() {
        zeroes(format!("provider[{index}]"), rule.ceilings());
    }
    for (index, rule) in own.provider.iter().enumerate() {
        if let Some((key, message)) = check_rule(rule, &own.provider[..index], shipped) {
            problems.push(document.problem(&format!("provider[{index}].{key}"), message));
        }
    }
    for (index, rule) in own.provider.iter().enumerate() {
        let path = format!("provider[{index}].reaction");
        problems.extend(reactions::check(document, &path, &rule.reaction, &rule.ceilings()));
    }
    problems.extend(reactions::check(document, "reaction", &own.reaction, &Ceilings::default()));
    problems
}

fn check_rule(rule: &Provider, before: &[Provider], shipped: &Providers) -> Option<(&'static str, String)> {
    if rule.name.is_empty() || rule.name.chars().any(|c| !c.is_ascii_graphic()) {
        return Some(("name", "a rule needs a name without spaces, for example \"google\"".to_owned()));
    }
    if before.iter().any(|other| other.name == rule.name) {
        return Some(("name", format!("there is a rule \"{}\" already; put both into one", rule.name)));
    }
    let matches_nothing = rule.mx_suffixes.is_empty() && rule.domains.is_empty();
    if matches_nothing && !shipped.provider.iter().any(|other| other.name == rule.name) {
        let names: Vec<&str> = shipped.provider.iter().map(|rule| rule.name.as_str()).collect();
        return Some((
            "mx_suffixes",
            format!(
                "a new rule must say what it matches: mx_suffixes or domains. (Built-in rules that can be changed by name: {})",
                names.join(", ")
            ),
        ));
    }
    rule.mx_suffixes
        .iter()
        .chain(&rule.domains)
        .any(|name| normalise(name).is_empty())
        .then(|| ("mx_suffixes", "an empty suffix would match every site; change [default] instead".to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::attempt::Rate;

    fn rule<'a>(in_force: &'a InForce, name: &str) -> &'a ProviderRule {
        in_force.rules.iter().find(|rule| &*rule.name == name).expect("such a rule")
    }

    #[test]
    fn the_shipped_rules_are_sound() {
        let shipped: Providers = Document::new("providers.toml", SHIPPED).read().expect("sound");
        let none = Providers::default();
        assert_eq!(check(&Document::new("providers.toml", SHIPPED), &shipped, &none), []);
        let in_force = load(None).expect("sound");
        let google = rule(&in_force, "google");
        assert_eq!(google.mx_suffixes, ["google.com", "googlemail.com"]);
        assert_eq!((google.limits.connections, google.limits.messages_per_connection), (5, 50));
        assert_eq!(rule(&in_force, "orange").limits.connections, 2);
    }

    #[test]
    fn built_in_values_are_those_of_the_shipped_default() {
        let default = load(None).expect("sound").default;
        let built_in = Ceilings::BUILT_IN;
        assert_eq!(
            (default.connections, default.recipients_per_transaction, default.messages_per_connection),
            (built_in.connections, built_in.recipients_per_transaction, built_in.messages_per_connection)
        );
        assert_eq!(default.idle_timeout, built_in.idle_timeout);
    }

    #[test]
    fn the_operators_file_changes_a_rule_by_name_and_adds_its_own_in_front() {
        let own = concat!(
            "[default]\nconnections = 3\n[[provider]]\nname = \"google\"\nrecipient_rate = \"600/1m\"\n",
            "[[provider]]\nname = \"near\"\ndomains = [\"Near.Example\"]\nconnections = 40\n"
        );
        let in_force = load(Some(&Document::new("own.toml", own))).expect("sound");
        let google = rule(&in_force, "google");
        assert_eq!(google.limits.recipient_rate, Some(Rate { count: 600, period: Duration::from_secs(60) }));
        assert_eq!(google.limits.connections, 5, "kept from the shipped rule");
        assert_eq!(in_force.default.connections, 3);
        assert_eq!(&*in_force.rules[0].name, "near");
        assert_eq!(in_force.rules[0].domains, ["near.example"]);
    }

    #[test]
    fn a_rule_that_would_stop_or_match_everything_is_refused() {
        let own = concat!(
            "[[provider]]\nname = \"x\"\nmx_suffixes = [\".\"]\nconnections = 0\n[[provider]]\nname = \"gogle\"\n",
            "[[provider]]\nname = \"x\"\ndomains = [\"a.example\"]\n"
        );
        let problems = load(Some(&Document::new("own.toml", own))).err().expect("refused");
        let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            ["provider[0].connections", "provider[0].mx_suffixes", "provider[1].mx_suffixes", "provider[2].name"]
        );
    }
}
