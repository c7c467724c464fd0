//! A real program running in a namespace of the lab.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{lock::locked, namespace::Namespace};
use crate::pace::patient;

/// How often a state that brings no event of its own is looked at.
const GLANCE: Duration = Duration::from_millis(5);
/// How long a program may take from the request until it exists.
const START: Duration = Duration::from_secs(10);
/// The shell writes its id where the lab finds it, and becomes the program.
const ANNOUNCE: &str = "echo $$ >$1.new; mv $1.new $1; shift; exec \"$@\"";

/// A program to be started.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    namespace: Namespace,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: Option<PathBuf>,
}

impl Namespace {
    /// Describes a program to start here; see [`ProcessSpec::start`].
    #[must_use]
    pub fn program(&self, path: impl AsRef<Path>) -> ProcessSpec {
        ProcessSpec::new(self.clone(), path.as_ref())
    }
}

impl ProcessSpec {
    fn new(namespace: Namespace, program: &Path) -> Self {
        Self {
            namespace,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable; the others are the caller's.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Writes what the program prints to this file (appending), instead of to one without a name.
    #[must_use]
    pub fn log_to(mut self, file: impl Into<PathBuf>) -> Self {
        self.log = Some(file.into());
        self
    }

    /// Starts it, with a mount view of its own (`/sys` shows its namespace), in the directory `/`.
    /// It dies with the lab, at the latest.
    ///
    /// # Errors
    /// When it cannot be found or started, with what was printed.
    pub fn start(self) -> io::Result<Process> {
        let log = match &self.log {
            Some(path) => File::options()
                .create(true)
                .append(true)
                .read(true)
                .open(path)?,
            None => tempfile::tempfile()?,
        };
        let running = &self.namespace.running;
        let announced = format!("/run/lab/pid-{}", running.next_number());
        let mut command = running.sandbox.command();
        command.args(["sh", "-eu", "-c", ANNOUNCE, "sh", &announced]);
        if let Some(name) = &self.namespace.name {
            command.args(["ip", "netns", "exec", name]);
        }
        // A path is the caller's, who may stand elsewhere than in `/`; a bare name is looked up.
        let bare = self.program.components().count() == 1;
        command.arg(if bare {
            self.program.clone()
        } else {
            std::path::absolute(&self.program)?
        });
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        let mut child = command.spawn()?;
        let id =
            await_announcement(&mut child, &running.sandbox.path(&announced)).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", self.program.display()))
            })?;
        Ok(Process {
            namespace: self.namespace,
            program: self.program,
            id,
            child: Mutex::new(child),
            log,
        })
    }
}

fn await_announcement(child: &mut Child, file: &Path) -> io::Result<u32> {
    let deadline = Instant::now() + patient(START);
    loop {
        if let Ok(text) = std::fs::read_to_string(file) {
            return text
                .trim()
                .parse()
                .map_err(|error| io::Error::other(format!("{text:?}: {error}")));
        }
        if let Some(status) = child.try_wait()? {
            return Err(io::Error::other(format!("not started: {status}")));
        }
        if Instant::now() > deadline {
            child.kill()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(GLANCE);
    }
}

/// A program running in a namespace of the lab. Dropped: killed.
#[derive(Debug)]
pub struct Process {
    namespace: Namespace,
    program: PathBuf,
    /// In the lab's PID namespace.
    id: u32,
    child: Mutex<Child>,
    log: File,
}

impl Process {
    /// Its id, in the lab's PID namespace: what `/proc` there knows it by.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Sends a signal. Nothing happens when the program has ended.
    ///
    /// # Errors
    /// When the lab has ended.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        if self.status()?.is_some() {
            return Ok(());
        }
        let name = signal.as_str().trim_start_matches("SIG");
        let mut kill: Command = self.namespace.running.sandbox.command();
        kill.args(["sh", "-c", &format!("kill -{name} {}", self.id)])
            .stderr(Stdio::null());
        // Failing to find the process is no failure: it has ended meanwhile.
        kill.status()?;
        if signal != Signal::SIGSTOP {
            // nsenter(1) stops with its child, and does not see by itself that this one goes on or
            // has ended.
            let parent = i32::try_from(locked(&self.child).id()).map_err(io::Error::other)?;
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), Signal::SIGCONT);
        }
        Ok(())
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// From the kernel.
    pub fn status(&self) -> io::Result<Option<ExitStatus>> {
        locked(&self.child).try_wait()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it still runs after `timeout`, with its log.
    pub fn wait(&self, timeout: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            self.not_late(deadline, "to end")?;
        }
    }

    /// Sends SIGTERM and waits until it has ended.
    ///
    /// # Errors
    /// As [`Process::wait`].
    pub fn terminate(&self, timeout: Duration) -> io::Result<ExitStatus> {
        self.kill(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Everything it has printed so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> io::Result<String> {
        // A file opened anew has an offset of its own: the program's writing is not disturbed.
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.log)
        );
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits until it has printed `text`.
    ///
    /// # Errors
    /// When it has not after `timeout` or has ended, with its log.
    pub fn wait_for_log(&self, text: &str, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let ended = self.status()?;
            if self.log()?.contains(text) {
                return Ok(());
            }
            if let Some(status) = ended {
                return Err(io::Error::other(format!(
                    "{} ended, {status}, before it said {text:?}:\n{}",
                    self.name(),
                    self.log()?
                )));
            }
            self.not_late(deadline, &format!("to say {text:?}"))?;
        }
    }

    fn name(&self) -> std::path::Display<'_> {
        self.program.display()
    }

    fn not_late(&self, deadline: Instant, what: &str) -> io::Result<()> {
        if Instant::now() > deadline {
            let text = format!("{} took too long {what}:\n{}", self.name(), self.log()?);
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(GLANCE);
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kill(Signal::SIGKILL).is_ok() {
            // Otherwise the lab has ended, and the program with it.
            let _ = locked(&self.child).wait();
        }
    }
}
