//! The state behind all handles of one lab.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::runtime::Runtime;

use super::{
    builder::Builder,
    cables,
    constants::ROUTER,
    lock::locked,
    rules::Rules,
    sandbox::Sandbox,
    topology::{PodFacts, ServiceFacts, Topology},
};

/// Everything that is known of one lab.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) sandbox: Sandbox,
    pub(super) topology: Topology,
    pub(super) state: Mutex<State>,
    runtime: Mutex<Option<Runtime>>,
    numbers: AtomicU64,
}

/// What changes while the lab lives.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Owners of the underlay's ports.
    pub(super) ports: BTreeMap<String, String>,
    pub(super) pods: Vec<PodFacts>,
    pub(super) services: Vec<ServiceFacts>,
    /// Servers made so far.
    pub(super) servers: u64,
    /// Kubernetes namespaces and their labels.
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl Running {
    pub(super) fn build(settings: Builder) -> io::Result<Self> {
        let topology = Topology::new(settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lab-responder")
            .enable_all()
            .build()?;
        let mut state = State::default();
        for name in ["default", "kube-system"] {
            let labels =
                BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
            state.namespaces.insert(name.into(), labels);
        }
        let running = Self {
            sandbox: Sandbox::new()?,
            topology,
            state: Mutex::new(state),
            runtime: Mutex::new(Some(runtime)),
            numbers: AtomicU64::new(1),
        };
        running.lay_cables()?;
        Ok(running)
    }

    /// Switches, router and all nodes, with the rules of the latter.
    fn lay_cables(&self) -> io::Result<()> {
        let topology = &self.topology;
        self.sandbox.script(None, &cables::all(topology))?;
        let rules = self
            .rules()
            .node(topology.settings.masquerade, topology.settings.forward)
            + cables::MANAGEMENT_IS_NOT_FOR_PODS;
        for node in &topology.nodes {
            self.sandbox.script(Some(&node.name), &rules)?;
        }
        let mut state = locked(&self.state);
        state.ports.insert("router".into(), ROUTER.into());
        for node in &topology.nodes {
            for port in [cables::node_port(node.n), cables::node_second_port(node.n)] {
                state.ports.insert(port, node.name.clone());
            }
        }
        Ok(())
    }

    pub(super) fn rules(&self) -> Rules {
        let Builder {
            tool,
            families,
            components,
            ..
        } = self.topology.settings;
        Rules {
            tool,
            families,
            components,
        }
    }

    /// A number that this lab has not used.
    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn with_runtime<T>(
        &self,
        work: impl FnOnce(&Runtime) -> io::Result<T>,
    ) -> io::Result<T> {
        match locked(&self.runtime).as_ref() {
            Some(runtime) => work(runtime),
            None => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the lab has ended",
            )),
        }
    }

    /// Ends everything; handles that are left answer with errors.
    pub(super) fn end(&self) {
        if let Some(runtime) = locked(&self.runtime).take() {
            runtime.shutdown_background();
        }
        self.sandbox.end();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
