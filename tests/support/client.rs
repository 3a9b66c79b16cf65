//! A raw SMTP dialogue: what is written is what is sent, and every wait ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// Longest wait for a line. Generous, because the machine may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clear or under TLS.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// See the module.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Duplex>>,
}

impl Client {
    /// Connects and takes the greeting.
    pub(crate) async fn connect(address: SocketAddr) -> Client {
        Client::connect_from(Ipv4Addr::UNSPECIFIED, address).await
    }

    /// Connects from this address and takes the greeting.
    pub(crate) async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Client {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("an address of ours");
        let stream = socket.connect(address).await.expect("the relay listens");
        stream.set_nodelay(true).expect("possible");
        let mut client = Client { stream: BufReader::new(Box::new(stream)) };
        let greeting = client.reply().await;
        assert!(greeting.starts_with("220 "), "{greeting}");
        client
    }

    /// Connects and says EHLO.
    pub(crate) async fn greeted(address: SocketAddr) -> Client {
        let mut client = Client::connect(address).await;
        client.expect("EHLO lists.test", "250").await;
        client
    }

    pub(crate) async fn write(&mut self, octets: &[u8]) {
        self.stream.write_all(octets).await.expect("the relay reads");
        self.stream.flush().await.expect("the relay reads");
    }

    /// The next reply, its lines joined by LF; empty once the connection is closed.
    pub(crate) async fn reply(&mut self) -> String {
        let mut whole = String::new();
        loop {
            let mut line = String::new();
            // A reset says the same as an end.
            let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await.expect("a reply in time");
            if read.unwrap_or(0) == 0 {
                return whole;
            }
            whole.push_str(line.trim_end_matches("\r\n"));
            if line.as_bytes().get(3) != Some(&b'-') {
                return whole;
            }
            whole.push('\n');
        }
    }

    pub(crate) async fn say(&mut self, command: &str) -> String {
        self.write(format!("{command}\r\n").as_bytes()).await;
        self.reply().await
    }

    /// Says `command` and wants a reply that begins so.
    pub(crate) async fn expect(&mut self, command: &str, reply: &str) -> String {
        let said = self.say(command).await;
        assert!(said.starts_with(reply), "{command} was answered {said:?} instead of {reply:?}");
        said
    }

    /// One transaction in one write, as a pipelining list server does; the replies in order, the one to the dot last.
    pub(crate) async fn hand_over(&mut self, mail: &str, recipients: &[&str], content: &[u8]) -> Vec<String> {
        let mut group = format!("MAIL FROM:{mail}\r\n");
        recipients.iter().for_each(|recipient| group.push_str(&format!("RCPT TO:{recipient}\r\n")));
        group.push_str("DATA\r\n");
        self.write(group.as_bytes()).await;
        let mut replies = Vec::new();
        for _ in 0..recipients.len() + 2 {
            replies.push(self.reply().await);
        }
        if replies.last().is_some_and(|reply| reply.starts_with("354")) {
            self.write(&stuffed(content)).await;
            replies.push(self.reply().await);
        }
        replies
    }

    /// Hands over and wants every reply to be a success.
    pub(crate) async fn must_take(&mut self, mail: &str, recipients: &[&str], content: &[u8]) {
        let replies = self.hand_over(mail, recipients, content).await;
        let taken = replies.len() == recipients.len() + 3 && replies.iter().all(|reply| !reply.starts_with(['4', '5']));
        assert!(taken, "{replies:?}");
    }

    /// STARTTLS, trusting this certificate alone.
    pub(crate) async fn start_tls(mut self, trusted: &CertificateDer<'static>) -> Result<Client, std::io::Error> {
        self.expect("STARTTLS", "220 2.0.0").await;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("relay.test").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let secured = connector.connect(name, self.stream.into_inner()).await?;
        let mut client = Client { stream: BufReader::new(Box::new(secured)) };
        client.expect("EHLO lists.test", "250").await;
        Ok(client)
    }
}

/// Dot-stuffed and ended (RFC 5321 section 4.5.2).
fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 64);
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    out.extend_from_slice(b".\r\n");
    out
}
