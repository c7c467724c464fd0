//! Hosts as others set them up: overlays, reverse-path filters, firewalls, one family.

use egressgateway_testkit::lab::{
    Builder, Cni, Families, ForwardPolicy, Pod, RuleTool, Service, ServiceSpec,
};

use crate::world::{
    CLIENT, DataPath, EXCEPTED, GATEWAY, GATEWAYS, GOVERNED, OTHER, World, lab, usual_policy,
};

/// What must work on every host.
fn works(path: &DataPath, lab: Builder, families: Families) {
    let world = World::start_in(path, lab, families).with_usual_policy();
    let far = world.cluster.pod("client-2", "far");
    let service = world
        .cluster
        .lab
        .service(ServiceSpec::new("web", 80), &[&far])
        .unwrap();
    everything_works(&world, &far, &service);
}

/// Governed traffic leaves by the gateway and nowhere else; all other traffic is as it would be
/// without us.
pub(crate) fn everything_works(world: &World, far: &Pod, service: &Service) {
    let capture = world.cluster.lab.capture().unwrap();
    for destinations in [GOVERNED, EXCEPTED, OTHER] {
        let exit = if destinations == GOVERNED {
            GATEWAYS[0]
        } else {
            CLIENT
        };
        world.leaves_by(&world.shop, destinations, exit);
    }
    world.leaves_by(&world.local, GOVERNED, GATEWAYS[0]);
    for (own, other) in world.shop.addresses().iter().zip(far.endpoints()) {
        world.seen_as(&world.shop, other, *own);
    }
    for (own, address) in world.shop.addresses().iter().zip(service.addresses()) {
        world.seen_as(&world.shop, *address, *own);
    }
    for pod in world.shop.addresses() {
        for server in world.endpoints(GOVERNED) {
            assert_eq!(
                capture.count(|packet| packet.is_bare(*pod, server.ip())),
                0,
                "{pod} is not seen outside of the tunnel"
            );
        }
    }
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
}

pub(crate) fn strict_reverse_path_filters_on_a_routed_network(path: &DataPath) {
    works(path, lab().rp_filter(1), Families::Dual);
}

pub(crate) fn an_overlay_with_loose_reverse_path_filters_and_a_drop_policy(path: &DataPath) {
    works(
        path,
        lab()
            .cni(Cni::Vxlan)
            .rp_filter(2)
            .forward_policy(ForwardPolicy::DropButPods),
        Families::Dual,
    );
}

pub(crate) fn loose_reverse_path_filters_and_rules_by_iptables_nft(path: &DataPath) {
    works(
        path,
        lab()
            .rp_filter(2)
            .rules_by(RuleTool::IptablesNft)
            .forward_policy(ForwardPolicy::DropButPods),
        Families::Dual,
    );
}

pub(crate) fn rules_by_iptables_legacy_without_masquerade(path: &DataPath) {
    let world = World::start_in(
        path,
        lab().rules_by(RuleTool::IptablesLegacy).masquerade(false),
        Families::Dual,
    )
    .with_usual_policy();
    let far = world.cluster.pod("client-2", "far");
    for (own, other) in world.shop.addresses().iter().zip(far.endpoints()) {
        world.seen_as(&world.shop, other, *own);
    }
}

pub(crate) fn ipv4_alone(path: &DataPath) {
    works(path, lab(), Families::V4);
}

pub(crate) fn ipv6_alone(path: &DataPath) {
    works(path, lab(), Families::V6);
}

pub(crate) fn a_firewall_of_iptables_nft_that_drops_transit_lets_exits_pass(path: &DataPath) {
    works(
        path,
        lab()
            .rules_by(RuleTool::IptablesNft)
            .forward_policy(ForwardPolicy::DropButWorkloads),
        Families::Dual,
    );
}

pub(crate) fn a_firewall_of_iptables_legacy_that_drops_transit_lets_exits_pass(path: &DataPath) {
    works(
        path,
        lab()
            .rules_by(RuleTool::IptablesLegacy)
            .forward_policy(ForwardPolicy::DropButWorkloads),
        Families::Dual,
    );
}

/// Nothing in another table can accept what an nftables table drops.
pub(crate) fn a_firewall_of_nftables_that_drops_transit_loses_traffic_and_leaks_none(
    path: &DataPath,
) {
    let firewall = lab()
        .rules_by(RuleTool::Nft)
        .forward_policy(ForwardPolicy::DropButWorkloads);
    let world = World::start_in(path, firewall, Families::Dual);
    world.cluster.apply(GATEWAY);
    world.cluster.apply(&usual_policy());
    world.is_dropped(&world.shop, GOVERNED);
    let capture = world.cluster.lab.capture().unwrap();
    world.is_dropped(&world.shop, GOVERNED);
    assert_eq!(world.leaks(&capture), [""; 0]);
    world.leaves_by(&world.blog, GOVERNED, CLIENT);
}
