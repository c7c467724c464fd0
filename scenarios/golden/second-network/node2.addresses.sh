ip -batch - <<END
address add 10.6.1.60/32 dev eth0 metric 1701279609 noprefixroute
address add 10.7.0.60/32 dev eth1 metric 1701279609 noprefixroute
address add 10.8.0.60/32 dev eth2 metric 1701279609 noprefixroute
END
