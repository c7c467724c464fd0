//! Services under policies.

use std::net::{IpAddr, SocketAddr};

use egressgateway_testkit::e2e::{
    DNS, NODES, OUTSIDE, Pod, Site, TCP, Variant, addresses, eventually,
};
use serde_json::json;

use crate::{Run, node_address};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
const PAGE: &str = "/cgi-bin/who";

/// What the pod behind an address says: who asks, and which pod it is.
fn who(
    client: &egressgateway_testkit::e2e::Client,
    to: SocketAddr,
) -> Result<(IpAddr, String), String> {
    let page = client
        .get(to, PAGE)
        .map_err(|error| format!("{to}: {error}"))?;
    let (source, pod) = page
        .split_once(' ')
        .ok_or_else(|| format!("{to}: {page:?}"))?;
    let source: IpAddr = source
        .trim_matches(['[', ']'])
        .parse()
        .map_err(|error| format!("{page:?}: {error}"))?;
    Ok((source.to_canonical(), pod.to_owned()))
}

fn reaches(client: &egressgateway_testkit::e2e::Client, to: SocketAddr) -> (IpAddr, String) {
    eventually(&format!("{to} answers"), PATIENCE, || who(client, to))
}

fn node_port(site: &Site, space: &str, name: &str) -> u16 {
    let service = site.api().get("Service", space, name).unwrap();
    u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap()
}

pub(crate) fn a_policy_for_everything_leaves_the_cluster_alone(run: &Run) {
    let space = run.site.space("services");
    space.gateway(&["node1", "node2"]);
    space.policy(&[]);
    let active = space.active();
    let pods = space.pods(&[
        ("governed-node1", "node1", true),
        ("governed-node3", "node3", true),
        ("backend-node2", "node2", false),
    ]);
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    let selector = json!({"app": "backend-node2"});
    let service = |name: &str, spec: serde_json::Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    space.apply(service(
        "backend",
        json!({"selector": selector, "ports": ports}),
    ));
    space.apply(service(
        "backend-cluster",
        json!({"selector": selector, "ports": ports, "type": "NodePort"}),
    ));
    space.apply(service(
        "backend-local",
        json!({"selector": selector, "ports": ports, "type": "NodePort", "externalTrafficPolicy": "Local"}),
    ));
    let own = json!({"app": "governed-node3"});
    space.apply(service(
        "own-cluster",
        json!({"selector": own, "ports": ports, "type": "NodePort"}),
    ));
    space.apply(service("own-local", json!({"selector": own, "ports": ports, "type": "NodePort", "externalTrafficPolicy": "Local"})));
    let port = |name: &str| node_port(&run.site, space.name(), name);
    let [cluster, local, own_cluster, own_local] = [
        "backend-cluster",
        "backend-local",
        "own-cluster",
        "own-local",
    ]
    .map(port);

    for pod in &pods[..2] {
        for outside in OUTSIDE {
            space.wait_for_source(pod, outside, node_address(&active, outside));
        }
        inside(pod, &pods[2], space.name());
        for node in NODES {
            let (_, backend) = reaches(&pod.client, (addresses(node)[0], cluster).into());
            assert_eq!(
                backend, "backend-node2",
                "{} by the port of {node}",
                pod.name
            );
        }
        assert_eq!(
            reaches(&pod.client, (addresses("node2")[0], local).into()).1,
            "backend-node2",
            "{}",
            pod.name
        );
        // The other end of a Service that is the API server's.
        let server = SocketAddr::from(([10, 96, 0, 1], 443));
        let refused = pod
            .client
            .get(server, "/healthz")
            .unwrap_or_else(|error| panic!("{}: {error}", pod.name));
        assert!(
            refused.contains("HTTPS"),
            "it wants another protocol: {refused:?}"
        );
    }
    // A governed pod answers others, and its answers are not steered.
    let client = run.site.client_outside();
    let outside = OUTSIDE[0];
    for node in NODES {
        assert_eq!(
            reaches(&client, (addresses(node)[0], own_cluster).into()).1,
            "governed-node3"
        );
    }
    let (source, pod) = reaches(&client, (addresses("node3")[0], own_local).into());
    assert_eq!(
        (source, pod.as_str()),
        (outside, "governed-node3"),
        "the client's own address is seen"
    );
}

/// Name, Service and pods of other nodes.
fn inside(pod: &Pod, backend: &Pod, space: &str) {
    let name = format!("backend.{space}.svc.cluster.local");
    let address = eventually(&name, PATIENCE, || {
        pod.client
            .resolve(DNS.into(), &name)
            .map_err(|error| error.to_string())
    });
    assert_eq!(
        reaches(&pod.client, (address, 80).into()).1,
        backend.name,
        "{} by the Service",
        pod.name
    );
    for address in backend.addresses {
        let (source, name) = reaches(&pod.client, (address, 8080).into());
        assert_eq!(name, backend.name);
        assert_eq!(
            source,
            pod.addresses[usize::from(address.is_ipv6())],
            "pods see each other's own addresses"
        );
    }
}

pub(crate) fn a_service_in_front_of_the_outside_is_no_way_around(run: &Run) {
    let space = run.site.space("front");
    space.gateway(&["node1"]);
    space.policy(&egressgateway_testkit::e2e::OUTSIDE_NETWORKS);
    let [outside, _] = OUTSIDE;
    let ports = json!([{"port": TCP, "targetPort": TCP}]);
    space.apply(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": {"ports": ports, "type": "NodePort"}}),
    );
    space.apply(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "outside-1", "labels": {"kubernetes.io/service-name": "outside"}},
        "ports": [{"name": "", "port": TCP}], "endpoints": [{"addresses": [outside.to_string()], "conditions": {"ready": true}}],
    }));
    let pods = space.pods(&[
        ("governed-node3", "node3", true),
        ("free-node3", "node3", false),
    ]);
    let service = run
        .site
        .api()
        .get("Service", space.name(), "outside")
        .unwrap();
    let service: IpAddr = service["spec"]["clusterIP"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let (governed, free) = (&pods[0], &pods[1]);
    space.wait_for_source(governed, outside, node_address("node1", outside));
    // It is there, as an ungoverned pod shows.
    space.wait_for_source(free, service, node_address("node3", outside));
    match governed.client.ask(service) {
        Ok(source) => assert_eq!(
            source,
            node_address("node1", outside),
            "through the Service as without it"
        ),
        // With ipsets the destination is the Service's when a connection is classified: it is
        // dropped where its real one is seen.
        Err(error) => assert_eq!(
            run.site.variant(),
            Variant::Legacy,
            "the Service is not reached: {error}"
        ),
    }
}
