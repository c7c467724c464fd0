//! What the product's images say of themselves: the same as `images/Containerfile`, and a test
//! holds both to that.

use crate::Image;

/// Where the chart looks for the image.
const REPOSITORY: &str = "ghcr.io/spidernet-io";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A user who may do nothing; the agent needs another one, as the chart says.
const USER: &str = "65532:65532";

/// An image of `images/contents`, built from this commit, which was made at that time in seconds
/// since 1970. None for a name that is not there.
#[must_use]
pub fn product(image: &str, revision: &str, created: u64) -> Option<Image> {
    let daemons = (
        "egressgateway",
        "egressgateway-controller",
        &["5810/tcp", "5820/tcp", "9443/tcp"][..],
    );
    let (title, entrypoint, ports) = match image {
        "full" | "nftables" | "netfilter" => daemons,
        "egressctl" => ("egressctl", "egressctl", &[][..]),
        _ => return None,
    };
    let description = match title {
        "egressctl" => "Plans and explains the egress gateway offline, and drains its nodes",
        _ => {
            "Traffic of chosen pods to chosen destinations leaves the cluster through chosen nodes"
        }
    };
    // As the chart composes it: what has tools for everything has no suffix.
    let suffix = if matches!(image, "nftables" | "netfilter") {
        format!("-{image}")
    } else {
        String::new()
    };
    let label = |(name, value): (&str, &str)| {
        (format!("org.opencontainers.image.{name}"), value.to_owned())
    };
    let labels = [
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("version", VERSION),
        ("revision", revision),
        ("title", title),
        ("description", description),
    ];
    Some(Image {
        name: format!("{REPOSITORY}/{title}:{VERSION}{suffix}"),
        entrypoint: vec![entrypoint.to_owned()],
        environment: vec!["PATH=/usr/sbin:/usr/bin".to_owned()],
        user: USER.to_owned(),
        ports: ports.iter().map(|port| (*port).to_owned()).collect(),
        labels: labels.map(label).into(),
        created,
    })
}
