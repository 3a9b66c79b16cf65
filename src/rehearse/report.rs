//! The end of a rehearsal in numbers: one object for programs, one page for people.
//!
//! The ledger must balance: accepted = delivered + bounced + queued + lost. `lost` is what is left over and is never
//! clamped: a negative number means that somebody was both delivered to and bounced.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use super::overflow::Overflow;

/// Sites in the table of the slowest.
const SLOWEST_SHOWN: usize = 10;

/// A limit of a provider that the relay broke.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BrokenLimit {
    /// The provider.
    pub provider: String,
    /// Which limit.
    pub limit: String,
    /// How often.
    pub times: u64,
    /// The first case in words.
    pub example: String,
}

/// A site's part in the mailing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Site {
    /// Its name: a provider, or a domain without one.
    pub name: String,
    /// Recipients of the mailing.
    pub recipients: u64,
    /// Recipients its receivers took, repeats included.
    pub delivered: u64,
    /// Recipients reported as failed.
    pub bounced: u64,
    /// Replies of class 4 that its receivers gave.
    pub deferrals: u64,
    /// Accepted transactions.
    pub transactions: u64,
    /// Most connections at a time.
    pub peak_connections: u32,
    /// When its last delivery came, in seconds since the first MAIL.
    pub last_delivery: Option<f64>,
}

/// Times of the hand-over, in milliseconds from the final dot to its 250.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct HandOver {
    /// The median.
    pub p50: f64,
    /// 99 %.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// See the module. Times are in seconds since the list host's first MAIL.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The world's seed.
    pub seed: u64,
    /// Recipients of the mailing.
    pub recipients: u64,
    /// Recipients whose transaction the relay answered with 250.
    pub accepted: u64,
    /// Recipients that the relay refused for good.
    pub refused: u64,
    /// The first such refusal.
    pub first_refusal: Option<String>,
    /// Recipients whose copy arrived, as the receivers counted.
    pub delivered: u64,
    /// Recipients that a DSN reported as failed.
    pub bounced: u64,
    /// Recipients still in the relay's queue at the deadline, as its metrics say.
    pub queued: u64,
    /// What is missing in the equation.
    pub lost: i64,
    /// Copies too many that nothing explains.
    pub duplicates: u64,
    /// Copies too many of what was in flight when the relay was killed or a reply was lost.
    pub repeated_after_kill: u64,
    /// Reports too many about a recipient's failure.
    pub bounced_twice: u64,
    /// Transactions whose content was not what the list host sent.
    pub damaged: u64,
    /// Recipients offered to a host that does not serve their domain.
    pub strays: u64,
    /// How often a provider's limit was broken.
    pub limits_broken: u64,
    /// Which.
    pub broken: Vec<BrokenLimit>,
    /// Until the last recipient's fate was known.
    pub seconds: f64,
    /// Until half of the deliveries had come.
    pub seconds_to_50: Option<f64>,
    /// Until 95 % had come.
    pub seconds_to_95: Option<f64>,
    /// Until all had come.
    pub seconds_to_100: Option<f64>,
    /// Until the list host had handed everything over.
    pub hand_over_seconds: Option<f64>,
    /// Time from a final dot to its 250.
    pub hand_over_ms: HandOver,
    /// Transactions that the list host's batches came in.
    pub batches: u64,
    /// Batches, or recipients of one, that the relay answered with 4yz.
    pub hand_over_deferrals: u64,
    /// Transactions that the receivers accepted.
    pub transactions: u64,
    /// What splitting each batch by domain would have made of them.
    pub transactions_unmerged: u64,
    /// Octets that the relay sent to exchangers.
    pub uplink_bytes: u64,
    /// What they would have been with a transaction per recipient.
    pub uplink_bytes_uncoalesced: u64,
    /// Replies of class 4 that the receivers gave.
    pub deferrals: u64,
    /// Most connections of the relay to exchangers at a time.
    pub peak_connections: u64,
    /// Most file descriptors of the relay.
    pub peak_fds: u64,
    /// Most memory of the relay, in octets.
    pub peak_rss: u64,
    /// How often the relay was killed.
    pub kills: u32,
    /// DSNs that the list host took.
    pub dsns: u64,
    /// How the relay ended after SIGTERM.
    pub relay_exit: String,
    /// Whether it ended as it should.
    pub relay_ended_well: bool,
    /// Whether the deadline came first.
    pub deadline_reached: bool,
    /// How the overflow went, where there was one.
    pub overflow: Option<Overflow>,
    /// All sites, the one with the last delivery first.
    pub sites: Vec<Site>,
    /// Where configuration, spool and log are, if they were kept.
    pub kept: Option<PathBuf>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Object<'a> {
    passed: bool,
    failures: Vec<String>,
    #[serde(flatten)]
    report: &'a Report,
}

impl Report {
    /// Nothing lost, nothing doubled, nothing damaged, no limit broken, nobody refused, and the relay ended well.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// What went wrong, in words.
    pub fn failures(&self) -> Vec<String> {
        let counted = [
            (self.lost.unsigned_abs(), if self.lost < 0 { "both delivered and bounced" } else { "lost" }),
            (self.duplicates, "delivered twice"),
            (if self.kills == 0 { self.bounced_twice } else { 0 }, "reported as failed twice"),
            (self.limits_broken, "limits broken"),
            (self.damaged, "transactions with altered content"),
            (self.strays, "sent to a host that does not serve them"),
            (self.refused, "refused by the relay"),
        ];
        let mut failures: Vec<String> =
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if self.accepted == 0 {
            failures.push("nothing was accepted".to_owned());
        }
        if !self.relay_ended_well {
            failures.push(format!("the relay did not end well: {}", self.relay_exit));
        }
        failures.extend(self.overflow.iter().flat_map(Overflow::failures));
        failures
    }

    /// One JSON object, on one line: all fields, `passed` and `failures`.
    pub fn to_json(&self) -> String {
        let object = Object { passed: self.passed(), failures: self.failures(), report: self };
        serde_json::to_string(&object).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// A page for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "Rehearsal \"{}\", seed {}, {} recipients", self.scenario, self.seed, self.recipients)?;
        self.write_ledger(out)?;
        self.write_times(out)?;
        self.write_costs(out)?;
        self.write_sites(out)?;
        self.write_verdict(out)
    }

    fn write_ledger(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        writeln!(out, "  accepted {:>12}   from the list host, answered 250", self.accepted)?;
        writeln!(out, "  delivered{:>12}   as the receivers counted", self.delivered)?;
        writeln!(out, "  bounced  {:>12}   in {} reports to the list host", self.bounced, self.dsns)?;
        writeln!(out, "  queued   {:>12}", self.queued)?;
        writeln!(out, "  lost     {:>12}   accepted - delivered - bounced - queued", self.lost)?;
        writeln!(out, "  doubled  {:>12}", self.duplicates)?;
        if self.kills > 0 {
            writeln!(out, "  repeated {:>12}   in flight at one of {} kills", self.repeated_after_kill, self.kills)?;
        }
        writeln!(out, "  limits broken {:>7}", self.limits_broken)?;
        for broken in &self.broken {
            writeln!(out, "    {}: {} ({} times): {}", broken.provider, broken.limit, broken.times, broken.example)?;
        }
        Ok(())
    }

    fn write_times(&self, out: &mut String) -> std::fmt::Result {
        let HandOver { p50, p99, max } = self.hand_over_ms;
        let over = seconds(self.hand_over_seconds);
        writeln!(out)?;
        writeln!(
            out,
            "  handed over in {over}; final dot to 250: median {p50:.1} ms, 99 % {p99:.1} ms, max {max:.1} ms"
        )?;
        let [half, most, all] = [self.seconds_to_50, self.seconds_to_95, self.seconds_to_100].map(seconds);
        writeln!(
            out,
            "  delivered: 50 % in {half}, 95 % in {most}, 100 % in {all}; all settled in {:.1} s",
            self.seconds
        )
    }

    fn write_costs(&self, out: &mut String) -> std::fmt::Result {
        let bytes = |octets: u64| ByteSize(octets).display().si();
        writeln!(
            out,
            "  transactions: {} ({} if each batch were only split by domain)",
            self.transactions, self.transactions_unmerged
        )?;
        writeln!(
            out,
            "  uplink: {} ({} with a transaction per recipient)",
            bytes(self.uplink_bytes),
            bytes(self.uplink_bytes_uncoalesced)
        )?;
        writeln!(
            out,
            "  relay at its peak: {} connections, {} file descriptors, {} of memory",
            self.peak_connections,
            self.peak_fds,
            bytes(self.peak_rss)
        )?;
        let Some(Overflow { limit, peak, by_partner, direct, .. }) = &self.overflow else { return Ok(()) };
        let percent = peak / *limit as f64 * 100.0;
        writeln!(out, "  line: {percent:.1} % of its {}/s at most, over 10 s", bytes(*limit))?;
        writeln!(out, "  overflow: {by_partner} recipients by way of the partner, {direct} of its domains direct")
    }

    fn write_sites(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        writeln!(
            out,
            "  {:<28}{:>10}{:>10}{:>9}{:>10}{:>7}{:>7}{:>10}",
            "slowest sites", "recipients", "delivered", "bounced", "deferrals", "trans.", "conn.", "last"
        )?;
        for site in self.sites.iter().take(SLOWEST_SHOWN) {
            let Site { name, recipients, delivered, bounced, deferrals, transactions, peak_connections, .. } = site;
            let last = seconds(site.last_delivery);
            writeln!(
                out,
                "  {name:<28}{recipients:>10}{delivered:>10}{bounced:>9}{deferrals:>10}{transactions:>7}{peak_connections:>7}{last:>10}"
            )?;
        }
        Ok(())
    }

    fn write_verdict(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out)?;
        if self.deadline_reached {
            writeln!(out, "The deadline came before the end; {} recipients were still queued.", self.queued)?;
        }
        let failures = self.failures();
        match failures.as_slice() {
            [] => writeln!(out, "Passed: nothing lost, nothing doubled, no limit broken.")?,
            failures => writeln!(out, "FAILED: {}.", failures.join("; "))?,
        }
        if let Some(refusal) = &self.first_refusal {
            writeln!(out, "The relay's first refusal: {refusal}")?;
        }
        match &self.kept {
            Some(path) => writeln!(out, "Configuration, spool and log are in {}", path.display()),
            None => Ok(()),
        }
    }
}

fn seconds(time: Option<f64>) -> String {
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.1} s"))
}

/// A duration as the report writes it.
pub(super) fn in_seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report { recipients: 10, accepted: 10, delivered: 9, bounced: 1, relay_ended_well: true, ..Report::default() }
    }

    #[test]
    fn a_rehearsal_passes_only_if_the_ledger_balances_and_nothing_broke() {
        assert!(good().passed());
        let bad: [fn(&mut Report); 8] = [
            |r| r.lost = 1,
            |r| r.lost = -1,
            |r| r.duplicates = 1,
            |r| r.limits_broken = 1,
            |r| r.damaged = 1,
            |r| r.refused = 1,
            |r| r.accepted = 0,
            |r| r.relay_ended_well = false,
        ];
        for spoil in bad {
            let mut report = good();
            spoil(&mut report);
            assert!(!report.passed() && report.to_text().contains("FAILED"), "{report:?}");
        }
    }

    #[test]
    fn repeats_of_what_was_in_flight_at_a_kill_do_not_fail_it() {
        let report = Report { kills: 2, repeated_after_kill: 30, bounced_twice: 1, ..good() };
        assert!(report.passed());
        assert!(report.to_text().contains("in flight at one of 2 kills"));
    }

    #[test]
    fn the_object_for_programs_has_the_promised_keys() {
        let object: serde_json::Value = serde_json::from_str(&good().to_json()).expect("JSON");
        let keys = "accepted delivered bounced queued lost duplicates limits_broken seconds transactions uplink_bytes \
                    peak_connections peak_fds";
        for key in keys.split_whitespace() {
            assert!(object[key].is_number(), "{key}");
        }
    }
}
