//! Random events in a whole cluster, with traffic throughout, and a judge who looks at every
//! packet.
//!
//! A run is a list of [`Event`]s, which a seed gives or a file. Between two [`Event::Calm`]s
//! anything may happen, and some rules are judged always; at each calm everything is healed, and
//! each pod must reach each server, or not, as the objects say. What a failing run did is shrunk to
//! few events.

mod event;
mod foreign;
mod judge;
mod objects;
mod oracle;
mod run;
mod shrink;
mod stage;
mod talk;

pub use event::{Event, events};
pub use run::{Outcome, Run};
pub use shrink::shrink;
