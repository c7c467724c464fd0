//! The configuration file, followed while the daemon runs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::ArgMatches;
use egressgateway::{
    config::{Changed, Config},
    runtime::Reloads,
};
use serde_json::Value;

use crate::{
    Failure,
    arguments::{parse, read, with_arguments},
};

/// How often the file is read. The kubelet replaces a mounted ConfigMap within a minute or so, by a
/// link: contents are compared, not times.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the content must have stayed the same before it is taken: an editor may not have
/// written all of it yet.
const SETTLED: Duration = Duration::from_secs(1);

type Content = Result<String, String>;

/// Follows the file that the arguments name, and hands over the configuration in force whenever it
/// is another one; never ends.
///
/// Flags and environment variables take precedence as at start. Fields that wait for a restart keep
/// their value and are named in the log; a file that is refused changes nothing.
pub async fn follow_configuration(
    matches: &ArgMatches,
    environment: impl Fn(&str) -> Option<String>,
    mut in_force: Config,
    reloads: &Reloads,
    mut take: impl FnMut(&Config),
) {
    let Some(path) = matches.get_one::<PathBuf>("config") else {
        return std::future::pending().await;
    };
    let mut seen = None;
    loop {
        let content = settled(path, seen.as_ref()).await;
        if seen.as_ref() != Some(&content) {
            let next = parse(path, &content)
                .and_then(|file| next(&with_arguments(file, matches, &environment)?, &in_force));
            match next {
                Ok((next, changed)) => {
                    changed.iter().for_each(tell);
                    reloads.taken(
                        changed.len(),
                        changed.iter().filter(|changed| !changed.live).count(),
                    );
                    if next != in_force {
                        take(&next);
                        in_force = next;
                    }
                }
                Err(failure) => {
                    tracing::error!(error = %failure, "configuration file rejected; keeping the current configuration");
                    reloads.refused();
                }
            }
            seen = Some(content);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The file's content: the one `seen` before, or another one that was read twice in a row.
async fn settled(path: &Path, seen: Option<&Content>) -> Content {
    let mut content = read_aside(path).await;
    while seen != Some(&content) {
        tokio::time::sleep(SETTLED).await;
        let again = read_aside(path).await;
        if again == content {
            break;
        }
        content = again;
    }
    content
}

/// A file system may take its time.
async fn read_aside(path: &Path) -> Content {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || read(&path))
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

fn next(wanted: &Config, in_force: &Config) -> Result<(Config, Vec<Changed>), Failure> {
    let (next, changed) = in_force.adopt(wanted);
    // Two good configurations may not go together.
    let problems = next.problems();
    if problems.is_empty() {
        Ok((next, changed))
    } else {
        Err(problems.into())
    }
}

fn tell(changed: &Changed) {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let Changed {
        path,
        old,
        new,
        live,
    } = changed;
    let (old, new) = (text(old), text(new));
    if *live {
        tracing::info!(field = path, old, new, "configuration field changed");
    } else {
        tracing::warn!(
            field = path,
            old,
            new,
            "configuration field changed; it takes effect after a restart"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, fs};

    use clap::Command;
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;
    use crate::{command, configuration};

    struct World {
        _folder: tempfile::TempDir,
        path: PathBuf,
        reloads: Reloads,
        registry: Registry,
        taken: RefCell<Vec<Config>>,
    }

    impl World {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.yaml");
            fs::write(&path, text).unwrap();
            let (reloads, mut registry) = (Reloads::default(), Registry::default());
            reloads.register(&mut registry);
            Self {
                _folder: folder,
                path,
                reloads,
                registry,
                taken: RefCell::default(),
            }
        }

        /// Runs `steps` beside the follower, with the time to see each of them.
        async fn follow(&self, arguments: &[&str], steps: &[&str]) {
            self.follow_in_steps(arguments, steps, INTERVAL * 2, INTERVAL * 2)
                .await;
        }

        /// Runs `steps` beside the follower, so far from each other.
        async fn follow_in_steps(
            &self,
            arguments: &[&str],
            steps: &[&str],
            first: Duration,
            distance: Duration,
        ) {
            let config = format!("--config={}", self.path.display());
            let matches = command(Command::new("daemon"))
                .try_get_matches_from([&["daemon", &config], arguments].concat())
                .unwrap();
            let in_force = configuration(&matches, |_| None).unwrap();
            let steps = async {
                tokio::time::sleep(first).await;
                for step in steps {
                    fs::write(&self.path, step).unwrap();
                    tokio::time::sleep(distance).await;
                }
                tokio::time::sleep(INTERVAL * 2).await;
            };
            tokio::select! {
                () = follow_configuration(&matches, |_| None, in_force, &self.reloads, |config| self.taken.borrow_mut().push(config.clone())) => {}
                () = steps => {}
            }
        }

        fn metric(&self, name: &str) -> String {
            let mut text = String::new();
            encode(&mut text, &self.registry).unwrap();
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
                .trim()
                .to_owned()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_change_changes_and_the_rest_waits_for_a_restart() {
        let world = World::new("startGate: true\n");
        world
            .follow(
                &[],
                &["startGate: false\ntunnel: {vni: 7}\n", "startGate: false\n"],
            )
            .await;
        let taken = world.taken.borrow();
        assert_eq!(taken.len(), 1);
        assert_eq!(
            (taken[0].start_gate, taken[0].tunnel.vni),
            (false, Config::default().tunnel.vni)
        );
        assert_eq!(world.metric("config_reloads_total{result=\"ok\"}"), "1");
        assert_eq!(
            world.metric("config_fields_waiting"),
            "0",
            "the file says again what is in force"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_not_taken_before_all_of_it_is_written() {
        let world = World::new("startGate: true\nfailover: {interval: 1s}\n");
        // Each part is good YAML, and is seen: the last byte comes when the first ones were read.
        let whole = "startGate: false\nfailover: {interval: 10s}\n";
        let parts = [
            "",
            "startGate: false\n",
            "startGate: false\nfailover: {interval: 1",
            whole,
        ];
        world
            .follow_in_steps(&[], &parts, INTERVAL * 2, SETTLED / 2)
            .await;
        let taken = world.taken.borrow();
        assert_eq!(
            taken
                .iter()
                .map(|config| config.failover.interval)
                .collect::<Vec<_>>(),
            [Duration::from_secs(10)]
        );
        assert_eq!(
            world.metric("config_reloads_total{result=\"refused\"}"),
            "",
            "a part is no configuration, and nothing to complain of"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_file_changes_nothing_and_is_counted() {
        let world = World::new("");
        world
            .follow(&[], &["startGate: maybe\n", "failover: {interval: 1s}\n"])
            .await;
        assert_eq!(
            world.metric("config_reloads_total{result=\"refused\"}"),
            "1"
        );
        let taken = world.taken.borrow();
        assert_eq!(
            taken
                .iter()
                .map(|config| config.failover.interval)
                .collect::<Vec<_>>(),
            [Duration::from_secs(1)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_flag_still_goes_before_the_file() {
        let world = World::new("");
        world
            .follow(&["--start-gate=true"], &["startGate: false\n"])
            .await;
        assert_eq!(world.taken.borrow().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_field_that_waits_is_counted_as_long_as_it_does() {
        let world = World::new("");
        world
            .follow(&[], &["tunnel: {vni: 7}\nmark: {mask: 0x00ff0000}\n"])
            .await;
        assert_eq!(world.metric("config_fields_waiting"), "2");
        assert_eq!(world.taken.borrow().len(), 0);
    }
}
