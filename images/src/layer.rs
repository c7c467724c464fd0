//! The one layer of an image.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A layer in a file without a name.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) file: File,
    pub(crate) size: u64,
    pub(crate) digest: String,
}

/// Packs everything below `root` in the order of the paths. Owner and time are the same for all:
/// they are the machine's that packs, and say nothing.
pub(crate) fn pack(root: &Path, time: u64, file: File) -> io::Result<Layer> {
    let mut builder = Builder::new(Hashing {
        file,
        hash: Sha256::new(),
        size: 0,
    });
    for path in paths(root)? {
        let named = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}", root.join(&path).display()),
            )
        };
        add(&mut builder, root, &path, time).map_err(named)?;
    }
    let Hashing { file, hash, size } = builder.into_inner()?;
    Ok(Layer {
        file,
        size,
        digest: hex(&hash.finalize()),
    })
}

/// Everything below `root`, without it. A folder comes before what it holds.
fn paths(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let whole = root.join(&folder);
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", whole.display()))
        };
        for entry in fs::read_dir(&whole).map_err(named)? {
            let entry = entry.map_err(named)?;
            let path = folder.join(entry.file_name());
            if entry.file_type().map_err(named)?.is_dir() {
                folders.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn add(builder: &mut Builder<Hashing>, root: &Path, path: &Path, time: u64) -> io::Result<()> {
    let whole = root.join(path);
    let metadata = whole.symlink_metadata()?;
    let mut header = Header::new_gnu();
    header.set_mode(metadata.mode() & 0o7777);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    let kind = metadata.file_type();
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        builder.append_data(&mut header, path.join(""), io::empty())
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        builder.append_link(&mut header, path, fs::read_link(&whole)?)
    } else if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        builder.append_data(&mut header, path, File::open(&whole)?)
    } else {
        let what = if kind.is_socket() {
            "a socket"
        } else {
            "a device or a pipe"
        };
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("is {what}: images have files, folders and links only"),
        ))
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes whatever is written.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes to a file, and remembers what and how much.
struct Hashing {
    file: File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
