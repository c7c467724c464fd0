ip -batch - <<END
link add egress-vxlan-v4 address ca:4e:ba:72:07:23 mtu 1450 group 1701279609 type vxlan id 100 dstport 7789 local 10.6.0.11 dev eth0 nolearning udpcsum
link set egress-vxlan-v4 alias egressgateway addrgenmode none
END
sysctl -qw net.ipv4.conf.egress-vxlan-v4.rp_filter=2
sysctl -qw net.ipv4.conf.egress-vxlan-v4.promote_secondaries=1
sysctl -qw net.ipv4.conf.egress-vxlan-v4.accept_local=1
ip -batch - <<END
link set egress-vxlan-v4 up
address add 198.19.0.1/32 dev egress-vxlan-v4
END
bridge -batch - <<END
fdb replace ca:4e:b7:72:07:23 dev egress-vxlan-v4 dst 10.6.0.14 via eth0 self permanent
fdb replace ca:4e:bc:72:07:23 dev egress-vxlan-v4 dst 10.6.0.13 via eth0 self permanent
fdb replace ca:4e:bd:72:07:23 dev egress-vxlan-v4 dst 10.6.0.12 via eth0 self permanent
END
ip -batch - <<END
neigh replace 198.19.0.2 lladdr ca:4e:bd:72:07:23 dev egress-vxlan-v4 nud permanent
neigh replace 198.19.0.3 lladdr ca:4e:bc:72:07:23 dev egress-vxlan-v4 nud permanent
neigh replace 198.19.0.4 lladdr ca:4e:b7:72:07:23 dev egress-vxlan-v4 nud permanent
route add 198.19.0.2 dev egress-vxlan-v4 proto 78
route add 198.19.0.3 dev egress-vxlan-v4 proto 78
route add 198.19.0.4 dev egress-vxlan-v4 proto 78
END
