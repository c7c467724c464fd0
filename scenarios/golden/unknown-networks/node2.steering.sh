ip -4 -batch - <<END
route add unreachable 0.0.0.0/0 table 100 metric 4278198272 proto 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
END
ip -6 -batch - <<END
route add unreachable ::/0 table 100 metric 4278198272 proto 77
rule add fwmark 0x11000000/0xff000000 iif lo lookup 254 pref 98 protocol 77
rule add fwmark 0x11000000/0xff000000 lookup 100 pref 99 protocol 77
END
