//! Equipment for the tests of drivers and of those who embed the library.

pub mod conformance;
