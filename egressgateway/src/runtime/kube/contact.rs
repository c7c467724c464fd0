use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// When the API server is known to have answered this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    /// The first answer after the last pause.
    pub(crate) since: Instant,
    /// The last answer.
    pub(crate) last: Instant,
    /// Without another answer, the contact counts as lost from here on.
    pub(crate) until: Instant,
}

impl Contact {
    /// The API server has answered now. A pause that is longer than `patience` begins a new
    /// contact: a request has failed by then, or this process stood still.
    pub(crate) fn heard(contact: &watch::Sender<Option<Self>>, now: Instant, patience: Duration) {
        contact.send_modify(|contact| {
            let since = contact
                .filter(|contact| now <= contact.until)
                .map_or(now, |contact| contact.since);
            *contact = Some(Self {
                since,
                last: now,
                until: now + patience,
            });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_longer_than_the_patience_begins_a_new_contact() {
        let (sender, _receiver) = watch::channel(None);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let heard = |seconds| {
            Contact::heard(&sender, at(seconds), Duration::from_secs(7));
            sender.borrow().unwrap()
        };
        assert_eq!(
            heard(0),
            Contact {
                since: at(0),
                last: at(0),
                until: at(7)
            }
        );
        assert_eq!(
            heard(7),
            Contact {
                since: at(0),
                last: at(7),
                until: at(14)
            }
        );
        assert_eq!(
            heard(15),
            Contact {
                since: at(15),
                last: at(15),
                until: at(22)
            }
        );
    }
}
