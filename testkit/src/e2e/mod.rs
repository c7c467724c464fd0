//! A real cluster out of namespaces: kubelet, containerd, runc, kube-proxy, flannel, CoreDNS,
//! controller manager, scheduler, etcd and API server, on four nodes that are sets of namespaces,
//! beside a server outside that says which source it sees.
//!
//! Nothing of the machine is changed but a folder, control groups below that of the caller (module
//! `groups`) and processes, and all of these go with the program that started them (module
//! `place`).

mod api;
mod chart;
mod command;
mod files;
mod flows;
mod groups;
mod images;
mod init;
mod keys;
mod net;
mod node;
mod place;
mod pods;
mod process;
mod serve;
mod settings;
mod site;
mod space;
mod start;

pub use self::{
    api::{Api, eventually, has_condition},
    chart::{NAMESPACE, RELEASE},
    files::KUBE_ROUTER,
    flows::{Client, Flows, Gap, Measured},
    init::run as init,
    net::Net,
    place::{PLACE, directory, down, guard},
    pods::{END, Pod},
    serve::{HTTP, TCP, UDP, run as serve},
    settings::{DNS, NODES, OUTSIDE, OUTSIDE_NETWORKS, PODS, SERVICES, Variant, addresses},
    site::Site,
    space::Space,
    start::assets,
};
