//! What is shown while a rehearsal runs, on standard error: a bar on a terminal, else a line a second.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle as BarStyle};
use tokio::time::Instant;

use super::options::ProgressStyle;

/// How often a bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// How often a line is written.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How much a new measurement moves the shown rate.
const SMOOTHING: f64 = 0.3;
/// Sites shown as waiting.
const SITES_SHOWN: usize = 3;

/// Where the rehearsal stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Standing {
    pub(super) recipients: u64,
    pub(super) accepted: u64,
    pub(super) delivered: u64,
    pub(super) bounced: u64,
    /// Sites by the recipients that wait for them, the most first.
    pub(super) waiting: Vec<(String, u64)>,
}

impl Standing {
    fn done(&self) -> u64 {
        self.delivered + self.bounced
    }

    fn sites(&self) -> String {
        let sites: Vec<String> =
            self.waiting.iter().take(SITES_SHOWN).map(|(name, count)| format!("{name} {count}")).collect();
        if sites.is_empty() { String::new() } else { format!("waiting: {}", sites.join(", ")) }
    }
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines,
    Off,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Progress {
    display: Display,
    start: Instant,
    shown: Option<(Instant, u64)>,
    rate: f64,
}

impl Progress {
    pub(super) fn new(style: ProgressStyle, recipients: u64) -> Progress {
        let display = match style {
            ProgressStyle::Off => Display::Off,
            ProgressStyle::Auto if std::io::stderr().is_terminal() => Display::Bar(bar(recipients)),
            ProgressStyle::Auto | ProgressStyle::Lines => Display::Lines,
        };
        Progress { display, start: Instant::now(), shown: None, rate: 0.0 }
    }

    /// Says something beside the numbers, for example that the relay was killed.
    pub(super) fn say(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.println(text),
            Display::Lines => eprintln!("{text}"),
            Display::Off => {}
        }
    }

    /// Whether it is time for [`Progress::show`].
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let every = match self.display {
            Display::Bar(_) => DRAW_EVERY,
            Display::Lines => LINE_EVERY,
            Display::Off => return false,
        };
        self.shown.is_none_or(|(at, _)| now.saturating_duration_since(at) >= every)
    }

    pub(super) fn show(&mut self, now: Instant, standing: &Standing) {
        self.measure(now, standing.done());
        match &self.display {
            Display::Bar(bar) => {
                bar.set_position(standing.done());
                bar.set_message(format!("{:.0}/s  {}  {}", self.rate, self.eta(standing), standing.sites()));
            }
            Display::Lines => eprintln!("{}", self.line(now, standing)),
            Display::Off => {}
        }
    }

    pub(super) fn end(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }

    fn measure(&mut self, now: Instant, done: u64) {
        if let Some((at, before)) = self.shown {
            let seconds = now.saturating_duration_since(at).as_secs_f64().max(1e-3);
            let rate = done.saturating_sub(before) as f64 / seconds;
            self.rate += SMOOTHING * (rate - self.rate);
        }
        self.shown = Some((now, done));
    }

    fn eta(&self, standing: &Standing) -> String {
        let left = standing.recipients.saturating_sub(standing.done());
        if self.rate < 1.0 { "ETA -".to_owned() } else { format!("ETA {:.0} s", left as f64 / self.rate) }
    }

    fn line(&self, now: Instant, standing: &Standing) -> String {
        let Standing { recipients, accepted, delivered, bounced, .. } = standing;
        let seconds = now.saturating_duration_since(self.start).as_secs_f64();
        format!(
            "{seconds:6.1} s  accepted {accepted}/{recipients}  delivered {delivered}  bounced {bounced}  {:.0}/s  {}  {}",
            self.rate,
            self.eta(standing),
            standing.sites()
        )
    }
}

fn bar(recipients: u64) -> ProgressBar {
    let bar = ProgressBar::new(recipients);
    let style = BarStyle::with_template("{elapsed:>4} [{bar:30}] {pos}/{len}  {msg}");
    bar.set_style(style.unwrap_or_else(|_| BarStyle::default_bar()));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_rate_eta_and_who_is_waited_for() {
        let mut progress = Progress::new(ProgressStyle::Lines, 1000);
        let start = progress.start;
        let waiting = vec![("google".to_owned(), 300), ("gmx".to_owned(), 100)];
        let standing =
            |delivered| Standing { recipients: 1000, accepted: 1000, delivered, bounced: 0, waiting: waiting.clone() };
        assert!(progress.is_due(start));
        progress.measure(start, 0);
        assert!(!progress.is_due(start + Duration::from_millis(900)));
        for second in 1..20 {
            progress.measure(start + Duration::from_secs(second), second * 30);
        }
        let line = progress.line(start + Duration::from_secs(20), &standing(600));
        assert!(line.contains("accepted 1000/1000") && line.contains("waiting: google 300, gmx 100"), "{line}");
        assert!(line.contains("30/s  ETA 13 s"), "{line}");
    }
}
