//! The parameters of MAIL and RCPT (RFC 5321 section 4.1.1.11): each as its own RFC has it.

use crate::mail::{Body, Notify, OriginalRecipient, RecipientParams, Ret};

use super::command::{Context, Mail, syntax};
use super::reply::Reply;
use super::verp::Delimiters;
use super::xtext;

/// Calls `apply` with each parameter, its keyword in capitals; refuses doubled keywords.
pub(super) fn for_each_param(
    text: &str,
    mut apply: impl FnMut(&str, Option<&str>) -> Result<(), Reply>,
) -> Result<(), Reply> {
    let mut seen: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        let key = key.to_ascii_uppercase();
        if value == Some("") || word.chars().any(char::is_control) {
            return Err(syntax("malformed parameter"));
        }
        if seen.contains(&key) {
            return Err(syntax("a parameter is given twice"));
        }
        apply(&key, value)?;
        seen.push(key);
    }
    Ok(())
}

fn unknown() -> Reply {
    Reply::new(555, "5.5.4", "this parameter is not offered")
}

pub(super) fn mail_param(mail: &mut Mail, key: &str, value: Option<&str>, context: Context) -> Result<(), Reply> {
    let params = &mut mail.params;
    match key {
        "SIZE" => mail.size = parse_size(value)?,
        "BODY" => params.body = parse_body(value)?,
        "SMTPUTF8" => params.smtputf8 = flag(value)?,
        "RET" => params.ret = Some(parse_ret(value)?),
        "ENVID" => params.envid = Some(parse_envid(value)?),
        "AUTH" => check_auth_param(value)?,
        "REQUIRETLS" if context.requiretls => params.requiretls = flag(value)?,
        "XVERP" => mail.verp = Some(parse_xverp(value)?),
        _ => return Err(unknown()),
    }
    Ok(())
}

pub(super) fn rcpt_param(
    params: &mut RecipientParams,
    key: &str,
    value: Option<&str>,
    context: Context,
) -> Result<(), Reply> {
    match key {
        "NOTIFY" => params.notify = Some(parse_notify(value)?),
        "ORCPT" => params.orcpt = Some(parse_orcpt(value, context)?),
        _ => return Err(unknown()),
    }
    Ok(())
}

fn flag(value: Option<&str>) -> Result<bool, Reply> {
    if value.is_none() { Ok(true) } else { Err(syntax("this parameter takes no value")) }
}

/// RFC 1870 section 5: 1 to 20 digits. Zero is "unknown".
fn parse_size(value: Option<&str>) -> Result<Option<u64>, Reply> {
    let bad = || syntax("bad SIZE");
    let digits = value.filter(|v| v.len() <= 20 && v.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad)?;
    let size = digits.parse::<u64>().map_err(|_| bad())?;
    Ok(Some(size).filter(|&size| size > 0))
}

fn parse_body(value: Option<&str>) -> Result<Body, Reply> {
    match value.map(str::to_ascii_uppercase).as_deref() {
        Some("7BIT") => Ok(Body::SevenBit),
        Some("8BITMIME") => Ok(Body::EightBitMime),
        _ => Err(syntax("BODY is 7BIT or 8BITMIME")),
    }
}

fn parse_ret(value: Option<&str>) -> Result<Ret, Reply> {
    match value.map(str::to_ascii_uppercase).as_deref() {
        Some("FULL") => Ok(Ret::Full),
        Some("HDRS") => Ok(Ret::Headers),
        _ => Err(syntax("RET is FULL or HDRS")),
    }
}

/// RFC 3461 section 4.4: at most 100 octets, encoded.
fn parse_envid(value: Option<&str>) -> Result<Box<str>, Reply> {
    let decoded = value.filter(|v| v.len() <= 100).and_then(xtext::decode);
    decoded.map(Into::into).ok_or_else(|| syntax("bad ENVID"))
}

/// RFC 4954 section 5: `<>` or a mailbox in xtext. It is checked and dropped: whom we trust stands in the configuration.
fn check_auth_param(value: Option<&str>) -> Result<(), Reply> {
    let valid = value.is_some_and(|v| v == "<>" || xtext::decode(v).is_some());
    if valid { Ok(()) } else { Err(syntax("bad AUTH")) }
}

fn parse_xverp(value: Option<&str>) -> Result<Delimiters, Reply> {
    let delimiters = value.map_or(Some(Delimiters::default()), Delimiters::parse);
    delimiters.ok_or_else(|| syntax("XVERP takes two of the characters -=+"))
}

/// RFC 3461 section 4.1: NEVER alone, or a list of the others.
fn parse_notify(value: Option<&str>) -> Result<Notify, Reply> {
    let bad = || syntax("NOTIFY is NEVER, or a list of SUCCESS, FAILURE and DELAY");
    let value = value.ok_or_else(bad)?.to_ascii_uppercase();
    if value == "NEVER" {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        *match word {
            "SUCCESS" => &mut success,
            "FAILURE" => &mut failure,
            "DELAY" => &mut delay,
            _ => return Err(bad()),
        } = true;
    }
    Ok(Notify::On { success, failure, delay })
}

/// RFC 3461 section 4.2: at most 500 octets, encoded; octets above 127 only in a SMTPUTF8 transaction (RFC 6533).
fn parse_orcpt(value: Option<&str>, context: Context) -> Result<OriginalRecipient, Reply> {
    let value = value.filter(|v| v.len() <= 500 && (context.smtputf8 || v.is_ascii()));
    value.and_then(xtext::decode_orcpt).ok_or_else(|| syntax("bad ORCPT"))
}
