ip -batch - <<END
address add 10.6.1.61/32 dev eth0 metric 1701279609 noprefixroute
END
