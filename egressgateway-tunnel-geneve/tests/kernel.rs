//! The Geneve driver against the kernel, in namespaces of its own. Not every kernel has Geneve:
//! `make test-kernels` runs this in one that does.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use egressgateway::WriteHook;
use egressgateway_netlink::Netlink;
use egressgateway_testkit::{tunnel_tests, tunnels::Kind};
use egressgateway_tunnel_geneve::{Geneve, GeneveSettings};

struct GeneveKind;

impl Kind for GeneveKind {
    type Tunnel = Geneve;

    const DEVICES: &'static [&'static str] = &["egress-geneve"];
    const HARMS: &'static [&'static str] = &[
        "ip link del egress-geneve",
        "ip link set egress-geneve down",
        "ip link set egress-geneve mtu 1300",
        "ip link set egress-geneve mtu 1000",
        "ip link set egress-geneve address 02:00:00:00:00:99",
        "ip link set egress-geneve alias mine",
        "ip addr flush dev egress-geneve",
        "ip addr add 192.0.2.1/32 dev egress-geneve",
        "ip neigh del 172.31.0.2 dev egress-geneve",
        "ip neigh add 172.31.0.77 lladdr 02:00:00:00:00:77 dev egress-geneve nud permanent",
        "ip route del 172.31.0.2 dev egress-geneve",
        "ip -6 route del fd31::2 dev egress-geneve",
        "ip route replace 172.31.0.2 encap ip id 100 src 10.6.0.1 dst 10.6.0.66 ttl 64 dev egress-geneve proto 78",
        "ip route replace 172.31.0.2 encap ip id 777 src 10.6.0.1 dst 10.6.0.12 ttl 64 dev egress-geneve proto 78",
        "ip route replace 172.31.0.2 encap ip id 100 src 10.6.0.1 dst 10.6.0.12 ttl 1 dev egress-geneve proto 78",
        "ip route replace 172.31.0.2 dev egress-geneve proto 78",
        "ip route add 172.31.0.77 encap ip id 100 src 10.6.0.1 dst 10.6.0.77 ttl 64 dev egress-geneve proto 78",
        "sysctl -qw net.ipv4.conf.egress-geneve.rp_filter=1",
        "ip link del egress-geneve; ip link add egress-geneve type geneve external dstport 6081; ip link set egress-geneve alias egressgateway",
        "ip link del egress-geneve; ip link add egress-geneve type geneve id 100 remote 10.6.0.12; ip link set egress-geneve alias egressgateway",
        "ip link del egress-geneve; ip link add egress-geneve type bridge; ip link set egress-geneve alias egressgateway",
    ];
    const TAKEN: &'static str = "ip link add egress-geneve type geneve external dstport 7789";
    const FAR: &'static str = "
        ip link add g address 02:00:00:00:01:02 mtu 1430 type geneve external dstport 7789; ip link set g up
        ip addr add 172.31.0.2/32 dev g; ip addr add fd31::2/128 dev g nodad
        ip neigh add 172.31.0.1 lladdr 66:a1:5e:00:00:01 dev g; ip -6 neigh add fd31::1 lladdr 66:a1:5e:00:00:01 dev g
        ip route add 172.31.0.1/32 encap ip id 100 dst 10.6.0.1 ttl 64 dev g
        ip -6 route add fd31::1/128 encap ip6 id 100 dst fd06::1 hoplimit 64 dev g";
    // The narrower of both underlays: a packet of either family may be sent over either.
    const MTU: (u32, u32) = (1430, 1430);

    fn tunnel(hook: Arc<dyn WriteHook>) -> Geneve {
        Geneve::new(Netlink::open().unwrap(), GeneveSettings::default(), hook)
    }
}

tunnel_tests!(GeneveKind);
