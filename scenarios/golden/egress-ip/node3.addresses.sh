ip -batch - <<END
address add 10.6.1.60/32 dev eth0 metric 1701279609 noprefixroute
END
