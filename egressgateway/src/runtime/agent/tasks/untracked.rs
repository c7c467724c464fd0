//! What others take out of connection tracking: read at the start, when it changes, and now and
//! then.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{Surroundings, UntrackingRule, UntrackingRules};

/// Whether rules of others take packets of pods out of connection tracking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// Nobody looks.
    #[default]
    NotAsked,
    /// Nobody has looked yet.
    NotRead,
    /// These rules do.
    Read(BTreeSet<String>),
}

/// What was read last; none before that.
type Rules = Option<BTreeSet<UntrackingRule>>;

/// What is known of such rules.
#[derive(Debug)]
pub(crate) struct Untracked {
    is_asked: bool,
    rules: (watch::Sender<Rules>, watch::Receiver<Rules>),
    /// The rules that the log has.
    told: BTreeSet<String>,
}

impl Default for Untracked {
    fn default() -> Self {
        Self {
            is_asked: false,
            rules: watch::channel(None),
            told: BTreeSet::new(),
        }
    }
}

impl Untracked {
    /// Who reads them: at once, when they change but not more often than every `spacing`, and after
    /// `resync`.
    pub(crate) fn reader(
        &mut self,
        source: Arc<dyn UntrackingRules>,
        spacing: Duration,
        resync: Duration,
    ) -> Reader {
        self.is_asked = true;
        Reader {
            source,
            spacing,
            resync,
            rules: self.rules.0.clone(),
        }
    }

    /// Waits until other rules were read than before.
    pub(crate) async fn changed(&mut self) {
        // The sender lives as long as this.
        if self.rules.1.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What is to be told of them, given what else is known. The log has each rule once.
    pub(crate) fn tell(&mut self, known: &Surroundings) -> Tracking {
        if !self.is_asked {
            return Tracking::NotAsked;
        }
        let Some(rules) = &*self.rules.1.borrow() else {
            return Tracking::NotRead;
        };
        let alarms = rules
            .iter()
            .filter(|rule| rule.packets.may_be_governed(known));
        let alarms: BTreeSet<String> = alarms.map(ToString::to_string).collect();
        for rule in alarms.difference(&self.told) {
            tracing::warn!(
                rule,
                "foreign rule takes packets out of connection tracking; governed ones are dropped"
            );
        }
        for rule in self.told.difference(&alarms) {
            tracing::info!(
                rule,
                "foreign rule that took packets out of connection tracking is gone"
            );
        }
        self.told.clone_from(&alarms);
        Tracking::Read(alarms)
    }
}

/// Reads the rules as long as somebody listens.
pub(crate) struct Reader {
    source: Arc<dyn UntrackingRules>,
    spacing: Duration,
    resync: Duration,
    rules: watch::Sender<Rules>,
}

impl Reader {
    pub(crate) async fn run(self) {
        loop {
            match self.source.untracking().await {
                Ok(rules) => {
                    let read = Some(rules);
                    self.rules.send_if_modified(|before| {
                        let changed = *before != read;
                        if changed {
                            before.clone_from(&read);
                        }
                        changed
                    });
                }
                Err(error) => {
                    let kind = error.kind.as_str();
                    tracing::warn!(
                        kind,
                        error = error.chain(),
                        "cannot read others' connection tracking rules"
                    );
                }
            }
            tokio::time::sleep(self.spacing).await;
            tokio::select! {
                changed = self.source.changed() => if let Err(error) = changed {
                    tracing::debug!(error = error.chain(), "cannot follow others' packet filter rules; changes may have been missed");
                },
                () = tokio::time::sleep(self.resync) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PacketMatch;

    #[test]
    fn only_what_could_be_pods_is_told() {
        let mut untracked = Untracked::default();
        assert_eq!(untracked.tell(&Surroundings::default()), Tracking::NotAsked);
        untracked.is_asked = true;
        assert_eq!(untracked.tell(&Surroundings::default()), Tracking::NotRead);
        let rule = |place: &str, packets| UntrackingRule {
            place: place.to_owned(),
            packets,
        };
        let own = PacketMatch {
            device: Some("lo".to_owned()),
            ..PacketMatch::default()
        };
        let rules = [rule("everything", PacketMatch::default()), rule("own", own)];
        untracked.rules.0.send_replace(Some(rules.into()));
        assert_eq!(
            untracked.tell(&Surroundings::default()),
            Tracking::Read(["everything".to_owned()].into())
        );
        untracked.rules.0.send_replace(Some(BTreeSet::new()));
        assert_eq!(
            untracked.tell(&Surroundings::default()),
            Tracking::Read(BTreeSet::new())
        );
    }
}
