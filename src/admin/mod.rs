//! The admin endpoint: metrics and health over HTTP; and the control socket ([`ControlSocket`]), which alone changes things.
//!
//! **Promise.** Asking costs mail nothing: metrics are gathered at most once a second, off the runtime's own threads, for
//! whatever number of askers, and a client that is slow or never reads loses its connection. It only reads: there is no
//! request that changes anything. It answers loopback and the configured networks, and only under names that are ours, so
//! that a web page in an operator's browser cannot ask by DNS rebinding.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus text format |
//! | `GET /healthz` | 200 while the process lives and the spool has not failed, else 503 |
//! | `GET /readyz` | 200 while list hosts can hand over mail, else 503 |
//! | another path | 404; another method: 405; another Host: 421 |

pub mod api;
mod health;
mod listen;
mod local;
mod options;
mod process;
mod serving;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State as AxumState};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

pub use health::{Health, State};
pub use local::ControlSocket;
pub use options::Options;

use listen::Listener;
use process::Process;
use serving::Serving;

/// How long gathered metrics are served again.
const CACHE_TIME: Duration = Duration::from_secs(1);

/// How long one answer may take to make.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint counts about itself.
#[derive(Clone, Debug)]
struct Metrics {
    /// By path (`other` for what is not ours) and status.
    requests: IntCounterVec,
    refused: IntCounter,
}

impl Metrics {
    fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("posthaste_admin_requests_total", "Requests answered by the admin endpoint."),
            &["path", "status"],
        )?;
        let refused = IntCounter::new(
            "posthaste_admin_connections_refused_total",
            "Connections to the admin endpoint from outside of its networks.",
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Metrics { requests, refused })
    }
}

/// The running endpoint. Ends when it is dropped, or in order by [`Admin::stop`].
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    serving: Serving,
}

impl Admin {
    /// Binds the address and serves until [`Admin::stop`]. Adds the process's own metrics to `registry`. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// The address could not be bound (said with the remedy), or `registry` has these metrics already.
    pub fn start(options: &Options, registry: Registry, health: Health) -> io::Result<Admin> {
        let metrics = register(&registry).map_err(io::Error::other)?;
        let socket = bind(options.address)?;
        let address = socket.local_addr()?;
        let listener = Listener::new(socket, options.networks.clone(), metrics.refused.clone());
        let shared = Arc::new(Shared {
            registry,
            health,
            names: Names { address: options.address.ip(), names: options.host_names.clone() },
            gathered: Mutex::new(None),
            metrics,
        });
        let serving = Serving::start("admin endpoint", listener, router(shared));
        tracing::info!(%address, "admin endpoint listens");
        Ok(Admin { address, serving })
    }

    /// Where it listens; the port that was chosen, if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the socket, lets answers that are under way finish for a second, then ends.
    pub async fn stop(self) {
        self.serving.stop().await;
    }
}

fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
    registry.register(Box::new(Process::new()?))?;
    Metrics::new(registry)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = std::net::TcpListener::bind(address).map_err(|error| {
        let text = format!("[admin] address {address} cannot be listened on: {error}; free it or choose another");
        io::Error::new(error.kind(), text)
    })?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket)
}

/// What the handlers share.
struct Shared {
    registry: Registry,
    health: Health,
    names: Names,
    /// Held while gathering, so that askers wait for the one that gathers instead of gathering too.
    gathered: Mutex<Option<(Instant, Bytes)>>,
    metrics: Metrics,
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found\n") })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// Refuses foreign names, bounds the time, counts the answer.
async fn guard(AxumState(shared): AxumState<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = known_path(request.uri().path());
    let response = if shared.names.are_ours(&request) {
        let late = (StatusCode::GATEWAY_TIMEOUT, "timed out\n");
        timeout(ANSWER_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| late.into_response())
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "unknown Host: add it to host_names of [admin] if it is ours\n")
            .into_response()
    };
    shared.metrics.requests.with_label_values(&[path, response.status().as_str()]).inc();
    response
}

/// The path as a metric label: bounded, whatever is asked for.
fn known_path(path: &str) -> &'static str {
    ["/metrics", "/healthz", "/readyz"].into_iter().find(|known| *known == path).unwrap_or("other")
}

async fn metrics(AxumState(shared): AxumState<Arc<Shared>>) -> Response {
    let mut gathered = shared.gathered.lock().await;
    if let Some((at, text)) = &*gathered
        && at.elapsed() < CACHE_TIME
    {
        return metrics_text(text.clone());
    }
    let registry = shared.registry.clone();
    // Collectors may read /proc and take locks of other parts: not on a thread that moves mail.
    match tokio::task::spawn_blocking(move || TextEncoder::new().encode_to_string(&registry.gather())).await {
        Ok(Ok(text)) => {
            let text = Bytes::from(text);
            *gathered = Some((Instant::now(), text.clone()));
            metrics_text(text)
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn metrics_text(text: Bytes) -> Response {
    ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn healthz(AxumState(shared): AxumState<Arc<Shared>>) -> Response {
    report(shared.health.healthy())
}

async fn readyz(AxumState(shared): AxumState<Arc<Shared>>) -> Response {
    report(shared.health.ready())
}

fn report((good, text): (bool, String)) -> Response {
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text).into_response()
}

/// The names under which we answer.
struct Names {
    address: IpAddr,
    names: Vec<String>,
}

impl Names {
    fn are_ours(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        // Parsed as the authority of a URI, so that "evil.example:80@127.0.0.1" and the like are no host of ours.
        host.to_str().ok().and_then(|host| host.parse::<Uri>().ok()).is_some_and(|uri| {
            let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            plain && uri.host().is_some_and(|host| self.is_ours(host))
        })
    }

    fn is_ours(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        match host.parse::<IpAddr>() {
            // An address in the Host header cannot come from rebinding a name, but only ours is expected.
            Ok(ip) => ip.is_loopback() || ip == self.address || self.address.is_unspecified(),
            Err(_) => host == "localhost" || self.names.contains(&host),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn options() -> Options {
        Options {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            networks: Vec::new(),
            host_names: vec!["relay.example.net".to_owned()],
            socket: "control.sock".into(),
        }
    }

    /// The status and body of one request.
    async fn ask(admin: &Admin, method: &str, path: &str, host: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(admin.address()).await.expect("connected");
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
    }

    fn start(health: &Health) -> Admin {
        Admin::start(&options(), Registry::new(), health.clone()).expect("a free port")
    }

    #[tokio::test]
    async fn metrics_hold_the_process_and_the_build() {
        let admin = start(&Health::starting());
        let (status, body) = ask(&admin, "GET", "/metrics", "localhost").await;
        assert_eq!(status, 200);
        for name in ["process_resident_memory_bytes", "process_open_fds", "posthaste_build_info{version="] {
            assert!(body.contains(name), "{name}: {body}");
        }
        admin.stop().await;
    }

    #[tokio::test]
    async fn metrics_are_gathered_once_a_second_for_any_number_of_askers() {
        let registry = Registry::new();
        let counter = IntCounter::new("counted_total", "Counted.").expect("sound");
        registry.register(Box::new(counter.clone())).expect("new");
        let admin = Admin::start(&options(), registry, Health::starting()).expect("a free port");
        let (_, first) = ask(&admin, "GET", "/metrics", "localhost").await;
        counter.inc();
        let (_, second) = ask(&admin, "GET", "/metrics", "localhost").await;
        assert!(first.contains("counted_total 0") && second.contains("counted_total 0"), "{second}");
    }

    #[tokio::test]
    async fn health_and_readiness_follow_the_flags_and_say_why() {
        let health = Health::starting();
        let admin = start(&health);
        let codes = async || {
            let healthz = ask(&admin, "GET", "/healthz", "127.0.0.1").await.0;
            (healthz, ask(&admin, "GET", "/readyz", "127.0.0.1").await.0)
        };
        assert_eq!(codes().await, (200, 503));
        health.set_spool(State::Up);
        health.set_listening(State::Up);
        assert_eq!(codes().await, (200, 200));
        health.set_listening(State::Down("draining".to_owned()));
        assert_eq!(codes().await, (200, 503));
        health.set_spool(State::Down("fsync failed".to_owned()));
        assert_eq!(codes().await, (503, 503));
        let (_, report) = ask(&admin, "GET", "/readyz", "127.0.0.1").await;
        assert_eq!(report, "spool: down: fsync failed\nlistening: down: draining\n");
    }

    #[tokio::test]
    async fn a_foreign_host_header_is_misdirected() {
        let admin = start(&Health::starting());
        let port = admin.address().port();
        for (host, status) in [
            (format!("localhost:{port}"), 200),
            (format!("127.0.0.1:{port}"), 200),
            (format!("[::1]:{port}"), 200),
            ("Relay.Example.Net".to_owned(), 200),
            ("evil.example".to_owned(), 421),
            (format!("evil.example:{port}"), 421),
            ("evil.example:80@127.0.0.1".to_owned(), 421),
            ("192.0.2.1".to_owned(), 421),
            ("localhost.evil.example".to_owned(), 421),
            (String::new(), 421),
            ("localhost\r\nHost: evil.example".to_owned(), 421),
        ] {
            assert_eq!(ask(&admin, "GET", "/healthz", &host).await.0, status, "{host:?}");
        }
    }

    #[tokio::test]
    async fn only_reading_what_there_is_is_answered() {
        let admin = start(&Health::starting());
        assert_eq!(ask(&admin, "POST", "/metrics", "localhost").await.0, 405);
        assert_eq!(ask(&admin, "DELETE", "/healthz", "localhost").await.0, 405);
        assert_eq!(ask(&admin, "GET", "/", "localhost").await.0, 404);
        assert_eq!(ask(&admin, "GET", "/metrics/../etc", "localhost").await.0, 404);
    }

    #[tokio::test]
    async fn a_taken_port_is_said_with_the_remedy() {
        let admin = start(&Health::starting());
        let taken = Options { address: admin.address(), ..options() };
        let error = Admin::start(&taken, Registry::new(), Health::starting()).expect_err("taken").to_string();
        assert!(error.contains("cannot be listened on") && error.contains("choose another"), "{error}");
    }

    #[tokio::test]
    async fn a_silent_client_loses_its_connection() {
        let admin = start(&Health::starting());
        let mut stream = TcpStream::connect(admin.address()).await.expect("connected");
        assert_eq!(ask(&admin, "GET", "/healthz", "localhost").await.0, 200);
        tokio::time::pause();
        let mut rest = Vec::new();
        let read = timeout(Duration::from_secs(600), stream.read_to_end(&mut rest)).await.expect("closed in time");
        assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    }
}
