//! The project's README, so that what it shows is compiled. The examples themselves are programs
//! next to this crate's manifest.

#![doc = include_str!("../../README.md")]
