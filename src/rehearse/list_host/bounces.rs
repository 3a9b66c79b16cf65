//! What a list host learns from its bounces (RFC 3464): which recipients failed, each at most once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mailing::Mailing;

/// The addresses that the DSN `message` reports as failed, in its order.
pub fn failed_recipients(message: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(message).replace("\r\n", "\n").replace("\n ", " ").replace("\n\t", " ");
    text.split("\n\n").filter_map(failed_recipient).collect()
}

/// The address of a block of per-recipient fields (RFC 3464 section 2.3), if its action is `failed`.
fn failed_recipient(block: &str) -> Option<String> {
    let field = |name: &str| {
        block.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let address = field("Final-Recipient")?.split_once(';')?.1.trim();
    field("Action")?.eq_ignore_ascii_case("failed").then(|| address.to_owned())
}

/// The bounces of one mailing.
#[derive(Debug)]
pub struct Bounces {
    mailing: Arc<Mailing>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Reports per recipient.
    reported: Vec<u8>,
    bounced: u64,
    repeated: u64,
    messages: u64,
    strangers: u64,
    per_domain: Vec<u64>,
}

impl Bounces {
    /// Nobody has bounced yet.
    pub fn new(mailing: Arc<Mailing>) -> Bounces {
        let recipients = &mailing.recipients;
        let state = State {
            reported: vec![0; recipients.len() as usize],
            per_domain: vec![0; recipients.domains().len()],
            ..State::default()
        };
        Bounces { mailing, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a message that came to the list host's bounce address.
    pub fn take(&self, message: &[u8]) {
        let failed = failed_recipients(message);
        let mut state = self.state();
        state.messages += 1;
        for address in failed {
            match self.mailing.recipients.find(&address) {
                Some(index) => state.report(index, self.mailing.recipients.domain_of(index)),
                None => state.strangers += 1,
            }
        }
    }

    /// Recipients that were reported as failed.
    pub fn bounced(&self) -> u64 {
        self.state().bounced
    }

    /// Further reports about the same recipients.
    pub fn repeated(&self) -> u64 {
        self.state().repeated
    }

    /// DSNs.
    pub fn messages(&self) -> u64 {
        self.state().messages
    }

    /// Reports about addresses that the mailing did not go to.
    pub fn strangers(&self) -> u64 {
        self.state().strangers
    }

    /// Recipients reported as failed, by number of the domain.
    pub fn per_domain(&self) -> Vec<u64> {
        self.state().per_domain.clone()
    }

    /// Whether the recipient of this number was reported as failed.
    pub fn has(&self, index: u32) -> bool {
        self.state().reported[index as usize] > 0
    }
}

impl State {
    fn report(&mut self, index: u32, domain: u32) {
        let reported = &mut self.reported[index as usize];
        *reported = reported.saturating_add(1);
        if *reported == 1 {
            self.bounced += 1;
            self.per_domain[domain as usize] += 1;
        } else {
            self.repeated += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rehearse::list_host::{Fate, Recipients};

    const DSN: &[u8] = b"From: <>\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; r\r\n\r\n\
        Original-Recipient: rfc822;x\r\nFinal-Recipient: rfc822;\r\n gone.0@a.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n\
        Final-Recipient: rfc822; u1@a.test\r\nAction: delayed\r\nStatus: 4.0.0\r\n\r\n\
        Final-Recipient: utf-8; who@else.test\r\nAction: FAILED\r\n\r\n--b--\r\n";

    #[test]
    fn failures_are_read_from_a_dsn_and_delays_are_not() {
        assert_eq!(failed_recipients(DSN), ["gone.0@a.test", "who@else.test"]);
    }

    #[test]
    fn a_second_report_about_a_recipient_counts_as_repeated() {
        let mut recipients = Recipients::new(["a.test".to_owned()]);
        recipients.add(0, Fate::Gone);
        recipients.add(0, Fate::Taken);
        let bounces = Bounces::new(Arc::new(Mailing::new("l.test", b"\n", recipients)));
        bounces.take(DSN);
        bounces.take(DSN);
        assert_eq!((bounces.bounced(), bounces.repeated(), bounces.strangers(), bounces.messages()), (1, 1, 2, 2));
        assert!(bounces.has(0) && !bounces.has(1));
    }
}
