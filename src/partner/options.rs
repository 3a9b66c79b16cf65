//! `[[partner]]`, translated.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::attempt::{Limits, Rate, Site};

/// Everything about partners.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// List hosts that are partners of ours: their mail never goes to a partner.
    pub from_partners: HashSet<Arc<str>>,
}

/// One partner and what it takes.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name: a metric label.
    pub name: Arc<str>,
    /// How it is reached; its route is [`Route::Partner`](crate::attempt::Route::Partner).
    pub site: Arc<Site>,
    /// Its ceilings.
    pub limits: Arc<Limits>,
    /// Recipient domains that it takes.
    pub suffixes: Vec<Suffix>,
    /// When.
    pub condition: Condition,
    /// Recipients per time; each of them holds.
    pub quotas: Vec<Rate>,
    /// Recipients of one mailing.
    pub quota_mailing: Option<u64>,
    /// Its share beside partners that take the same suffix.
    pub weight: u32,
}

/// Which recipient domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suffix {
    /// `*`: all.
    Any,
    /// `.co.uk`: whatever lies below. Stored with its leading dot, lower case.
    Below(Box<str>),
    /// `example.org`: this one.
    Exactly(Box<str>),
}

impl Suffix {
    /// Whether `domain`, in lower case, is meant.
    pub fn matches(&self, domain: &str) -> bool {
        match self {
            Suffix::Any => true,
            Suffix::Below(suffix) => domain.len() > suffix.len() && domain.ends_with(&**suffix),
            Suffix::Exactly(name) => domain == &**name,
        }
    }
}

/// When a partner is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Condition {
    /// As long as it works.
    Always,
    /// While our own line or queue is too full: from either high mark until both are below their low ones.
    Overflow {
        /// The used part of the uplink.
        uplink: Option<Mark<f64>>,
        /// How overdue the oldest recipient is.
        age: Option<Mark<Duration>>,
    },
    /// While the direct route is suspended.
    Fallback,
}

/// A pair of marks: what was reached above the high one holds until below the low one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark<T> {
    /// It begins here.
    pub high: T,
    /// It ends here.
    pub low: T,
}
