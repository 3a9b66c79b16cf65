//! Commands (RFC 5321 section 4.1): one line in, one [`Command`] or one refusal out.
//!
//! Verbs, parameters and their fixed values are read in any case. A parameter that we did not offer gets 555, one that
//! is malformed or doubled 501 (RFC 5321 section 4.1.1.11, RFC 3461 section 4.5).

use crate::mail::{AddressError, EnvelopeParams, Mailbox, RecipientParams, ReversePath};

use super::params::{for_each_param, mail_param, rcpt_param};
use super::reply::Reply;
use super::verp::Delimiters;

/// A command that is well formed.
#[derive(Clone, PartialEq, Eq)]
pub enum Command {
    /// HELO with the client's name, as written.
    Helo(Box<str>),
    /// EHLO with the client's name, as written.
    Ehlo(Box<str>),
    /// MAIL.
    Mail(Mail),
    /// RCPT.
    Rcpt(Rcpt),
    /// DATA.
    Data,
    /// RSET.
    Rset,
    /// NOOP.
    Noop,
    /// QUIT.
    Quit,
    /// VRFY.
    Vrfy,
    /// EXPN.
    Expn,
    /// HELP.
    Help,
    /// STARTTLS (RFC 3207).
    StartTls,
    /// AUTH (RFC 4954). Never printed.
    Auth {
        /// The mechanism, in capitals.
        mechanism: Box<str>,
        /// The initial response as written; `=` is an empty one.
        initial: Option<Box<str>>,
    },
}

impl std::fmt::Debug for Command {
    /// The verb alone: an argument may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Command::Helo(_) => "HELO",
            Command::Ehlo(_) => "EHLO",
            Command::Mail(_) => "MAIL",
            Command::Rcpt(_) => "RCPT",
            Command::Data => "DATA",
            Command::Rset => "RSET",
            Command::Noop => "NOOP",
            Command::Quit => "QUIT",
            Command::Vrfy => "VRFY",
            Command::Expn => "EXPN",
            Command::Help => "HELP",
            Command::StartTls => "STARTTLS",
            Command::Auth { .. } => "AUTH",
        })
    }
}

/// MAIL with its parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mail {
    /// The reverse-path.
    pub path: MailPath,
    /// What is passed on.
    pub params: EnvelopeParams,
    /// SIZE (RFC 1870), in octets; `None` if it was not given or is 0. Never trusted for framing.
    pub size: Option<u64>,
    /// XVERP.
    pub verp: Option<Delimiters>,
}

/// The path of MAIL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MailPath {
    /// A path.
    Path(ReversePath),
    /// A mailbox in a literal or in a domain of one label. It is well formed, but no list host can have declared such a
    /// domain, so it is answered as an undeclared one and not as a permanent error, which list software counts as a
    /// bounce of every recipient.
    Unroutable(Box<str>),
}

impl Default for MailPath {
    fn default() -> MailPath {
        MailPath::Path(ReversePath::Null)
    }
}

/// RCPT with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rcpt {
    /// The forward-path.
    pub path: ForwardPath,
    /// What is passed on.
    pub params: RecipientParams,
}

/// The path of RCPT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardPath {
    /// A mailbox.
    Mailbox(Mailbox),
    /// `<postmaster>` in any case (RFC 5321 section 4.1.1.3).
    Postmaster,
}

/// What a command's meaning depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// Whether the open transaction was begun with SMTPUTF8.
    pub smtputf8: bool,
    /// Whether REQUIRETLS is offered.
    pub requiretls: bool,
}

/// Understands one command line, without its CRLF.
///
/// # Errors
/// The reply that refuses it.
pub fn parse(line: &[u8], context: Context) -> Result<Command, Reply> {
    let text = std::str::from_utf8(line).map_err(|_| Reply::new(501, "5.5.2", "not ASCII and not UTF-8"))?;
    let text = text.trim_end_matches([' ', '\t']);
    let (verb, argument) = text.split_once(' ').unwrap_or((text, ""));
    let argument = argument.trim_start_matches(' ');
    let verb = verb.to_ascii_uppercase();
    if !matches!(&*verb, "MAIL" | "RCPT") && !argument.bytes().all(|b| matches!(b, b' '..=b'~')) {
        return Err(Reply::new(501, "5.5.2", "only printable ASCII is allowed here"));
    }
    match &*verb {
        "HELO" => greeting(argument).map(Command::Helo),
        "EHLO" => greeting(argument).map(Command::Ehlo),
        "MAIL" => parse_mail(argument, context).map(Command::Mail),
        "RCPT" => parse_rcpt(argument, context).map(Command::Rcpt),
        "DATA" => bare(argument, Command::Data),
        "RSET" => bare(argument, Command::Rset),
        "QUIT" => bare(argument, Command::Quit),
        "STARTTLS" => bare(argument, Command::StartTls),
        "NOOP" => Ok(Command::Noop),
        "HELP" => Ok(Command::Help),
        "VRFY" => with_argument(argument, Command::Vrfy),
        "EXPN" => with_argument(argument, Command::Expn),
        "AUTH" => parse_auth(argument),
        "XCLIENT" | "XFORWARD" => Err(Reply::new(550, "5.7.0", "not offered")),
        "BDAT" => Err(Reply::new(502, "5.5.1", "CHUNKING is not offered")),
        _ => Err(Reply::new(500, "5.5.1", "unknown command")),
    }
}

/// The verb of a line, whatever it is.
pub fn verb(line: &[u8]) -> &[u8] {
    line.split(|&b| b == b' ').next().unwrap_or(line)
}

/// Whether this line shows that the peer does not speak SMTP at all, or that its next octets are not commands: then
/// reading on could execute what somebody made a browser post here (ALPACA), or the octets of a BDAT chunk.
pub fn is_foreign(line: &[u8]) -> bool {
    const FOREIGN: [&[u8]; 10] =
        [b"GET", b"POST", b"PUT", b"HEAD", b"CONNECT", b"OPTIONS", b"DELETE", b"PATCH", b"HOST:", b"BDAT"];
    FOREIGN.iter().any(|foreign| verb(line).eq_ignore_ascii_case(foreign)) || is_foreign_start(line)
}

/// Whether the first octets of a connection are those of another protocol: a TLS ClientHello on the clear port, an SSH
/// banner, an RDP connection request.
pub fn is_foreign_start(octets: &[u8]) -> bool {
    octets.starts_with(&[0x16, 0x03]) || octets.starts_with(b"SSH-") || octets.starts_with(&[0x03, 0x00, 0x00])
}

pub(super) fn syntax(text: &'static str) -> Reply {
    Reply::new(501, "5.5.4", text)
}

fn greeting(name: &str) -> Result<Box<str>, Reply> {
    if name.is_empty() { Err(Reply::new(501, "5.5.4", "a name is required")) } else { Ok(name.into()) }
}

fn bare(argument: &str, command: Command) -> Result<Command, Reply> {
    if argument.is_empty() { Ok(command) } else { Err(syntax("no argument is allowed")) }
}

fn with_argument(argument: &str, command: Command) -> Result<Command, Reply> {
    if argument.is_empty() { Err(syntax("an argument is required")) } else { Ok(command) }
}

fn parse_auth(argument: &str) -> Result<Command, Reply> {
    let mut words = argument.split(' ').filter(|word| !word.is_empty());
    let (Some(mechanism), initial, None) = (words.next(), words.next(), words.next()) else {
        return Err(syntax("AUTH mechanism [initial-response]"));
    };
    Ok(Command::Auth { mechanism: mechanism.to_ascii_uppercase().into(), initial: initial.map(Into::into) })
}

fn parse_mail(argument: &str, context: Context) -> Result<Mail, Reply> {
    let (path, params) = split_path(argument, "FROM:")?;
    let mut mail = Mail::default();
    for_each_param(params, |key, value| mail_param(&mut mail, key, value, context))?;
    mail.path = parse_mail_path(path, mail.params.smtputf8)?;
    if mail.verp.is_some() && mail.path == MailPath::Path(ReversePath::Null) {
        return Err(Reply::new(503, "5.5.4", "XVERP requires a reverse-path"));
    }
    Ok(mail)
}

fn parse_mail_path(path: &str, smtputf8: bool) -> Result<MailPath, Reply> {
    if path.is_empty() {
        return Ok(MailPath::Path(ReversePath::Null));
    }
    match Mailbox::parse(path, smtputf8) {
        Ok(mailbox) => Ok(MailPath::Path(ReversePath::Mailbox(mailbox))),
        Err(AddressError::Literal | AddressError::NotQualified) => Ok(MailPath::Unroutable(path.into())),
        Err(AddressError::Domain) => Err(Reply::new(501, "5.1.8", "bad reverse-path: bad domain")),
        Err(AddressError::NeedsSmtpUtf8) => Err(needs_smtputf8()),
        Err(AddressError::LocalPart | AddressError::Syntax) => Err(Reply::new(501, "5.1.7", "bad reverse-path")),
    }
}

fn needs_smtputf8() -> Reply {
    Reply::new(553, "5.6.7", "this address needs SMTPUTF8")
}

fn parse_rcpt(argument: &str, context: Context) -> Result<Rcpt, Reply> {
    let (path, text) = split_path(argument, "TO:")?;
    let mut params = RecipientParams::default();
    for_each_param(text, |key, value| rcpt_param(&mut params, key, value, context))?;
    if path.eq_ignore_ascii_case("postmaster") {
        return Ok(Rcpt { path: ForwardPath::Postmaster, params });
    }
    let mailbox = Mailbox::parse(path, context.smtputf8).map_err(refuse_forward_path)?;
    if mailbox.local().len() > Mailbox::LOCAL_PART_MAX {
        return Err(refuse_forward_path(AddressError::LocalPart));
    }
    Ok(Rcpt { path: ForwardPath::Mailbox(mailbox), params })
}

fn refuse_forward_path(error: AddressError) -> Reply {
    let (code, enhanced) = match error {
        AddressError::LocalPart | AddressError::Syntax => (501, "5.1.3"),
        AddressError::Domain => (501, "5.1.2"),
        AddressError::NeedsSmtpUtf8 => return needs_smtputf8(),
        AddressError::Literal => (550, "5.7.1"),
        AddressError::NotQualified => (550, "5.1.2"),
    };
    Reply::new(code, enhanced, error.to_string())
}

/// Splits `FROM:<path> parameters`. Blanks after the colon are tolerated, missing angle brackets are not. A source route
/// is recognised and ignored (RFC 5321 section 4.1.1.3).
fn split_path<'a>(argument: &'a str, prefix: &str) -> Result<(&'a str, &'a str), Reply> {
    let malformed = || syntax("FROM:<path> or TO:<path> is required");
    let after = argument
        .get(..prefix.len())
        .filter(|start| start.eq_ignore_ascii_case(prefix))
        .map(|_| argument[prefix.len()..].trim_start_matches(' '))
        .and_then(|rest| rest.strip_prefix('<'))
        .ok_or_else(malformed)?;
    let end = closing_bracket(after).ok_or_else(malformed)?;
    let (path, rest) = (&after[..end], &after[end + 1..]);
    if !rest.is_empty() && !rest.starts_with(' ') {
        return Err(malformed());
    }
    Ok((without_source_route(path), rest))
}

/// Where the `>` stands that ends the path: not inside a quoted string.
fn closing_bracket(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let ends = byte == b'>' && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        ends
    })
}

fn without_source_route(path: &str) -> &str {
    match path.split_once(':') {
        Some((route, mailbox)) if route.starts_with('@') => mailbox,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use crate::mail::{Body, Ret};

    use super::*;

    fn code(line: &str) -> (u16, &'static str) {
        match parse(line.as_bytes(), Context::default()) {
            Ok(_) => (250, ""),
            Err(reply) => (reply.code(), reply.enhanced().unwrap_or("")),
        }
    }

    fn mail(line: &str) -> Mail {
        match parse(line.as_bytes(), Context::default()) {
            Ok(Command::Mail(mail)) => mail,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn rcpt(line: &str) -> Rcpt {
        match parse(line.as_bytes(), Context::default()) {
            Ok(Command::Rcpt(rcpt)) => rcpt,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn verbs_are_read_in_any_case_and_with_trailing_blanks() {
        for line in
            ["ehlo [127.0.0.1]", "mail FROM:<a@b.example> size=33200", "rcpt TO:<a@b.example>", "data  ", "qUiT"]
        {
            assert_eq!(code(line), (250, ""), "{line}");
        }
    }

    #[test]
    fn broken_commands_get_the_replies_of_the_table() {
        for (line, expected) in [
            ("", (500, "5.5.1")),
            ("FOO", (500, "5.5.1")),
            ("DATA now", (501, "5.5.4")),
            ("RSET x", (501, "5.5.4")),
            ("QUIT x", (501, "5.5.4")),
            ("STARTTLS x", (501, "5.5.4")),
            ("EHLO", (501, "5.5.4")),
            ("EHLO b\u{fc}cher", (501, "5.5.2")),
            ("VRFY", (501, "5.5.4")),
            ("XCLIENT ADDR=1.2.3.4", (550, "5.7.0")),
            ("BDAT 5 LAST", (502, "5.5.1")),
            ("MAIL FROM:a@b.example", (501, "5.5.4")),
            ("MAIL FROM: <a@b.example>", (250, "")),
            ("MAIL <a@b.example>", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example>x", (501, "5.5.4")),
            ("MAIL FROM:<a@b.example", (501, "5.5.4")),
            ("MAIL FROM:<>", (250, "")),
            ("MAIL FROM:<a@b.example.>", (501, "5.1.8")),
            ("MAIL FROM:<a b@c.example>", (501, "5.1.7")),
            ("MAIL FROM:<\u{e9}@c.example>", (553, "5.6.7")),
            ("MAIL FROM:<\u{e9}@c.example> SMTPUTF8", (250, "")),
            ("RCPT TO:<>", (501, "5.1.3")),
            ("RCPT TO:<Postmaster>", (250, "")),
            ("RCPT TO:<a@[127.0.0.1]>", (550, "5.7.1")),
            ("RCPT TO:<a@[0x7f.1]>", (501, "5.1.2")),
            ("RCPT TO:<a@localhost>", (550, "5.1.2")),
            ("RCPT TO:<a@b.example:2525>", (501, "5.1.2")),
            ("RCPT TO:<@b.example:user>", (501, "5.1.3")),
            ("RCPT TO:<\u{e9}@c.example>", (553, "5.6.7")),
            ("RCPT TO:<\"a@evil\"@c.example>", (250, "")),
            ("RCPT TO:<\"a>b\"@c.example>", (250, "")),
        ] {
            assert_eq!(code(line), expected, "{line}");
        }
    }

    #[test]
    fn broken_parameters_get_the_replies_of_the_table() {
        for (params, expected) in [
            ("SIZE=0", 250),
            ("SIZE=99999999999999999999", 501),
            ("SIZE=-1", 501),
            ("SIZE=abc", 501),
            ("SIZE=", 501),
            ("SIZE", 501),
            ("SIZE=1 size=1", 501),
            ("BODY=FOO", 501),
            ("BODY=BINARYMIME", 501),
            ("BODY=7BIT BODY=7BIT", 501),
            ("SMTPUTF8=x", 501),
            ("RET=ALL", 501),
            ("ENVID=a+00b", 501),
            ("ENVID=a+0D+0Ab", 501),
            ("ENVID=+0", 501),
            ("ENVID=a=b", 501),
            ("AUTH=<>", 250),
            ("AUTH=e+3Dmc2@example.com", 250),
            ("AUTH=a+00", 501),
            ("REQUIRETLS", 555),
            ("HOLDFOR=100", 555),
            ("BY=100;R", 555),
            ("MT-PRIORITY=3", 555),
            ("XVERP", 250),
            ("XVERP=-=", 250),
            ("XVERP=@@", 501),
        ] {
            let line = format!("MAIL FROM:<a@b.example> {params}");
            assert_eq!(code(&line).0, expected, "{line}");
        }
        for (params, expected) in [
            ("NOTIFY=NEVER", 250),
            ("NOTIFY=never", 250),
            ("NOTIFY=SUCCESS,FAILURE,DELAY", 250),
            ("NOTIFY=NEVER,FAILURE", 501),
            ("NOTIFY=", 501),
            ("NOTIFY=MAYBE", 501),
            ("NOTIFY=NEVER NOTIFY=NEVER", 501),
            ("ORCPT=rfc822;a@b.example", 250),
            ("ORCPT=rfc822;a+0Ab", 501),
            ("ORCPT=nothing", 501),
            ("RRVS=2014-04-03T23:01:00Z", 555),
            ("SIZE=1", 555),
        ] {
            let line = format!("RCPT TO:<a@b.example> {params}");
            assert_eq!(code(&line).0, expected, "{line}");
        }
    }

    #[test]
    fn limits_on_parameters_are_those_of_rfc_3461() {
        let envid = |n: usize| format!("MAIL FROM:<a@b.example> ENVID={}", "e".repeat(n));
        let orcpt = |n: usize| format!("RCPT TO:<a@b.example> ORCPT=rfc822;{}", "o".repeat(n - 7));
        assert_eq!((code(&envid(100)).0, code(&envid(101)).0), (250, 501));
        assert_eq!((code(&orcpt(500)).0, code(&orcpt(501)).0), (250, 501));
    }

    #[test]
    fn a_source_route_is_ignored() {
        let expected = ForwardPath::Mailbox(Mailbox::parse("u@c.example", false).expect("valid"));
        assert_eq!(rcpt("RCPT TO:<@a.example,@b.example:u@c.example>").path, expected);
    }

    #[test]
    fn a_long_local_part_is_a_reverse_path_but_no_forward_path() {
        let address = format!("{}@c.example", "l".repeat(65));
        assert_eq!(code(&format!("MAIL FROM:<{address}>")), (250, ""));
        assert_eq!(code(&format!("RCPT TO:<{address}>")), (501, "5.1.3"));
        assert_eq!(code(&format!("RCPT TO:<{}>", &address[1..])), (250, ""));
    }

    #[test]
    fn a_reverse_path_that_nobody_can_declare_is_told_from_a_malformed_one() {
        for path in ["list@localhost", "list@[192.0.2.1]"] {
            assert_eq!(mail(&format!("MAIL FROM:<{path}>")).path, MailPath::Unroutable(path.into()));
        }
    }

    #[test]
    fn the_parameters_of_mail_are_read() {
        let mail = mail("MAIL FROM:<a@b.example> size=10 BODY=8bitmime smtputf8 RET=hdrs ENVID=x+2By XVERP=+=");
        assert_eq!(mail.size, Some(10));
        assert_eq!(
            mail.params,
            EnvelopeParams {
                body: Body::EightBitMime,
                smtputf8: true,
                ret: Some(Ret::Headers),
                envid: Some("x+y".into()),
                requiretls: false,
            }
        );
        assert_eq!(mail.verp, Some(Delimiters { owner: '+', at: '=' }));
    }

    #[test]
    fn requiretls_is_known_only_where_it_is_offered() {
        let offered = Context { requiretls: true, ..Context::default() };
        let command = parse(b"MAIL FROM:<a@b.example> REQUIRETLS", offered);
        assert!(matches!(command, Ok(Command::Mail(mail)) if mail.params.requiretls));
    }

    #[test]
    fn other_protocols_are_recognised() {
        for line in ["GET / HTTP/1.1", "post /x", "Host: relay", "BDAT 10", "SSH-2.0-x"] {
            assert!(is_foreign(line.as_bytes()), "{line}");
        }
        assert!(is_foreign_start(&[0x16, 0x03, 0x01, 0x02]));
        assert!(!is_foreign(b"EHLO host") && !is_foreign_start(b"EH"));
    }

    #[test]
    fn a_command_never_prints_its_secrets() {
        let command = parse(b"AUTH PLAIN AGEAc2VjcmV0", Context::default());
        assert_eq!(format!("{command:?}"), "Ok(AUTH)");
    }
}
