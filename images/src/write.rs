use std::{io, path::Path};

use crate::{Digest, Image, archive, layer};

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
