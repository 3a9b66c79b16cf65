//! One GET over HTTPS, as a policy host must answer it (RFC 8461 section 3.3): status 200, no redirects, `text/plain`, no
//! more than [`BODY_OCTETS_MAX`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The largest policy that is read; RFC 8461 section 3.3 proposes 64 kilobytes.
const BODY_OCTETS_MAX: usize = 64 * 1024;
/// The largest response, with its header section and the framing of its chunks.
const RESPONSE_OCTETS_MAX: usize = 2 * BODY_OCTETS_MAX;
/// The longest that a fetch may take; RFC 8461 section 3.3 proposes a minute, but mail waits for it.
const PATIENCE: Duration = Duration::from_secs(15);

/// The connector for policy hosts: certificates are checked in full.
pub(super) fn connector(roots: RootCertStore) -> TlsConnector {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Gets the body of `https://host/path` from the first of `addresses` that can be connected to.
///
/// # Errors
/// What was wrong: no connection, certificate, status, type or size.
pub(super) async fn get(
    connector: &TlsConnector,
    host: &str,
    path: &str,
    addresses: &[SocketAddr],
) -> io::Result<String> {
    timeout(PATIENCE, ask(connector, host, path, addresses)).await?
}

async fn ask(connector: &TlsConnector, host: &str, path: &str, addresses: &[SocketAddr]) -> io::Result<String> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(addresses).await?;
    let mut stream = connector.connect(name, tcp).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: posthaste\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    let mut limited = stream.take(RESPONSE_OCTETS_MAX as u64 + 1);
    // Many servers end the connection without a close_notify; whether all has arrived is told by the length.
    match limited.read_to_end(&mut response).await {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => body(&response).map_err(io::Error::other),
    }
}

/// The body of a response to be taken at its word.
fn body(response: &[u8]) -> Result<String, String> {
    let end = memchr::memmem::find(response, b"\r\n\r\n").ok_or("no HTTP response")?;
    let head = std::str::from_utf8(&response[..end]).map_err(|_| "no HTTP response")?;
    let (status, fields) = head.split_once("\r\n").unwrap_or((head, ""));
    let code = status.split(' ').nth(1).filter(|_| status.starts_with("HTTP/1.")).ok_or("no HTTP response")?;
    if code != "200" {
        return Err(format!("status {code:.3} instead of 200"));
    }
    let field = |name: &str| {
        let mut named = fields.split("\r\n").filter_map(|line| line.split_once(':'));
        named.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    if field("content-type").is_some_and(|kind| !kind.starts_with("text/plain")) {
        return Err("no text/plain".to_owned());
    }
    let rest = &response[end + 4..];
    let body = match (field("transfer-encoding"), field("content-length")) {
        (Some(coding), _) if coding == "chunked" => dechunked(rest).ok_or("broken chunks")?,
        (Some(_), _) => return Err("unknown transfer coding".to_owned()),
        (None, Some(length)) => {
            let length = length.parse().map_err(|_| "unreadable length")?;
            rest.get(..length).ok_or("cut short or too long")?.to_vec()
        }
        (None, None) => rest.to_vec(),
    };
    if body.len() > BODY_OCTETS_MAX {
        return Err("too long".to_owned());
    }
    String::from_utf8(body).map_err(|_| "no UTF-8".to_owned())
}

/// RFC 9112 section 7.1.
fn dechunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = memchr::memmem::find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok().filter(|&size| size <= RESPONSE_OCTETS_MAX)?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_taken_by_length_by_chunks_or_to_the_end() {
        for response in [
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.0 200\r\n\r\nhello",
        ] {
            assert_eq!(body(response.as_bytes()).as_deref(), Ok("hello"), "{response}");
        }
    }

    #[test]
    fn what_is_not_a_whole_plain_200_is_refused() {
        let long = "x".repeat(BODY_OCTETS_MAX + 1);
        for response in [
            "HTTP/1.1 301 Moved\r\nLocation: https://elsewhere.example/\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 206 Partial\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhe",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            "220 mx.example.org ESMTP\r\n\r\n",
            "HTTP/1.1 200",
            "",
            &format!("HTTP/1.1 200 OK\r\n\r\n{long}"),
        ] {
            assert!(body(response.as_bytes()).is_err(), "{response:.60}");
        }
    }
}
