//! The line per outcome, in the shape that operators and their tools know from Postfix.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{IntCounter, Registry};

use super::escape::{Escaped, write_json};
use super::{Format, Options};
use crate::mail::{MailingId, RecipientId};
use crate::outcome::Enhanced;

/// Lines that wait for the writer; beyond them lines are dropped. Some 4 MB.
const WAITING_MAX: usize = 16_384;

/// How long the end of the process waits for lines to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the log of outcomes counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    written: IntCounter,
    dropped: IntCounter,
}

impl Metrics {
    /// Registers the counters.
    ///
    /// # Errors
    /// A name is registered already.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name, help| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Metrics {
            written: counter("posthaste_log_outcomes_written_total", "Outcome lines written to the log.")?,
            dropped: counter(
                "posthaste_log_outcomes_dropped_total",
                "Outcome lines that were dropped because the log could not be written fast enough, or at all.",
            )?,
        })
    }
}

/// One outcome of one recipient.
#[derive(Clone, Debug)]
pub struct OutcomeLine {
    /// The recipient's name.
    pub id: RecipientId,
    /// Its mailing; in JSON only, so that tools for Postfix logs read the text.
    pub mailing: MailingId,
    /// Its list host; in JSON only.
    pub list_host: Arc<str>,
    /// The forward-path.
    pub to: Box<str>,
    /// `mx.example.org[192.0.2.1]:25`, or `none`.
    pub relay: Box<str>,
    /// Time since acceptance.
    pub delay: Duration,
    /// Before the attempt; waiting for a slot and DNS; connecting; transmitting.
    pub delays: [Duration; 4],
    /// Enhanced status.
    pub dsn: Enhanced,
    /// `sent`, `deferred`, `bounced`, `expired` or `cancelled`.
    pub status: &'static str,
    /// The reply, or what happened.
    pub text: Box<str>,
}

impl OutcomeLine {
    fn write_text(&self, at: Timestamp, out: &mut String) {
        let [before, wait, connect, transmit] = self.delays.map(Seconds);
        let (to, relay, text) = (Escaped(&self.to), Escaped(&self.relay), Escaped(&self.text));
        let _ = writeln!(
            out,
            "{at:.3} {}: to=<{to}>, relay={relay}, delay={}, delays={before}/{wait}/{connect}/{transmit}, dsn={}, status={} ({text})",
            self.id,
            Seconds(self.delay),
            self.dsn,
            self.status,
        );
    }

    fn write_json(&self, at: Timestamp, out: &mut String) {
        let [before, wait, connect, transmit] = self.delays.map(|delay| delay.as_secs_f64());
        let _ = write!(out, "{{\"timestamp\":\"{at:.3}\",\"id\":\"{}\",\"mailing\":\"{}\"", self.id, self.mailing);
        for (key, text) in [("list_host", &*self.list_host), ("to", &self.to), ("relay", &self.relay)] {
            let _ = write!(out, ",\"{key}\":");
            write_json(out, text);
        }
        let _ = write!(
            out,
            ",\"delay\":{:.3},\"delays\":[{before:.3},{wait:.3},{connect:.3},{transmit:.3}],\"dsn\":\"{}\",\"status\":\"{}\",\"text\":",
            self.delay.as_secs_f64(),
            self.dsn,
            self.status,
        );
        write_json(out, &self.text);
        out.push_str("}\n");
    }
}

/// Seconds as Postfix writes them: two significant digits, at most two decimals, no trailing zeros.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        let decimals = if seconds >= 10.0 { 0 } else { 1 + usize::from(seconds < 1.0) };
        let text = format!("{seconds:.decimals$}");
        let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        f.write_str(text)
    }
}

/// The writer of outcome lines. Cheap to clone; [`DeliveryLog::write`] never waits.
#[derive(Clone, Debug)]
pub struct DeliveryLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` only while the last handle is dropped.
    lines: Option<SyncSender<(Timestamp, OutcomeLine)>>,
    /// Says nothing, and ends when the writer has written all.
    done: std::sync::Mutex<Receiver<()>>,
    metrics: Metrics,
}

impl DeliveryLog {
    /// Starts the writer to standard error.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(options: Options, metrics: Metrics) -> std::io::Result<DeliveryLog> {
        DeliveryLog::start_to(std::io::stderr(), options.format, metrics)
    }

    fn start_to(sink: impl Write + Send + 'static, format: Format, metrics: Metrics) -> std::io::Result<DeliveryLog> {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let (finished, done) = sync_channel(1);
        let counted = metrics.clone();
        std::thread::Builder::new().name("delivery-log".to_owned()).spawn(move || {
            write_all(&waiting, sink, format, &counted);
            drop(finished);
        })?;
        Ok(DeliveryLog(Arc::new(Shared { lines: Some(lines), done: std::sync::Mutex::new(done), metrics })))
    }

    /// Hands a line to the writer. If too many wait already, the line is dropped and counted: mail goes on.
    pub fn write(&self, at: Timestamp, line: OutcomeLine) {
        let Some(lines) = &self.0.lines else { return };
        match lines.try_send((at, line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.0.metrics.dropped.inc(),
        }
    }
}

impl Drop for Shared {
    /// The last handle waits for the lines that were handed over, but not for ever: a blocked log must not keep the
    /// process from ending.
    fn drop(&mut self) {
        self.lines = None;
        if let Ok(done) = self.done.lock() {
            let end: Result<(), RecvTimeoutError> = done.recv_timeout(CLOSE_TIMEOUT);
            debug_assert!(end.is_err(), "nobody says anything there");
        }
    }
}

/// Writes lines as they come, as many at once as wait, until no handle is left.
fn write_all(waiting: &Receiver<(Timestamp, OutcomeLine)>, mut sink: impl Write, format: Format, metrics: &Metrics) {
    /// One write takes up to so many octets and a line more, so that a slow reader sees progress.
    const CHUNK: usize = 32 * 1024;
    let mut chunk = String::with_capacity(CHUNK + 1024);
    while let Ok(first) = waiting.recv() {
        let mut count = 0;
        for (at, line) in std::iter::once(first).chain(std::iter::from_fn(|| waiting.try_recv().ok())) {
            match format {
                Format::Text => line.write_text(at, &mut chunk),
                Format::Json => line.write_json(at, &mut chunk),
            }
            count += 1;
            if chunk.len() >= CHUNK {
                break;
            }
        }
        match sink.write_all(chunk.as_bytes()).and_then(|()| sink.flush()) {
            Ok(()) => metrics.written.inc_by(count),
            Err(_) => metrics.dropped.inc_by(count),
        }
        chunk.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, Mutex};

    use super::*;
    use crate::mail::QueueId;

    fn line(text: &str) -> OutcomeLine {
        OutcomeLine {
            id: RecipientId { batch: QueueId(337_043), index: 3 },
            mailing: MailingId(7),
            list_host: "lists".into(),
            to: "bob@example.org".into(),
            relay: "mx.example.org[192.0.2.1]:25".into(),
            delay: Duration::from_millis(1234),
            delays: [100, 0, 512, 622].map(Duration::from_millis),
            dsn: Enhanced::new(2, 0, 0),
            status: "sent",
            text: text.into(),
        }
    }

    fn metrics() -> Metrics {
        Metrics::new(&Registry::new()).expect("new names")
    }

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

    #[test]
    fn a_text_line_has_the_shape_that_operators_know_from_postfix() {
        let mut out = String::new();
        line("250 2.0.0 OK").write_text(Timestamp::UNIX_EPOCH, &mut out);
        assert_eq!(
            out,
            "1970-01-01T00:00:00.000Z 0000A94K.3: to=<bob@example.org>, relay=mx.example.org[192.0.2.1]:25, delay=1.2, \
             delays=0.1/0/0.51/0.62, dsn=2.0.0, status=sent (250 2.0.0 OK)\n"
        );
    }

    #[test]
    fn a_json_line_has_the_same_keys_and_hostile_text_stays_in_its_string() {
        let mut out = String::new();
        line("550 no\r\n{\"status\":\"sent\"}\u{202e}").write_json(Timestamp::UNIX_EPOCH, &mut out);
        assert_eq!(out.lines().count(), 1, "{out}");
        let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["id"], "0000A94K.3");
        assert_eq!(value["list_host"], "lists");
        assert_eq!(value["delays"], serde_json::json!([0.1, 0.0, 0.512, 0.622]));
        assert_eq!(value["text"], "550 no\r\n{\"status\":\"sent\"}\u{202e}");
    }

    #[test]
    fn hostile_text_makes_one_text_line() {
        let mut out = String::new();
        line("550 no\r\n1970-01-01T00:00:00.000Z 00000000.0: to=<x>, status=sent\u{85}")
            .write_text(Timestamp::UNIX_EPOCH, &mut out);
        assert_eq!(out.matches(['\n', '\r', '\u{85}']).count(), 1, "{out}");
    }

    #[test]
    fn every_line_is_written_before_the_last_handle_is_gone() {
        let (buffer, metrics) = (Buffer::default(), metrics());
        let log = DeliveryLog::start_to(buffer.clone(), Format::Text, metrics.clone()).expect("a thread");
        (0..1000).for_each(|_| log.clone().write(Timestamp::UNIX_EPOCH, line("250 OK")));
        drop(log);
        assert_eq!(metrics.written.get(), 1000);
        assert_eq!(buffer.0.lock().expect("not poisoned").iter().filter(|octet| **octet == b'\n').count(), 1000);
    }

    #[test]
    fn a_log_that_nobody_reads_holds_up_nothing_and_what_is_dropped_is_counted() {
        struct Stalled(Arc<Barrier>);
        impl Write for Stalled {
            fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
                self.0.wait();
                Ok(octets.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (metrics, barrier) = (metrics(), Arc::new(Barrier::new(2)));
        let log =
            DeliveryLog::start_to(Stalled(Arc::clone(&barrier)), Format::Text, metrics.clone()).expect("a thread");
        for _ in 0..2 * WAITING_MAX {
            log.write(Timestamp::UNIX_EPOCH, line("250 OK"));
        }
        assert!(metrics.dropped.get() >= WAITING_MAX as u64 / 2, "{}", metrics.dropped.get());
        assert_eq!(metrics.written.get(), 0);
        // The thread stays at its barrier; the handle must not wait for it in this test.
        std::mem::forget(log);
    }

    #[test]
    fn seconds_are_written_as_postfix_writes_them() {
        let shown = |millis| Seconds(Duration::from_millis(millis)).to_string();
        assert_eq!(
            [0, 4, 60, 100, 999, 1234, 9960, 12_345].map(shown),
            ["0", "0", "0.06", "0.1", "1", "1.2", "10", "12"]
        );
    }
}
