//! A server outside the cluster.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::Arc,
};

use super::{
    builder::parsed, cables, constants::PORT, lock::locked, namespace::Namespace, responder::Seen,
    running::Running,
};

/// A server to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSpec {
    addresses: Vec<IpAddr>,
    port: u16,
    routes_to_pods: bool,
}

impl ServerSpec {
    /// A server with these addresses. Those in 10.6.0.0/16 and fd00:6::/64 are on the underlay's
    /// switch, all others behind the router.
    ///
    /// # Panics
    /// On what is no address.
    pub fn new<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            addresses: addresses.into_iter().map(parsed).collect(),
            port: PORT,
            routes_to_pods: false,
        }
    }

    /// Answers at this port instead of [`PORT`].
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// With routes back to pod addresses: then untranslated sources get answers too.
    #[must_use]
    pub const fn routes_to_pods(mut self) -> Self {
        self.routes_to_pods = true;
        self
    }
}

/// A server outside the cluster that answers with the source it sees.
#[derive(Debug, Clone)]
pub struct Server {
    network: Namespace,
    endpoints: Vec<SocketAddr>,
    seen: Seen,
}

impl Deref for Server {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.network
    }
}

impl Server {
    pub(super) fn create(running: &Arc<Running>, spec: &ServerSpec) -> io::Result<Self> {
        if let Some(stranger) = spec
            .addresses
            .iter()
            .find(|address| !running.topology.settings.families.has(**address))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{stranger}: the lab lacks this family"),
            ));
        }
        let k = {
            let mut state = locked(&running.state);
            state.servers += 1;
            let k = state.servers;
            state
                .ports
                .insert(format!("server{k}"), format!("server{k}"));
            k
        };
        let name = format!("server{k}");
        running.sandbox.script(
            None,
            &cables::server(
                &running.topology,
                &name,
                k,
                &spec.addresses,
                spec.routes_to_pods,
            ),
        )?;
        let network = Namespace {
            running: Arc::clone(running),
            name: Some(name),
        };
        let seen = network.respond(&spec.addresses, spec.port)?;
        let endpoints = spec
            .addresses
            .iter()
            .map(|address| SocketAddr::new(*address, spec.port))
            .collect();
        Ok(Self {
            network,
            endpoints,
            seen,
        })
    }

    /// Where it answers, in the order given.
    #[must_use]
    pub fn endpoints(&self) -> &[SocketAddr] {
        &self.endpoints
    }

    /// Where it answers at this address.
    ///
    /// # Panics
    /// On what is none of its addresses.
    #[must_use]
    pub fn at(&self, address: &str) -> SocketAddr {
        let wanted: IpAddr = parsed(address);
        *self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.ip() == wanted)
            .unwrap_or_else(|| panic!("{address} is not the server's"))
    }

    /// Its first IPv4 endpoint.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn v4(&self) -> SocketAddr {
        *self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.is_ipv4())
            .expect("an IPv4 endpoint")
    }

    /// Its first IPv6 endpoint.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn v6(&self) -> SocketAddr {
        *self
            .endpoints
            .iter()
            .find(|endpoint| endpoint.is_ipv6())
            .expect("an IPv6 endpoint")
    }

    /// The sources of all connections and datagrams so far, oldest first.
    #[must_use]
    pub fn seen(&self) -> Vec<SocketAddr> {
        self.seen.sources()
    }

    /// Forgets them.
    pub fn forget(&self) {
        self.seen.clear();
    }
}
