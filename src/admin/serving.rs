//! A listener that is served until it is told to stop.

use std::time::Duration;

use axum::Router;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long answers that are under way may take after the end was asked for.
const FAREWELL: Duration = Duration::from_secs(1);

/// Ends when it is dropped, or in order by [`Serving::stop`].
#[derive(Debug)]
pub(super) struct Serving {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    pub(super) fn start<L>(name: &'static str, listener: L, routes: Router) -> Serving
    where
        L: axum::serve::Listener,
        L::Addr: std::fmt::Debug,
    {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let serve = axum::serve(listener, routes).with_graceful_shutdown(async move {
                // A sender that was dropped says stop as well.
                let _ = stopped.await;
            });
            if let Err(error) = serve.await {
                tracing::error!(%error, "{name} ended");
            }
        });
        Serving { stop, task }
    }

    /// Closes the socket, lets answers that are under way finish, then ends.
    pub(super) async fn stop(self) {
        let Serving { stop, mut task } = self;
        drop(stop);
        if timeout(FAREWELL, &mut task).await.is_err() {
            task.abort();
        }
    }
}
