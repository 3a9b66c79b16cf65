//! MAIL and RCPT as a particular host can take them, and whether it can take this message at all.
//!
//! Parameters go out only where the host offers their extension (RFC 5321 section 4.1.1.11), and unchanged (RFC 3461 section
//! 5.2.1). Nothing is downgraded in silence (RFC 6531 section 3.2).

use std::io::Write;

use super::capabilities::Capabilities;
use super::classify::{self, Setback};
use crate::attempt::Attempt;
use crate::mail::{Body, EnvelopeParams, Recipient, Ret};
use crate::outcome::{Enhanced, Outcome, Phase, Reason, Scope};

/// What is to be said to a host.
#[derive(Debug)]
pub(super) struct Plan {
    /// Indices of the recipients to name in RCPT.
    pub(super) named: Vec<usize>,
    /// Outcomes that are settled without asking the host, by recipient; `None` for those who are named.
    pub(super) settled: Vec<Option<Outcome>>,
}

/// What the host is judged by.
pub(super) struct Matter<'a> {
    /// The attempt.
    pub(super) attempt: &'a Attempt,
    /// The content, dot-stuffed.
    pub(super) content: &'a [u8],
    /// Octets of the message with our Received line and the signatures, as RFC 1870 counts them.
    pub(super) size: u64,
    /// Whether 8-bit content may go to a host without 8BITMIME.
    pub(super) pass_eight_bit: bool,
}

/// Decides what can be said to this host.
///
/// # Errors
/// A permanent setback if nobody of the attempt can be served by this host; another one may do.
pub(super) fn plan(matter: &Matter<'_>, host: &Capabilities, remote: &str) -> Result<Plan, Setback> {
    check_requiretls(matter, host, remote)?;
    check_size(matter, host, remote)?;
    check_body(matter, host, remote)?;
    check_utf8(matter, host, remote)?;
    let recipients = &matter.attempt.recipients;
    let mut plan = Plan { named: Vec::with_capacity(recipients.len()), settled: Vec::with_capacity(recipients.len()) };
    let limit = host.rcpt_max.map_or(usize::MAX, |limit| limit as usize);
    for (index, queued) in recipients.iter().enumerate() {
        let settled = if !host.smtputf8 && !queued.recipient.path.is_ascii() {
            Some(Outcome::Failed(needs_utf8(remote).reason))
        } else if plan.named.len() >= limit {
            Some(Outcome::NotTried)
        } else {
            plan.named.push(index);
            None
        };
        plan.settled.push(settled);
    }
    if plan.named.is_empty() { Err(needs_utf8(remote)) } else { Ok(plan) }
}

/// The message goes only to hosts that promise to pass the demand on (RFC 8689 section 4.2.1).
fn check_requiretls(matter: &Matter<'_>, host: &Capabilities, remote: &str) -> Result<(), Setback> {
    if host.requiretls || !matter.attempt.envelope.params.requiretls {
        return Ok(());
    }
    Err(unfit(Enhanced::new(5, 7, 30), "the message asks for REQUIRETLS and the host does not offer it", remote))
}

fn check_size(matter: &Matter<'_>, host: &Capabilities, remote: &str) -> Result<(), Setback> {
    if !host.is_too_big(matter.size) {
        return Ok(());
    }
    let limit = host.size.unwrap_or(0);
    let text = format!("the message of {} octets is bigger than the {limit} that the host takes", matter.size);
    Err(unfit(Enhanced::new(5, 3, 4), &text, remote))
}

fn check_body(matter: &Matter<'_>, host: &Capabilities, remote: &str) -> Result<(), Setback> {
    if host.eight_bit_mime || matter.pass_eight_bit || !matter.attempt.envelope.eight_bit {
        return Ok(());
    }
    Err(unfit(Enhanced::new(5, 6, 3), "the message holds 8-bit text and the host does not offer 8BITMIME", remote))
}

fn check_utf8(matter: &Matter<'_>, host: &Capabilities, remote: &str) -> Result<(), Setback> {
    let envelope = &matter.attempt.envelope;
    if host.smtputf8 {
        return Ok(());
    }
    if !envelope.reverse_path.as_str().is_ascii() {
        return Err(needs_utf8(remote));
    }
    // Only a message that was submitted as internationalised may have such a header section; a stray Latin-1 header in an
    // ordinary one passes as it always has.
    if envelope.params.smtputf8 && envelope.eight_bit && !header_section(matter.content).is_ascii() {
        return Err(unfit(
            Enhanced::new(5, 6, 9),
            "internationalised header and the host does not offer SMTPUTF8",
            remote,
        ));
    }
    Ok(())
}

fn header_section(content: &[u8]) -> &[u8] {
    let end = memchr::memmem::find(content, b"\r\n\r\n").unwrap_or(content.len());
    &content[..end]
}

fn needs_utf8(remote: &str) -> Setback {
    unfit(Enhanced::new(5, 6, 7), "internationalised address and the host does not offer SMTPUTF8", remote)
}

fn unfit(status: Enhanced, text: &str, remote: &str) -> Setback {
    let setback = classify::decided(Phase::Mail, Scope::Message, status, text, Some(remote));
    // An address concerns its recipients only; whoever else has the same message is not affected.
    let scope = if status.detail == 7 { Scope::Recipient } else { Scope::Message };
    Setback { reason: Reason { scope, ..setback.reason }, ..setback }
}

/// Appends the MAIL command.
pub(super) fn write_mail(out: &mut Vec<u8>, matter: &Matter<'_>, host: &Capabilities) {
    let envelope = &matter.attempt.envelope;
    let params = &envelope.params;
    push(out, format_args!("MAIL FROM:{}", envelope.reverse_path));
    if host.size.is_some() {
        push(out, format_args!(" SIZE={}", matter.size));
    }
    if host.eight_bit_mime && (envelope.eight_bit || params.body == Body::EightBitMime) {
        push(out, format_args!(" BODY=8BITMIME"));
    }
    if host.smtputf8 && params.smtputf8 {
        push(out, format_args!(" SMTPUTF8"));
    }
    if host.requiretls && params.requiretls {
        push(out, format_args!(" REQUIRETLS"));
    }
    if host.dsn {
        write_dsn_of_mail(out, params);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_dsn_of_mail(out: &mut Vec<u8>, params: &EnvelopeParams) {
    match params.ret {
        Some(Ret::Full) => push(out, format_args!(" RET=FULL")),
        Some(Ret::Headers) => push(out, format_args!(" RET=HDRS")),
        None => {}
    }
    if let Some(envid) = &params.envid {
        push(out, format_args!(" ENVID="));
        write_xtext(out, envid);
    }
}

/// Appends a RCPT command. `utf8`: whether the transaction is an internationalised one.
pub(super) fn write_rcpt(out: &mut Vec<u8>, recipient: &Recipient, host: &Capabilities, utf8: bool) {
    push(out, format_args!("RCPT TO:<{}>", recipient.path));
    if host.dsn {
        if let Some(notify) = recipient.params.notify {
            push(out, format_args!(" NOTIFY={notify}"));
        }
        if let Some(orcpt) = &recipient.params.orcpt {
            push(out, format_args!(" ORCPT={};", orcpt.address_type));
            write_address(out, &orcpt.address, &orcpt.address_type, utf8);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// xtext (RFC 3461 section 4); for the address type `utf-8` the forms of RFC 6533 section 3.
fn write_address(out: &mut Vec<u8>, address: &str, address_type: &str, utf8: bool) {
    if address.is_ascii() || !address_type.eq_ignore_ascii_case("utf-8") {
        return write_xtext(out, address);
    }
    for c in address.chars() {
        match c {
            _ if c.is_ascii() => write_xtext(out, c.encode_utf8(&mut [0; 4])),
            _ if utf8 => push(out, format_args!("{c}")),
            _ => push(out, format_args!("\\x{{{:X}}}", u32::from(c))),
        }
    }
}

fn write_xtext(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'+' | b'=' => push(out, format_args!("+{byte:02X}")),
            b'!'..=b'~' => out.push(byte),
            _ => push(out, format_args!("+{byte:02X}")),
        }
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec never fails.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{attempt, queued};
    use super::*;
    use crate::mail::{Mailbox, Notify, OriginalRecipient, RecipientParams, ReversePath};

    fn matter<'a>(attempt: &'a Attempt, content: &'a [u8]) -> Matter<'a> {
        Matter { attempt, content, size: 1000, pass_eight_bit: false }
    }

    fn everything() -> Capabilities {
        Capabilities { eight_bit_mime: true, smtputf8: true, dsn: true, size: Some(0), ..Capabilities::default() }
    }

    fn recipient(path: &str, orcpt: Option<(&str, &str)>) -> Recipient {
        let orcpt =
            orcpt.map(|(kind, address)| OriginalRecipient { address_type: kind.into(), address: address.into() });
        let notify = orcpt.as_ref().map(|_| Notify::On { success: true, failure: true, delay: false });
        Recipient { path: Mailbox::parse(path, true).expect("a mailbox"), params: RecipientParams { notify, orcpt } }
    }

    fn rcpt(recipient: &Recipient, host: &Capabilities, utf8: bool) -> String {
        let mut out = Vec::new();
        write_rcpt(&mut out, recipient, host, utf8);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn parameters_go_to_hosts_that_offer_them_and_to_no_others() {
        let mut attempt = attempt(&["a@example.org"]);
        let envelope = Arc::make_mut(&mut attempt.envelope);
        envelope.eight_bit = true;
        envelope.params = EnvelopeParams {
            body: Body::EightBitMime,
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("a+b=c d".into()),
            requiretls: false,
        };
        let mail = |host: &Capabilities| {
            let mut out = Vec::new();
            write_mail(&mut out, &matter(&attempt, b""), host);
            String::from_utf8(out).expect("UTF-8")
        };
        let all = "MAIL FROM:<list-bounces@lists.example.org> SIZE=1000 BODY=8BITMIME SMTPUTF8 RET=HDRS \
                   ENVID=a+2Bb+3Dc+20d\r\n";
        assert_eq!(mail(&everything()), all);
        assert_eq!(mail(&Capabilities::default()), "MAIL FROM:<list-bounces@lists.example.org>\r\n");

        let one = recipient("a@example.org", Some(("rfc822", "a+x@example.org")));
        let all = "RCPT TO:<a@example.org> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bx@example.org\r\n";
        assert_eq!(rcpt(&one, &everything(), false), all);
        assert_eq!(rcpt(&one, &Capabilities::default(), false), "RCPT TO:<a@example.org>\r\n");
    }

    #[test]
    fn an_internationalised_orcpt_has_two_forms() {
        let one = recipient("a@example.org", Some(("utf-8", "\u{fc}+@example.org")));
        assert!(rcpt(&one, &everything(), true).ends_with("ORCPT=utf-8;\u{fc}+2B@example.org\r\n"));
        assert!(rcpt(&one, &everything(), false).ends_with("ORCPT=utf-8;\\x{FC}+2B@example.org\r\n"));
    }

    #[test]
    fn quoted_local_parts_go_out_as_they_came() {
        let one = recipient("\"a>b @c\"@example.org", None);
        assert_eq!(rcpt(&one, &everything(), false), "RCPT TO:<\"a>b @c\"@example.org>\r\n");
    }

    #[test]
    fn a_host_that_cannot_take_the_message_is_told_apart() {
        let mut attempt = attempt(&["a@example.org"]);
        let status = |attempt: &Attempt, host: &Capabilities, content: &[u8]| {
            plan(&matter(attempt, content), host, "mx").err().map(|setback| setback.reason.status.to_string())
        };
        let nothing = Capabilities::default();
        assert_eq!(status(&attempt, &nothing, b""), None);
        let small = Capabilities { size: Some(999), ..Capabilities::default() };
        assert_eq!(status(&attempt, &small, b"").as_deref(), Some("5.3.4"));
        Arc::make_mut(&mut attempt.envelope).eight_bit = true;
        assert_eq!(status(&attempt, &nothing, b"").as_deref(), Some("5.6.3"));
        let eight = Capabilities { eight_bit_mime: true, ..Capabilities::default() };
        assert_eq!(status(&attempt, &eight, b"Subject: \xfc\r\n\r\n"), None);
        Arc::make_mut(&mut attempt.envelope).params.smtputf8 = true;
        assert_eq!(status(&attempt, &eight, b"Subject: \xfc\r\n\r\n").as_deref(), Some("5.6.9"));
        assert_eq!(status(&attempt, &eight, b"Subject: x\r\n\r\n\xfc"), None);
        let path = Mailbox::parse("\u{fc}@example.org", true).expect("a mailbox");
        Arc::make_mut(&mut attempt.envelope).reverse_path = ReversePath::Mailbox(path);
        assert_eq!(status(&attempt, &eight, b"").as_deref(), Some("5.6.7"));
        assert_eq!(status(&attempt, &everything(), b""), None);
    }

    #[test]
    fn the_hosts_limit_of_recipients_leaves_the_rest_untried() {
        let attempt = attempt(&["a@example.org", "b@example.org", "c@example.org"]);
        let host = Capabilities { rcpt_max: Some(2), ..Capabilities::default() };
        let plan = plan(&matter(&attempt, b""), &host, "mx").expect("fit");
        assert_eq!(plan.named, [0, 1]);
        assert_eq!(plan.settled, [None, None, Some(Outcome::NotTried)]);
    }

    #[test]
    fn only_the_internationalised_recipient_fails_at_a_host_without_smtputf8() {
        let mut attempt = attempt(&["a@example.org"]);
        attempt.recipients.push(queued("\u{fc}@example.org", 1));
        let host = Capabilities::default();
        let both = plan(&matter(&attempt, b""), &host, "mx").expect("fit");
        assert_eq!(both.named, [0]);
        assert!(matches!(&both.settled[1], Some(Outcome::Failed(reason)) if reason.scope == Scope::Recipient));
        attempt.recipients.remove(0);
        assert!(plan(&matter(&attempt, b""), &host, "mx").is_err());
    }
}
