//! Network namespaces of others.

use std::{fs::File, io, process::Command, sync::Arc, thread};

use nix::sched::{CloneFlags, setns};

/// A network namespace. It lasts as long as this, even without a process in it.
#[derive(Debug, Clone)]
pub struct Net(Arc<File>);

impl Net {
    /// That of a process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(process: u32) -> io::Result<Self> {
        Ok(Self(Arc::new(File::open(format!(
            "/proc/{process}/ns/net"
        ))?)))
    }

    /// Runs `work` on a thread inside: its sockets stay there.
    ///
    /// # Errors
    /// When the thread can't be moved.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.move_in()?;
                Ok(work())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread inside.
    ///
    /// # Errors
    /// From the kernel.
    pub fn move_in(&self) -> io::Result<()> {
        Ok(setns(&*self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

/// A command in the network namespace of a process, and otherwise in the caller's namespaces.
pub(super) fn command_in(process: u32, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/proc/{process}/ns/net"))
        .arg("--")
        .arg(program);
    command
}
