//! Starts what an agent does besides converging.

use kube::Api;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    address_conflicts::{AddressConflictDetector, Channels},
    announcements::Announcements,
    boot_state::BootStateWriter,
    counters,
    lease::LeaseRenewer,
    probes::GatewayProbes,
    stale_connections::StaleConnections,
    status::StatusWriter,
};
use crate::runtime::agent::{
    builder::Agent,
    inputs::{Answers, Inputs},
    outputs::Outputs,
    settings::MANAGER,
};

/// Starts the tasks that an agent needs for what its embedder gave it.
pub(crate) fn spawn(
    agent: &Agent,
    outputs: &Outputs,
    answers: Answers,
    inputs: &mut Inputs,
    shutdown: &CancellationToken,
) {
    let (settings, metrics) = (&agent.settings, &agent.metrics);
    let Inputs {
        tasks, untracked, ..
    } = inputs;
    tasks.spawn(status(agent).run(outputs.reports.subscribe(), outputs.own.subscribe()));
    let lease = lease(agent);
    if let Some(inquirer) = agent.inquirer.clone() {
        let channels = Channels {
            held: outputs.held.subscribe(),
            renewals: lease.renewals.subscribe(),
            policies: outputs.policies.clone(),
            listed: outputs.listed_policies.subscribe(),
            conflicting_addresses: answers.conflicting_addresses,
            questions: outputs.questions.subscribe(),
            findings: answers.findings,
        };
        let duration = settings.lease.duration;
        let detector = AddressConflictDetector::new(inquirer, duration, channels, metrics.clone());
        tasks.spawn(detector.run());
    }
    tasks.spawn(lease.run(shutdown.clone()));
    if let Some(prober) = agent.prober.clone() {
        let probes = GatewayProbes::new(prober, outputs.liveness.subscribe(), metrics.clone());
        tasks.spawn(probes.run(outputs.probed.subscribe(), answers.down));
    }
    if let Some(announcer) = agent.announcer.clone() {
        let announcements = Announcements {
            announcer,
            metrics: metrics.clone(),
        };
        tasks.spawn(announcements.run(outputs.held.subscribe()));
    }
    if let Some(stale) = stale_connections(agent, outputs) {
        tasks.spawn(stale.run(outputs.in_force.subscribe()));
    }
    if let Some(file) = agent.state.clone() {
        let writer = BootStateWriter {
            file,
            backoff: settings.kernel_backoff.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(writer.run(outputs.in_force.subscribe()));
    }
    if let Some(rules) = agent.untracking.clone() {
        let reader = untracked.reader(rules, settings.spacing, settings.resync);
        tasks.spawn(reader.run());
    }
    if let Some(source) = agent.counters.clone() {
        tasks.spawn(counters::read(source, settings.counters, metrics.clone()));
    }
}

fn status(agent: &Agent) -> StatusWriter {
    StatusWriter {
        nodes: Api::all(agent.client.clone()),
        node: agent.settings.index.node.clone(),
        manager: MANAGER,
        backoff: agent.settings.api_backoff.clone(),
        patience: agent.settings.patience,
        metrics: agent.metrics.write.clone(),
    }
}

fn lease(agent: &Agent) -> LeaseRenewer {
    LeaseRenewer {
        client: agent.client.clone(),
        node: agent.settings.index.node.clone(),
        manager: MANAGER,
        settings: agent.settings.lease.clone(),
        backoff: agent.settings.api_backoff.clone(),
        metrics: agent.metrics.lease.clone(),
        renewals: watch::Sender::new(None),
    }
}

fn stale_connections(agent: &Agent, outputs: &Outputs) -> Option<StaleConnections> {
    let (connections, view) = agent.connections.clone()?;
    Some(StaleConnections {
        connections,
        view,
        mask: agent.settings.mask,
        wanted: outputs.resets.subscribe(),
        may_hold_governed: true,
        resync: agent.settings.resync,
        backoff: agent.settings.kernel_backoff.clone(),
        metrics: agent.metrics.clone(),
    })
}
