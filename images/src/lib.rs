//! Archives of images: a root file system becomes one file that container engines load.
//!
//! The file is an [OCI image
//! layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) in a tar
//! archive, with the `manifest.json` of `docker save` beside it, as Docker itself writes both. `ctr
//! images import`, `docker load`, `podman load` and `kind load image-archive` take it. The same
//! root gives the same bytes, and with them the same digest.

mod archive;
mod image;
mod layer;
mod product;
mod write;

pub use archive::OCI_NAME;
pub use image::{Digest, Image};
pub use product::product;
