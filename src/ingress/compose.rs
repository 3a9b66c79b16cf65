//! From an accepted transaction to what the spool takes: trace, mailing, and one submission per reverse-path.

use jiff::Timestamp;

use crate::mail::{Destination, MailingId, Recipient, ReversePath, Trace};
use crate::smtp::session::{Accepted, Lint};
use crate::smtp::verp;
use crate::spool::{NewContent, Submission};

/// What is known of a transaction outside of it.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) peer: std::net::IpAddr,
    pub(super) at: Timestamp,
    pub(super) mailing: MailingId,
}

/// The submissions of one transaction: one, or with XVERP one per recipient. They share the content. With XVERP also the
/// lints: recipients whose own reverse-path would be too long and who share the plain one.
pub(super) fn submissions(accepted: Accepted, content: NewContent, origin: &Origin) -> (Vec<Submission>, Vec<Lint>) {
    let trace =
        Trace { helo: accepted.helo, peer: Some(origin.peer), protocol: accepted.protocol.into(), at: origin.at };
    let mut lints = Vec::new();
    let shares = shares(accepted.reverse_path, accepted.verp, accepted.recipients, &mut lints);
    let submission = |(reverse_path, recipients)| Submission {
        list_host: accepted.relay.name.clone(),
        reverse_path,
        params: accepted.params.clone(),
        mailing: origin.mailing,
        trace: trace.clone(),
        content: content.clone(),
        recipients,
        pays: Vec::new(),
    };
    (shares.into_iter().map(submission).collect(), lints)
}

type Share = (ReversePath, Vec<(Recipient, Destination)>);

fn shares(
    reverse_path: ReversePath,
    verp: Option<verp::Delimiters>,
    recipients: Vec<(Recipient, Destination)>,
    lints: &mut Vec<Lint>,
) -> Vec<Share> {
    let (Some(delimiters), Some(owner)) = (verp, reverse_path.mailbox()) else {
        return vec![(reverse_path, recipients)];
    };
    let (mut own, mut plain) = (Vec::with_capacity(recipients.len()), Vec::new());
    for (recipient, destination) in recipients {
        match verp::reverse_path(owner, &recipient.path, delimiters) {
            Some(path) => own.push((ReversePath::Mailbox(path), vec![(recipient, destination)])),
            None => plain.push((recipient, destination)),
        }
    }
    if !plain.is_empty() {
        lints.extend(plain.iter().map(|_| Lint::VerpTooLong));
        own.push((reverse_path, plain));
    }
    own
}

#[cfg(test)]
mod tests {
    use crate::mail::{Mailbox, RecipientParams};

    use super::*;

    fn recipient(text: &str) -> (Recipient, Destination) {
        let path = Mailbox::parse(text, false).expect("valid");
        let destination = Destination::Domain(path.domain());
        (Recipient { path, params: RecipientParams::default() }, destination)
    }

    #[test]
    fn without_xverp_all_recipients_share_the_reverse_path() {
        let owner = ReversePath::Mailbox(Mailbox::parse("l@lists.example", false).expect("valid"));
        let recipients = vec![recipient("a@b.example"), recipient("c@d.example")];
        let mut lints = Vec::new();
        assert_eq!(shares(owner.clone(), None, recipients.clone(), &mut lints), [(owner, recipients)]);
    }

    #[test]
    fn recipients_whose_own_reverse_path_is_too_long_share_the_plain_one() {
        let owner = ReversePath::Mailbox(Mailbox::parse("l@lists.example", false).expect("valid"));
        let long = format!("x@{}.{}.{}.{}.example", "d".repeat(60), "d".repeat(60), "d".repeat(60), "d".repeat(50));
        let recipients = vec![recipient(&long), recipient("a@b.example")];
        let mut lints = Vec::new();
        let shares = shares(owner.clone(), Some(verp::Delimiters::default()), recipients, &mut lints);
        assert_eq!(shares[0].0.as_str(), "l-a=b.example@lists.example");
        assert_eq!(shares[1], (owner, vec![recipient(&long)]));
        assert_eq!(lints, [Lint::VerpTooLong]);
    }
}
