//! What the engine can be told and asked while it runs. One bounded channel; the engine answers between two of its
//! actions, so a question costs mail the time of its answer and no lock.

use std::fmt;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::clock::Tick;
use crate::dispatch::{Options as DispatchOptions, Scheduler};

/// Questions and orders that may wait for the engine.
const WAITING_MAX: usize = 32;

/// What the engine can be told.
#[derive(Debug)]
pub enum Control {
    /// Take over a changed configuration.
    Reload(Box<DispatchOptions>, Duration),
    /// Start nothing more; answer when nothing is in flight any more.
    Drain(oneshot::Sender<()>),
    /// Answer a question, or do what an operator wants.
    Ask(Question),
}

type Put = dyn FnOnce(&mut Scheduler, Tick) + Send;

/// A question to the scheduler; see [`Handle::ask`].
pub struct Question(Box<Put>);

impl Question {
    pub(super) fn put(self, scheduler: &mut Scheduler, now: Tick) {
        (self.0)(scheduler, now);
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question(..)")
    }
}

/// The engine has ended: nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the relay is stopping")]
pub struct Gone;

/// Asks the engine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Control>);

impl Handle {
    /// A handle, and the end that [`super::Engine::run`] takes.
    pub fn new() -> (Handle, mpsc::Receiver<Control>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        (Handle(sender), receiver)
    }

    /// Has the engine answer a question, or carry out an order that changes the scheduler.
    ///
    /// # Errors
    /// [`Gone`] if the engine has ended.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Scheduler, Tick) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = oneshot::channel();
        let put = move |scheduler: &mut Scheduler, now: Tick| {
            let _ = answer.send(question(scheduler, now)); // the asker may have hung up
        };
        self.0.send(Control::Ask(Question(Box::new(put)))).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }

    /// Starts nothing more from now on; the answer comes when nothing is in flight any more.
    pub async fn drain(&self) -> oneshot::Receiver<()> {
        let (drained, finished) = oneshot::channel();
        let _ = self.0.send(Control::Drain(drained)).await; // an engine that has ended has nothing in flight
        finished
    }

    /// Room for a reload, so that it can be sent when nothing can refuse it any more.
    ///
    /// # Errors
    /// If the engine is too busy to take it now, or has ended.
    pub fn reserve(&self) -> Result<mpsc::Permit<'_, Control>, mpsc::error::TrySendError<()>> {
        self.0.try_reserve()
    }
}
