//! Telling the neighbours of a link where an address is, and asking them who else has it.

mod announcer;
mod claim;
mod devices;
mod frames;
pub(crate) mod fuzzing;
mod inquirer;

pub use announcer::NeighbourAnnouncer;
pub(crate) use devices::{Device, Devices};
pub use inquirer::NeighbourInquirer;
