//! Partners, through real relays: mail takes the way round once, never twice, and arrives whether the partner works or not.

use std::net::SocketAddr;
use std::time::Duration;

use posthaste::rehearse::internet::Internet;
use posthaste::rehearse::relay::{Program, Relay, Workspace, free_address};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(30);

/// A relay that gives all its mail to a partner at `partner`. `flag`: what stands in its `[[list_host]]`.
async fn relay(
    name: &str,
    internet: &Internet,
    listen: SocketAddr,
    partner: SocketAddr,
    flag: &str,
) -> (Relay, Workspace) {
    let (dns, port, admin) = (internet.dns_address, internet.port, free_address().expect("a free port"));
    let bounces = internet.address_of("mx.lists.test").expect("described");
    let text = format!(
        r#"
        hostname = "{name}.test"
        [spool]
        path = "spool"
        reserve_bytes = "1MiB"
        [[listener]]
        address = "{listen}"
        [[list_host]]
        name = "lists"
        networks = ["127.0.0.0/8"]
        reverse_path_domains = ["lists.test"]
        bounces_to = "{bounces}"
        {flag}
        [[partner]]
        name = "friend"
        hosts = ["{partner}"]
        tls = "off"
        suffixes = ["*"]
        condition = "always"
        [dns]
        servers = ["{dns}"]
        [delivery]
        port = {port}
        allow_networks = ["127.0.0.0/8"]
        [dispatch]
        coalesce_quiet = "20ms"
        [admin]
        address = "{admin}"
        "#
    );
    let workspace = Workspace::new(None).expect("a directory");
    let config = workspace.path().join("posthaste.toml");
    std::fs::write(&config, text).expect("written");
    let program = Program {
        path: env!("CARGO_BIN_EXE_posthaste").into(),
        config,
        log: workspace.path().join("relay.log"),
        admin,
        fd_limit: None,
        patience: PATIENCE,
    };
    (Relay::start(program).await.expect("the relay starts"), workspace)
}

async fn internet() -> Internet {
    let builder = Internet::builder().domain("a.test", |d| d).domain("lists.test", |d| d).keep_content();
    builder.start().await.expect("the simulated internet starts")
}

/// Hands one message for `ann@a.test` to the relay.
async fn send(relay: SocketAddr) {
    let mut stream = BufReader::new(TcpStream::connect(relay).await.expect("connected"));
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("a greeting");
    for command in [
        "HELO lists.test\r\n",
        "MAIL FROM:<news-bounces@lists.test>\r\n",
        "RCPT TO:<ann@a.test>\r\n",
        "DATA\r\n",
        "Subject: s\r\n\r\nbody\r\n.\r\n",
    ] {
        stream.get_mut().write_all(command.as_bytes()).await.expect("sent");
        line.clear();
        stream.read_line(&mut line).await.expect("a reply");
        assert!(line.starts_with(['2', '3']), "{command} {line}");
    }
}

/// Waits for the one copy, and for another that must not come; whose Received lines it bears, the last first.
async fn trace(internet: &Internet) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    while internet.delivered("ann@a.test") == 0 {
        assert!(Instant::now() < deadline, "nothing arrived");
        sleep(Duration::from_millis(20)).await;
    }
    sleep(Duration::from_millis(500)).await;
    assert_eq!(internet.delivered("ann@a.test"), 1);
    let content = String::from_utf8_lossy(&internet.deliveries()[0].content).into_owned();
    let ours = |line: &str| Some(line.trim().strip_prefix("by ")?.split_once(" (Posthaste)")?.0.to_owned());
    content.lines().filter_map(ours).collect()
}

/// What arrives if two relays are each other's partner; `flag`: how the second knows the first.
async fn round_trip(flag: &str) -> Vec<String> {
    let internet = internet().await;
    let (one, two) = (free_address().expect("a port"), free_address().expect("a port"));
    let _one = relay("one", &internet, one, two, "").await;
    let _two = relay("two", &internet, two, one, flag).await;
    send(one).await;
    trace(&internet).await
}

#[tokio::test]
async fn mail_from_a_partner_is_delivered_and_not_handed_on() {
    assert_eq!(round_trip("partner = \"friend\"").await, ["two.test", "one.test"]);
}

#[tokio::test]
async fn two_relays_that_do_not_know_of_each_other_do_not_loop() {
    assert_eq!(round_trip("").await, ["one.test", "two.test", "one.test"]);
}

#[tokio::test]
async fn what_a_partner_does_not_take_goes_direct_at_once() {
    let internet = internet().await;
    let (one, nobody) = (free_address().expect("a port"), free_address().expect("a port"));
    let _one = relay("one", &internet, one, nobody, "").await;
    send(one).await;
    assert_eq!(trace(&internet).await, ["one.test"]);
}

#[tokio::test]
async fn a_partner_that_denies_relaying_bounces_nobody() {
    let internet = internet().await;
    let one = free_address().expect("a port");
    let stranger = internet.address_of("mx.lists.test").expect("an exchanger of another domain");
    let _one = relay("one", &internet, one, stranger, "").await;
    send(one).await;
    assert_eq!(trace(&internet).await, ["one.test"]);
    assert_eq!(internet.strays(), 1, "it was asked, and said 550 5.7.1");
}
