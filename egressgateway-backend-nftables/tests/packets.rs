//! Packets through the kernel.

use egressgateway_backend_nftables::{Nftables, NftablesSettings};
use egressgateway_testkit::{packet_tests, packets::Host};

const HOST: Host<Nftables> = Host {
    backend: || Nftables::new(NftablesSettings::default(), std::sync::Arc::new(())),
    masquerade: "nft add table inet cni
nft 'add chain inet cni post { type nat hook postrouting priority 100; }'
nft add rule inet cni post oifname != pod0 masquerade
",
    former: |world| {
        format!(
            "nft -f {}/tests/former/{world}.nft\n",
            env!("CARGO_MANIFEST_DIR")
        )
    },
    steers_translated: true,
};

packet_tests!(beside_nft_rules, super::HOST);
