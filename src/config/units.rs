//! The values that a configuration writes as text: `"5m"`, `"50MB"`, `"100/1m"`, `"20%"`, `"lmtp://lists:8024"`.
//!
//! Each type reads what a person would write and writes the same form back, so that `config show` prints a
//! configuration that can be used. A value that exists is within its range.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use crate::attempt::{BounceAddress, Rate};

/// A length of time: `"250ms"`, `"5m"`, `"1h 30m"`. Units are `ms`, `s`, `m`, `h`, `d` (24 hours) and `w`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Units of [`Span`] in milliseconds, largest first.
const SPAN_UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Span {
    /// `seconds` seconds.
    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// `milliseconds` milliseconds.
    pub const fn milliseconds(milliseconds: u64) -> Span {
        Span(Duration::from_millis(milliseconds))
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Span, Self::Err> {
        const WANTED: &str = "a duration such as \"250ms\", \"5m\", \"1h 30m\" or \"5d\"";
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(WANTED);
        }
        let mut total = 0u64;
        while !rest.is_empty() {
            let (millis, tail) = span_part(rest).ok_or(WANTED)?;
            total = total.checked_add(millis).ok_or("a duration below 500 million years")?;
            rest = tail.trim_start();
        }
        Ok(Span(Duration::from_millis(total)))
    }
}

/// One number with its unit in milliseconds, and what follows it.
fn span_part(text: &str) -> Option<(u64, &str)> {
    let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let rest = rest.trim_start();
    let (unit, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()));
    let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit)?;
    Some((number.parse::<u64>().ok()?.checked_mul(*factor)?, tail))
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        let mut gap = "";
        for (unit, factor) in SPAN_UNITS {
            // Weeks are read but not written: "14d" is what people say.
            if unit != "w" && left >= factor {
                write!(f, "{gap}{}{unit}", left / factor)?;
                left %= factor;
                gap = " ";
            }
        }
        Ok(())
    }
}

/// A number of octets: `"50MB"` (10^6), `"64MiB"` (2^20), or a bare integer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Size, Self::Err> {
        text.parse::<ByteSize>().map(|size| Size(size.0)).map_err(|_| "a size such as \"50MB\" or \"64MiB\"")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 6] = [
            ("GiB", 1 << 30),
            ("GB", 1_000_000_000),
            ("MiB", 1 << 20),
            ("MB", 1_000_000),
            ("KiB", 1 << 10),
            ("KB", 1000),
        ];
        match UNITS.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A share: `"20%"`, or a bare integer from 0 to 100.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Percent, Self::Err> {
        let number = text.trim().strip_suffix('%').map(str::trim_end).and_then(|number| number.parse().ok());
        number.filter(|n| *n <= 100).map(Percent).ok_or("a share such as \"20%\", at most \"100%\"")
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// So many per time: `"100/1m"`, `"10/s"`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PerTime(pub Rate);

impl FromStr for PerTime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<PerTime, Self::Err> {
        const WANTED: &str = "a rate such as \"100/1m\" or \"10/s\", neither part zero";
        let (count, period) = text.split_once('/').ok_or(WANTED)?;
        let period = period.trim();
        // "10/s" means "10/1s".
        let period =
            if period.starts_with(|c: char| c.is_ascii_digit()) { period.into() } else { format!("1{period}") };
        let rate = Rate {
            count: count.trim().parse().map_err(|_| WANTED)?,
            period: period.parse::<Span>().map_err(|_| WANTED)?.0,
        };
        if rate.count == 0 || rate.period.is_zero() { Err(WANTED) } else { Ok(PerTime(rate)) }
    }
}

impl fmt::Display for PerTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.count, Span(self.0.period))
    }
}

/// Octets per second, written in bits or octets: `"1.5Mbit/s"`, `"200kB/s"`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth(pub u64);

/// Units of [`Bandwidth`] in bits per second.
const BANDWIDTH_UNITS: [(&str, f64); 9] = [
    ("bit/s", 1.0),
    ("kbit/s", 1e3),
    ("Mbit/s", 1e6),
    ("Gbit/s", 1e9),
    ("B/s", 8.0),
    ("kB/s", 8e3),
    ("MB/s", 8e6),
    ("KiB/s", 8192.0),
    ("MiB/s", 8_388_608.0),
];

impl FromStr for Bandwidth {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Bandwidth, Self::Err> {
        const WANTED: &str = "a bandwidth such as \"1.5Mbit/s\" or \"200kB/s\", at least \"64kbit/s\"";
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(WANTED)?;
        let (number, unit) = (text[..end].parse::<f64>(), text[end..].trim_start());
        let factor = BANDWIDTH_UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        let bits = number.ok().zip(factor).map(|(number, factor)| number * factor).ok_or(WANTED)?;
        // A slower line is none; a faster one than 100 Tbit/s neither.
        if (64e3..=1e14).contains(&bits) { Ok(Bandwidth((bits / 8.0).round() as u64)) } else { Err(WANTED) }
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 * 8;
        let unit = [("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1000)];
        let (unit, factor) = unit.into_iter().find(|(_, factor)| bits.is_multiple_of(*factor)).unwrap_or(("bit/s", 1));
        write!(f, "{}{unit}", bits / factor)
    }
}

/// Where a list host takes its bounces: `"host:port"`, `"smtp://host"` (port 25) or `"lmtp://host"` (port 24).
#[derive(Clone, PartialEq, Eq)]
pub struct BounceUrl(pub BounceAddress);

impl FromStr for BounceUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<BounceUrl, Self::Err> {
        const WANTED: &str = "\"host:port\", \"smtp://host:port\" or \"lmtp://host:port\"";
        let (lmtp, authority) = match text.split_once("://") {
            None => (false, text),
            Some(("smtp", authority)) => (false, authority),
            Some(("lmtp", authority)) => (true, authority),
            Some(_) => return Err(WANTED),
        };
        let (host, port) = host_and_port(authority, if lmtp { 24 } else { 25 }).ok_or(WANTED)?;
        Ok(BounceUrl(BounceAddress { lmtp, host: host.into(), port }))
    }
}

/// Takes `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address apart.
fn host_and_port(authority: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = if authority.parse::<IpAddr>().is_ok() {
        (authority, None)
    } else if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        host.parse::<IpAddr>().ok()?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        authority.rsplit_once(':').map_or((authority, None), |(host, port)| (host, Some(port)))
    };
    let port = port.map_or(Ok(default), str::parse).ok().filter(|port| *port != 0)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (!host.is_empty() && host.chars().all(is_name)).then_some((host, port))
}

impl fmt::Display for BounceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BounceAddress { lmtp, host, port } = &self.0;
        let scheme = if *lmtp { "lmtp" } else { "smtp" };
        if host.contains(':') { write!(f, "{scheme}://[{host}]:{port}") } else { write!(f, "{scheme}://{host}:{port}") }
    }
}

/// A next hop: `"host:port"`; port 25 where none is given.
#[derive(Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<HostPort, Self::Err> {
        let (host, port) = host_and_port(text, 25).ok_or("a host such as \"smtp.example.net:587\"")?;
        Ok(HostPort { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPort { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A name server: an address, with port 53 where none is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NameServer(pub SocketAddr);

impl FromStr for NameServer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<NameServer, Self::Err> {
        let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        text.parse()
            .or_else(|_| bare())
            .map(NameServer)
            .map_err(|_| "an address such as \"192.0.2.53\" or \"127.0.0.1:5300\"")
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a value from its text, or from a bare integer where `from_integer` takes one.
struct TextVisitor<T> {
    from_integer: Option<fn(u64) -> Option<T>>,
    wanted: &'static str,
}

impl<T: FromStr<Err = &'static str>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wanted)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|wanted| E::custom(format_args!("{text:?} is not {wanted}")))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<T, E> {
        let read = self.from_integer.and_then(|read| read(u64::try_from(value).ok()?));
        read.ok_or_else(|| E::invalid_type(de::Unexpected::Signed(value), &self))
    }
}

/// Implements serde for a type by its text.
macro_rules! as_text {
    ($type:ty, $wanted:literal, $from_integer:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_any(TextVisitor { from_integer: $from_integer, wanted: $wanted })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

as_text!(Span, "a duration with its unit, such as \"250ms\", \"5m\" or \"1h 30m\"", None);
as_text!(Size, "a size such as \"50MB\" or \"64MiB\"", Some(|octets| Some(Size(octets))));
as_text!(Percent, "a share such as \"20%\"", Some(|n| u32::try_from(n).ok().filter(|n| *n <= 100).map(Percent)));
as_text!(PerTime, "a rate such as \"100/1m\"", None);
as_text!(Bandwidth, "a bandwidth such as \"1.5Mbit/s\" or \"200kB/s\"", None);
as_text!(BounceUrl, "\"host:port\", \"smtp://host:port\" or \"lmtp://host:port\"", None);
as_text!(HostPort, "a host such as \"smtp.example.net:587\"", None);
as_text!(NameServer, "an address such as \"192.0.2.53\" or \"127.0.0.1:5300\"", None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_as_people_write_it() {
        let read = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis());
        assert_eq!(read("250ms"), Ok(250));
        assert_eq!(read("5m"), Ok(300_000));
        assert_eq!(read("1h 30m"), Ok(5_400_000));
        assert_eq!(read("1h30m"), Ok(5_400_000));
        assert_eq!(read("2 d"), Ok(172_800_000));
        assert_eq!(read("0s"), Ok(0));
        for bad in ["", "5", "m", "5 minits", "-5m", "1.5h", "5m,", "99999999999999999999s", "999999999999999999w"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_text_value_is_written_as_it_is_read() {
        fn same<T: FromStr<Err = &'static str> + fmt::Display>(texts: &[&str]) {
            for text in texts {
                assert_eq!(text.parse::<T>().map(|value| value.to_string()), Ok((*text).to_owned()));
            }
        }
        same::<Span>(&["250ms", "1h 30m", "14d", "0s", "1m 500ms"]);
        same::<Size>(&["50MB", "64MiB", "0B", "1GiB", "1023B"]);
        same::<Percent>(&["0%", "20%"]);
        same::<PerTime>(&["100/1m", "10/1s"]);
        same::<BounceUrl>(&["smtp://lists.example.org:2600", "lmtp://[::1]:8024", "smtp://127.0.0.1:25"]);
        same::<HostPort>(&["smtp.example.net:587", "[::1]:25"]);
        same::<NameServer>(&["127.0.0.1:5300", "[::1]:53"]);
    }

    #[test]
    fn a_bounce_address_needs_no_scheme_and_no_port() {
        let read = |text: &str| text.parse::<BounceUrl>().map(|url| url.0);
        let address = |lmtp, host: &str, port| Ok(BounceAddress { lmtp, host: host.into(), port });
        assert_eq!(read("127.0.0.1:2600"), address(false, "127.0.0.1", 2600));
        assert_eq!(read("lists.example.org"), address(false, "lists.example.org", 25));
        assert_eq!(read("lmtp://lists.example.org"), address(true, "lists.example.org", 24));
        assert_eq!(read("::1"), address(false, "::1", 25));
        for bad in ["", ":25", "http://x", "host:0", "host:70000", "[host]:25", "a b:25", "u@host:25", "host:25/x"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bandwidth_reads_in_bits_and_in_octets() {
        let read = |text: &str| text.parse::<Bandwidth>().map(|bandwidth| bandwidth.0);
        assert_eq!(read("1.5Mbit/s"), Ok(187_500));
        assert_eq!(read("200 kB/s"), Ok(200_000));
        assert_eq!(read("1MiB/s"), Ok(1 << 20));
        for bad in ["", "0Mbit/s", "1.5", "1.5Mb", "1.5.5Mbit/s", "Mbit/s", "1bit/s", "-1Mbit/s", "1e9Mbit/s"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert_eq!(read("1.5Mbit/s").map(|octets| Bandwidth(octets).to_string()), Ok("1500kbit/s".to_owned()));
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        for bad in ["0/1m", "5/0s", "5", "/m", "5/"] {
            assert!(bad.parse::<PerTime>().is_err(), "{bad:?}");
        }
        assert_eq!("10/s".parse(), Ok(PerTime(Rate { count: 10, period: Duration::from_secs(1) })));
    }
}
