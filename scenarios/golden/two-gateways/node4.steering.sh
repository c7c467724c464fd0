ip -batch - <<END
nexthop add id 1633764716 via 198.19.0.3 dev egress-vxlan-v4 onlink proto 77
nexthop add id 1633764717 via 198.19.0.3 dev egress-vxlan-v4 onlink proto 77
nexthop add id 1700000194 group 1633764716/1633764717 type resilient buckets 4096 idle_timer 300 unbalanced_timer 0 proto 77
END
sysctl -qw net.ipv4.fib_multipath_hash_fields=55 net.ipv4.fib_multipath_hash_policy=3
ip -4 -batch - <<END
route add unreachable 0.0.0.0/0 table 100 metric 4278198272 proto 77
route add unreachable 0.0.0.0/0 table 101 metric 4278198272 proto 77
route add throw 10.244.1.0/24 table 100 metric 1024 proto 77
route add throw 10.244.2.0/23 table 100 metric 1024 proto 77
route add throw 10.244.4.0/24 table 100 metric 1024 proto 77
route add throw 10.244.1.0/24 table 101 metric 1024 proto 77
route add throw 10.244.2.0/23 table 101 metric 1024 proto 77
route add throw 10.244.4.0/24 table 101 metric 1024 proto 77
route add 0.0.0.0/0 table 100 metric 1024 proto 77 via 198.19.0.2 dev egress-vxlan-v4 onlink
route add 0.0.0.0/0 table 101 metric 1024 proto 77 nhid 1700000194
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x13000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
rule add fwmark 0x13000000/0xff000000 lookup 101 pref 99 protocol 77
END
ip -6 -batch - <<END
route add unreachable ::/0 table 100 metric 4278198272 proto 77
route add unreachable ::/0 table 101 metric 4278198272 proto 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x13000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
rule add fwmark 0x13000000/0xff000000 lookup 101 pref 99 protocol 77
END
