//! What metrics show, and that docs/metrics.md names each.

use std::{fmt::Write, time::Duration};

use egressgateway_testkit::golden;
use prometheus_client::{encoding::text::encode, registry::Registry};

use super::{
    agent::AgentMetrics,
    common::{LeaseMetrics, Reloads, WatchMetrics, WriteMetrics},
    controller::ControllerMetrics,
};
use crate::{
    Counter, ErrorKind,
    api::{EgressGatewayStatus, IpUsage, PoolUsage},
    controller::ClusterPlan,
};

const DOCUMENTATION: &str = "# Metrics

Both daemons serve `/metrics` in the OpenMetrics text format: the agent at port 5810, the controller at 5820. A program
that embeds them has the same in its own registry.

- `driver` is `tunnel`, `steering`, `addresses` or `policy`; `kind` is the kind of an error.
- `rule` is a [counter of the packet filter](datapath.md#the-nftables-table). The agent reads them every 15 seconds;
  they start anew when the table does.
- The objects that a watch told of are whole lists at the start and single changes afterwards; [what to
  expect](scale.md).
- `gateway` is an EgressGateway with a pool, `family` is `ipv4` or `ipv6`.
- Converges with `first=\"true\"` and `outcome=\"applied\"` are changes that a restarted agent made: none, where nothing
  happened meanwhile.

";

/// One row for each metric of a registry in which every metric has a sample.
fn rows(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    let mut rows = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for entry in text.split("# HELP ").skip(1) {
        let mut lines = entry.lines();
        let (name, help) = lines.next().and_then(|line| line.split_once(' ')).unwrap();
        let kind = lines
            .next()
            .and_then(|line| line.rsplit(' ').next())
            .unwrap();
        let sample = lines.find(|line| !line.starts_with('#')).unwrap();
        let labels = sample
            .split_once('{')
            .and_then(|(_, rest)| rest.split_once('}'))
            .map_or("", |(labels, _)| labels);
        let labels: Vec<_> = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(label, _)| label)
            .collect();
        let labels: Vec<_> = labels
            .iter()
            .filter(|label| **label != "le")
            .map(|label| format!("`{label}`"))
            .collect();
        let total = if kind == "counter" { "_total" } else { "" };
        writeln!(
            rows,
            "| `{name}{total}` | {kind} | {} | {} |",
            labels.join(", "),
            help.trim_end_matches('.')
        )
        .unwrap();
    }
    rows
}

fn common(watch: &WatchMetrics, lease: &LeaseMetrics, write: &WriteMetrics, reloads: &Reloads) {
    reloads.refused();
    watch.events("pods").inc();
    watch.restarted("pods");
    lease.failed(ErrorKind::Transient);
    write.wrote("status", Ok(()));
}

fn with_a_pool(total: i64, used: i64) -> ClusterPlan {
    let pool = PoolUsage { total, used };
    let status = EgressGatewayStatus {
        ip_usage: Some(IpUsage {
            ipv4: pool,
            ipv6: pool,
        }),
        ..EgressGatewayStatus::default()
    };
    ClusterPlan {
        gateways: [("exit".into(), status)].into(),
        ..ClusterPlan::default()
    }
}

#[test]
fn pools_are_shown_as_they_are_and_those_that_are_gone_no_more() {
    let (metrics, mut registry) = (ControllerMetrics::default(), Registry::default());
    metrics.register(&mut registry);
    let shown = || {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text.lines()
            .filter(|line| line.contains("gateway=\"exit\",family=\"ipv4\""))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    metrics.planned_for(&with_a_pool(7, 2));
    let labels = "{gateway=\"exit\",family=\"ipv4\"}";
    let of = |name: &str, value: u64| {
        format!("egressgateway_controller_pool_addresses{name}{labels} {value}")
    };
    assert_eq!(shown(), [of("", 7), of("_used", 2)]);
    metrics.planned_for(&ClusterPlan::default());
    assert_eq!(shown(), Vec::<String>::new());
}

#[test]
fn the_documentation_names_every_metric() {
    let (agent, mut agents) = (AgentMetrics::default(), Registry::default());
    common(&agent.watch, &agent.lease, &agent.write, &agent.reloads);
    agent.reconciled("tunnel", Duration::ZERO, Some(ErrorKind::Transient));
    agent.converged(true, "applied");
    agent.not_forgotten(ErrorKind::Transient);
    agent.state_failed(ErrorKind::Transient);
    agent.probe_failed(ErrorKind::Transient);
    agent.not_announced(ErrorKind::Transient);
    agent.not_inquired(ErrorKind::Transient);
    agent.packets([("steered".to_owned(), Counter::default())].into());
    agent.register(&mut agents);
    let (controller, mut controllers) = (ControllerMetrics::default(), Registry::default());
    common(
        &controller.watch,
        &controller.lease,
        &controller.write,
        &controller.reloads,
    );
    controller.admission.answered("validate", true);
    controller.planned_for(&with_a_pool(7, 1));
    controller.register(&mut controllers);

    let text = format!(
        "{DOCUMENTATION}## Agent\n\n{}\n## Controller\n\n{}",
        rows(&agents),
        rows(&controllers)
    );
    golden::check(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md"),
        &text,
    );
}
