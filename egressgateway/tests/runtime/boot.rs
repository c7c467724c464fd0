//! From a boot until everything was listed.

use std::path::Path;

use egressgateway::{
    PolicyDesired, StartGate,
    model::NodeName,
    runtime::{AgentSettings, StateFile},
};
use egressgateway_testkit::apiserver::{ApiServer, Effect, Fault};
use tokio::sync::watch;

use crate::{
    kernel::{Held, Kernel},
    support::{NODE, PATIENCE, Running, populate, settings},
};

fn file(folder: &tempfile::TempDir) -> StateFile {
    StateFile::new(folder.path().join("state.json"), NodeName::from(NODE))
}

fn gated() -> AgentSettings {
    let mut settings = settings();
    settings.index.start_gate = true;
    settings
}

/// The policy that waits: nobody is known, and the same is governed as before.
fn holds(held: &Held) -> bool {
    let Some(StartGate {
        local,
        known,
        governed,
        ..
    }) = &held.policy.start_gate
    else {
        return false;
    };
    let governed: Vec<String> = governed.iter().map(ToString::to_string).collect();
    held.policy.pods.is_empty()
        && known.is_empty()
        && local.len() == 1
        && governed == ["10.9.0.0/16"]
}

async fn written(path: &Path) {
    let written = async {
        while !path.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, written)
        .await
        .expect("the state file never was written");
}

/// A node that an agent programmed before it booted again, without an API server that lists
/// everything.
async fn booted() -> (ApiServer, Kernel, tempfile::TempDir) {
    let (server, kernel, folder) = (
        ApiServer::start(),
        Kernel::new(),
        tempfile::tempdir().unwrap(),
    );
    populate(&server.client()).await;
    let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
        agent.with_state_file(file(&folder))
    });
    kernel
        .until("the governed pod", |held| held.policy.pods.len() == 1)
        .await;
    written(file(&folder).path()).await;
    agent.stop().await;
    kernel.tamper(|held| *held = Held::default());
    server.fault(Fault::new(
        "list",
        "egressgatewaypolicies",
        usize::MAX,
        Effect::Hang,
    ));
    (server, kernel, folder)
}

fn bare(policy: &PolicyDesired) -> bool {
    *policy == PolicyDesired::default()
}

#[tokio::test]
async fn what_was_governed_before_a_boot_waits_until_everything_was_listed_whoever_flushes_it_and_however_often_the_agent_starts()
 {
    let (server, kernel, folder) = booted().await;
    for _ in 0..2 {
        let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
            agent.with_state_file(file(&folder))
        });
        kernel.until("the hold", holds).await;
        agent.until_metric("egressgateway_agent_holding", 1.0).await;
        kernel.tamper_policy(|policy| *policy = PolicyDesired::default());
        kernel.until("the hold again", holds).await;
        assert!(!agent.health.is_ready());
        agent.stop().await;
    }
    server.heal();
    let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
        agent.with_state_file(file(&folder))
    });
    kernel
        .until("the governed pod", |held| {
            held.policy.pods.len() == 1 && held.policy.destinations.len() == 1
        })
        .await;
    agent.until_ready().await;
    assert_eq!(agent.metric("egressgateway_agent_holding"), Some(0.0));
    agent.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_with_a_state_file_changes_nothing_either() {
    let (server, kernel, folder) = booted().await;
    server.heal();
    let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
        agent.with_state_file(file(&folder))
    });
    agent.until_ready().await;
    agent.stop().await;
    let applied = kernel.held().applied;
    let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
        agent.with_state_file(file(&folder))
    });
    agent.until_ready().await;
    assert_eq!(
        agent.metric("egressgateway_agent_converges_total{first=\"true\",outcome=\"unchanged\"}"),
        Some(1.0)
    );
    assert_eq!(kernel.held().applied, applied);
    agent.stop().await;
}

#[tokio::test]
async fn nothing_waits_where_that_is_switched_off_and_what_waits_is_let_go_at_once() {
    let (server, kernel, folder) = booted().await;
    let off = || {
        let mut settings = gated();
        settings.hold_at_boot = false;
        settings
    };
    for leave_it_to in [false, true] {
        let changes = watch::Sender::new(gated());
        let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
            agent
                .with_state_file(file(&folder))
                .with_changes(changes.subscribe())
        });
        kernel.until("the hold", holds).await;
        if leave_it_to {
            agent.stop().await;
            let next = Running::start_with(&server.client(), &kernel, off(), |agent| {
                agent.with_state_file(file(&folder))
            });
            kernel
                .until("no hold, though another process made it", |held| {
                    bare(&held.policy)
                })
                .await;
            next.stop().await;
        } else {
            changes.send_replace(off());
            kernel.until("no hold", |held| bare(&held.policy)).await;
            agent.until_metric("egressgateway_agent_holding", 0.0).await;
            agent.stop().await;
        }
    }
}

#[tokio::test]
async fn a_damaged_state_file_is_counted_and_holds_nothing_and_is_replaced() {
    let (server, kernel, folder) = booted().await;
    std::fs::write(file(&folder).path(), "{\"version\": 1,").unwrap();
    let agent = Running::start_with(&server.client(), &kernel, gated(), |agent| {
        agent.with_state_file(file(&folder))
    });
    agent
        .until_metric(
            "egressgateway_agent_state_failures_total{kind=\"invalid\"}",
            1.0,
        )
        .await;
    server.requested("watch", "nodes", 1).await;
    assert!(bare(&kernel.held().policy));
    server.heal();
    kernel
        .until("the governed pod", |held| held.policy.pods.len() == 1)
        .await;
    let replaced = async {
        while file(&folder).read().is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, replaced)
        .await
        .expect("the damaged file stays");
    agent.stop().await;
}
