//! Control groups of a node: each node has a part of every hierarchy, below the group of whoever
//! starts it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};

use super::process::GLANCE;

const PREFIX: &str = "egressgateway-e2e";
/// How long the kernel may take to see that a group's processes are gone.
const EMPTY: Duration = Duration::from_secs(20);
/// What a kubelet wants to limit, where there is only one hierarchy.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// A hierarchy as a process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    /// Controllers, commas between them, or `name=…`; empty for the one hierarchy of version 2.
    controllers: String,
    /// The group of the process.
    own: String,
}

fn hierarchies(cgroup: &str) -> Vec<Hierarchy> {
    let parts = cgroup.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some(Hierarchy {
            controllers: parts.next()?.to_owned(),
            own: parts.next()?.to_owned(),
        })
    });
    parts.collect()
}

/// Where a hierarchy is mounted, and which of its groups is seen there as the first one.
fn mounted(mountinfo: &str, controllers: &str) -> Option<(String, String)> {
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let fits = match kind.next()? {
            "cgroup" if !controllers.is_empty() => {
                let options: Vec<&str> = kind.nth(1)?.split(',').collect();
                controllers
                    .split(',')
                    .all(|controller| options.contains(&controller))
            }
            "cgroup2" => controllers.is_empty(),
            _ => false,
        };
        let fields: Vec<&str> = place.split(' ').collect();
        fits.then(|| Some(((*fields.get(4)?).to_owned(), (*fields.get(3)?).to_owned())))
            .flatten()
    })
}

/// Whether this machine has the one hierarchy of version 2 and no other.
fn unified(hierarchies: &[Hierarchy]) -> bool {
    hierarchies
        .iter()
        .all(|hierarchy| hierarchy.controllers.is_empty())
}

/// Makes the groups of a node; a process that is moved into all of them belongs to it.
pub(super) fn make(node: &str, run: &str) -> io::Result<Vec<PathBuf>> {
    let found = hierarchies(&fs::read_to_string("/proc/self/cgroup")?);
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let name = format!("{PREFIX}-{run}-{node}");
    let mut groups = Vec::new();
    let single = unified(&found);
    for Hierarchy { controllers, own } in found
        .into_iter()
        .filter(|hierarchy| single || !hierarchy.controllers.is_empty())
    {
        let missing = || {
            io::Error::other(format!(
                "control groups of {controllers:?} are mounted nowhere"
            ))
        };
        let (place, first) = mounted(&mountinfo, &controllers).ok_or_else(missing)?;
        let place = PathBuf::from(place);
        // A group with processes can't give controllers to others, where there is one hierarchy: so
        // beside that of the caller.
        let above = if single {
            place
        } else {
            place.join(
                own.strip_prefix(first.as_str())
                    .unwrap_or(&own)
                    .trim_start_matches('/'),
            )
        };
        if single {
            share(&above)?;
        }
        let group = above.join(&name);
        fs::create_dir_all(&group).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", group.display()))
        })?;
        if controllers
            .split(',')
            .any(|controller| controller == "cpuset")
        {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(group.join(file), fs::read(above.join(file))?)?;
            }
            fs::write(group.join("cgroup.clone_children"), "1")?;
        }
        groups.push(group);
    }
    Ok(groups)
}

/// Gives controllers to the groups below this one, those that it has.
fn share(group: &Path) -> io::Result<()> {
    let has = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in CONTROLLERS
        .iter()
        .filter(|controller| has.split_whitespace().any(|word| word == **controller))
    {
        let file = group.join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}")).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", file.display()))
        })?;
    }
    Ok(())
}

/// Where there is one hierarchy: takes the process that made a node's namespaces, and only waits
/// from then on, out of the node's group, once it has a child there.
pub(super) fn release(process: u32) -> io::Result<()> {
    let found = hierarchies(&fs::read_to_string("/proc/self/cgroup")?);
    let children =
        fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    if !unified(&found) || children.trim().is_empty() {
        return Ok(());
    }
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    let missing = || io::Error::other("control groups are mounted nowhere");
    let (place, first) = mounted(&mountinfo, "").ok_or_else(missing)?;
    let own = found
        .first()
        .map(|hierarchy| hierarchy.own.as_str())
        .unwrap_or_default();
    let own = Path::new(&place).join(
        own.strip_prefix(first.as_str())
            .unwrap_or(own)
            .trim_start_matches('/'),
    );
    fs::write(own.join("cgroup.procs"), process.to_string())
}

/// Removes groups with all below them. Their processes have ended.
pub(super) fn remove(groups: &[PathBuf]) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY;
    for group in groups {
        while let Err(error) = remove_below(group) {
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    error.kind(),
                    format!("{}: {error}", group.display()),
                ));
            }
            thread::sleep(GLANCE);
        }
    }
    Ok(())
}

fn remove_below(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Mounts what the calling process sees of its hierarchies, with its own group as the first one, at
/// `place`.
pub(super) fn mount_own(place: &Path) -> io::Result<()> {
    let none = None::<&str>;
    let found = hierarchies(&fs::read_to_string("/proc/self/cgroup")?);
    if unified(&found) {
        mount(
            Some("cgroup"),
            place,
            Some("cgroup2"),
            MsFlags::empty(),
            none,
        )?;
        // The first group has no processes of its own, or it could not give controllers to the
        // others.
        let own = place.join("node");
        fs::create_dir_all(&own)?;
        fs::write(own.join("cgroup.procs"), "0")?;
        let deadline = Instant::now() + EMPTY;
        while let Err(error) = share(place) {
            // As long as the process that made the namespaces is still there: see `release`.
            if Instant::now() > deadline {
                return Err(error);
            }
            thread::sleep(GLANCE);
        }
        return Ok(());
    }
    mount(
        Some("tmpfs"),
        place,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )?;
    for Hierarchy { controllers, .. } in found
        .into_iter()
        .filter(|hierarchy| !hierarchy.controllers.is_empty())
    {
        let (folder, options) = match controllers.strip_prefix("name=") {
            Some(name) => (name.to_owned(), format!("none,{controllers}")),
            None => (controllers.clone(), controllers.clone()),
        };
        let folder = place.join(folder);
        fs::create_dir(&folder)?;
        mount(
            Some("cgroup"),
            &folder,
            Some("cgroup"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        for controller in controllers
            .split(',')
            .filter(|controller| **controller != controllers && !controller.starts_with("name="))
        {
            std::os::unix::fs::symlink(&controllers, place.join(controller))?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FIRST: &str = "4:memory:/some/thing\n2:cpu,cpuacct:/\n1:name=systemd:/user.slice\n0::/\n";
    const FIRST_MOUNTS: &str =
        "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:11 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 /some /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/systemd rw shared:13 - cgroup cgroup rw,xattr,name=systemd
33 25 0:29 / /sys/fs/cgroup/unified rw shared:14 - cgroup2 cgroup2 rw";

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        let found = hierarchies(FIRST);
        assert!(!unified(&found));
        let places: Vec<_> = found
            .iter()
            .map(|hierarchy| mounted(FIRST_MOUNTS, &hierarchy.controllers).unwrap())
            .collect();
        let places: Vec<_> = places
            .iter()
            .map(|(place, first)| (place.as_str(), first.as_str()))
            .collect();
        assert_eq!(
            places,
            [
                ("/sys/fs/cgroup/memory", "/some"),
                ("/sys/fs/cgroup/cpu,cpuacct", "/"),
                ("/sys/fs/cgroup/systemd", "/"),
                ("/sys/fs/cgroup/unified", "/")
            ]
        );
    }

    #[test]
    fn one_hierarchy_is_told_from_many() {
        let found = hierarchies("0::/user.slice/session-1.scope\n");
        assert!(unified(&found));
        let mounts =
            "24 22 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(
            mounted(mounts, ""),
            Some(("/sys/fs/cgroup".to_owned(), "/".to_owned()))
        );
        assert_eq!(mounted(mounts, "memory"), None);
    }
}
