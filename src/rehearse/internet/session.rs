//! The receiving end of one SMTP connection, without I/O: octets in, replies out.
//!
//! It is built to be cheap rather than forgiving: commands are parsed in place, a content is scanned once for its
//! final dot and hashed once, and the replies of a pipelined group leave as one block.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::Shared;
use super::builder::Rules;
use super::ledger::{Arrival, Delivered, hash_of, recipient_key};
use super::policy::{AfterDot, Extensions, Policy, Stage};
use super::provider::Provider;

/// Longest command line that is understood (RFC 5321 section 4.5.3.1.4 and what the extensions add).
const LINE_MAX: usize = 4096;

/// One exchanger.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: Arc<str>,
    pub(super) provider: Arc<Provider>,
    pub(super) policy: Policy,
}

/// What the connection does after the replies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Read more.
    Read,
    /// Close it.
    Close,
    /// Start a TLS handshake.
    StartTls,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Command,
    /// Collecting content; how much of the buffer was searched for the final dot.
    Content {
        searched: usize,
    },
}

/// The transaction in progress. Its allocations are kept from one to the next.
#[derive(Debug, Default)]
struct Transaction {
    open: bool,
    reverse_path: String,
    mail_parameters: String,
    recipients: Vec<u64>,
    domain: Option<usize>,
    names: Vec<(String, String)>,
}

impl Transaction {
    fn clear(&mut self) {
        self.open = false;
        self.reverse_path.clear();
        self.mail_parameters.clear();
        self.recipients.clear();
        self.domain = None;
        self.names.clear();
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    host: Arc<Host>,
    opened: Instant,
    state: State,
    greeted: bool,
    tls: bool,
    mails: u32,
    transaction: Transaction,
    /// Replies that wait to be written.
    pub(super) replies: Vec<u8>,
    /// What follows them.
    pub(super) next: Next,
}

impl Session {
    pub(super) fn new(host: Arc<Host>, opened: Instant) -> Session {
        Session {
            host,
            opened,
            state: State::Command,
            greeted: false,
            tls: false,
            mails: 0,
            transaction: Transaction::default(),
            replies: Vec::new(),
            next: Next::Read,
        }
    }

    /// The greeting of an open door.
    pub(super) fn greet(&mut self) {
        let text = format!("220 {} ESMTP simulated", self.host.name);
        self.reply_at(Stage::Greeting, &text);
    }

    /// Starts afresh inside TLS: what was said in the clear is forgotten (RFC 3207 section 4.2).
    pub(super) fn start_over_in_tls(&mut self) {
        self.greeted = false;
        self.tls = true;
        self.next = Next::Read;
        self.transaction.clear();
    }

    /// Takes as much of `input` as is complete and returns how much that was. Replies wait in [`Session::replies`].
    pub(super) fn advance(&mut self, shared: &Shared, now: Instant, input: &[u8]) -> usize {
        let mut used = 0;
        while self.next == Next::Read {
            let rest = &input[used..];
            let taken = match self.state {
                State::Command => self.take_line(shared, now, rest),
                State::Content { searched } => self.take_content(shared, now, rest, searched),
            };
            match taken {
                Some(taken) => used += taken,
                None => break,
            }
        }
        used
    }

    fn take_line(&mut self, shared: &Shared, now: Instant, input: &[u8]) -> Option<usize> {
        let Some(end) = memchr::memchr(b'\n', input) else {
            if input.len() > LINE_MAX {
                self.reply("500 5.5.2 Line too long");
                self.next = Next::Close;
            }
            return None;
        };
        match input[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok()) {
            Some(line) => self.command(shared, now, line),
            None => self.reply("500 5.5.2 Bare line feed or bad text"),
        }
        Some(end + 1)
    }

    fn command(&mut self, shared: &Shared, now: Instant, line: &str) {
        let (verb, rest) = line.split_at(line.find(' ').unwrap_or(line.len()));
        let is = |name: &str| verb.eq_ignore_ascii_case(name);
        if is("RCPT") {
            self.rcpt(shared, now, rest);
        } else if is("MAIL") {
            self.mail(shared, rest);
        } else if is("DATA") {
            self.data();
        } else if is("EHLO") || is("HELO") {
            self.hello(shared, is("EHLO"));
        } else if is("RSET") {
            self.transaction.clear();
            self.reply_at(Stage::Rset, "250 2.0.0 Flushed");
        } else if is("NOOP") {
            self.reply("250 2.0.0 Ok");
        } else if is("QUIT") {
            self.reply("221 2.0.0 Bye");
            self.next = Next::Close;
        } else if is("STARTTLS") && self.offers_tls(shared) {
            self.reply("220 2.0.0 Go ahead");
            self.next = Next::StartTls;
        } else {
            self.reply("502 5.5.1 Not implemented");
        }
    }

    fn offers_tls(&self, shared: &Shared) -> bool {
        shared.tls.is_some() && !self.tls
    }

    fn hello(&mut self, shared: &Shared, extended: bool) {
        self.transaction.clear();
        let name = Arc::clone(&self.host.name);
        match self.host.policy.extensions {
            None if extended => return self.reply("502 5.5.1 Not implemented"),
            Some(extensions) if extended => {
                let text = ehlo_reply(&name, &self.host.policy, extensions, self.offers_tls(shared));
                self.reply_at(Stage::Hello, &text);
            }
            _ => self.reply_at(Stage::Hello, &format!("250 {name}")),
        }
        self.greeted = self.next == Next::Read;
    }

    fn mail(&mut self, shared: &Shared, rest: &str) {
        if self.scripted(Stage::Mail) {
            return;
        }
        if !self.greeted || self.transaction.open {
            return self.reply("503 5.5.1 Bad sequence of commands");
        }
        let Some((path, parameters)) = path_of(rest, "FROM:") else {
            return self.reply("501 5.5.4 Syntax: MAIL FROM:<path>");
        };
        if let Some(refusal) = self.refuse_parameters(parameters) {
            return self.reply(refusal);
        }
        if self.is_worn_out() || self.host.provider.is_busy() {
            self.reply("421 4.7.0 Try again later, closing connection");
            self.next = Next::Close;
            return;
        }
        self.mails += 1;
        self.transaction.open = true;
        self.transaction.reverse_path.push_str(path);
        if shared.keeps(&self.host) {
            self.transaction.mail_parameters.push_str(parameters);
        }
        self.reply("250 2.1.0 Ok");
    }

    /// Whether the connection had its messages; a client that goes on broke the limit.
    fn is_worn_out(&self) -> bool {
        let Some(max) = self.host.policy.messages_per_connection else { return false };
        if self.mails < max {
            return false;
        }
        self.host.provider.breaks("messages per connection", || format!("more than {max} on one connection"));
        true
    }

    /// Parameters that the host did not offer are an error (RFC 5321 section 4.1.1.11).
    fn refuse_parameters(&self, parameters: &str) -> Option<&'static str> {
        let offered = self.host.policy.extensions.unwrap_or(Extensions::NONE);
        for parameter in parameters.split_ascii_whitespace() {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let known = match key.to_ascii_uppercase().as_str() {
                "SIZE" => offered.size,
                "BODY" => offered.eight_bit_mime,
                "SMTPUTF8" => offered.smtputf8,
                "RET" | "ENVID" => offered.dsn,
                _ => false,
            };
            if !known {
                return Some("555 5.5.4 Parameter not offered");
            }
            if key.eq_ignore_ascii_case("SIZE") && value.parse().is_ok_and(|size: u64| size > self.host.policy.size_max)
            {
                return Some("552 5.3.4 Message too big");
            }
        }
        None
    }

    fn rcpt(&mut self, shared: &Shared, now: Instant, rest: &str) {
        if self.scripted(Stage::Rcpt) {
            return;
        }
        if !self.transaction.open {
            return self.reply("503 5.5.1 Need MAIL first");
        }
        let Some((mailbox, parameters)) = path_of(rest, "TO:") else {
            return self.reply("501 5.1.3 Syntax: RCPT TO:<path>");
        };
        let refusal = self.refuse_recipient(shared, now, mailbox, parameters);
        if let Some(refusal) = refusal {
            return self.reply(refusal);
        }
        self.transaction.recipients.push(recipient_key(mailbox));
        if shared.keeps(&self.host) {
            self.transaction.names.push((mailbox.to_owned(), parameters.to_owned()));
        }
        self.reply("250 2.1.5 Ok");
    }

    /// Why this recipient is not taken, if so; the rules of the domain first, then those of the host.
    fn refuse_recipient(&mut self, shared: &Shared, now: Instant, mailbox: &str, rest: &str) -> Option<&'static str> {
        let (local, domain) = mailbox.rsplit_once('@').unwrap_or((mailbox, ""));
        let relays = self.host.policy.relays_for.iter().any(|suffix| domain.ends_with(suffix.as_str()));
        let known = shared.domain(domain).filter(|(_, rules)| relays || rules.is_served_by(&self.host.provider));
        let Some((index, rules)) = known else {
            shared.strays.fetch_add(1, Ordering::Relaxed);
            return Some("550 5.7.1 Relaying denied");
        };
        let offers_dsn = self.host.policy.extensions.is_some_and(|offered| offered.dsn);
        if !rest.trim().is_empty() && !offers_dsn {
            return Some("555 5.5.4 Parameter not offered");
        }
        let refusal = self.refuse_domain(domain, index);
        let refusal =
            refusal.or_else(|| self.refuse_mailbox(rules, local)).or_else(|| self.refuse_for_now(rules, domain, now));
        if refusal.is_none() {
            self.transaction.domain.get_or_insert(index);
        }
        refusal
    }

    fn refuse_domain(&self, domain: &str, index: usize) -> Option<&'static str> {
        let is_second = self.transaction.domain.is_some_and(|first| first != index);
        if !(self.host.policy.one_domain && is_second) {
            return None;
        }
        self.host.provider.breaks("one domain per transaction", || format!("{domain} joined another domain"));
        Some("451-4.3.0 Multiple destination domains per transaction is unsupported.\r\n451 4.3.0 Try again")
    }

    fn refuse_mailbox(&self, rules: &Rules, local: &str) -> Option<&'static str> {
        if rules.refuse.has(local) {
            return Some("550 5.1.1 No such user here");
        }
        rules.full.has(local).then_some("452 4.2.2 Mailbox full")
    }

    fn refuse_for_now(&self, rules: &Rules, domain: &str, now: Instant) -> Option<&'static str> {
        if self.transaction.recipients.len() >= self.host.policy.recipients_per_transaction as usize {
            return Some("452 4.5.3 Too many recipients");
        }
        if let Some(delay) = rules.greylist {
            let pair = hash_of(&[domain.as_bytes(), self.transaction.reverse_path.as_bytes()]);
            if !self.host.provider.greylist_passes(pair, delay, now) {
                return Some("451 4.7.1 Greylisted, try again later");
            }
        }
        let admitted = self.host.provider.admits_recipient(now);
        (!admitted).then_some("451 4.7.1 Too many recipients, slow down")
    }

    fn data(&mut self) {
        if self.scripted(Stage::Data) {
            return;
        }
        if !self.transaction.open {
            return self.reply("503 5.5.1 Need MAIL first");
        }
        if self.transaction.recipients.is_empty() {
            return self.reply("554 5.5.1 No valid recipients");
        }
        self.reply("354 Go ahead");
        self.state = State::Content { searched: 0 };
    }

    fn take_content(&mut self, shared: &Shared, now: Instant, input: &[u8], searched: usize) -> Option<usize> {
        let Some((length, taken)) = end_of_content(input, searched) else {
            self.state = State::Content { searched: input.len().saturating_sub(4) };
            return None;
        };
        self.state = State::Command;
        self.dot(shared, now, &input[..length]);
        self.transaction.clear();
        Some(taken)
    }

    fn dot(&mut self, shared: &Shared, now: Instant, content: &[u8]) {
        if self.scripted(Stage::Dot) {
            return;
        }
        if content.len() as u64 > self.host.policy.size_max {
            return self.reply("552 5.3.4 Message too big");
        }
        let (keep, cut) = match self.host.policy.after_dot {
            AfterDot::Accept => (true, false),
            AfterDot::CutEvery(n) => {
                let cut = self.host.provider.nth_dot(n);
                (!cut, cut)
            }
            AfterDot::KeepAndCutEvery(n) => (true, self.host.provider.nth_dot(n)),
        };
        if keep {
            self.keep(shared, now, content, cut);
        }
        if cut {
            self.next = Next::Close;
        } else {
            self.reply("250 2.0.0 Ok: taken");
        }
    }

    fn keep(&mut self, shared: &Shared, now: Instant, content: &[u8], reply_lost: bool) {
        let recipients = &self.transaction.recipients;
        self.host.provider.delivered(recipients.len() as u64, now);
        if shared.keeps(&self.host) {
            let delivered = self.delivered(now, content);
            if let Some(watch) = shared.watch_of(&self.host.provider) {
                return watch(delivered);
            }
            shared.kept().push(delivered);
        }
        let answered = now + self.host.policy.rtt;
        let arrival = Arrival {
            recipients: &self.transaction.recipients,
            content,
            opened: self.opened,
            at: now,
            answered,
            reply_lost,
        };
        shared.ledger().arrive(&arrival);
    }

    fn delivered(&self, at: Instant, content: &[u8]) -> Delivered {
        let (recipients, recipient_parameters) = self.transaction.names.iter().cloned().unzip();
        Delivered {
            host: Arc::clone(&self.host.name),
            reverse_path: self.transaction.reverse_path.clone(),
            mail_parameters: self.transaction.mail_parameters.trim().to_owned(),
            recipients,
            recipient_parameters,
            content: unstuffed(content),
            tls: self.tls,
            at,
        }
    }

    /// Replies with the scripted line of this stage, if one is left.
    fn scripted(&mut self, stage: Stage) -> bool {
        let Some(line) = self.host.provider.scripted(stage) else { return false };
        let text = line.strip_prefix('!').unwrap_or(&line);
        if !text.is_empty() {
            self.reply(text);
        }
        if line.starts_with('!') || line.starts_with("421") {
            self.next = Next::Close;
        }
        // A scripted success still has to move the session on, so only DATA's 354 needs a hand here.
        if stage == Stage::Data && text.starts_with("354") {
            self.state = State::Content { searched: 0 };
        }
        true
    }

    fn reply_at(&mut self, stage: Stage, text: &str) {
        if !self.scripted(stage) {
            self.reply(text);
        }
    }

    fn reply(&mut self, text: &str) {
        self.host.provider_counts(text);
        self.replies.extend_from_slice(text.as_bytes());
        self.replies.extend_from_slice(b"\r\n");
    }
}

impl Host {
    /// Counts a refusal; the many successes are not worth a lock.
    fn provider_counts(&self, text: &str) {
        if let Some(class @ (b'4' | b'5')) = text.as_bytes().first() {
            self.provider.turned_away(*class);
        }
    }
}

fn ehlo_reply(name: &str, policy: &Policy, offered: Extensions, tls: bool) -> String {
    let mut lines = vec![name.to_owned()];
    let mut offer = |wanted: bool, keyword: String| {
        if wanted {
            lines.push(keyword);
        }
    };
    offer(offered.pipelining, "PIPELINING".into());
    offer(offered.size, format!("SIZE {}", policy.size_max));
    offer(offered.eight_bit_mime, "8BITMIME".into());
    offer(offered.smtputf8, "SMTPUTF8".into());
    offer(offered.dsn, "DSN".into());
    offer(offered.enhanced_status_codes, "ENHANCEDSTATUSCODES".into());
    offer(tls, "STARTTLS".into());
    let mailmax = policy.messages_per_connection.map_or(String::new(), |max| format!(" MAILMAX={max}"));
    offer(offered.limits, format!("LIMITS RCPTMAX={}{mailmax}", policy.recipients_per_transaction));
    let last = lines.len() - 1;
    let parts: Vec<String> =
        lines.iter().enumerate().map(|(i, line)| format!("250{}{line}", if i == last { ' ' } else { '-' })).collect();
    parts.join("\r\n")
}

/// The path after `keyword` and the parameters after the path.
fn path_of<'a>(rest: &'a str, keyword: &str) -> Option<(&'a str, &'a str)> {
    let rest = rest.trim_start();
    let (found, rest) = rest.split_at_checked(keyword.len())?;
    if !found.eq_ignore_ascii_case(keyword) {
        return None;
    }
    rest.trim_start().strip_prefix('<')?.rsplit_once('>')
}

/// Where the content ends: its length without the final dot, and what is taken with it. `searched` octets were looked
/// at before. An empty content is a lone dot right after DATA.
fn end_of_content(input: &[u8], searched: usize) -> Option<(usize, usize)> {
    if input.starts_with(b".\r\n") {
        return Some((0, 3));
    }
    let at = memchr::memmem::find(&input[searched..], b"\r\n.\r\n")? + searched;
    Some((at + 2, at + 5))
}

/// Removes dot-stuffing (RFC 5321 section 4.5.2).
fn unstuffed(content: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(content.len());
    for line in content.split_inclusive(|&b| b == b'\n') {
        plain.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
    }
    plain
}
