//! Our Received line (RFC 5321 section 4.4), composed per attempt.
//!
//! No FOR: with several recipients it would tell each who the others are (section 7.2). The id is the attempt's: `trace`
//! maps it to queue ids. The date is that of the acceptance.

use std::fmt::Write;
use std::net::IpAddr;

use crate::mail::{AttemptId, Trace};

/// The line, folded, with its final CRLF.
pub(super) fn line(trace: &Trace, hostname: &str, id: AttemptId) -> String {
    let mut line = String::with_capacity(192);
    let date = trace.at.strftime("%a, %d %b %Y %H:%M:%S +0000");
    let protocol = &trace.protocol;
    // Writing to a String never fails.
    let _ = match trace.peer {
        Some(peer) => {
            let from = from_clause(&trace.helo, peer);
            write!(
                line,
                "Received: from {from}\r\n\tby {hostname} (Posthaste) with {protocol}\r\n\tid {id};\r\n\t{date}\r\n"
            )
        }
        None => write!(line, "Received: by {hostname} (Posthaste)\r\n\tid {id};\r\n\t{date}\r\n"),
    };
    line
}

/// `helo ([192.0.2.1])`, with the address literal of section 4.1.3.
fn from_clause(helo: &str, peer: IpAddr) -> String {
    match peer.to_canonical() {
        IpAddr::V4(v4) => format!("{helo} ([{v4}])"),
        IpAddr::V6(v6) => format!("{helo} ([IPv6:{v6}])"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(peer: Option<&str>) -> Trace {
        Trace {
            helo: "lists.example.org".into(),
            peer: peer.map(|ip| ip.parse().expect("an address")),
            protocol: "ESMTPS".into(),
            at: "2026-11-24T07:11:00Z".parse().expect("a time"),
        }
    }

    #[test]
    fn the_received_line_says_from_by_with_id_and_date() {
        assert_eq!(
            line(&trace(Some("192.0.2.1")), "relay.example.net", AttemptId(10)),
            "Received: from lists.example.org ([192.0.2.1])\r\n\tby relay.example.net (Posthaste) with ESMTPS\r\n\t\
             id 0000000A;\r\n\tTue, 24 Nov 2026 07:11:00 +0000\r\n"
        );
        assert!(line(&trace(Some("2001:db8::1")), "r", AttemptId(1)).contains("([IPv6:2001:db8::1])"));
        assert!(line(&trace(Some("::ffff:192.0.2.1")), "r", AttemptId(1)).contains("([192.0.2.1])"));
    }

    #[test]
    fn our_own_dsn_comes_from_nobody() {
        assert_eq!(
            line(&trace(None), "relay.example.net", AttemptId(10)),
            "Received: by relay.example.net (Posthaste)\r\n\tid 0000000A;\r\n\tTue, 24 Nov 2026 07:11:00 +0000\r\n"
        );
    }
}
