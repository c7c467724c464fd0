//! Before an uninstallation: the agents' pods are replaced by such that clean up, and every node of
//! them is waited for.

use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use egressgateway::{Error, ErrorKind, runtime::api_error};
use egressgateway_daemon::{CommonArguments, Failure, client};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
    core::Selector,
};
use serde_json::json;
use tokio::time::Instant;

/// The container of the agent in its pods.
const CONTAINER: &str = "agent";
/// What it does instead of an agent's work.
const CLEANUP: [&str; 2] = ["cleanup", "--stay"];
/// Between looks at how far the nodes are.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn command() -> Command {
    let daemon_set = Arg::new("daemon-set")
        .long("daemon-set")
        .value_name("NAME")
        .default_value("egressgateway-agent");
    let timeout = Arg::new("timeout")
        .long("timeout")
        .value_name("DURATION")
        .default_value("4m")
        .value_parser(value_parser!(humantime::Duration));
    Command::new("clean-nodes")
        .about("Lets the agents' DaemonSet take everything off its nodes, before it is deleted for good, and waits until that is done")
        .arg(daemon_set.help("The agents' DaemonSet, in the namespace of the daemons"))
        .arg(timeout.help("How long all nodes may take"))
}

pub(crate) async fn run(common: &CommonArguments, arguments: &ArgMatches) -> Result<(), Failure> {
    let name = arguments
        .get_one::<String>("daemon-set")
        .cloned()
        .unwrap_or_default();
    let timeout: Duration = arguments
        .get_one::<humantime::Duration>("timeout")
        .map_or(Duration::ZERO, |timeout| **timeout);
    let client = client(common.kubeconfig.as_deref()).await?;
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &common.namespace);
    let Some(set) = sets
        .get_opt(&name)
        .await
        .map_err(|error| failed(&name, error))?
    else {
        println!(
            "there is no DaemonSet {}/{name}: nothing to do",
            common.namespace
        );
        return Ok(());
    };
    let set = sets
        .patch(
            &name,
            &PatchParams::default(),
            &Patch::Strategic(cleaning(&set)),
        )
        .await
        .map_err(|error| failed(&name, error))?;
    let generation = set.metadata.generation;
    let deadline = Instant::now() + timeout;
    loop {
        // The API server may be away for a moment; what it says counts.
        let state = sets.get_opt(&name).await;
        match &state {
            Ok(None) => return Ok(()),
            Ok(Some(set)) if is_clean(set, generation) => {
                println!("every node is clean");
                return Ok(());
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(%error, "DaemonSet {name} can't be read"),
        }
        if Instant::now() >= deadline {
            let left = left(&client, common, &set)
                .await
                .unwrap_or_else(|error| error.to_string());
            let text = format!(
                "not every node was cleaned within {}; what is left: {left}",
                humantime::format_duration(timeout)
            );
            return Err(Error::new(ErrorKind::Transient, text).into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The same DaemonSet whose pods clean up, all at once. What the container was told of the
/// configuration stays.
fn cleaning(set: &DaemonSet) -> serde_json::Value {
    let pod = set.spec.template.spec.as_ref();
    let agent = pod.and_then(|pod| {
        pod.containers
            .iter()
            .find(|container| container.name == CONTAINER)
    });
    let mut arguments = agent
        .and_then(|agent| agent.args.clone())
        .unwrap_or_default();
    if !arguments.ends_with(&CLEANUP.map(str::to_owned)) {
        arguments.extend(CLEANUP.map(str::to_owned));
    }
    json!({"spec": {
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%", "maxSurge": 0}},
        "template": {"spec": {"containers": [{"name": CONTAINER, "args": arguments}]}},
    }})
}

/// Whether the pod of every node is a new one, and ready: it has removed everything.
fn is_clean(set: &DaemonSet, generation: Option<i64>) -> bool {
    set.status.as_ref().is_some_and(|status| {
        let wanted = status.desired_number_scheduled;
        status.observed_generation >= generation
            && status.updated_number_scheduled.unwrap_or_default() >= wanted
            && status.number_ready >= wanted
    })
}

/// The nodes whose pods are not ready, or not new, in one line.
async fn left(
    client: &Client,
    common: &CommonArguments,
    set: &DaemonSet,
) -> Result<String, kube::Error> {
    let selector = Selector::try_from(set.spec.selector.clone())
        .map(|selector| selector.to_string())
        .unwrap_or_default();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &common.namespace);
    let pods = pods.list(&ListParams::default().labels(&selector)).await?;
    let cleaned = |pod: &Pod| {
        let arguments = pod
            .spec
            .iter()
            .flat_map(|pod| &pod.containers)
            .find(|container| container.name == CONTAINER);
        let cleans = arguments
            .and_then(|container| container.args.as_ref())
            .is_some_and(|args| args.ends_with(&CLEANUP.map(str::to_owned)));
        let conditions = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        cleans
            && conditions
                .filter(|condition| condition.type_ == "Ready")
                .any(|condition| condition.status == "True")
    };
    let nodes = pods
        .items
        .iter()
        .filter(|pod| !cleaned(pod))
        .filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
    Ok(nodes.collect::<Vec<_>>().join(", "))
}

fn failed(name: &str, error: kube::Error) -> Error {
    api_error(error, format!("let DaemonSet {name} clean its nodes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: serde_json::Value) -> DaemonSet {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_agents_arguments_stay_and_cleaning_is_added_once() {
        let with = |args: serde_json::Value| {
            let template = json!({"spec": {"containers": [{"name": "other"}, {"name": "agent", "args": args}]}});
            set(json!({"spec": {"selector": {}, "template": template}}))
        };
        for (args, wanted) in [
            (
                json!(["--tunnel-vni=7"]),
                json!(["--tunnel-vni=7", "cleanup", "--stay"]),
            ),
            (json!(null), json!(["cleanup", "--stay"])),
            (json!(["cleanup", "--stay"]), json!(["cleanup", "--stay"])),
        ] {
            assert_eq!(
                cleaning(&with(args))["spec"]["template"]["spec"]["containers"],
                json!([{"name": "agent", "args": wanted}])
            );
        }
    }

    #[test]
    fn a_node_counts_once_its_new_pod_is_ready_and_the_change_was_seen() {
        let status = |observed: i64, updated: i32, ready: i32| {
            set(json!({"status": {
                "observedGeneration": observed, "desiredNumberScheduled": 3, "currentNumberScheduled": 3, "numberMisscheduled": 0,
                "updatedNumberScheduled": updated, "numberReady": ready,
            }}))
        };
        assert!(is_clean(&status(2, 3, 3), Some(2)));
        assert!(!is_clean(&status(1, 3, 3), Some(2)), "of the time before");
        assert!(!is_clean(&status(2, 2, 3), Some(2)));
        assert!(!is_clean(&status(2, 3, 2), Some(2)));
        assert!(!is_clean(&set(json!({})), Some(2)));
    }
}
