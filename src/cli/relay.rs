//! Speaks with the running relay over its control socket: one request, one JSON answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use crate::admin::api::Trouble;
use crate::config::Config;

/// How long the relay may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest answer that is read, in octets.
const ANSWER_MAX: u64 = 64 << 20;

/// Which relay, and how its answer is shown.
#[derive(Debug, Args)]
pub(super) struct Relay {
    /// The configuration that the relay runs with
    #[arg(short, long, value_name = "FILE", default_value = "/etc/posthaste/posthaste.toml", global = true)]
    config: PathBuf,
    /// The relay's control socket, instead of the one that the configuration names
    #[arg(long, value_name = "FILE", global = true)]
    socket: Option<PathBuf>,
    /// The answer as JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

impl Relay {
    /// Asks for what there is at `path`.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request("GET", path, "")
    }

    /// Orders something.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, order: &impl Serialize) -> Result<T, Failure> {
        let order = serde_json::to_string(order).context("the order cannot be written as JSON")?;
        self.request("POST", path, &order)
    }

    fn request<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> Result<T, Failure> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => Config::load(&self.config)?.admin.socket,
        };
        let stream = connect(&socket, &self.config)?;
        let answer = exchange(stream, method, path, body).context("the relay did not answer")?;
        Ok(understand(&answer)?)
    }
}

fn connect(socket: &Path, config: &Path) -> anyhow::Result<UnixStream> {
    let stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
            "no relay is running ({} does not answer); start it with: posthaste serve --config {}",
            socket.display(),
            config.display()
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("{}: only the relay's own user may ask; try sudo -u with that user", socket.display())
        }
        _ => anyhow::Error::from(error).context(socket.display().to_string()),
    })?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// Sends one request and reads the answer to its end.
fn exchange(mut stream: UnixStream, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The body of a good answer; the words of a bad one.
fn understand<T: DeserializeOwned>(answer: &[u8]) -> anyhow::Result<T> {
    let (head, body) = split_head(answer).context("the relay's answer is cut short")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).unwrap_or(0);
    if (200..300).contains(&status) {
        return serde_json::from_slice(body).context("the relay's answer is not understood; is it of another version?");
    }
    match serde_json::from_slice::<Trouble>(body) {
        Ok(trouble) if trouble.near.is_empty() => bail!("{}", trouble.error),
        Ok(trouble) => bail!("{}; did you mean {}?", trouble.error, trouble.near.join(" or ")),
        Err(_) => bail!("the relay answered {status}: {}", String::from_utf8_lossy(body).trim()),
    }
}

fn split_head(answer: &[u8]) -> Option<(&str, &[u8])> {
    let at = memchr::memmem::find(answer, b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..at]).ok()?, &answer[at + 4..]))
}

/// A name as a segment of a path (RFC 3986 section 2.1).
pub(super) fn segment(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_answered_with_those_that_are_near() {
        let answer = b"HTTP/1.1 404 Not Found\r\nx: y\r\n\r\n{\"error\":\"no \\\"gogle\\\"\",\"near\":[\"google\"]}";
        let error = understand::<u32>(answer).expect_err("refused").to_string();
        assert_eq!(error, "no \"gogle\"; did you mean google?");
    }

    #[test]
    fn a_relay_that_does_not_run_is_said_with_how_to_start_it() {
        let error = connect(Path::new("/nonexistent/control.sock"), Path::new("p.toml")).expect_err("none").to_string();
        assert!(error.contains("posthaste serve --config p.toml"), "{error}");
    }

    #[test]
    fn a_name_survives_its_way_into_a_path() {
        assert_eq!(segment("mx1.a.test,mx2.a.test/x"), "mx1.a.test%2Cmx2.a.test%2Fx");
    }
}
