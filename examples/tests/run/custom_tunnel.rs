use egressgateway_testkit::{netns::in_namespace, shell::run};

use crate::support::example;

#[test]
fn a_tunnel_of_ones_own_passes_the_suite_and_is_short() {
    in_namespace(|| async {
        let output = example("custom_tunnel").arg("keep").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(text, "flat keeps every promise of a tunnel\n");
        let routes = run("ip route show proto 79; ip -6 route show proto 79");
        let peers: Vec<_> = routes
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(peers, ["10.6.0.12", "10.6.0.13", "fd06::12"], "{routes}");
        assert!(include_str!("../../custom_tunnel.rs").lines().count() < 250);
    });
}
