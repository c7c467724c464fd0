//! The file in which a node keeps what it must know after a boot.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, PersistedPolicy, model::NodeName};

/// Larger files are not ours: 100,000 networks take some 5 MB.
const LARGEST: u64 = 64 << 20;

/// Where a node keeps what it must know after a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile {
    path: PathBuf,
    node: NodeName,
}

impl StateFile {
    /// The file of a node; its folder is made when it is written.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, node: NodeName) -> Self {
        Self {
            path: path.into(),
            node,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says; none where there is none. Blocks.
    ///
    /// # Errors
    /// When it can't be read, is damaged, or is not this node's.
    pub fn read(&self) -> Result<Option<PersistedPolicy>, Error> {
        let mut text = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut text))
        {
            Ok(_) if u64::try_from(text.len()).is_ok_and(|length| length > LARGEST) => {
                Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "read {}: it is larger than {LARGEST} bytes",
                        self.path.display()
                    ),
                ))
            }
            Ok(_) => {
                let named = |error: Error| {
                    Error::new(error.kind, format!("read {}", self.path.display()))
                        .with_source(error)
                };
                PersistedPolicy::parse(&text, &self.node)
                    .map(Some)
                    .map_err(named)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::from_io(
                error,
                format!("read {}", self.path.display()),
            )),
        }
    }

    /// Replaces the file atomically and durably (write, fsync, rename, fsync of the directory).
    /// Blocks.
    ///
    /// # Errors
    /// When it can't be written; the old one stays.
    pub fn write(&self, persisted: &PersistedPolicy) -> Result<(), Error> {
        self.replace(persisted.to_json(&self.node).as_bytes())
            .map_err(|error| Error::from_io(error, format!("write {}", self.path.display())))
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut name = self
            .path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(".new");
        let new = folder.join(name);
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(folder)?.sync_all()
    }

    /// Removes the file of any node; whether there was one. Blocks.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove(path: &Path) -> Result<bool, Error> {
        match fs::remove_file(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::from_io(error, format!("remove {}", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use imbl::OrdSet;

    use super::*;

    fn persisted(governed: &str) -> PersistedPolicy {
        PersistedPolicy {
            wide: OrdSet::new(),
            outside: ["eth0".to_owned()].into_iter().collect(),
            local: OrdSet::unit("10.244.1.0/24".parse().unwrap()),
            governed: OrdSet::unit(governed.parse::<ipnet::IpNet>().unwrap().into()),
            exempt: OrdSet::new(),
        }
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(
            folder.path().join("deep/er/state.json"),
            NodeName::from("a"),
        );
        assert_eq!(file.read().unwrap(), None);
        for governed in ["10.6.1.0/24", "10.6.2.0/24"] {
            file.write(&persisted(governed)).unwrap();
            assert_eq!(file.read().unwrap(), Some(persisted(governed)));
        }
        assert_eq!(
            fs::read_dir(file.path().parent().unwrap()).unwrap().count(),
            1
        );
        assert!(
            StateFile::remove(file.path()).unwrap() && !StateFile::remove(file.path()).unwrap()
        );
        assert_eq!(file.read().unwrap(), None);
    }

    #[test]
    fn what_an_interrupted_write_left_is_no_file_and_does_not_stand_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path().join("state.json"), NodeName::from("a"));
        fs::write(
            folder.path().join("state.json.new"),
            "{\"version\": 1, \"no",
        )
        .unwrap();
        assert_eq!(file.read().unwrap(), None);
        file.write(&persisted("10.6.1.0/24")).unwrap();
        assert_eq!(file.read().unwrap(), Some(persisted("10.6.1.0/24")));
    }

    #[test]
    fn refusals_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::new(folder.path().join("state.json"), NodeName::from("a"));
        fs::write(file.path(), "?").unwrap();
        assert!(file.read().unwrap_err().chain().contains("state.json"));
        let in_a_file = StateFile::new(file.path().join("state.json"), NodeName::from("a"));
        assert!(
            in_a_file
                .write(&persisted("10.6.1.0/24"))
                .unwrap_err()
                .chain()
                .contains("state.json/state.json")
        );
    }
}
