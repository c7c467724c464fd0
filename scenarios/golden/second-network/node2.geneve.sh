ip -batch - <<END
link add egress-geneve address ca:4e:bd:72:07:23 mtu 1450 group 1701279609 type geneve external dstport 7789
link set egress-geneve alias egressgateway addrgenmode none
END
sysctl -qw net.ipv4.conf.egress-geneve.rp_filter=2
sysctl -qw net.ipv4.conf.egress-geneve.accept_local=1
ip -batch - <<END
link set egress-geneve up
address add 198.19.0.2/32 dev egress-geneve
neigh replace 198.19.0.1 lladdr ca:4e:ba:72:07:23 dev egress-geneve nud permanent
route add 198.19.0.1 encap ip id 100 src 10.6.0.12 dst 10.6.0.11 ttl 64 dev egress-geneve proto 78
END
sysctl -qw net/ipv4/conf/eth1/src_valid_mark=1
sysctl -qw net/ipv4/conf/eth2/src_valid_mark=1
ip -4 -batch - <<END
route add unreachable 0.0.0.0/0 table 100 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 101 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 102 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 103 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 104 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 105 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 346 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 355 metric 4278198272 proto 77
route add throw 10.244.1.0/24 table 100 metric 1024 proto 77
route add throw 10.244.2.0/24 table 100 metric 1024 proto 77
route add throw 10.244.1.0/24 table 101 metric 1024 proto 77
route add throw 10.244.2.0/24 table 101 metric 1024 proto 77
route add throw 10.244.1.0/24 table 102 metric 1024 proto 77
route add throw 10.244.2.0/24 table 102 metric 1024 proto 77
route add throw 10.244.1.0/24 table 103 metric 1024 proto 77
route add throw 10.244.2.0/24 table 103 metric 1024 proto 77
route add throw 10.244.1.0/24 table 104 metric 1024 proto 77
route add throw 10.244.2.0/24 table 104 metric 1024 proto 77
route add throw 10.244.1.0/24 table 105 metric 1024 proto 77
route add throw 10.244.2.0/24 table 105 metric 1024 proto 77
route add throw 10.244.1.0/24 table 346 metric 1024 proto 77
route add throw 10.244.2.0/24 table 346 metric 1024 proto 77
route add throw 10.244.1.0/24 table 355 metric 1024 proto 77
route add throw 10.244.2.0/24 table 355 metric 1024 proto 77
route add 0.0.0.0/0 table 346 metric 1024 proto 77 via 10.7.255.254 dev eth1 onlink
route add 10.7.0.0/16 table 346 metric 1024 proto 77 dev eth1 scope link
route add 0.0.0.0/0 table 355 metric 1024 proto 77 via 10.8.255.254 dev eth2 onlink
route add 10.8.0.0/16 table 355 metric 1024 proto 77 dev eth2 scope link
rule add fwmark 0x6000000/0xff000000 iif eth1 lookup 254 pref 98 protocol 77
rule add fwmark 0xf000000/0xff000000 iif eth2 lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x13000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x14000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x15000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x16000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x17000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x6000000/0xff000000 lookup 346 pref 99 protocol 77
rule add fwmark 0xf000000/0xff000000 lookup 355 pref 99 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
rule add fwmark 0x13000000/0xff000000 lookup 101 pref 99 protocol 77
rule add fwmark 0x14000000/0xff000000 lookup 102 pref 99 protocol 77
rule add fwmark 0x15000000/0xff000000 lookup 103 pref 99 protocol 77
rule add fwmark 0x16000000/0xff000000 lookup 104 pref 99 protocol 77
rule add fwmark 0x17000000/0xff000000 lookup 105 pref 99 protocol 77
END
ip -6 -batch - <<END
route add unreachable ::/0 table 100 metric 4278198272 proto 77
route add unreachable ::/0 table 101 metric 4278198272 proto 77
route add unreachable ::/0 table 102 metric 4278198272 proto 77
route add unreachable ::/0 table 103 metric 4278198272 proto 77
route add unreachable ::/0 table 104 metric 4278198272 proto 77
route add unreachable ::/0 table 105 metric 4278198272 proto 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x13000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x14000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x15000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x16000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x17000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
rule add fwmark 0x13000000/0xff000000 lookup 101 pref 99 protocol 77
rule add fwmark 0x14000000/0xff000000 lookup 102 pref 99 protocol 77
rule add fwmark 0x15000000/0xff000000 lookup 103 pref 99 protocol 77
rule add fwmark 0x16000000/0xff000000 lookup 104 pref 99 protocol 77
rule add fwmark 0x17000000/0xff000000 lookup 105 pref 99 protocol 77
END
