//! The log on standard error.
//!
//! **Promise.** The log never slows mail down, and no octet of a stranger's text can forge a line in it. Events (`tracing`)
//! go out as they happen; the line per outcome has a bounded writer of its own, because there may be thousands of them a
//! second and because whoever reads the other end may stall: what does not fit is dropped and counted.

mod delivery;
mod escape;

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

pub use delivery::{DeliveryLog, Metrics, OutcomeLine};
pub use escape::Escaped;

/// `[log]` of the configuration, translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How lines are written.
    pub format: Format,
    /// What is written.
    pub level: Level,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines for people, in the shape that operators know from Postfix.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The least important events that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Something failed and somebody must act.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }

    /// Our own events at this level; those of libraries only if they are warnings, because a resolver that explains
    /// itself would drown the mail.
    fn filter(self) -> EnvFilter {
        EnvFilter::new(format!("{},posthaste={}", self.min_with_warn(), self.as_str()))
    }

    fn min_with_warn(self) -> &'static str {
        if self == Level::Error { "error" } else { "warn" }
    }
}

/// Starts the log of events for the whole process. A second call changes nothing.
pub fn init(options: Options) {
    let colour = std::io::stderr().is_terminal();
    // An error means that a log is running already, as in tests that share a process.
    let _ = tracing::subscriber::set_global_default(subscriber(options, colour, std::io::stderr));
}

fn subscriber<W>(options: Options, colour: bool, writer: W) -> Box<dyn tracing::Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder =
        tracing_subscriber::fmt().with_env_filter(options.level.filter()).with_target(false).with_writer(writer);
    match options.format {
        Format::Text => Box::new(builder.with_ansi(colour).finish()),
        Format::Json => Box::new(builder.json().flatten_event(true).with_ansi(false).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").write(octets)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(options: Options, events: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        tracing::subscriber::with_default(subscriber(options, false, move || writer.clone()), events);
        String::from_utf8(buffer.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }

    #[test]
    fn events_below_the_level_and_the_chatter_of_libraries_are_not_written() {
        let text = written(Options { format: Format::Text, level: Level::Debug }, || {
            tracing::debug!(target: "posthaste::spool", "ours");
            tracing::trace!(target: "posthaste::spool", "too fine");
            tracing::info!(target: "hickory_resolver", "theirs");
            tracing::warn!(target: "hickory_resolver", "their warning");
        });
        assert!(text.contains("ours") && text.contains("their warning"), "{text}");
        assert!(!text.contains("too fine") && !text.contains("theirs\n"), "{text}");
    }

    #[test]
    fn json_events_are_one_object_a_line() {
        let text = written(Options { format: Format::Json, level: Level::Info }, || {
            tracing::info!(target: "posthaste", list_host = "a\r\nb", "said");
        });
        assert_eq!(text.lines().count(), 1);
        let event: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&event["message"], &event["list_host"]), (&"said".into(), &"a\r\nb".into()));
    }
}
