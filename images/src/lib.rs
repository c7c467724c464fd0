//! Archives of images: a root file system becomes one file that container engines load.
//!
//! The file is an [OCI image
//! layout](https://github.com/opencontainers/image-spec/blob/main/image-layout.md) in a tar
//! archive, with the `manifest.json` of `docker save` beside it, as Docker itself writes both. `ctr
//! images import`, `docker load`, `podman load` and `kind load image-archive` take it. The same
//! root gives the same bytes, and with them the same digest.

mod archive;
mod layer;
mod product;

use std::{fmt, io, path::Path};

pub use archive::OCI_NAME;
pub use product::product;

/// What an image says of itself, beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Its reference: repository and tag.
    pub name: String,
    /// The program that is started, with its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=VALUE`
    pub environment: Vec<String>,
    /// `UID:GID`; empty: root.
    pub user: String,
    /// Ports that the program listens at, as `PORT/PROTOCOL`.
    pub ports: Vec<String>,
    /// `org.opencontainers.image.*` and others.
    pub labels: Vec<(String, String)>,
    /// When it was made, in seconds since 1970: the time of every file in it.
    pub created: u64,
}

/// What identifies an image: the digest of its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}

impl Image {
    /// Writes the archive of the image whose one layer is `root`. All files become root's. `file`
    /// is replaced once the new one is whole.
    ///
    /// # Errors
    /// When a file can't be read or written, with its path; for an architecture that images have no
    /// word for.
    pub fn write(&self, root: &Path, file: &Path) -> io::Result<Digest> {
        let folder = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or_else(|| Path::new("."));
        let layer = layer::pack(root, self.created, tempfile::tempfile_in(folder)?)?;
        archive::write(self, layer, folder, file)
    }
}
