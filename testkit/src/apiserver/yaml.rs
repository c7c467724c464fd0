//! How the server reads YAML: only `true` and `false` are truth values.

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, Options};

fn options() -> Options {
    serde_saphyr::options! { strict_booleans: true }
}

/// One object.
pub(super) fn one<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_saphyr::from_slice_with_options(bytes, options())
}

/// The objects of all documents; some documents are empty.
pub(super) fn all(text: &str) -> Result<Vec<serde_json::Value>, Error> {
    let mut objects: Vec<serde_json::Value> =
        serde_saphyr::from_multiple_with_options(text, options())?;
    objects.retain(|object| !object.is_null());
    Ok(objects)
}
