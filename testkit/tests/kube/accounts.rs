//! What the chart's accounts may do: all that the daemons do, and nothing else.

use std::collections::BTreeSet;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    assets,
    daemons::{Installed, NAMESPACE},
};

fn user(account: &str) -> String {
    format!("system:serviceaccount:{NAMESPACE}:{account}")
}

/// The rules of an account's roles, one line for each verb and resource.
fn granted(installed: &Installed, account: &str) -> BTreeSet<String> {
    let roles = [
        format!("clusterrole/{account}"),
        format!("role/{account} --namespace {NAMESPACE}"),
    ];
    let mut granted = BTreeSet::new();
    for role in roles {
        let role = installed.kubernetes.get(&role);
        for rule in role["rules"].as_array().unwrap() {
            let words = |field: &str| {
                rule[field]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|word| word.as_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            };
            for resource in words("resources") {
                granted.extend(
                    words("verbs")
                        .into_iter()
                        .map(|verb| format!("{verb} {resource}")),
                );
            }
        }
    }
    granted
}

/// What a user asked for, and how each was answered.
fn asked(installed: &Installed, user: &str) -> Vec<(String, u64)> {
    let of = |event: &Value| {
        event["user"]["username"] == user && event["stage"] == "ResponseComplete"
            || event["stage"] == "ResponseStarted"
    };
    let events = installed.kubernetes.audit();
    let events = events
        .iter()
        .filter(|event| of(event) && event["user"]["username"] == user);
    let line = |event: &Value| {
        let object = &event["objectRef"];
        let subresource = object["subresource"]
            .as_str()
            .map(|name| format!("/{name}"))
            .unwrap_or_default();
        let resource = object["resource"].as_str().unwrap_or_default();
        (
            format!(
                "{} {resource}{subresource}",
                event["verb"].as_str().unwrap_or_default()
            ),
            event["responseStatus"]["code"].as_u64().unwrap_or_default(),
        )
    };
    events.map(line).collect()
}

#[test]
fn the_daemons_use_every_right_that_they_have_and_miss_none() {
    let Some(assets) = assets() else { return };
    let mut installed = Installed::start(assets);
    installed.govern();
    // An EgressNode goes with its Node, as does the Lease once it has run out, and that traffic
    // leaves by another one then is an Event.
    installed.kill("agent-gateway-1", Signal::SIGKILL);
    installed
        .kubernetes
        .kubectl("delete node gateway-1")
        .unwrap();
    let ends = "'{\"spec\": {\"leaseDurationSeconds\": 1, \"renewTime\": \"2026-01-01T00:00:00.000000Z\"}}'";
    let lease = format!("lease egressgateway-agent-gateway-1 --namespace {NAMESPACE}");
    installed
        .kubernetes
        .kubectl(&format!("patch {lease} --type=merge --patch {ends}"))
        .unwrap();
    for account in ["egressgateway-agent", "egressgateway-controller"] {
        let granted = granted(&installed, account);
        assert!(granted.len() > 6, "{granted:?}");
        installed
            .kubernetes
            .eventually(&format!("{account} uses all of its rights"), || {
                // There is no such CNI, and that there are no such objects is an answer too.
                let of_a_cni = |line: &str| {
                    ["list ippools", "list ciliumnodes", "list ciliumpodippools"].contains(&line)
                };
                let answered =
                    |(line, code): &(String, u64)| *code < 300 || (*code == 404 && of_a_cni(line));
                let used: BTreeSet<String> = asked(&installed, &user(account))
                    .into_iter()
                    .filter(answered)
                    .map(|(line, _)| line)
                    .collect();
                let unused: Vec<&String> = granted.difference(&used).collect();
                // A Lease that exists is changed by the same right that makes it elsewhere.
                let unused: Vec<_> = unused
                    .into_iter()
                    .filter(|line| account != "egressgateway-agent" || *line != "create leases")
                    .collect();
                if unused.is_empty() {
                    Ok(())
                } else {
                    Err(format!("unused: {unused:?}"))
                }
            });
        let refused: BTreeSet<String> = asked(&installed, &user(account))
            .into_iter()
            .filter(|(_, code)| *code == 403)
            .map(|(line, _)| line)
            .collect();
        assert_eq!(refused, BTreeSet::new(), "{account} lacks rights");
    }
}

#[test]
fn everything_else_is_refused() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start(assets);
    installed.govern();
    let kubernetes = &installed.kubernetes;
    let agent = installed.token("egressgateway-agent", "agent-of-client-1", "client-1");
    let controller = installed.token("egressgateway-controller", "another-controller", "client-1");
    let unbound = kubernetes
        .kubectl(&format!(
            "create token egressgateway-agent --namespace {NAMESPACE}"
        ))
        .unwrap()
        .trim()
        .to_owned();
    let status = |node: &str| format!("egressgateway.spidernet.io/v1/egressnodes/{node}/status");
    let lease = |name: &str| format!("coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{name}");
    let ours = |path: &str| format!("egressgateway.spidernet.io/v1/{path}");
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    let phase = json!({"status": {"phase": "Failed"}});
    kubernetes
        .kubectl("create secret generic treasure --from-literal=a=b -n default")
        .unwrap();
    // An admission policy that was just made takes a moment to be in force.
    let own = "the agent of node client-1 may write client-1 of egressnodes, and not gateway-1";
    kubernetes.eventually("the admission policy is in force", || {
        match kubernetes.patch_as(&agent, &status("gateway-1"), &phase) {
            Err(error) if error.contains(own) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let (other, unbound_token) = (
        "may write egressgateway-agent-client-1 of leases",
        "an agent's token must be bound to its pod",
    );
    let no_right = "cannot patch resource";
    let changes = [
        (
            "another node's Lease",
            &agent,
            lease("egressgateway-agent-gateway-1"),
            other,
        ),
        (
            "the controller's Lease",
            &agent,
            lease("egressgateway-controller"),
            other,
        ),
        (
            "its own status without a pod",
            &unbound,
            status("client-1"),
            unbound_token,
        ),
        (
            "its own Lease without a pod",
            &unbound,
            lease("egressgateway-agent-client-1"),
            unbound_token,
        ),
        (
            "an EgressNode",
            &agent,
            ours("egressnodes/client-1"),
            no_right,
        ),
        (
            "a gateway's status",
            &agent,
            ours("egressgateways/exit/status"),
            no_right,
        ),
        (
            "a policy",
            &agent,
            ours("egressgatewaypolicies/shopping"),
            no_right,
        ),
        (
            "an agent's Lease",
            &controller,
            lease("egressgateway-agent-client-1"),
            no_right,
        ),
        (
            "a gateway",
            &controller,
            ours("egressgateways/exit"),
            no_right,
        ),
        (
            "a policy",
            &controller,
            ours("egressgatewaypolicies/shopping"),
            no_right,
        ),
        (
            "somebody else's webhooks",
            &controller,
            "admissionregistration.k8s.io/v1/validatingwebhookconfigurations/others".to_owned(),
            no_right,
        ),
        (
            "its own webhooks, by an agent",
            &agent,
            "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/egressgateway-webhook"
                .to_owned(),
            no_right,
        ),
    ];
    for (what, token, path, message) in changes {
        let error = kubernetes.patch_as(token, &path, &label).expect_err(what);
        assert!(error.contains(message), "{what}: {error}");
    }
    let others = [
        (&agent, "delete egressnode client-1"),
        (&agent, "get secrets -n default"),
        (&agent, "delete pod shop"),
        (&agent, "label node client-1 a=b"),
        (&agent, "get services -A"),
        (&agent, "get validatingwebhookconfigurations"),
        (&agent, "create token egressgateway-controller -n egress"),
        (&controller, "get secrets -A"),
        (&controller, "get secret treasure -n default"),
        (&controller, "create secret generic other -n egress"),
        (&agent, "get secret egressgateway-webhook -n egress"),
        (&controller, "get pods -A"),
        (&controller, "delete egressgateway exit"),
        (&controller, "label node client-1 a=b"),
        (&controller, "get clusterroles"),
        (&controller, "delete validatingwebhookconfigurations --all"),
        (&controller, "create token egressgateway-agent -n egress"),
    ];
    for (token, words) in others {
        let error = kubernetes.kubectl_as(token, words).expect_err(words);
        assert!(
            error.to_lowercase().contains("forbidden"),
            "{words}: {error}"
        );
    }
    // Its own it may write.
    kubernetes
        .patch_as(&agent, &lease("egressgateway-agent-client-1"), &label)
        .unwrap();
    kubernetes
        .patch_as(&agent, &status("client-1"), &phase)
        .unwrap();
}
