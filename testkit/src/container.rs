//! What a node makes of a pod's description: a program in the root file system of an image, with
//! the user, the capabilities, the mounts and the environment that the description gives, and
//! nothing else. It runs in the node's network namespace.
//!
//! Volumes, variables and rights that are not known here are refused, so that a description is not
//! followed by half. Nobody looks at probes, limits and seccomp profiles.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::lab::{Node, ProcessSpec};

/// Where programs are looked up in an image: the Containerfile says the same.
pub const PATH: &str = "/usr/sbin:/usr/bin";

/// The images' user, for containers that state none.
const NOBODY: u64 = 65532;

/// Where a pod finds how to reach the API server.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Builds the container, and becomes its program. `$1`: the image; `$2`: `ro` or `rw`; `$3`: user;
/// `$4`: group; `$5`: capabilities that are kept, as a regular expression; then mounts as `source
/// target ro|rw`, `--`, the environment, `--`, and the command.
///
/// As a runtime does without privileges: kernel parameters can't be written, devices are a handful.
const BUILD: &str = r#"
image=$1 root=$2 user=$3 group=$4 kept=$5
shift 5
mount --bind "$image" "$image"
mount -t proc proc "$image/proc"
mount --bind "$image/proc/sys" "$image/proc/sys"
mount -o remount,bind,ro "$image/proc/sys"
mount -t sysfs -o ro sysfs "$image/sys"
mount -t tmpfs -o mode=755 tmpfs "$image/dev"
for device in null zero full random urandom; do
    touch "$image/dev/$device"
    mount --bind "/dev/$device" "$image/dev/$device"
done
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$image$2"
    else
        mkdir -p "$(dirname "$image$2")"
        [ -e "$1" ] || touch "$1"
        touch "$image$2"
    fi
    mount --bind "$1" "$image$2"
    mount -o "remount,bind,$3" "$image$2"
    shift 3
done
shift
mount -o "remount,bind,nosuid,$root" "$image"
last=$(cat /proc/sys/kernel/cap_last_cap)
all=$(capsh --decode="$(printf %x $(((1 << (last + 1)) - 1)))")
dropped=
for name in $(tr , ' ' <<<"${all#*=}"); do
    [[ $name =~ ^($kept)$ ]] || dropped=$dropped,$name
done
environment=()
while [ "$1" != -- ]; do
    environment+=("$1")
    shift
done
program=$2
shift 2
exec env -i "${environment[@]}" "$(type -P capsh)" --chroot="$image" --drop="${dropped#,}" --no-new-privs --groups= --gid="$group" \
    --uid="$user" --shell="$program" -- "$@"
"#;

/// What a pod finds on its node, whatever it is.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Where the ConfigMaps are that it mounts.
    pub objects: &'a [Value],
    /// Its `/etc/hosts`, which stands for a DNS too.
    pub hosts: &'a str,
    /// What is mounted at [`SERVICE_ACCOUNT`].
    pub account: &'a Path,
    /// Environment variables that tell where services are.
    pub services: &'a [(&'a str, String)],
}

/// One container of a pod.
#[derive(Debug, Clone)]
pub struct Container {
    image: PathBuf,
    pod: Value,
    name: String,
    namespace: String,
    files: PathBuf,
}

impl Container {
    /// The first container of a pod in an image's root file system. `pod` is a pod, or what has a
    /// template for some; `files` is a folder for what is mounted, for this container alone.
    ///
    /// # Panics
    /// On an object without containers.
    #[must_use]
    pub fn new(image: &Path, pod: &Value, name: &str, files: &Path) -> Self {
        let spec = if pod["spec"]["template"].is_null() {
            &pod["spec"]
        } else {
            &pod["spec"]["template"]["spec"]
        };
        assert!(spec["containers"][0].is_object(), "no containers: {pod}");
        let namespace = pod["metadata"]["namespace"]
            .as_str()
            .unwrap_or("default")
            .to_owned();
        Self {
            image: image.to_owned(),
            pod: spec.clone(),
            name: name.to_owned(),
            namespace,
            files: files.to_owned(),
        }
    }

    /// Describes its program on a node.
    ///
    /// # Errors
    /// When its files can't be written.
    ///
    /// # Panics
    /// On what is not known here.
    pub fn on(&self, node: &Node, around: &Surroundings<'_>) -> io::Result<ProcessSpec> {
        let container = &self.pod["containers"][0];
        let security = &container["securityContext"];
        assert!(security["privileged"] != true, "privileged: not known here");
        let root = if security["readOnlyRootFilesystem"] == true {
            "ro"
        } else {
            "rw"
        };
        let user = self.stated(security, "runAsUser").unwrap_or(NOBODY);
        let group = self
            .stated(security, "runAsGroup")
            .map_or_else(|| self.group_of(user), Ok)?;
        let mut words = vec![
            self.image.display().to_string(),
            root.to_owned(),
            user.to_string(),
            group.to_string(),
            capabilities(security),
        ];
        words.extend(self.mounts(container, around)?.into_iter().flatten());
        words.push("--".to_owned());
        words.extend(self.environment(container, node.name(), around));
        words.push("--".to_owned());
        let command: Vec<String> = [&container["command"], &container["args"]]
            .into_iter()
            .flat_map(texts)
            .collect();
        words.push(self.find(&command[0]));
        words.extend_from_slice(&command[1..]);
        Ok(node
            .program("bash")
            .args(["-euc", BUILD, "container"])
            .args(words))
    }

    /// A number that the container's security context states, or the pod's.
    fn stated(&self, security: &Value, name: &str) -> Option<u64> {
        security[name]
            .as_u64()
            .or_else(|| self.pod["securityContext"][name].as_u64())
    }

    /// The group that the image's list of users has for one, as for a container that states none.
    fn group_of(&self, user: u64) -> io::Result<u64> {
        let users = fs::read_to_string(self.image.join("etc/passwd"))?;
        let mut groups =
            users
                .lines()
                .filter_map(|line| match line.split(':').collect::<Vec<_>>()[..] {
                    [_, _, id, group, ..] if id == user.to_string() => group.parse().ok(),
                    _ => None,
                });
        groups
            .next()
            .ok_or_else(|| io::Error::other(format!("the image knows no user {user}")))
    }

    fn mounts(&self, container: &Value, around: &Surroundings<'_>) -> io::Result<Vec<[String; 3]>> {
        let hosts = self.files.join("hosts");
        fs::write(&hosts, around.hosts)?;
        let mut mounts = vec![
            [
                hosts.display().to_string(),
                "/etc/hosts".to_owned(),
                "ro".to_owned(),
            ],
            [
                around.account.display().to_string(),
                SERVICE_ACCOUNT.to_owned(),
                "ro".to_owned(),
            ],
        ];
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let name = &mount["name"];
            let volume = self.pod["volumes"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|volume| volume["name"] == *name);
            let volume = volume.unwrap_or_else(|| panic!("no volume {name}"));
            let source = if let Some(map) = volume["configMap"]["name"].as_str() {
                self.config_map(map, around.objects)?
            } else {
                self.host_path(&volume["hostPath"])?
            };
            let mode = if mount["readOnly"] == true {
                "ro"
            } else {
                "rw"
            };
            mounts.push([
                source.display().to_string(),
                text(&mount["mountPath"]),
                mode.to_owned(),
            ]);
        }
        Ok(mounts)
    }

    fn config_map(&self, name: &str, objects: &[Value]) -> io::Result<PathBuf> {
        let map = objects
            .iter()
            .find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name);
        let folder = self.files.join(name);
        fs::create_dir_all(&folder)?;
        for (file, content) in map
            .and_then(|map| map["data"].as_object())
            .unwrap_or_else(|| panic!("no ConfigMap {name}"))
        {
            fs::write(folder.join(file), text(content))?;
        }
        Ok(folder)
    }

    /// A path of the node's. Nodes of a lab have all files in common; files that are to be created
    /// come into being where the lab has a `/run` of its own, at the container's start, and folders
    /// that are to be created belong to this container, also when it starts again.
    fn host_path(&self, volume: &Value) -> io::Result<PathBuf> {
        let path = PathBuf::from(text(&volume["path"]));
        match (volume["type"].as_str(), path.strip_prefix("/")) {
            (Some("Directory"), _) if path.is_dir() => Ok(path),
            (Some("FileOrCreate"), _) if path.starts_with("/run") => Ok(path),
            (Some("DirectoryOrCreate"), Ok(within)) => {
                let folder = self.files.join("host").join(within);
                fs::create_dir_all(&folder)?;
                Ok(folder)
            }
            (other, _) => Err(io::Error::other(format!(
                "hostPath {} of type {other:?} is not known here",
                path.display()
            ))),
        }
    }

    fn environment(&self, container: &Value, node: &str, around: &Surroundings<'_>) -> Vec<String> {
        let mut variables = vec![format!("PATH={PATH}")];
        variables.extend(
            around
                .services
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        );
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                None => text(&variable["value"]),
                Some("metadata.name") => self.name.clone(),
                Some("metadata.namespace") => self.namespace.clone(),
                Some("spec.nodeName") => node.to_owned(),
                Some(other) => panic!("fieldPath {other}: not known here"),
            };
            variables.push(format!("{}={value}", text(&variable["name"])));
        }
        variables
    }

    /// A program's path inside, which is looked up as a runtime does.
    fn find(&self, program: &str) -> String {
        let mut candidates = PATH.split(':').map(|folder| format!("{folder}/{program}"));
        candidates
            .find(|path| self.image.join(&path[1..]).exists())
            .unwrap_or_else(|| panic!("the image has no {program}"))
    }
}

/// What is left of all capabilities, as a regular expression.
fn capabilities(security: &Value) -> String {
    let of = |what: &str| texts(&security["capabilities"][what]);
    assert_eq!(
        of("drop"),
        ["ALL"],
        "a container that keeps what a runtime gives is not known here"
    );
    assert_eq!(
        security["allowPrivilegeEscalation"], false,
        "a container that may gain privileges is not known here"
    );
    of("add")
        .iter()
        .map(|name| format!("cap_{}", name.to_lowercase()))
        .collect::<Vec<_>>()
        .join("|")
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
        .to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}
