//! Images' root file systems, assembled for tests by `scripts/rootfs` from programs as they were
//! built for tests.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use crate::cluster::binary;

/// The one image whose agent has everything, as it is built by default.
pub const FULL: &str = "full";

const AGENT: &str = "egressgateway-agent";

/// A line of `images/contents`.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The image's name.
    pub image: String,
    /// Programs of this workspace.
    pub programs: Vec<String>,
    /// What the agent can.
    pub features: Vec<String>,
}

/// Every image, in the order of `images/contents`.
///
/// # Panics
/// When that can't be read.
#[must_use]
pub fn all() -> Vec<Contents> {
    let text = fs::read_to_string(repository().join("images/contents"))
        .unwrap_or_else(|error| panic!("images/contents: {error}"));
    let words = |column: &str| {
        column
            .split(',')
            .filter(|word| *word != "-")
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let parse = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [image, programs, features, _packages] => Contents {
            image: image.to_owned(),
            programs: words(programs),
            features: words(features),
        },
        _ => panic!("images/contents: {line}: must have four columns"),
    };
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(parse)
        .filter(|contents| contents.image != "without")
        .collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// An image's root file system, in a folder that goes with it.
#[derive(Debug)]
pub struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    /// Assembles it.
    ///
    /// # Panics
    /// When a program was not built, or the script fails.
    #[must_use]
    pub fn assemble(image: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // A folder for one user alone is no root file system for another.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("a folder for everybody");
        let root = Self { directory };
        let programs = root.folder("programs");
        let contents = all()
            .into_iter()
            .find(|contents| contents.image == image)
            .unwrap_or_else(|| panic!("no image {image}"));
        for program in contents.programs {
            symlink(built(image, &program), programs.join(program)).expect("a link");
        }
        let mut script = Command::new(repository().join("scripts/rootfs"));
        let output = script
            .arg(image)
            .arg(root.path())
            .arg("--programs")
            .arg(&programs)
            .output()
            .expect("scripts/rootfs");
        assert!(
            output.status.success(),
            "{image}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        root
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A folder beside it, which is made if there is none.
    ///
    /// # Panics
    /// When it can't be made.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.directory.path().join(name);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        folder
    }

    /// Everything below a folder of it, links and folders included.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn entries(&self, below: &str) -> Vec<PathBuf> {
        let mut entries = Vec::new();
        let mut folders = vec![self.path().join(below)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)
                .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path.clone());
                }
                entries.push(path);
            }
        }
        entries
    }

    /// Files (neither links nor folders) below a folder of it.
    #[must_use]
    pub fn files(&self, below: &str) -> Vec<PathBuf> {
        self.entries(below)
            .into_iter()
            .filter(|path| path.is_file() && !path.is_symlink())
            .collect()
    }

    /// Names of all programs, without those that are links to others.
    #[must_use]
    pub fn programs(&self) -> BTreeSet<String> {
        let names = |folder| {
            self.files(folder)
                .into_iter()
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        };
        names("usr/bin").chain(names("usr/sbin")).collect()
    }

    /// What a program inside prints, on either of its outputs, in this machine's network.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new("chroot")
            .arg(self.path())
            .arg(program)
            .args(arguments)
            .output()
            .expect("chroot");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }
}

/// A program as it was built for tests. An agent that lacks a part has a folder of its own.
fn built(image: &str, program: &str) -> PathBuf {
    let usual = binary(program);
    if program != AGENT || image == FULL {
        return usual;
    }
    let own = usual.with_file_name("images").join(image).join(program);
    assert!(
        own.is_file(),
        "{} is not built: scripts/image-agents && cargo build --workspace --bins",
        own.display()
    );
    own
}
