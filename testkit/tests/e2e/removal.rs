//! The end: nothing of the product is left.

use std::time::Duration;

use egressgateway_testkit::e2e::{
    NAMESPACE, NODES, OUTSIDE, OUTSIDE_NETWORKS, RELEASE, eventually,
};

use crate::{Run, node_address};

const PATIENCE: Duration = Duration::from_secs(120);

/// Lists what is ours on a node; nothing where nothing is.
const OURS: &str = "
ip -o link show | grep -oE 'egress-[a-z0-9-]+' || true
ip rule show | grep -E 'proto 77|fwmark 0x.*/0xff000000' || true
ip -6 rule show | grep -E 'proto 77|fwmark 0x.*/0xff000000' || true
ip route show table all proto 77
ip -6 route show table all proto 77
ip nexthop show proto 77
nft list tables | grep egressgateway || true
for flavour in nft legacy; do
    iptables-$flavour-save 2>/dev/null | grep -iE 'egw-|egressgateway' || true
    ip6tables-$flavour-save 2>/dev/null | grep -iE 'egw-|egressgateway' || true
done
ipset list -n | grep -i egw || true
ls /var/lib/egressgateway 2>/dev/null || true
";

pub(crate) fn nothing_is_left(run: &Run) {
    let space = run.site.space("removal");
    space.gateway(&["node1", "node2"]);
    space.policy(&OUTSIDE_NETWORKS);
    let active = space.active();
    let pod = space.governed("node3");
    space.wait_for_source(&pod, OUTSIDE[0], node_address(&active, OUTSIDE[0]));
    for node in NODES {
        assert_ne!(
            run.site.on_node(node, OURS).unwrap(),
            "",
            "{node}: there is something that can go"
        );
    }
    run.site
        .tool(
            "helm",
            &[
                "uninstall",
                RELEASE,
                "--namespace",
                NAMESPACE,
                "--wait",
                "--timeout",
                "5m",
            ],
        )
        .unwrap();
    for node in NODES {
        eventually(&format!("nothing is left on {node}"), PATIENCE, || {
            let left = run.site.on_node(node, OURS)?;
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
    // New pods reach everything, whatever they would have been, and so does the one from before.
    let names: Vec<String> = NODES[1..]
        .iter()
        .map(|node| format!("governed-late-{node}"))
        .collect();
    let wanted: Vec<_> = names
        .iter()
        .zip(&NODES[1..])
        .map(|(name, node)| (name.as_str(), *node, true))
        .collect();
    for late in space.pods(&wanted).iter().chain([&pod]) {
        for outside in OUTSIDE {
            space.wait_for_source(late, outside, node_address(&late.node, outside));
        }
    }
}
