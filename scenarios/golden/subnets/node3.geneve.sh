ip -batch - <<END
link add egress-geneve address ca:4e:bc:72:07:23 mtu 1450 group 1701279609 type geneve external dstport 7789
link set egress-geneve alias egressgateway addrgenmode none
END
sysctl -qw net.ipv4.conf.egress-geneve.rp_filter=2
sysctl -qw net.ipv4.conf.egress-geneve.accept_local=1
ip -batch - <<END
link set egress-geneve up
address add 198.19.0.3/32 dev egress-geneve
neigh replace 198.19.0.1 lladdr ca:4e:ba:72:07:23 dev egress-geneve nud permanent
neigh replace 198.19.0.2 lladdr ca:4e:bd:72:07:23 dev egress-geneve nud permanent
neigh replace 198.19.0.4 lladdr ca:4e:b7:72:07:23 dev egress-geneve nud permanent
route add 198.19.0.1 encap ip id 100 src 10.6.0.13 dst 10.6.0.11 ttl 64 dev egress-geneve proto 78
route add 198.19.0.2 encap ip id 100 src 10.6.0.13 dst 10.6.0.12 ttl 64 dev egress-geneve proto 78
route add 198.19.0.4 encap ip id 100 src 10.6.0.13 dst 10.6.0.14 ttl 64 dev egress-geneve proto 78
END
ip -4 -batch - <<END
route add unreachable 0.0.0.0/0 table 100 metric 4278198272 proto 77
route add throw 10.244.1.0/24 table 100 metric 1024 proto 77
route add throw 10.244.2.0/23 table 100 metric 1024 proto 77
route add throw 10.244.4.0/24 table 100 metric 1024 proto 77
route add 0.0.0.0/0 table 100 metric 1024 proto 77 encap ip id 100 src 10.6.0.13 dst 10.6.0.12 ttl 64 via 198.19.0.2 dev egress-geneve onlink
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
END
ip -6 -batch - <<END
route add unreachable ::/0 table 100 metric 4278198272 proto 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
END
