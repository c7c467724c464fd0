//! The folder of a cluster, by which every later program finds what is to be ended and removed.
//!
//! There is one on a machine. Whoever works on it holds a lock. A guard waits for the end of
//! whoever started it, in whatever way, and then takes the cluster away, unless it is to be kept;
//! where even the guard was killed, the next start does.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    groups,
    process::{GLANCE, Identity},
};

/// Where the folder is, if not in the usual place.
pub const PLACE: &str = "EGRESSGATEWAY_E2E";
/// How long another one may take to end a cluster.
const WAIT: Duration = Duration::from_secs(90);
/// There while nobody shall take the cluster away but on request.
const KEPT: &str = "kept";
/// Names the run that made the folder.
const RUN: &str = "run";

/// The folder, held by this process.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    run: String,
    _lock: Flock<File>,
    /// Open as long as this process lives.
    guard: Option<(Child, ChildStdin)>,
}

/// Where a cluster is on this machine.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::var_os(PLACE).map_or_else(
        || std::env::temp_dir().join("egressgateway-e2e"),
        PathBuf::from,
    )
}

/// Writes a file that others see whole or not at all.
pub(super) fn write_whole(file: &Path, content: &str) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, file))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn lock_file(directory: &Path) -> PathBuf {
    directory.with_extension("lock")
}

fn lock(directory: &Path) -> io::Result<Flock<File>> {
    let file = lock_file(directory);
    let deadline = Instant::now() + WAIT;
    loop {
        match Flock::lock(File::create(&file)?, FlockArg::LockExclusiveNonblock) {
            // Whoever held it may have removed the file: a lock of a file that has no name is
            // nobody's.
            Ok(lock)
                if fs::metadata(&file).is_ok_and(|named| {
                    lock.metadata().is_ok_and(|own| own.ino() == named.ino())
                }) =>
            {
                return Ok(lock);
            }
            Ok(_) => {}
            Err((_, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                thread::sleep(GLANCE);
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                let text = format!(
                    "another program works on the cluster in {}: there is one on a machine",
                    directory.display()
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

impl Place {
    /// Takes the place for a new cluster, and removes what an earlier one left. `guard` is the
    /// program of [`guard`].
    pub(super) fn take(guard: &Path) -> io::Result<Self> {
        let directory = directory();
        let lock = lock(&directory)?;
        if directory.join(KEPT).exists()
            && pids(&directory)?
                .iter()
                .any(|(_, identity)| identity.lives())
        {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "a cluster runs in {}: `e2e down` ends it",
                    directory.display()
                ),
            ));
        }
        clear(&directory)?;
        let run = std::process::id().to_string();
        fs::create_dir_all(&directory)?;
        write_whole(&directory.join(RUN), &run)?;
        // In a session of its own: what ends the others from a terminal does not end it.
        let mut command = Command::new("setsid");
        command.arg(guard).arg("guard").arg(&directory).arg(&run);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        let life = child
            .stdin
            .take()
            .ok_or_else(|| io::Error::other("no pipe"))?;
        Ok(Self {
            directory,
            run,
            _lock: lock,
            guard: Some((child, life)),
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// The process that is the first one of a node or holds a network, while it lives.
    pub(super) fn process(&self, name: &str) -> Option<Identity> {
        let identity: Identity = fs::read_to_string(self.path(&format!("{name}.pid")))
            .ok()?
            .parse()
            .ok()?;
        identity.lives().then_some(identity)
    }

    /// Where the number and the start of a process are noted.
    pub(super) fn announcement(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.pid"))
    }

    /// Notes a process that was just started.
    pub(super) fn announce(&self, name: &str, process: u32) -> io::Result<Identity> {
        let identity = Identity::of(process)
            .ok_or_else(|| io::Error::other(format!("{name} ended at once")))?;
        write_whole(&self.announcement(name), &identity.to_string())?;
        Ok(identity)
    }

    /// Notes the control groups that a node is about to have.
    pub(super) fn note_groups(&self, name: &str, groups: &[PathBuf]) -> io::Result<()> {
        let lines: Vec<String> = groups
            .iter()
            .map(|group| group.display().to_string())
            .collect();
        write_whole(&self.path(&format!("{name}.groups")), &lines.join("\n"))
    }

    /// The control groups of a node.
    pub(super) fn groups(&self, name: &str) -> Vec<PathBuf> {
        let text = fs::read_to_string(self.path(&format!("{name}.groups"))).unwrap_or_default();
        text.lines().map(PathBuf::from).collect()
    }

    /// Ends a node or a holder, and forgets its groups.
    pub(super) fn end(&self, name: &str) -> io::Result<()> {
        if let Some(identity) = self.process(name) {
            identity.end()?;
        }
        groups::remove(&self.groups(name))?;
        for kind in ["pid", "starter.pid", "groups"] {
            remove_file(&self.path(&format!("{name}.{kind}")))?;
        }
        Ok(())
    }

    /// Lets the cluster run on without this process.
    pub(super) fn keep(mut self) -> io::Result<()> {
        fs::write(self.path(KEPT), "")?;
        self.dismiss();
        Ok(())
    }

    /// Ends everything, and removes the folder.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let cleared = clear(&self.directory);
        self.dismiss();
        cleared.and_then(|()| remove_file(&lock_file(&self.directory)))
    }

    fn dismiss(&mut self) {
        if let Some((mut child, life)) = self.guard.take() {
            drop(life);
            // It needs the lock only where there is something to do.
            let _ = child.wait();
        }
    }
}

fn remove_file(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All processes that are noted in the folder.
fn pids(directory: &Path) -> io::Result<Vec<(String, Identity)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name().display().to_string();
        // Half a note is of a node that never was.
        if let Some(node) = name.strip_suffix(".pid")
            && let Ok(identity) =
                fs::read_to_string(directory.join(&name)).and_then(|text| text.parse())
        {
            found.push((node.to_owned(), identity));
        }
    }
    Ok(found)
}

/// Ends what is noted in a folder, and removes it.
fn clear(directory: &Path) -> io::Result<()> {
    for (_, identity) in pids(directory)? {
        identity.end()?;
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "groups")
        {
            let groups: Vec<PathBuf> = fs::read_to_string(&path)?
                .lines()
                .map(PathBuf::from)
                .collect();
            groups::remove(&groups)?;
        }
    }
    fs::remove_dir_all(directory)
}

/// Waits until the standard input ends, which it does with the process that started this one, and
/// then removes the cluster of that run unless it is kept or gone.
///
/// # Errors
/// When something does not end.
pub fn guard(directory: &Path, run: &str) -> io::Result<()> {
    let mut nothing = Vec::new();
    io::stdin().read_to_end(&mut nothing)?;
    let due = || {
        fs::read_to_string(directory.join(RUN)).is_ok_and(|text| text == run)
            && !directory.join(KEPT).exists()
    };
    if !due() {
        return Ok(());
    }
    let _lock = lock(directory)?;
    // Whoever held the lock may have cleared it meanwhile.
    if due() {
        clear(directory).and_then(|()| remove_file(&lock_file(directory)))
    } else {
        Ok(())
    }
}

/// Ends the cluster that runs on this machine, if one does.
///
/// # Errors
/// When another program works on it, or something does not end.
pub fn down() -> io::Result<()> {
    let directory = directory();
    let _lock = lock(&directory)?;
    clear(&directory)?;
    remove_file(&lock_file(&directory))
}
