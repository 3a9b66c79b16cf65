//! The control socket: HTTP/1.1 with JSON under `/api/v1` over a Unix socket, for `posthaste site` and the other verbs
//! that speak with a running relay.
//!
//! **Promise.** Only who may write the socket's file may ask: it is made with mode 0600 under another name and then
//! renamed, so that there is no moment at which it is open to others. A file that a dead process left is replaced; one
//! that a living process listens on is not.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use super::listen::{Connection, Slots, accept_failed};
use super::serving::Serving;

/// The running control socket. Ends when it is dropped, or in order by [`ControlSocket::stop`]; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    serving: Serving,
    file: SocketFile,
}

impl ControlSocket {
    /// Makes the socket at `path` and serves `routes` on it. Needs a tokio runtime.
    ///
    /// # Errors
    /// Another process listens there, or the file cannot be made: said with the remedy.
    pub fn start(path: &Path, routes: Router) -> io::Result<ControlSocket> {
        let (socket, file) = bind(path).map_err(|error| {
            let text = format!("[admin] socket {} cannot be listened on: {error}", path.display());
            io::Error::new(error.kind(), text)
        })?;
        let listener = LocalListener { socket, slots: Slots::default() };
        let serving = Serving::start("control socket", listener, routes);
        tracing::info!(path = %path.display(), "control socket listens");
        Ok(ControlSocket { serving, file })
    }

    /// Closes the socket, lets answers that are under way finish for a second, then ends.
    pub async fn stop(self) {
        let ControlSocket { serving, file } = self;
        drop(file);
        serving.stop().await;
    }
}

/// The socket's file, removed when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0); // gone already, or replaced at the next start
    }
}

fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if BlockingStream::connect(path).is_ok() {
        let text = "another process listens there; every relay needs a socket of its own";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push("~");
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixListener::bind(&fresh)?;
    let file = SocketFile(fresh);
    std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&file.0, path)?;
    Ok((socket, SocketFile(path.to_owned())))
}

struct LocalListener {
    socket: UnixListener,
    slots: Slots,
}

impl axum::serve::Listener for LocalListener {
    type Io = Connection<UnixStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<UnixStream>, SocketAddr) {
        let slot = self.slots.take().await;
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => return (Connection::new(stream, slot), peer),
                Err(error) => accept_failed(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    fn routes() -> Router {
        Router::new().route("/", get(async || "here\n"))
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_goes_with_the_relay() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        let socket = ControlSocket::start(&path, routes()).expect("started");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        socket.stop().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_relay_left_is_replaced_and_that_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let living = ControlSocket::start(&path, routes()).expect("replaced");
        let error = ControlSocket::start(&path, routes()).expect_err("taken").to_string();
        assert!(error.contains("another process listens there"), "{error}");
        living.stop().await;
    }
}
