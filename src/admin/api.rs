//! What can be asked for and ordered on the control socket.
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/v1/sites` | the providers that are known now: `dispatch::ProviderList` |
//! | `GET /api/v1/sites/NAME` | one of them with its sites: `dispatch::ProviderStatus` |
//! | `POST /api/v1/sites/NAME/suspend` | the same, after `{"seconds": N or null, "why": "..."}` was done |
//! | `POST /api/v1/sites/NAME/resume` | the same, after it was resumed |
//!
//! An error is `{"error": "...", "near": [...]}` with 404 for a name that is unknown, 503 while the relay stops.
//! NAME is percent-encoded.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use crate::dispatch::{ProviderList, ProviderStatus, Unknown};
use crate::engine::{Gone, Handle};

/// Longest reason that an operator can give, in octets.
const WHY_MAX: usize = 500;

/// What the answers come from.
#[derive(Clone, Debug)]
pub struct Desk {
    /// Answers for sites and providers.
    pub engine: Handle,
}

/// The order to suspend a provider.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Suspend {
    /// For how long; none: until it is resumed.
    pub seconds: Option<u64>,
    /// The operator's words.
    pub why: String,
}

/// What went wrong, in words.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Trouble {
    /// What it is.
    pub error: String,
    /// Names that may have been meant.
    pub near: Vec<String>,
}

/// A request that cannot be answered as it was meant.
struct Refusal(StatusCode, Trouble);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(self.1)).into_response()
    }
}

impl From<Gone> for Refusal {
    fn from(gone: Gone) -> Refusal {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, Trouble { error: gone.to_string(), near: Vec::new() })
    }
}

/// All routes of the control socket.
pub fn routes(desk: Desk) -> Router {
    Router::new()
        .route("/api/v1/sites", get(sites))
        .route("/api/v1/sites/{name}", get(site))
        .route("/api/v1/sites/{name}/suspend", post(suspend))
        .route("/api/v1/sites/{name}/resume", post(resume))
        .fallback(|| async {
            let error = "no such request; is the relay older than this program?".to_owned();
            Refusal(StatusCode::NOT_FOUND, Trouble { error, near: Vec::new() })
        })
        .with_state(desk)
}

async fn sites(State(desk): State<Desk>) -> Result<Json<ProviderList>, Refusal> {
    Ok(Json(desk.engine.ask(|scheduler, now| scheduler.provider_list(now)).await?))
}

async fn site(State(desk): State<Desk>, Path(name): Path<String>) -> Result<Json<ProviderStatus>, Refusal> {
    let asked = name.clone();
    found(&name, desk.engine.ask(move |scheduler, now| scheduler.provider_status(&asked, now)).await?)
}

async fn suspend(
    State(desk): State<Desk>,
    Path(name): Path<String>,
    Json(order): Json<Suspend>,
) -> Result<Json<ProviderStatus>, Refusal> {
    let (asked, time) = (name.clone(), order.seconds.map(Duration::from_secs));
    let why = order.why[..order.why.floor_char_boundary(WHY_MAX)].to_owned();
    tracing::info!(name, ?time, why, "an operator suspends a provider");
    found(&name, desk.engine.ask(move |scheduler, now| scheduler.suspend(&asked, time, &why, now)).await?)
}

async fn resume(State(desk): State<Desk>, Path(name): Path<String>) -> Result<Json<ProviderStatus>, Refusal> {
    let asked = name.clone();
    tracing::info!(name, "an operator resumes a provider");
    found(&name, desk.engine.ask(move |scheduler, now| scheduler.resume(&asked, now)).await?)
}

fn found(name: &str, answer: Result<ProviderStatus, Unknown>) -> Result<Json<ProviderStatus>, Refusal> {
    answer.map(Json).map_err(|unknown| {
        let error = format!("no provider, site or domain with mail is called {name:?}");
        Refusal(StatusCode::NOT_FOUND, Trouble { error, near: unknown.near })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;
    use crate::admin::ControlSocket;

    async fn ask(path: &std::path::Path, request: &str) -> String {
        let mut stream = UnixStream::connect(path).await.expect("connected");
        let request = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    #[tokio::test]
    async fn a_relay_that_is_stopping_says_so_and_an_unknown_request_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let (engine, told) = Handle::new();
        drop(told);
        let socket = ControlSocket::start(&path, routes(Desk { engine })).expect("started");
        let answer = ask(&path, "GET /api/v1/sites").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"), "{answer}");
        let answer = ask(&path, "GET /api/v1/nothing").await;
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no such request"), "{answer}");
        tokio::time::timeout(Duration::from_secs(5), socket.stop()).await.expect("stopped");
    }
}
