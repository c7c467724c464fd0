//! What an agent learns of its host, in namespaces of its own.

#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use egressgateway::{
    ErrorKind, Host as _,
    api::Interface,
    model::{Family, MacAddress},
};
use egressgateway_netlink::{KernelHost, Netlink, ParentChoice};
use egressgateway_testkit::netns::in_namespace;

fn run(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn host(parent: ParentChoice) -> KernelHost {
    KernelHost::new(Netlink::open().unwrap(), parent)
}

/// Two uplinks, of which both have a default route of IPv4 and `up0` the best one; a pod's veth;
/// egress addresses on `up0`.
fn world() {
    run("ip link set lo up
         for link in up0 up1 pod; do ip link add $link type veth peer name far-$link; ip link set $link up; ip link set far-$link up; done
         ip addr add 10.6.1.60/32 dev up0
         ip addr add 10.6.0.10/16 dev up0
         ip addr add 10.7.0.10/16 dev up1
         ip -6 addr add fd06::60/128 dev up0 nodad preferred_lft 0
         ip -6 addr add fd06::10/64 dev up0 nodad
         ip -6 addr add fd07::10/64 dev up1 nodad
         ip addr add 10.99.0.1/24 dev pod
         ip link set up0 mtu 1450");
}

fn default_routes() {
    run("ip route add default via 10.7.0.1 metric 500
         ip route add default via 10.6.0.1 metric 100
         ip route add default via 10.7.0.1 table 77
         ip -6 route add default via fd06::1");
}

#[test]
fn the_underlay_is_where_the_best_default_route_leads() {
    in_namespace(|| async {
        world();
        let auto = host(ParentChoice::Auto);
        assert!(
            auto.underlay().await.unwrap().is_empty(),
            "virtual devices are no underlay by themselves"
        );
        default_routes();
        let underlay = auto.underlay().await.unwrap();
        let (v4, v6) = (&underlay[&Family::V4], &underlay[&Family::V6]);
        assert_eq!(
            (v4.device.as_str(), v4.address.to_string().as_str(), v4.mtu),
            ("up0", "10.6.0.10", 1450)
        );
        assert_eq!(
            (v6.device.as_str(), v6.address.to_string().as_str()),
            ("up0", "fd06::10")
        );
        run("ip route change default via 10.6.0.1 metric 100 src 10.6.1.60");
        assert_eq!(
            auto.underlay().await.unwrap()[&Family::V4]
                .address
                .to_string(),
            "10.6.1.60",
            "as the route says"
        );
    });
}

#[test]
fn the_hosts_own_address_on_a_device_stays_whatever_else_the_device_gets() {
    in_namespace(|| async {
        world();
        default_routes();
        run("ip link add wg0 type bridge; ip link set wg0 up; ip addr add 10.100.0.1/32 dev wg0");
        let host = host(ParentChoice::Auto);
        let expected = [
            "up0 IPv4 10.6.0.10",
            "up0 IPv6 fd06::10",
            "up1 IPv4 10.7.0.10",
            "up1 IPv6 fd07::10",
            "wg0 IPv4 10.100.0.1",
        ];
        for change in [
            "true",
            "ip addr add 10.6.9.1/32 dev up0; ip -6 addr add fd06::9:50/128 dev up0 nodad",
            "ip addr add 10.6.0.11/16 dev up0; ip -6 addr add fd06::11/64 dev up0 nodad; ip -6 addr add fd09::11/64 dev up0 nodad",
            "ip addr add 10.7.0.1/32 dev up1; ip -6 addr add fd07::1/128 dev up1 nodad",
            "ip -6 addr add fd06::12/64 dev up0 nodad preferred_lft 0",
        ] {
            run(change);
            let sources = host.attachments().await.unwrap().sources;
            let sources: Vec<_> = sources
                .iter()
                .map(|((device, family), address)| format!("{device} {family} {address}"))
                .collect();
            assert_eq!(sources, expected, "{change}");
            let underlay = host.underlay().await.unwrap();
            let named: Vec<_> = underlay
                .values()
                .map(|underlay| underlay.address.to_string())
                .collect();
            assert_eq!(
                named,
                ["10.6.0.10", "fd06::10"],
                "{change}: the EgressNode's"
            );
        }
    });
}

#[test]
fn a_named_parent_serves_both_families_and_must_exist() {
    in_namespace(|| async {
        world();
        default_routes();
        let underlay = host(ParentChoice::Named("up1".into()))
            .underlay()
            .await
            .unwrap();
        let addresses: Vec<_> = underlay
            .values()
            .map(|underlay| underlay.address.to_string())
            .collect();
        assert_eq!(addresses, ["10.7.0.10", "fd07::10"]);
        let missing = host(ParentChoice::Named("up9".into()))
            .underlay()
            .await
            .unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Invalid);
        assert!(missing.to_string().contains("up9"), "{missing}");
    });
}

#[test]
fn interfaces_are_uplinks_not_pods_and_not_ours() {
    in_namespace(|| async {
        world();
        default_routes();
        run("ip link add egress-vxlan-v4 type vxlan id 100 dstport 7789 && ip link set egress-vxlan-v4 alias egressgateway up
             ip addr add 172.31.0.1/16 dev egress-vxlan-v4");
        let interfaces = host(ParentChoice::Auto).interfaces().await.unwrap();
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let uplink =
            |number: usize, ipv4: &[&str], ipv6: &[&str], own: [&str; 2], routers: &[&str]| {
                let [source_ipv4, source_ipv6] = own.map(|address| Some(address.to_owned()));
                Interface {
                    name: format!("up{number}"),
                    ipv4: strings(ipv4),
                    ipv6: strings(ipv6),
                    hardware_address: interfaces
                        .get(number)
                        .and_then(|interface| interface.hardware_address.clone()),
                    routers: strings(routers),
                    source_ipv4,
                    source_ipv6,
                }
            };
        assert!(
            interfaces[0]
                .hardware_address
                .as_ref()
                .is_some_and(|mac| mac.parse::<MacAddress>().is_ok()),
            "{interfaces:?}"
        );
        // Kind veth: only those with a default route count.
        let own = [["10.6.0.10", "fd06::10"], ["10.7.0.10", "fd07::10"]];
        let addresses = (
            ["10.6.1.60/32", "10.6.0.10/16"],
            ["fd06::10/64", "fd06::60/128"],
        );
        let first = uplink(
            0,
            &addresses.0,
            &addresses.1,
            own[0],
            &["10.6.0.1", "fd06::1"],
        );
        let second = uplink(
            1,
            &["10.7.0.10/16"],
            &["fd07::10/64"],
            own[1],
            &["10.7.0.1"],
        );
        assert_eq!(interfaces, [first, second]);
    });
}

#[test]
fn routes_of_the_host_are_those_that_are_not_ours_and_not_the_default() {
    in_namespace(|| async {
        world();
        default_routes();
        run("ip link add egress-vxlan-v4 type vxlan id 100 dstport 7789 && ip link set egress-vxlan-v4 alias egressgateway up
             ip addr add 198.19.0.1/32 dev egress-vxlan-v4; ip route add 198.19.0.2 dev egress-vxlan-v4 proto 78
             ip link set lo up; ip addr add 10.9.9.9/32 dev lo
             ip route add 10.80.0.0/16 via 10.6.0.9; ip route add blackhole 10.81.0.0/16; ip route add 10.82.0.0/16 dev up0 table 77");
        let host = host(ParentChoice::Auto);
        let routes = host.routes().await.unwrap();
        let said: Vec<_> = routes
            .iter()
            .map(|route| format!("{} {} {:?}", route.network, route.device, route.gateway))
            .collect();
        for wanted in [
            "10.80.0.0/16 up0 Some(10.6.0.9)",
            "10.81.0.0/16  None",
            "10.9.9.9/32 lo None",
            "10.6.0.0/16 up0 None",
            "fd06::/64 up0 None",
        ] {
            assert!(
                said.iter().any(|route| route == wanted),
                "no {wanted} in {said:#?}"
            );
        }
        let absent = |route: &String| {
            route.starts_with("198.19.")
                || route.starts_with("10.82.")
                || route.contains("/0 ")
                || route.starts_with("fe80")
        };
        assert!(!said.iter().any(absent), "{said:#?}");
    });
}

#[test]
fn every_kind_of_change_is_noticed() {
    in_namespace(|| async {
        world();
        let host = host(ParentChoice::Auto);
        for change in [
            "ip link set up1 mtu 1400",
            "ip addr add 10.8.0.1/24 dev up1",
            "ip -6 addr add fd08::1/64 dev up1 nodad",
            "ip route add 10.80.0.0/16 via 10.8.0.9",
            "ip -6 route add fd80::/64 via fd08::9",
            "ip rule add pref 10 fwmark 1 table 10",
            "ip -6 rule add pref 10 fwmark 1 table 10",
            "ip neigh add 10.8.0.9 lladdr 02:00:00:00:00:09 dev up1 nud permanent",
            "ip neigh del 10.8.0.9 dev up1",
        ] {
            drain(&host).await;
            run(change);
            tokio::time::timeout(Duration::from_secs(10), host.changed())
                .await
                .expect(change)
                .unwrap();
        }
    });
}

#[test]
fn how_reachable_a_neighbour_is_is_no_change() {
    in_namespace(|| async {
        world();
        let host = host(ParentChoice::Auto);
        run("ip neigh add 10.7.0.9 lladdr 02:00:00:00:00:09 dev up1 nud reachable");
        drain(&host).await;
        run("ip neigh change 10.7.0.9 lladdr 02:00:00:00:00:09 dev up1 nud stale");
        assert!(
            tokio::time::timeout(Duration::from_millis(200), host.changed())
                .await
                .is_err()
        );
    });
}

#[test]
fn lost_notifications_are_an_error_once() {
    in_namespace(|| async {
        world();
        let host = host(ParentChoice::Auto);
        let route = |number| {
            format!(
                "route add 10.{}.{}.0/24 via 10.7.0.9",
                100 + number / 250,
                number % 250
            )
        };
        let script = (0..4000).map(route).collect::<Vec<_>>().join("\n");
        let file =
            std::env::temp_dir().join(format!("egressgateway-routes-{}", std::process::id()));
        std::fs::write(&file, script).unwrap();
        run(&format!("ip -batch {}", file.display()));
        std::fs::remove_file(&file).unwrap();
        let mut lost = 0;
        while let Ok(result) =
            tokio::time::timeout(Duration::from_millis(200), host.changed()).await
        {
            lost += usize::from(result.is_err());
        }
        assert_eq!(
            lost, 1,
            "the kernel's buffer holds far fewer than 4000 notifications"
        );
        run("ip link set up1 mtu 1300");
        tokio::time::timeout(Duration::from_secs(10), host.changed())
            .await
            .unwrap()
            .unwrap();
    });
}

/// Takes in everything that was noticed so far, and what links coming up still cause.
async fn drain(host: &KernelHost) {
    while let Ok(result) = tokio::time::timeout(Duration::from_millis(150), host.changed()).await {
        result.unwrap();
    }
}

#[test]
fn what_the_kernel_can_make_is_known_without_making_it() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        assert!(netlink.has_link_kind("vxlan").await.unwrap());
        assert!(netlink.has_link_kind("bridge").await.unwrap());
        assert!(!netlink.has_link_kind("nonsense").await.unwrap());
        assert_eq!(netlink.index("egress-probe").await.unwrap(), None);
    });
}
