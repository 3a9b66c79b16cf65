//! Which addresses are no next hop, whatever the DNS says: our own, and ranges that are not the public Internet. Whoever can
//! publish an MX record would otherwise reach into our network, or make us talk to ourselves.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::IpNet;

/// What stands against an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Objection {
    /// It is one of our own listeners.
    Ourselves,
    /// It lies in a prohibited range and is not allowed by configuration.
    Prohibited,
}

/// Judges one address of a next hop.
pub(super) fn objection(address: SocketAddr, own: &[SocketAddr], allowed: &[IpNet]) -> Option<Objection> {
    let ip = address.ip().to_canonical();
    if is_own_listener(SocketAddr::new(ip, address.port()), own) {
        Some(Objection::Ourselves)
    } else if is_prohibited(ip) && !allowed.iter().any(|network| network.contains(&ip)) {
        Some(Objection::Prohibited)
    } else {
        None
    }
}

fn is_own_listener(address: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().filter(|own| own.port() == address.port()).any(|own| {
        let ip = own.ip().to_canonical();
        ip == address.ip() || (ip.is_unspecified() && is_local(address.ip()))
    })
}

/// Whether this machine has the address: only then can a socket be bound to it. Asked only for a listener on all addresses
/// and the very port that it listens on.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

fn is_prohibited(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_prohibited_v4(v4),
        IpAddr::V6(v6) => is_prohibited_v6(v6),
    }
}

fn is_prohibited_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b); // RFC 6598
    a == 0 || a >= 240 || shared || ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_multicast()
}

fn is_prohibited_v6(ip: Ipv6Addr) -> bool {
    let compatible = matches!(ip.segments(), [0, 0, 0, 0, 0, 0, _, _]); // ::, ::1, and IPv4-compatible
    compatible || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(ip: &str, port: u16, own: &[&str], allowed: &[&str]) -> Option<Objection> {
        let own: Vec<_> = own.iter().map(|a| a.parse().expect("an address")).collect();
        let allowed: Vec<_> = allowed.iter().map(|n| n.parse().expect("a network")).collect();
        objection(SocketAddr::new(ip.parse().expect("an address"), port), &own, &allowed)
    }

    #[test]
    fn private_and_special_ranges_are_prohibited() {
        for ip in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(judged(ip, 25, &[], &[]), Some(Objection::Prohibited), "{ip}");
        }
        for ip in ["192.0.2.1", "8.8.8.8", "100.63.0.1", "100.128.0.1", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert_eq!(judged(ip, 25, &[], &[]), None, "{ip}");
        }
    }

    #[test]
    fn what_is_allowed_passes_but_our_own_listener_never_does() {
        assert_eq!(judged("127.0.0.2", 25, &[], &["127.0.0.0/8"]), None);
        assert_eq!(judged("::ffff:127.0.0.2", 25, &[], &["127.0.0.0/8"]), None);
        let own = ["127.0.0.1:2525"];
        assert_eq!(judged("127.0.0.1", 2525, &own, &["127.0.0.0/8"]), Some(Objection::Ourselves));
        assert_eq!(judged("127.0.0.1", 2526, &own, &["127.0.0.0/8"]), None);
        assert_eq!(judged("::ffff:127.0.0.1", 2525, &own, &["127.0.0.0/8"]), Some(Objection::Ourselves));
        assert_eq!(judged("127.0.0.9", 2525, &["0.0.0.0:2525"], &["127.0.0.0/8"]), Some(Objection::Ourselves));
        assert_eq!(judged("192.0.2.1", 2525, &["0.0.0.0:2525"], &[]), None);
    }
}
