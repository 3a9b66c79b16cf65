//! A world after a real list: only the domains of its addresses are used, and they never leave the program. Each
//! becomes a simulated domain below `.test`, behind the provider that serves it or is likely to.

use std::collections::HashMap;

use super::map::{Large, Spot};
use super::scenario::Scenario;
use crate::mail::Domain;
use crate::rehearse::internet::Digest;

/// The domains of the addresses in `text`, one address a line; a line may be `Name <address>` or CSV. Lines without an
/// address are skipped.
pub fn domains_of(text: &str) -> Vec<String> {
    text.lines().filter_map(domain_of).collect()
}

fn domain_of(line: &str) -> Option<String> {
    let after = line.rsplit_once('@')?.1;
    let end = after.find(|c: char| !(c.is_alphanumeric() || c == '-' || c == '.' || c == '_')).unwrap_or(after.len());
    Domain::parse(after[..end].trim_end_matches('.')).ok().map(|domain| domain.as_str().to_owned())
}

/// One spot per distinct domain, and the spot's number for each entry.
pub(super) fn spots(scenario: Scenario, domains: &[String]) -> (Vec<Spot>, Vec<u32>) {
    let mut numbers: HashMap<String, u32> = HashMap::new();
    let mut spots: Vec<Spot> = Vec::new();
    let mut entries = Vec::with_capacity(domains.len());
    for domain in domains {
        let domain = domain.to_ascii_lowercase();
        let number = *numbers.entry(domain).or_insert_with_key(|domain| {
            spots.push(spot(scenario, domain, spots.len()));
            u32::try_from(spots.len() - 1).unwrap_or(0)
        });
        entries.push(number);
    }
    (spots, entries)
}

fn spot(scenario: Scenario, domain: &str, index: usize) -> Spot {
    let name = format!("{domain}.test");
    match webmail(domain).or_else(|| host_of(domain)) {
        Some(large) => Spot::large(&name, 1.0, large),
        None => Spot { domain: name, weight: 1.0, large: None, mood: scenario.mood(index) },
    }
}

/// The provider of a well-known webmail domain.
fn webmail(domain: &str) -> Option<Large> {
    let name = domain.split('.').next()?;
    Some(match (name, domain) {
        ("gmail" | "googlemail", _) => Large::Google,
        ("outlook" | "hotmail" | "live" | "msn", _) => Large::Outlook,
        ("yahoo" | "ymail" | "rocketmail" | "aol", _) => Large::Yahoo,
        (_, "icloud.com" | "me.com" | "mac.com") => Large::Apple,
        (_, "comcast.net") => Large::Comcast,
        ("gmx", _) | (_, "web.de") => Large::Gmx,
        ("orange" | "wanadoo", _) => Large::Orange,
        _ => return None,
    })
}

/// Of all other domains a quarter each is hosted by Google and by Microsoft; which, depends on the name alone.
fn host_of(domain: &str) -> Option<Large> {
    match Digest::of(domain.as_bytes()).number() >> 32 & 3 {
        0 => Some(Large::Google),
        1 => Some(Large::Office365),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_domains_of_a_list_are_read() {
        let text = "a@Example.org\nAnn <ann@x.de>\n# comment\n\"b\",\"b@y.com\",2020\nbroken@\nc@z.co.uk.\n";
        assert_eq!(domains_of(text), ["example.org", "x.de", "y.com", "z.co.uk"]);
    }
}
