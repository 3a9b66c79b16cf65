//! `[[provider.reaction]]` and `[[reaction]]` of a providers file: what replies make us do.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::{Document, Problem};
use super::providers::Ceilings;
use super::units::{PerTime, Span};
use crate::dispatch::{self, Effect, Pattern};
use crate::outcome::Enhanced;

/// How long a reaction holds that says nothing of it, and how long it suspends where it must.
const HOLDS: Duration = Duration::from_secs(3600);

/// One reaction as it is written. The first one that matches a reply decides.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reaction {
    /// Enhanced status codes, `"4.7.28"`. None: any.
    pub codes: Vec<String>,
    /// Part of the reply's text; letters of either case are alike, `*` stands for anything.
    pub text: Option<String>,
    /// How many matches in which time it takes, `"2/1h"`. Default: one.
    pub after: Option<PerTime>,
    /// How long it holds; each further match begins it anew. Default: as long as it suspends, or 1h.
    #[serde(rename = "for")]
    pub lasts: Option<Span>,
    /// Recipients per time.
    pub slow: Option<PerTime>,
    /// Connections at a time.
    pub connections: Option<u32>,
    /// Transactions on a connection.
    pub messages_per_connection: Option<u32>,
    /// Send nothing there for so long.
    pub suspend: Option<Span>,
    /// The provider complains of our own configuration: suspend (1h, if `suspend` says nothing else), alert, and fail
    /// nobody by it.
    pub misconfigured: bool,
    /// Do nothing: for a reply that a later reaction would match.
    pub ignore: bool,
}

impl Reaction {
    /// For dispatch. `owner`: the rule it belongs to, for the label. What `check` refuses is left out.
    pub(super) fn translate(&self, owner: &str) -> Arc<dispatch::Reaction> {
        let suspend = self.suspend.map(|span| span.0).or(self.misconfigured.then_some(HOLDS));
        let effect = Effect {
            slow: self.slow.map(|rate| rate.0),
            connections: self.connections,
            messages_per_connection: self.messages_per_connection,
            suspend,
            misconfigured: self.misconfigured,
        };
        Arc::new(dispatch::Reaction {
            label: self.label(owner).into(),
            codes: self.codes.iter().filter_map(|code| parse_code(code)).collect(),
            text: self.text.as_deref().and_then(Pattern::new),
            after: self.after.map(|rate| rate.0),
            lasts: self.lasts.map(|span| span.0).or(suspend).unwrap_or(HOLDS),
            effect,
        })
    }

    fn label(&self, owner: &str) -> String {
        let mut label = format!("{owner}: {}", self.codes.join(" "));
        if let Some(text) = &self.text {
            let gap = if self.codes.is_empty() { "" } else { " " };
            let _ = write!(label, "{gap}{text:?}");
        }
        label
    }

    /// What is wrong with it by itself: key and remedy.
    fn fault(&self, ceilings: &Ceilings) -> Option<(&'static str, String)> {
        if let Some(code) = self.codes.iter().find(|code| parse_code(code).is_none()) {
            return Some(("codes", format!("{code:?} is no enhanced status code such as \"4.7.28\" (RFC 3463)")));
        }
        let text = self.text.as_deref().and_then(Pattern::new);
        if self.codes.is_empty() && text.is_none() {
            return Some(("codes", "this matches every reply; name codes or a text".to_owned()));
        }
        let restrains = self.slow.is_some() || self.connections.is_some() || self.messages_per_connection.is_some();
        let acts = restrains || self.suspend.is_some() || self.misconfigured;
        if self.ignore == acts {
            let message = match self.ignore {
                true => "does nothing, and yet something else is said here; take one of them out",
                false => {
                    "nothing follows from it; say slow, connections, messages_per_connection, suspend, misconfigured or ignore"
                }
            };
            return Some(("ignore", message.to_owned()));
        }
        if let (Some(suspend), true) = (self.suspend, restrains)
            && self.lasts.is_none_or(|lasts| lasts.0 <= suspend.0)
        {
            return Some((
                "for",
                format!(
                    "nothing goes there for {suspend}, so a limit that holds no longer than that is none; say a longer `for`"
                ),
            ));
        }
        if self.suspend.is_some_and(|span| span.0.is_zero()) || self.lasts.is_some_and(|span| span.0.is_zero()) {
            return Some(("for", "no time at all: it would have no effect".to_owned()));
        }
        self.vain_limit(ceilings)
    }

    /// A limit that stops all mail, or that the rule's own ceiling makes idle.
    fn vain_limit(&self, ceilings: &Ceilings) -> Option<(&'static str, String)> {
        let limits = [
            ("connections", self.connections, ceilings.connections),
            ("messages_per_connection", self.messages_per_connection, ceilings.messages_per_connection),
        ];
        limits.into_iter().find_map(|(key, limit, ceiling)| match (limit?, ceiling) {
            (0, _) => Some((key, "0 would stop all mail there; use suspend".to_owned())),
            (limit, Some(ceiling)) if limit >= ceiling => {
                Some((key, format!("{limit} has no effect: the rule's own `{key} = {ceiling}` is not above it")))
            }
            _ => None,
        })
    }
}

/// Checks one list. `path`: where it stands, `provider[3].reaction`; `ceilings`: of the rule that it belongs to.
pub(super) fn check(document: &Document, path: &str, list: &[Reaction], ceilings: &Ceilings) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, reaction) in list.iter().enumerate() {
        if let Some((key, message)) = reaction.fault(ceilings) {
            problems.push(document.problem(&format!("{path}[{index}].{key}"), message));
            continue;
        }
        let later = reaction.translate("");
        if let Some(earlier) = list[..index].iter().position(|earlier| earlier.translate("").shadows(&later)) {
            let message = format!(
                "can never match: {path}[{earlier}] ({}) comes first and matches whatever this one does; put this one before it",
                list[earlier].label("").trim_start_matches([':', ' '])
            );
            problems.push(document.problem(&format!("{path}[{index}]"), message));
        }
    }
    problems
}

fn parse_code(code: &str) -> Option<Enhanced> {
    let mut parts = code.split('.').map(|part| part.parse::<u16>().ok().filter(|number| *number <= 999));
    let (class, subject, detail) = (parts.next()??, parts.next()??, parts.next()??);
    let class = u8::try_from(class).ok().filter(|class| matches!(class, 4 | 5))?;
    parts.next().is_none().then_some(Enhanced::new(class, subject, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::providers;
    use crate::outcome::Reply;

    fn reply(text: &str) -> Reply {
        let (code, rest) = text.split_once(' ').expect("a code");
        let (first, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        let (enhanced, text) = parse_code(first).map_or((None, rest), |code| (Some(code), tail));
        Reply { code: code.parse().expect("a number"), enhanced, text: text.into() }
    }

    /// What the shipped rules make of a reply, in a word.
    fn verdict(provider: &str, text: &str) -> String {
        let rules = providers::load(None).expect("sound").reactions;
        let Some(reaction) = rules.find(provider, &reply(text)) else { return "nothing".to_owned() };
        let Effect { slow, connections, messages_per_connection, suspend, misconfigured } = &reaction.effect;
        let mut words: Vec<String> = Vec::new();
        words.extend(misconfigured.then(|| "ours".to_owned()));
        words.extend(slow.map(|rate| format!("slow {}", PerTime(rate))));
        words.extend(connections.map(|count| format!("connections {count}")));
        words.extend(messages_per_connection.map(|count| format!("messages {count}")));
        words.extend(suspend.map(|time| format!("suspend {}", Span(time))));
        words.join(", ")
    }

    /// Provider, a reply of theirs, and what follows.
    const REPLIES: &[(&str, &str, &str)] = &[
        (
            "google",
            "421 4.7.28 Gmail has detected an unusual rate of unsolicited mail originating from your IP address.",
            "slow 10/1m",
        ),
        (
            "google",
            "550 5.7.25 The IP address sending this message does not have a PTR record setup",
            "ours, suspend 1h",
        ),
        ("google", "421 4.7.23 This message does not have authentication information or fails PTR", "ours, suspend 1h"),
        ("google", "550 5.7.27 Your email has been blocked because the sender's SPF did not pass", "ours, suspend 1h"),
        (
            "google",
            "421 4.7.29 Your email has been rate limited because this message was not sent over a TLS connection",
            "ours, suspend 1h",
        ),
        (
            "google",
            "550 5.7.30 Your email has been blocked because DKIM authentication did not pass",
            "ours, suspend 1h",
        ),
        ("google", "421 4.7.32 Your email has been rate limited: From header isn't aligned", "ours, suspend 1h"),
        ("google", "421 4.7.0 Our system has detected that this message is suspicious", "suspend 1h"),
        ("google", "550 5.1.1 The email account that you tried to reach does not exist.", "nothing"),
        ("google", "452 4.2.2 The recipient's inbox is out of storage space.", "nothing"),
        (
            "yahoo",
            "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints",
            "suspend 2h",
        ),
        ("yahoo", "421 4.7.0 [TS02] Messages from 192.0.2.1 temporarily deferred", "slow 1/1m"),
        ("yahoo", "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred", "slow 10/1m"),
        ("yahoo", "554 5.7.9 Message not accepted for policy reasons. [BL21]", "suspend 2h"),
        (
            "outlook",
            "550 5.7.515 Access denied, sending domain example.org does not meet the required authentication level",
            "ours, suspend 1h",
        ),
        (
            "outlook",
            "421 4.7.0 RP-001 The mail server IP connecting to Outlook.com server has exceeded the rate limit allowed: too many connections",
            "connections 1",
        ),
        (
            "outlook",
            "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections. (S3115)",
            "connections 1",
        ),
        (
            "outlook",
            "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. (S775)",
            "slow 60/1m, connections 1",
        ),
        (
            "outlook",
            "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. part of their network is on our block list (S3140).",
            "suspend 2h",
        ),
        (
            "office365",
            "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)",
            "slow 60/1m, connections 1",
        ),
        ("apple", "554 5.7.1 [HCM1] Message rejected due to local policy.", "suspend 15m"),
        ("apple", "550 5.7.1 [CS01] Message rejected due to local policy.", "nothing"),
        ("comcast", "421 4.1.0 try again later RL000010", "suspend 5m"),
        (
            "orange",
            "421 opmta1mti01nd1 smtp.orange.fr Trop de connexions, veuillez verifier votre configuration. OFR_104",
            "connections 1",
        ),
        ("gmx", "421 gmx.net (mxgmx101) Nemesis ESMTP Service not available: Too many connections", "connections 1"),
        ("qq", "550 Mail content denied: frequency limited", "suspend 1h"),
        ("mx.small.example", "451 4.7.1 rate limited due to IP reputation", "slow 60/1m, connections 1"),
        ("mx.small.example", "450 4.2.0 Greylisted, see http://postgrey.schweikert.ch", "nothing"),
        ("mx.small.example", "550 5.1.1 User unknown", "nothing"),
    ];

    #[test]
    fn the_shipped_reactions_know_what_providers_say() {
        for (provider, text, expected) in REPLIES {
            assert_eq!(verdict(provider, text), *expected, "{provider}: {text}");
        }
    }

    #[test]
    fn a_reaction_that_cannot_work_is_refused_and_both_places_are_named() {
        let own = concat!(
            "[[provider]]\nname = \"google\"\nconnections = 3\n",
            "[[provider.reaction]]\ntext = \"rate\"\nslow = \"10/1m\"\n",
            "[[provider.reaction]]\ntext = \"unusual rate\"\nsuspend = \"1h\"\n",
            "[[provider.reaction]]\ncodes = [\"4.7\"]\nsuspend = \"1h\"\n",
            "[[provider.reaction]]\nsuspend = \"1h\"\n",
            "[[provider.reaction]]\ntext = \"a\"\n",
            "[[provider.reaction]]\ntext = \"b\"\nconnections = 3\n",
            "[[provider.reaction]]\ntext = \"c\"\nsuspend = \"1h\"\nconnections = 1\n",
            "[[reaction]]\ntext = \"d\"\nconnections = 0\n",
        );
        let problems = providers::load(Some(&Document::new("own.toml", own))).err().expect("refused");
        let found: Vec<String> =
            problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect();
        for (line, expected) in found.iter().zip([
            "provider[0].reaction[1]: can never match: provider[0].reaction[0] (\"rate\") comes first",
            "provider[0].reaction[2].codes: \"4.7\" is no enhanced status code",
            "provider[0].reaction[3].codes: this matches every reply",
            "provider[0].reaction[4].ignore: nothing follows from it",
            "provider[0].reaction[5].connections: 3 has no effect",
            "provider[0].reaction[6].for: nothing goes there for 1h",
            "reaction[0].connections: 0 would stop all mail",
        ]) {
            assert!(line.starts_with(expected), "{line}");
        }
        assert_eq!(found.len(), 7, "{found:?}");
    }
}
