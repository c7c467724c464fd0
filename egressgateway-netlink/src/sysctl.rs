//! Kernel parameters under `net.`, of the network namespace of the calling thread, from
//! `/proc/sys/net` or, in a container that has it, from the host's at `/host/proc/sys/net`.
//!
//! `/proc/sys/net` shows every reader its own namespace, unlike `/proc/net` and `/sys/class/net`,
//! which show that of the process or of whoever mounted them. Reads and writes are done by the
//! calling thread for that reason; they never wait.

use std::{
    io,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use egressgateway::{Error, model::Family};

/// Where `net.` parameters are.
const ROOT: &str = "/proc/sys/net";
/// Where they are in a container whose own are read-only, as they are without privileges: a mount
/// of the host's.
const MOUNTED: &str = "/host/proc/sys/net";

/// Reads a parameter, such as `["ipv4", "conf", "eth0", "rp_filter"]`; none where the kernel has no
/// such parameter.
///
/// # Errors
/// When the kernel refuses.
pub fn read(path: &[&str]) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(file(path)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::from_io(error, format!("read {}", name(path)))),
    }
}

/// Writes a parameter.
///
/// # Errors
/// When there is no such parameter, or the kernel refuses.
pub fn write(path: &[&str], value: &str) -> Result<(), Error> {
    std::fs::write(file(path), value)
        .map_err(|error| Error::from_io(error, format!("set {} to {value}", name(path))))
}

/// Whether the kernel has a family at all; IPv6 can be left out when it boots.
#[must_use]
pub fn has_family(family: Family) -> bool {
    file(&[directory(family)]).exists()
}

/// Where a family's parameters are: "ipv4", "ipv6".
#[must_use]
pub fn directory(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

fn file(path: &[&str]) -> PathBuf {
    static CHOSEN: LazyLock<&str> = LazyLock::new(|| {
        if Path::new(MOUNTED).exists() {
            MOUNTED
        } else {
            ROOT
        }
    });
    std::iter::once(*CHOSEN)
        .chain(path.iter().copied())
        .collect()
}

/// As sysctl(8) takes it, which tells separators from dots in device names by the slash.
fn name(path: &[&str]) -> String {
    format!("net/{}", path.join("/"))
}
