use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use egressgateway::{Error, config::Config, spec::Problem};

/// Arguments that every daemon has.
#[derive(Args, Clone, Debug)]
pub struct CommonArguments {
    /// Configuration file; flags and environment variables take precedence over it.
    #[arg(long, env = "EGRESSGATEWAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kubeconfig file; without it the pod's service account, or the usual places.
    #[arg(long, env = "EGRESSGATEWAY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of Leases.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAME",
        default_value = "kube-system"
    )]
    pub namespace: String,
    /// Where /healthz, /readyz and /metrics are served; `[::]` is every address, of both families.
    #[arg(long, env = "EGRESSGATEWAY_LISTEN", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Form of the logs.
    #[arg(
        long,
        env = "EGRESSGATEWAY_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "json"
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or directives such as `info,egressgateway=debug`.
    #[arg(
        long,
        env = "EGRESSGATEWAY_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub log_level: String,
}

/// Form of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl CommonArguments {
    /// From the matches of a command that [`command`] completed.
    ///
    /// # Errors
    /// When the command lacks them.
    pub fn parse(matches: &ArgMatches) -> Result<Self, Failure> {
        Self::from_arg_matches(matches).map_err(|error| Failure::Usage(vec![error.to_string()]))
    }
}

/// How long a Lease lasts, as arguments give it: `spec.leaseDurationSeconds` is a whole number.
///
/// # Errors
/// With the rule, for anything else.
pub fn lease_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let whole = duration.subsec_nanos() == 0 && (1..=3600).contains(&duration.as_secs());
    whole
        .then_some(duration)
        .ok_or_else(|| "must be whole seconds from 1s to 1h, such as 15s".to_owned())
}

/// Why a daemon did not run, or ended.
#[derive(Debug)]
pub enum Failure {
    /// Arguments or configuration are wrong: exit code 2.
    Usage(Vec<String>),
    /// Anything else: exit code 1.
    Run(Error),
}

impl Failure {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(problems) => f.write_str(&problems.join("\n")),
            Self::Run(error) => f.write_str(&error.chain()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Run(error)
    }
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Self {
        Self::Usage(problems.iter().map(ToString::to_string).collect())
    }
}

/// Adds the arguments that every daemon has, and one for each field of the configuration.
#[must_use]
pub fn command(command: Command) -> Command {
    // Deriving would put the words about the arguments where those about the daemon belong.
    let about = command.get_about().cloned().unwrap_or_default();
    let command = CommonArguments::augment_args(command)
        .about(about)
        .long_about(None);
    Config::FIELDS.iter().fold(command, |command, field| {
        let help = format!("{} [env: {}=]", field.help, field.env);
        command.arg(
            Arg::new(field.path)
                .long(field.flag)
                .value_name("VALUE")
                .help(help)
                .help_heading("Configuration"),
        )
    })
}

/// The configuration in force: a flag before its environment variable, that before the file, that
/// before the default.
///
/// # Errors
/// With everything that is wrong with it.
pub fn configuration(
    matches: &ArgMatches,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Config, Failure> {
    let file = match matches.get_one::<PathBuf>("config") {
        Some(path) => parse(path, &read(path))?,
        None => Config::default(),
    };
    with_arguments(file, matches, environment)
}

/// What the file says, with flags and environment variables before it.
pub(crate) fn with_arguments(
    mut config: Config,
    matches: &ArgMatches,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Config, Failure> {
    let mut problems = Vec::new();
    for field in Config::FIELDS {
        let flag = matches
            .get_one::<String>(field.path)
            .map(|value| (value.clone(), format!("--{}", field.flag)));
        let Some((value, origin)) =
            flag.or_else(|| Some((environment(field.env)?, field.env.to_owned())))
        else {
            continue;
        };
        problems.extend(config.set(field.path, &value, &origin).err());
    }
    problems.extend(config.problems());
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems.into())
    }
}

/// What is in a configuration file, or why it can't be read.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| error.to_string())
}

/// What [`read`] returned, understood.
pub(crate) fn parse(path: &Path, content: &Result<String, String>) -> Result<Config, Failure> {
    let problem = |text: &dyn fmt::Display| format!("{}: {text}", path.display());
    let text = content
        .as_ref()
        .map_err(|error| Failure::Usage(vec![problem(error)]))?;
    Config::parse(text)
        .map_err(|problems| Failure::Usage(problems.iter().map(|each| problem(each)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, Failure> {
        let matches = command(Command::new("daemon"))
            .try_get_matches_from([&["daemon"], arguments].concat())
            .unwrap();
        configuration(&matches, |name| {
            environment
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        fs::write(&path, text).unwrap();
        (folder, format!("--config={}", path.display()))
    }

    #[test]
    fn a_flag_goes_before_its_variable_that_before_the_file_and_that_before_the_default() {
        let (_folder, config) = file("tunnel: {vni: 200, port: 4000}\n");
        let variable = [("EGRESSGATEWAY_TUNNEL_VNI", "300")];
        assert_eq!(
            load(&[], &[]).unwrap().tunnel.vni,
            Config::default().tunnel.vni
        );
        assert_eq!(load(&[&config], &[]).unwrap().tunnel.vni, 200);
        assert_eq!(load(&[&config], &variable).unwrap().tunnel.vni, 300);
        let all = load(&[&config, "--tunnel-vni=400"], &variable).unwrap();
        assert_eq!((all.tunnel.vni, all.tunnel.port), (400, 4000));
    }

    #[test]
    fn a_lease_lasts_whole_seconds() {
        assert_eq!(lease_duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!(lease_duration("1h").unwrap(), Duration::from_secs(3600));
        for text in ["1500ms", "0s", "3601s", "584542046091y", "soon", ""] {
            assert!(lease_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_problem_is_told_with_where_it_comes_from() {
        let failure = load(
            &["--tunnel-vni=many"],
            &[("EGRESSGATEWAY_TUNNEL_PORT", "-1")],
        )
        .unwrap_err();
        let text = failure.to_string();
        assert!(
            text.contains("--tunnel-vni") && text.contains("EGRESSGATEWAY_TUNNEL_PORT"),
            "{text}"
        );
        let (_folder, config) = file("tunnel:\n  vnii: 200\n");
        let failure = load(&[&config], &[]).unwrap_err();
        assert!(
            matches!(&failure, Failure::Usage(problems) if problems[0].contains("vnii") && problems[0].contains("config.yaml")),
            "{failure}"
        );
        assert!(matches!(
            load(&["--config=/nowhere"], &[]),
            Err(Failure::Usage(_))
        ));
    }

    #[test]
    fn every_field_has_a_flag_of_its_own() {
        command(Command::new("daemon")).debug_assert();
    }
}
