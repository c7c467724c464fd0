//! Every example is run, as its reader would.
#![allow(clippy::unwrap_used)]

mod dry_run;
mod support;
