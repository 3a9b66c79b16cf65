//! The AUTH exchange (RFC 4954) with the mechanisms PLAIN (RFC 4616) and LOGIN. Whether a password is right is asked
//! elsewhere.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::reply::Reply;

/// What a client claims. Never printed, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name (authentication identity).
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What the next line of the client is.
#[derive(Debug)]
pub(super) enum Exchange {
    /// The message of PLAIN.
    Plain,
    /// The user's name of LOGIN.
    LoginUser,
    /// The password of LOGIN.
    LoginPassword {
        /// The name that was given.
        user: String,
    },
}

/// Where the exchange stands after a line.
#[derive(Debug)]
pub(super) enum Progress {
    /// Another line is asked for.
    Challenge(Exchange, Reply),
    /// All is said.
    Check(Credentials),
    /// It is over.
    Refused(Reply),
}

/// Begins an exchange. The initial response `=` is an empty one (RFC 4954 section 4).
pub(super) fn begin(mechanism: &str, initial: Option<&str>) -> Progress {
    let (exchange, challenge) = match mechanism {
        "PLAIN" => (Exchange::Plain, ""),
        "LOGIN" => (Exchange::LoginUser, "VXNlcm5hbWU6"),
        _ => return Progress::Refused(Reply::new(504, "5.5.4", "mechanisms are PLAIN and LOGIN")),
    };
    match initial {
        Some("=") => proceed(exchange, b""),
        Some(response) => proceed(exchange, response.as_bytes()),
        None => Progress::Challenge(exchange, Reply::plain(334, challenge)),
    }
}

/// Takes the client's next line.
pub(super) fn proceed(exchange: Exchange, line: &[u8]) -> Progress {
    if line == b"*" {
        return Progress::Refused(Reply::new(501, "5.7.0", "authentication cancelled"));
    }
    let Ok(response) = STANDARD.decode(line) else {
        return Progress::Refused(Reply::new(501, "5.5.2", "bad base64"));
    };
    let Ok(response) = String::from_utf8(response) else { return Progress::Refused(denied()) };
    match exchange {
        Exchange::Plain => plain(&response),
        Exchange::LoginUser => {
            let prompt = Reply::plain(334, "UGFzc3dvcmQ6");
            Progress::Challenge(Exchange::LoginPassword { user: response }, prompt)
        }
        Exchange::LoginPassword { user } => Progress::Check(Credentials { user, password: response }),
    }
}

/// RFC 4616 section 2: `[authzid] NUL authcid NUL passwd`. Acting for somebody else is not offered.
fn plain(message: &str) -> Progress {
    match message.split('\0').collect::<Vec<_>>()[..] {
        [authzid, user, password] if authzid.is_empty() || authzid == user => {
            Progress::Check(Credentials { user: user.into(), password: password.into() })
        }
        _ => Progress::Refused(denied()),
    }
}

/// The one answer to wrong credentials, whatever was wrong with them.
pub(super) fn denied() -> Reply {
    Reply::new(535, "5.7.8", "authentication failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(progress: Progress) -> String {
        match progress {
            Progress::Challenge(_, reply) | Progress::Refused(reply) => format!("{} {}", reply.code(), reply.text()),
            Progress::Check(Credentials { user, password }) => format!("{user}:{password}"),
        }
    }

    fn coded(text: &str) -> String {
        STANDARD.encode(text)
    }

    #[test]
    fn plain_is_read_with_and_without_an_initial_response() {
        assert_eq!(said(begin("PLAIN", Some(&coded("\0user\0secret")))), "user:secret");
        assert_eq!(said(begin("PLAIN", None)), "334 ");
        assert_eq!(said(proceed(Exchange::Plain, coded("user\0user\0s").as_bytes())), "user:s");
    }

    #[test]
    fn login_asks_for_name_and_password() {
        let Progress::Challenge(exchange, _) = begin("LOGIN", Some(&coded("user"))) else { panic!("no challenge") };
        assert_eq!(said(proceed(exchange, coded("secret").as_bytes())), "user:secret");
    }

    #[test]
    fn broken_exchanges_are_refused() {
        assert!(said(begin("CRAM-MD5", None)).starts_with("504"));
        assert!(said(begin("PLAIN", Some("%%"))).starts_with("501"));
        assert!(said(begin("PLAIN", Some("*"))).starts_with("501"));
        for message in ["", "user\0secret", "admin\0user\0secret", "\0user\0sec\0ret"] {
            assert!(said(begin("PLAIN", Some(&coded(message)))).starts_with("535"), "{message:?}");
        }
        assert!(said(begin("PLAIN", Some("="))).starts_with("535"));
    }
}
