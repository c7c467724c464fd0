//! Processes that another program may have to end later.

use std::{
    fmt, fs, io,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often something is looked at that tells nobody when it changes.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
/// How long a killed process may take to be gone. The last one of a PID namespace waits for all
/// others.
const END: Duration = Duration::from_secs(60);

/// A process and when it began, so that a number that was given away again is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    id: i32,
    /// In ticks since the machine's start.
    began: u64,
}

impl Identity {
    /// Of a process that lives; none when there is none with this number, or only its remains.
    pub(super) fn of(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name comes second, in parentheses, and may contain anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let dead = matches!(fields.next()?, "Z" | "X");
        let began = fields.nth(18)?.parse().ok()?;
        (!dead).then_some(Self {
            id: i32::try_from(id).ok()?,
            began,
        })
    }

    pub(super) fn id(self) -> u32 {
        self.id.unsigned_abs()
    }

    pub(super) fn lives(self) -> bool {
        Self::of(self.id()) == Some(self)
    }

    /// Kills it, and waits until it is gone.
    pub(super) fn end(self) -> io::Result<()> {
        let deadline = Instant::now() + END;
        while self.lives() {
            // Fails only when it is gone meanwhile.
            let _ = kill(Pid::from_raw(self.id), Signal::SIGKILL);
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("process {} does not end", self.id),
                ));
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.id, self.began)
    }
}

impl FromStr for Identity {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{text:?} must be a process' number and its start"),
            )
        };
        let (id, began) = text.trim().split_once(' ').ok_or_else(wrong)?;
        Ok(Self {
            id: id.parse().map_err(|_| wrong())?,
            began: began.parse().map_err(|_| wrong())?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_known_again_until_it_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let again: Identity = identity.to_string().parse().unwrap();
        assert_eq!(again, identity);
        assert!(again.lives());
        again.end().unwrap();
        assert!(
            !again.lives(),
            "what is left until somebody asks for the status is no process"
        );
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let other = Identity {
            began: identity.began + 1,
            ..identity
        };
        assert!(!other.lives());
        other.end().unwrap();
        assert!(identity.lives());
        identity.end().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_no_process_is_refused() {
        assert!("".parse::<Identity>().is_err());
        assert!("12".parse::<Identity>().is_err());
        assert!("a b".parse::<Identity>().is_err());
    }
}
