//! The running server: how a test starts it, fills it and disturbs it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, PoisonError},
};

use kube::Client;
use serde_json::Value;
use tokio::sync::Notify;

use super::{
    admission,
    fault::Fault,
    http,
    resource::Resource,
    shared::{Requests, Shared},
    write::Write,
};

/// A running API server; it ends when this is dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<Listener>,
}

#[derive(Debug)]
struct Listener {
    stop: Arc<Notify>,
    thread: std::thread::JoinHandle<()>,
}

/// Reads what is stored, from any thread, while the server lives and afterwards.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Shared>);

impl Reader {
    /// All objects of a kind.
    #[must_use]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        self.0.list(kind)
    }
}

impl ApiServer {
    /// Starts on a free port of the loopback address.
    ///
    /// # Panics
    /// When no socket can be bound.
    #[must_use]
    pub fn start() -> Self {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts at an address, in the network namespace of the calling thread.
    ///
    /// # Panics
    /// When the address can't be bound.
    #[must_use]
    pub fn start_at(address: SocketAddr) -> Self {
        let mut server = Self {
            shared: Arc::default(),
            address,
            listener: None,
        };
        server.resume_listening();
        server
    }

    /// Listens again after [`Self::stop`], at the same address and with everything that was stored.
    ///
    /// # Panics
    /// When the address can't be bound.
    pub fn resume_listening(&mut self) {
        let stop = Arc::new(Notify::new());
        let (bound, address) = std::sync::mpsc::channel();
        let (shared, wanted, until) = (self.shared.clone(), self.address, stop.clone());
        let thread = std::thread::Builder::new()
            .name("apiserver".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let listener = tokio::net::TcpListener::bind(wanted)
                        .await
                        .expect("the API server's address");
                    let _ = bound.send(listener.local_addr().expect("a bound address"));
                    http::serve(listener, shared, until).await;
                });
            });
        self.address = address.recv().expect("the API server starts");
        self.listener = Some(Listener {
            stop,
            thread: thread.expect("a thread"),
        });
    }

    /// Closes every connection and stops listening; what is stored stays.
    pub fn stop(&mut self) {
        if let Some(Listener { stop, thread }) = self.listener.take() {
            stop.notify_one();
            let _ = thread.join();
        }
    }

    /// Its base address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An ordinary client. Call it inside a runtime.
    ///
    /// # Panics
    /// When the client can't be made, which is an error of this server.
    #[must_use]
    pub fn client(&self) -> Client {
        let config = kube::Config::new(self.url().parse().expect("an address"));
        Client::try_from(config).expect("a client")
    }

    /// A kubeconfig without credentials.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let cluster = format!("{{name: testkit, cluster: {{server: \"{}\"}}}}", self.url());
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{cluster}]\nusers: [{{name: testkit, user: {{}}}}]\n\
             contexts: [{{name: testkit, context: {{cluster: testkit, user: testkit}}}}]\ncurrent-context: testkit\n"
        )
    }

    /// Creates or replaces (its status included, where one is given) every object of a YAML text.
    ///
    /// # Errors
    /// The first object that can't be parsed or is refused.
    pub fn apply_yaml(&self, yaml: &str) -> Result<(), String> {
        let objects = super::yaml::all(yaml).map_err(|error| error.to_string())?;
        objects.into_iter().try_for_each(|object| self.put(object))
    }

    /// Creates or replaces one object, whatever its resource version; a status that is given is
    /// taken too, and one that is not stays.
    ///
    /// # Errors
    /// When its kind is not known.
    pub fn put(&self, object: Value) -> Result<(), String> {
        let resource = self
            .shared
            .resources()
            .of_object(&object)
            .ok_or_else(|| format!("unknown kind: {object}"))?;
        let object = admission::admit(&resource, object).map_err(|refusal| refusal.message)?;
        self.shared.defined(&resource, &object);
        self.store(&resource, object)
    }

    /// The same without a look at its schema: what was stored before a rule was made stays stored.
    ///
    /// # Errors
    /// When its kind is not known.
    pub fn put_unchecked(&self, object: Value) -> Result<(), String> {
        let resource = self
            .shared
            .resources()
            .of_object(&object)
            .ok_or_else(|| format!("unknown kind: {object}"))?;
        self.store(&resource, object)
    }

    fn store(&self, resource: &Resource, object: Value) -> Result<(), String> {
        let mut store = self.shared.store();
        store
            .put(resource, object)
            .map_err(|refusal| refusal.message)?;
        self.shared.written.send_replace(store.version());
        Ok(())
    }

    /// An object as it is stored; the namespace is empty where the kind has none.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = self.shared.resources().of_kind(kind)?;
        let write = Write {
            resource: &resource,
            namespace,
            name,
            status: false,
            manager: "test",
        };
        self.shared
            .store()
            .get(&write)
            .ok()
            .map(|object| (*object).clone())
    }

    /// All objects of a kind.
    #[must_use]
    pub fn list(&self, kind: &str) -> Vec<Value> {
        self.shared.list(kind)
    }

    /// For threads that only read.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader(self.shared.clone())
    }

    /// Changes an object, its status included, by a merge patch.
    ///
    /// # Errors
    /// When there is no such object, or the result is refused.
    pub fn merge(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<(), String> {
        let mut object = self
            .get(kind, namespace, name)
            .ok_or_else(|| format!("no {kind} {namespace}/{name}"))?;
        json_patch::merge(&mut object, patch);
        self.put(object)
    }

    /// Deletes an object, as its finalizers allow.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<(), String> {
        let resource = self
            .shared
            .resources()
            .of_kind(kind)
            .ok_or_else(|| format!("unknown kind: {kind}"))?;
        let write = Write {
            resource: &resource,
            namespace,
            name,
            status: false,
            manager: "test",
        };
        let mut store = self.shared.store();
        store
            .delete(&write, &Value::Null)
            .map_err(|refusal| refusal.message)?;
        self.shared.written.send_replace(store.version());
        Ok(())
    }

    /// Answers the next matching requests in another way.
    pub fn fault(&self, fault: Fault) {
        self.shared
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(fault);
    }

    /// Removes all faults, and lets hanging requests go on.
    pub fn heal(&self) {
        self.shared
            .faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Forgets the history: a watch that wants to continue from an earlier version is told 410
    /// Gone.
    pub fn compact(&self) {
        self.shared.store().compact();
        self.drop_watches();
    }

    /// Ends all watches; clients continue where they were.
    pub fn drop_watches(&self) {
        self.shared.dropped.send_modify(|count| *count += 1);
    }

    /// Answers nothing until [`Self::resume`].
    pub fn pause(&self) {
        self.shared.paused.send_replace(true);
    }

    /// Answers again.
    pub fn resume(&self) {
        self.shared.paused.send_replace(false);
    }

    /// How many requests there were so far, by verb (get, list, watch, create, update, patch,
    /// delete) and resource (plural, with `/status` for its status).
    #[must_use]
    pub fn requests(&self) -> Requests {
        self.shared.requests.borrow().clone()
    }

    /// How many requests of these verbs there were for a resource.
    #[must_use]
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        self.requests()
            .get(&(verb.to_owned(), resource.to_owned()))
            .copied()
            .unwrap_or_default()
    }

    /// How many requests there were to write objects of a resource or their status, refused ones
    /// included.
    #[must_use]
    pub fn writes(&self, resource: &str) -> usize {
        let own = |name: &str| name.strip_suffix("/status").unwrap_or(name) == resource;
        let writing = |verb: &str| !["get", "list", "watch"].contains(&verb);
        self.requests()
            .iter()
            .filter(|((verb, name), _)| writing(verb) && own(name))
            .map(|(_, count)| count)
            .sum()
    }

    /// Waits until there were so many of these requests since the start.
    pub async fn requested(&self, verb: &str, resource: &str, times: usize) {
        let key = (verb.to_owned(), resource.to_owned());
        let mut requests = self.shared.requests.subscribe();
        // The sender lives as long as this server.
        let _ = requests
            .wait_for(|requests| requests.get(&key).is_some_and(|count| *count >= times))
            .await;
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}
