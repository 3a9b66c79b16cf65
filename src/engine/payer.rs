//! The payer: pays the DSNs that are owed, and finds a last resort for reports that their list host will never take.
//!
//! A debt is recorded with the failure that causes it and cleared by the record that accepts the report, so a crash
//! between the two leaves the debt, and paying again after a crash is impossible. There is one payer, so nothing is
//! paid twice either.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};

use crate::bounce::{self, Dsn, Options, Report};
use crate::clock::Clock;
use crate::mail::{
    Batch, Destination, EnvelopeParams, Mailbox, Queued, Recipient, RecipientParams, ReversePath, Trace,
};
use crate::spool::{Fate, NewContent, Owed, Settlement, Spool, Submission};

/// Batches whose debts are read at a time.
const PAGE: usize = 200;

/// Undeliverable reports that may wait for their last resort. Beyond, they stay in the queue and are tried again.
const LAST_RESORTS: usize = 1000;

/// How often debts are looked for without a wake-up, so that a lost one costs no more than this.
const IDLE: Duration = Duration::from_secs(30);

/// The engine's end: tells the payer that there is something to do.
#[derive(Clone, Debug)]
pub struct Payer {
    wake: Arc<Notify>,
    undeliverable: mpsc::Sender<(Queued, Fate)>,
}

/// The payer's task.
pub struct PayerTask {
    spool: Spool,
    clock: Clock,
    options: Arc<ArcSwap<Options>>,
    metrics: bounce::Metrics,
    /// Age from which delays are reported again never; shown in delay reports as "will retry until".
    lifetime: Duration,
    wake: Arc<Notify>,
    undeliverable: mpsc::Receiver<(Queued, Fate)>,
}

impl Payer {
    /// A payer and its task. `lifetime` is how long mail is retried, for the Will-Retry-Until of delay reports.
    pub fn new(
        spool: Spool,
        options: Arc<ArcSwap<Options>>,
        metrics: bounce::Metrics,
        lifetime: Duration,
    ) -> (Payer, PayerTask) {
        let wake = Arc::new(Notify::new());
        let (sender, undeliverable) = mpsc::channel(LAST_RESORTS);
        let clock = spool.clock();
        let task = PayerTask { spool, clock, options, metrics, lifetime, wake: Arc::clone(&wake), undeliverable };
        (Payer { wake, undeliverable: sender }, task)
    }

    /// Debts have been recorded.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Reports of ours that cannot be delivered. What does not fit stays leased until the next start: it is never lost.
    pub(super) fn undeliverable(&self, reports: Vec<(Queued, Fate)>) {
        for report in reports {
            if let Err(error) = self.undeliverable.try_send(report) {
                tracing::error!(%error, "an undeliverable report could not be handed to its last resort");
            }
        }
    }
}

impl PayerTask {
    /// Runs until the engine is gone.
    pub async fn run(mut self) {
        loop {
            let more = self.pay_what_is_due().await;
            let pause = if more { self.options.load().gather.min(IDLE) } else { IDLE };
            tokio::select! {
                report = self.undeliverable.recv() => match report {
                    Some((queued, fate)) => self.last_resort(queued, fate).await,
                    None => return,
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause.max(Duration::from_millis(10))) => {}
            }
        }
    }

    /// Pays the debts whose gathering time is over. Returns whether there are others.
    async fn pay_what_is_due(&self) -> bool {
        let options = self.options.load_full();
        loop {
            let owed = match self.spool.owed(PAGE).await {
                Ok(owed) => owed,
                Err(error) => {
                    tracing::error!(%error, "the debts could not be read; trying again");
                    return true;
                }
            };
            let (due, later): (Vec<_>, Vec<_>) =
                owed.into_iter().partition(|owed| bounce::due(owed, self.clock.now(), options.gather));
            if due.is_empty() {
                return !later.is_empty();
            }
            for owed in due {
                if !self.pay(&owed, &options).await {
                    return true; // the spool takes nothing for now
                }
            }
        }
    }

    /// Composes and accepts one report. `false`: the spool did not take it, and the debt stands.
    async fn pay(&self, owed: &Owed, options: &Options) -> bool {
        let original = self.spool.content(owed.batch.envelope.content).await.ok();
        let retry_until = self.clock.wall().checked_add(self.remaining(&owed.batch)).ok();
        let report = Report {
            owed,
            original_content: original.as_ref().map(|content| &content.bytes[..]),
            at: self.clock.now(),
            now: self.clock.wall(),
            retry_until,
            seed: rand::random(),
        };
        let Some(dsn) = bounce::compose(&report, options) else {
            let debts = owed.obligations.iter().map(|(id, obligation)| (*id, obligation.kind)).collect();
            self.spool.forgive(debts); // a null reverse-path: nobody may be told
            return true;
        };
        match self.submit(owed, &dsn).await {
            Ok(()) => {
                self.metrics.composed(&dsn);
                true
            }
            Err(error) => {
                tracing::warn!(%error, batch = %owed.batch.id, "a report could not be queued; it is owed still");
                false
            }
        }
    }

    fn remaining(&self, batch: &Batch) -> Duration {
        self.lifetime.saturating_sub(self.clock.now().since(batch.accepted))
    }

    async fn submit(&self, owed: &Owed, dsn: &Dsn) -> anyhow::Result<()> {
        let mut writer = self.spool.content_writer();
        writer.write(&dsn.content)?;
        let content = writer.finish(dsn.size, dsn.eight_bit)?;
        let lane = Destination::ListHost(Arc::clone(&owed.batch.envelope.list_host));
        let params = EnvelopeParams { smtputf8: dsn.smtputf8, ..EnvelopeParams::default() };
        let mut submission = self.report(&owed.batch, content, dsn.recipient.clone(), lane, params);
        submission.pays.clone_from(&dsn.pays);
        self.spool.accept(submission).await?;
        Ok(())
    }

    fn report(
        &self,
        about: &Batch,
        content: NewContent,
        to: Mailbox,
        destination: Destination,
        params: EnvelopeParams,
    ) -> Submission {
        let trace = Trace { helo: "localhost".into(), peer: None, protocol: "ESMTP".into(), at: self.clock.wall() };
        Submission {
            list_host: Arc::clone(&about.envelope.list_host),
            reverse_path: ReversePath::Null,
            params,
            mailing: about.envelope.mailing,
            trace,
            content,
            recipients: vec![(Recipient { path: to, params: RecipientParams::default() }, destination)],
            pays: Vec::new(),
        }
    }

    /// A report that its list host will never take goes to the postmaster, if there is one; only then is it done.
    async fn last_resort(&self, queued: Queued, fate: Fate) {
        let options = self.options.load_full();
        match bounce::last_resort(&queued, &options) {
            Some(postmaster) => match self.forward(&queued, postmaster).await {
                Ok(()) => self.metrics.sent_to_postmaster(),
                Err(error) => {
                    // Recorded as due again, so that neither a restart nor a full disk loses the report.
                    tracing::warn!(%error, report = %queued.id, "a report could not be sent to the postmaster yet");
                    let (due, attempts) = (self.clock.now() + IDLE, queued.attempts);
                    let again = Fate::Retry { due, attempts, note: "waits for the postmaster".into(), owes: None };
                    self.spool.settle(Settlement { at: self.clock.now(), fates: vec![(queued.id, again)] });
                    return;
                }
            },
            None => {
                tracing::error!(report = %queued.id, to = %queued.recipient.path, "a report was given up: no list host takes it");
                self.metrics.dropped();
            }
        }
        self.spool.settle(Settlement { at: self.clock.now(), fates: vec![(queued.id, fate)] });
    }

    async fn forward(&self, queued: &Queued, postmaster: &Mailbox) -> anyhow::Result<()> {
        let envelope = &queued.batch.envelope;
        let bytes = self.spool.content(envelope.content).await?.bytes;
        let mut writer = self.spool.content_writer();
        writer.write(&bytes)?;
        let content = writer.finish(envelope.content_size, envelope.eight_bit)?;
        let destination = Destination::Domain(postmaster.domain());
        let submission = self.report(&queued.batch, content, postmaster.clone(), destination, envelope.params.clone());
        self.spool.accept(submission).await?;
        Ok(())
    }
}
