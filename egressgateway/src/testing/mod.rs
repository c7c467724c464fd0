//! Equipment for the tests of drivers and of those who embed the library.

pub mod classification;
pub mod conformance;
pub mod distributed;
pub mod worlds;
