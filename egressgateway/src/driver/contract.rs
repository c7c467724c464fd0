//! Observe, plan, apply: what every driver of a kernel does, and the reconciler that remembers for
//! it.

use std::fmt;

use async_trait::async_trait;

use crate::Error;

/// A change of the kernel as a value; its `Display` is the dry run, in the words of the host's own
/// tools.
pub trait Plan: fmt::Debug + fmt::Display + Send + Sync {
    /// Nothing to do.
    fn is_empty(&self) -> bool;
}

/// A plan together with the state that the kernel is in once it was applied.
#[derive(Debug)]
pub struct Change<P, S> {
    /// What to do.
    pub plan: P,
    /// What [`Driver::observe`] returns afterwards.
    pub after: S,
}

/// Keeps one slice of a host in line with a complete desired state.
///
/// A driver says by which marker it finds its own objects again and touches no others. The
/// conformance suite (feature `testing`) holds it to the promises below, on the real kernel.
#[async_trait]
pub trait Driver: Send + Sync {
    /// What is asked, in the words of the domain. Default asks for nothing: what is ours goes.
    type Desired: Clone + Default + Send + Sync;
    /// What the driver owns, in the words of the kernel. Default is a host that it never touched.
    type State: Clone + Default + PartialEq + fmt::Debug + Send + Sync;
    /// Its plan.
    type Plan: Plan;

    /// Reads back what this driver owns, and nothing else.
    ///
    /// # Errors
    /// When the kernel can't be read.
    async fn observe(&self) -> Result<Self::State, Error>;

    /// Compares; pure: no I/O, clock or randomness. Cost grows with the difference, not with the
    /// state.
    ///
    /// Planning for `after` again gives an empty plan, and `observe` after a successful `apply`
    /// returns `after`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) or
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    fn plan(
        &self,
        desired: &Self::Desired,
        current: &Self::State,
    ) -> Result<Change<Self::Plan, Self::State>, Error>;

    /// Executes; atomic where the kernel allows it. After an error the kernel is in some state
    /// between the two, and a new `observe` and `plan` lead to the desired one.
    ///
    /// # Errors
    /// The first step that the kernel refused.
    async fn apply(&self, plan: &Self::Plan) -> Result<(), Error>;
}

/// Asked before every single write to the kernel. Drivers take one at construction; `()` always
/// agrees.
///
/// Tests refuse a chosen write with it, to see that a driver recovers from a failure at each of
/// them.
pub trait WriteHook: fmt::Debug + Send + Sync {
    /// Called with the verb that is about to run, such as "add route".
    ///
    /// # Errors
    /// Makes the write fail with this error instead of reaching the kernel.
    fn before(&self, verb: &str) -> Result<(), Error>;
}

impl WriteHook for () {
    fn before(&self, _verb: &str) -> Result<(), Error> {
        Ok(())
    }
}

/// A driver with its memory: the state that the kernel is believed to be in, so that an update
/// costs its difference.
#[derive(Debug)]
pub struct Reconciler<D: Driver> {
    driver: D,
    believed: Option<D::State>,
}

impl<D: Driver> Reconciler<D> {
    /// A reconciler that knows nothing yet: its first call reads the kernel.
    pub fn new(driver: D) -> Self {
        Self {
            driver,
            believed: None,
        }
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    async fn change(&mut self, desired: &D::Desired) -> Result<Change<D::Plan, D::State>, Error> {
        if self.believed.is_none() {
            self.believed = Some(self.driver.observe().await?);
        }
        match &self.believed {
            Some(current) => self.driver.plan(desired, current),
            None => unreachable!("observed just above"),
        }
    }
}

/// What one call of [`Reconcile::reconcile`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel was as desired; nothing was written.
    Unchanged,
    /// The kernel was changed.
    Applied,
}

/// Object-safe face of a [`Reconciler`]: daemons choose their drivers at run time. `()` leaves the
/// work to somebody else.
#[async_trait]
pub trait Reconcile<Desired: Sync>: Send {
    /// Brings the kernel to `desired`.
    ///
    /// # Errors
    /// What the driver says; the next call reads the kernel again.
    async fn reconcile(&mut self, desired: &Desired) -> Result<Outcome, Error>;

    /// What [`Self::reconcile`] would do, as text; empty when there is nothing to do.
    ///
    /// # Errors
    /// What the driver says of reading and planning.
    async fn dry_run(&mut self, desired: &Desired) -> Result<String, Error>;

    /// Forgets what is believed; the next call reads the kernel.
    fn invalidate(&mut self);
}

/// A part of a node's state that somebody else manages, or nobody: nothing is read and nothing is
/// written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmanaged;

#[async_trait]
impl<Desired: Sync> Reconcile<Desired> for Unmanaged {
    async fn reconcile(&mut self, _desired: &Desired) -> Result<Outcome, Error> {
        Ok(Outcome::Unchanged)
    }

    async fn dry_run(&mut self, _desired: &Desired) -> Result<String, Error> {
        Ok(String::new())
    }

    fn invalidate(&mut self) {}
}

#[async_trait]
impl<D: Driver> Reconcile<D::Desired> for Reconciler<D> {
    async fn reconcile(&mut self, desired: &D::Desired) -> Result<Outcome, Error> {
        let Change { plan, after } = self.change(desired).await?;
        if plan.is_empty() {
            self.believed = Some(after);
            return Ok(Outcome::Unchanged);
        }
        self.believed = None;
        self.driver.apply(&plan).await?;
        self.believed = Some(after);
        Ok(Outcome::Applied)
    }

    async fn dry_run(&mut self, desired: &D::Desired) -> Result<String, Error> {
        let Change { plan, .. } = self.change(desired).await?;
        Ok(if plan.is_empty() {
            String::new()
        } else {
            plan.to_string()
        })
    }

    fn invalidate(&mut self) {
        self.believed = None;
    }
}
