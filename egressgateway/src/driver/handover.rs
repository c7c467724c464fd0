//! One driver takes over from others on a live host.

use async_trait::async_trait;

use crate::{Error, ErrorKind, Outcome, Reconcile};

/// A driver, and those that may have done its work here before, such as the other policy backend of
/// an earlier configuration.
///
/// What the former ones left is removed once the present one is in force, so that there is no
/// moment with neither; or before, where there is no room for both.
pub struct Handover<D> {
    present: Box<dyn Reconcile<D>>,
    /// Whether the former ones go first.
    remove_former_first: bool,
    /// Those that may still own something.
    former: Vec<Box<dyn Reconcile<D>>>,
}

impl<D> std::fmt::Debug for Handover<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handover")
            .field("former", &self.former.len())
            .finish_non_exhaustive()
    }
}

impl<D> Handover<D> {
    /// `present` from now on, after any of `former`.
    #[must_use]
    pub fn new(present: Box<dyn Reconcile<D>>, former: Vec<Box<dyn Reconcile<D>>>) -> Self {
        Self {
            present,
            remove_former_first: false,
            former,
        }
    }

    /// `present` in the place of any of `former`, which use something that `present` needs for
    /// itself.
    #[must_use]
    pub fn replacing(present: Box<dyn Reconcile<D>>, former: Vec<Box<dyn Reconcile<D>>>) -> Self {
        Self {
            present,
            remove_former_first: true,
            former,
        }
    }
}

impl<D: Default + Send + Sync> Handover<D> {
    /// Removes what the former ones left, one after the other, each once.
    async fn remove_former(&mut self) -> Result<Outcome, Error> {
        let mut outcome = Outcome::Unchanged;
        while let Some(former) = self.former.last_mut() {
            match former.reconcile(&D::default()).await {
                Ok(Outcome::Unchanged) => {}
                Ok(Outcome::Applied) => outcome = Outcome::Applied,
                // A host that can't do what the former one needs holds nothing of it.
                Err(error) if error.kind == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
            self.former.pop();
        }
        Ok(outcome)
    }
}

#[async_trait]
impl<D: Default + Send + Sync> Reconcile<D> for Handover<D> {
    async fn reconcile(&mut self, desired: &D) -> Result<Outcome, Error> {
        let first = if self.remove_former_first {
            self.remove_former().await?
        } else {
            Outcome::Unchanged
        };
        let present = self.present.reconcile(desired).await?;
        let last = self.remove_former().await?;
        Ok(if [first, present, last].contains(&Outcome::Applied) {
            Outcome::Applied
        } else {
            Outcome::Unchanged
        })
    }

    async fn dry_run(&mut self, desired: &D) -> Result<String, Error> {
        let present = self.present.dry_run(desired).await?;
        let mut removal = String::new();
        for former in &mut self.former {
            match former.dry_run(&D::default()).await {
                Ok(text) => removal.push_str(&text),
                Err(error) if error.kind == ErrorKind::Unsupported => {}
                Err(error) => return Err(error),
            }
        }
        Ok(if self.remove_former_first {
            removal + &present
        } else {
            present + &removal
        })
    }

    fn invalidate(&mut self) {
        self.present.invalidate();
        self.former
            .iter_mut()
            .for_each(|former| former.invalidate());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Journal = Arc<Mutex<Vec<String>>>;

    struct Fake {
        name: &'static str,
        journal: Journal,
        answers: Vec<Result<Outcome, ErrorKind>>,
    }

    #[async_trait]
    impl Reconcile<u8> for Fake {
        async fn reconcile(&mut self, desired: &u8) -> Result<Outcome, Error> {
            self.journal
                .lock()
                .unwrap()
                .push(format!("{} {desired}", self.name));
            self.answers
                .pop()
                .unwrap_or(Ok(Outcome::Unchanged))
                .map_err(|kind| Error::new(kind, self.name))
        }

        async fn dry_run(&mut self, desired: &u8) -> Result<String, Error> {
            Ok(format!("{} {desired}\n", self.name))
        }

        fn invalidate(&mut self) {}
    }

    fn succession(
        journal: &Journal,
        present: Vec<Result<Outcome, ErrorKind>>,
        former: Vec<Result<Outcome, ErrorKind>>,
    ) -> Handover<u8> {
        let fake = |name, answers| {
            Box::new(Fake {
                name,
                journal: journal.clone(),
                answers,
            })
        };
        Handover::new(fake("new", present), vec![fake("old", former)])
    }

    #[tokio::test]
    async fn the_former_goes_once_the_present_is_in_force_and_is_not_asked_again() {
        let journal = Journal::default();
        let mut both = succession(
            &journal,
            vec![Err(ErrorKind::Transient)],
            vec![Ok(Outcome::Applied)],
        );
        assert_eq!(both.dry_run(&7).await.unwrap(), "new 7\nold 0\n");
        both.reconcile(&7).await.unwrap_err();
        assert_eq!(both.reconcile(&7).await.unwrap(), Outcome::Applied);
        assert_eq!(both.reconcile(&7).await.unwrap(), Outcome::Unchanged);
        assert_eq!(
            *journal.lock().unwrap(),
            ["new 7", "new 7", "old 0", "new 7"]
        );
    }

    #[tokio::test]
    async fn the_former_goes_first_where_there_is_room_for_one() {
        let journal = Journal::default();
        let Handover {
            present, former, ..
        } = succession(
            &journal,
            Vec::new(),
            vec![Ok(Outcome::Applied), Err(ErrorKind::Transient)],
        );
        let mut both = Handover::replacing(present, former);
        assert_eq!(both.dry_run(&7).await.unwrap(), "old 0\nnew 7\n");
        both.reconcile(&7).await.unwrap_err();
        assert_eq!(both.reconcile(&7).await.unwrap(), Outcome::Applied);
        assert_eq!(both.reconcile(&7).await.unwrap(), Outcome::Unchanged);
        assert_eq!(
            *journal.lock().unwrap(),
            ["old 0", "old 0", "new 7", "new 7"]
        );
    }

    #[tokio::test]
    async fn a_failed_removal_is_tried_again_and_an_impossible_one_is_not() {
        let journal = Journal::default();
        let mut both = succession(
            &journal,
            Vec::new(),
            vec![Err(ErrorKind::Unsupported), Err(ErrorKind::Transient)],
        );
        both.reconcile(&7).await.unwrap_err();
        both.reconcile(&7).await.unwrap();
        both.reconcile(&7).await.unwrap();
        assert_eq!(
            *journal.lock().unwrap(),
            ["new 7", "old 0", "new 7", "old 0", "new 7"]
        );
    }
}
