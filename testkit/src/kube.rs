//! A real Kubernetes control plane in a lab: etcd and kube-apiserver, with kubectl and helm to
//! speak to it.
//!
//! There is no controller manager: nothing collects garbage or makes service accounts, and no
//! kubelet runs pods. A test says what they would.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    lab::{Lab, MANAGEMENT, Process},
    pace::patient,
    skip::skip,
};

/// Port of kube-apiserver at [`MANAGEMENT`].
pub const API_PORT: u16 = 6444;
const ETCD_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
const ADMIN_TOKEN: &str = "administrator";
/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(100);
const END: Duration = Duration::from_secs(30);

/// Everybody's requests are written down, with what they were answered.
const AUDIT: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";

/// The programs' folder, made when there is none yet; none where they can't be made.
///
/// # Panics
/// Where they can't be made and every test must run.
#[must_use]
pub fn assets() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kube-assets");
    let output = Command::new(script)
        .stdin(Stdio::null())
        .output()
        .expect("scripts/kube-assets");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Some(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    skip(&format!("there is no control plane: {said}"));
    None
}

/// The same with what nodes run, and other sets of programs that the script knows; an error says
/// why there is none.
///
/// # Errors
/// Where they can't be made.
pub(crate) fn node_assets(more: &[&str]) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kube-assets");
    let mut command = Command::new(script);
    let output = command
        .arg("nodes")
        .args(more)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("scripts/kube-assets: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(PathBuf::from(text(&output.stdout)))
    } else {
        Err(text(&output.stderr))
    }
}

/// A running control plane. It ends with its lab.
#[derive(Debug)]
pub struct Kubernetes {
    assets: PathBuf,
    directory: tempfile::TempDir,
    server: Option<Process>,
    etcd: Process,
    /// Where it listens on the management network; nodes reach it.
    pub lab: Lab,
}

impl Kubernetes {
    /// Starts etcd and kube-apiserver beside the lab's nodes, and waits until the latter is ready.
    ///
    /// # Panics
    /// When one does not come up, with what it said.
    #[must_use]
    pub fn start(assets: PathBuf, lab: Lab) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let key = "openssl genrsa -out sa.key 2048 2>/dev/null && openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null";
        let made = Command::new("bash")
            .args(["-c", key])
            .current_dir(directory.path())
            .status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "openssl makes a key"
        );
        std::fs::write(
            path("tokens.csv"),
            format!("{ADMIN_TOKEN},admin,admin,system:masters\n"),
        )
        .expect("the tokens");
        std::fs::write(path("audit.yaml"), AUDIT).expect("the audit policy");
        let [clients, peers] =
            [ETCD_PORT, PEER_PORT].map(|port| format!("http://127.0.0.1:{port}"));
        let etcd = lab
            .root()
            .program(assets.join("etcd"))
            .arg("--data-dir")
            .arg(path("etcd"))
            .args([
                "--unsafe-no-fsync",
                "--log-level=error",
                &format!("--listen-client-urls={clients}"),
                &format!("--advertise-client-urls={clients}"),
                &format!("--listen-peer-urls={peers}"),
                &format!("--initial-advertise-peer-urls={peers}"),
                &format!("--initial-cluster=default={peers}"),
            ]);
        let etcd = etcd
            .log_to(path("etcd.log"))
            .start()
            .unwrap_or_else(|error| panic!("etcd: {error}"));
        let mut kubernetes = Self {
            assets,
            directory,
            server: None,
            etcd,
            lab,
        };
        kubernetes.start_server();
        kubernetes
    }

    /// Starts kube-apiserver and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come up, with what it said.
    pub fn start_server(&mut self) {
        let program = self.lab.root().program(self.assets.join("kube-apiserver"));
        let file = |option: &str, name: &str| format!("--{option}={}", self.path(name).display());
        let program = program.args([
            format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
            format!("--bind-address={MANAGEMENT}"),
            format!("--secure-port={API_PORT}"),
            file("cert-dir", "certificates"),
            file("token-auth-file", "tokens.csv"),
            file("service-account-key-file", "sa.pub"),
            file("service-account-signing-key-file", "sa.key"),
            file("audit-policy-file", "audit.yaml"),
            file("audit-log-path", "audit.log"),
        ]);
        let program = program.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
            "--anonymous-auth=false",
            "--allow-privileged=true",
            "--endpoint-reconciler-type=none",
            // To webhooks by their EndpointSlices: nobody translates the addresses of Services
            // here.
            "--enable-aggregator-routing=true",
        ]);
        let server = program
            .log_to(self.path("server.log"))
            .start()
            .unwrap_or_else(|error| panic!("kube-apiserver: {error}"));
        self.server = Some(server);
        std::fs::write(self.path("admin"), self.kubeconfig_of(ADMIN_TOKEN))
            .expect("the administrator's kubeconfig");
        self.eventually("kube-apiserver is ready", || {
            self.kubectl("get --raw /readyz")
        });
    }

    /// Kills kube-apiserver; etcd keeps everything.
    ///
    /// # Panics
    /// When it does not end.
    pub fn kill_server(&mut self) {
        if let Some(server) = self.server.take() {
            server
                .kill(Signal::SIGKILL)
                .and_then(|()| server.wait(patient(END)))
                .unwrap_or_else(|error| panic!("kube-apiserver: {error}"));
        }
    }

    /// Stops etcd where it is: every request waits, until it [goes on](Self::resume_etcd).
    ///
    /// # Panics
    /// When the lab has ended.
    pub fn pause_etcd(&self) {
        self.etcd
            .kill(Signal::SIGSTOP)
            .unwrap_or_else(|error| panic!("etcd: {error}"));
    }

    /// Lets etcd go on.
    ///
    /// # Panics
    /// When the lab has ended.
    pub fn resume_etcd(&self) {
        self.etcd
            .kill(Signal::SIGCONT)
            .unwrap_or_else(|error| panic!("etcd: {error}"));
    }

    /// Makes etcd forget everything but the present, as it does every few minutes; no watch can go
    /// on from before.
    ///
    /// # Panics
    /// When it refuses.
    pub fn compact(&self) {
        let ask = |path: &str, body: &Value| {
            let answer = self.shell(&format!("curl --silent --show-error --data '{body}' http://127.0.0.1:{ETCD_PORT}/v3/kv/{path}"));
            let answer = answer.and_then(|text| {
                serde_json::from_str::<Value>(&text).map_err(|error| format!("{error}: {text}"))
            });
            answer
                .ok()
                .filter(|answer| answer["header"]["revision"].is_string())
                .unwrap_or_else(|| panic!("etcd does not answer {path}"))
        };
        // Any key does: the header tells the revision.
        let revision = ask("range", &json!({"key": "AA=="}))["header"]["revision"].clone();
        ask(
            "compaction",
            &json!({"revision": revision, "physical": true}),
        );
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A kubeconfig with a token; it works on every node.
    #[must_use]
    pub fn kubeconfig_of(&self, token: &str) -> String {
        self.kubeconfig_at(API_PORT, token)
    }

    /// The same by another port, where somebody passes on what is sent.
    #[must_use]
    pub fn kubeconfig_at(&self, port: u16, token: &str) -> String {
        let address = SocketAddr::from((MANAGEMENT, port));
        let certificate = self.path("certificates/apiserver.crt");
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": format!("https://{address}"), "certificate-authority": certificate}}],
            "users": [{"name": "lab", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        })
        .to_string()
    }

    /// Writes what a pod finds of its account: token, authority and namespace.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write_account(&self, folder: &Path, token: &str, namespace: &str) {
        let authority = std::fs::read(self.path("certificates/apiserver.crt"))
            .expect("the server's certificate");
        for (file, content) in [
            ("token", token.as_bytes()),
            ("ca.crt", &authority),
            ("namespace", namespace.as_bytes()),
        ] {
            std::fs::write(folder.join(file), content)
                .unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }

    /// The variables that tell pods where the API server is.
    #[must_use]
    pub fn services() -> [(&'static str, String); 2] {
        [
            ("KUBERNETES_SERVICE_HOST", MANAGEMENT.to_string()),
            ("KUBERNETES_SERVICE_PORT", API_PORT.to_string()),
        ]
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig_of_admin(&self) -> String {
        self.kubeconfig_of(ADMIN_TOKEN)
    }

    /// Writes a file that tests and daemons can read, and returns where.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap_or_else(|error| panic!("{name}: {error}"));
        path
    }

    /// Runs `kubectl` as the administrator; words are the shell's.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn kubectl(&self, words: &str) -> Result<String, String> {
        self.shell(&format!(
            "kubectl --kubeconfig '{}' {words}",
            self.path("admin").display()
        ))
    }

    /// Runs `kubectl` with another token.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn kubectl_as(&self, token: &str, words: &str) -> Result<String, String> {
        let config = self.file("somebody", &self.kubeconfig_of(token));
        self.shell(&format!(
            "kubectl --kubeconfig '{}' {words}",
            config.display()
        ))
    }

    /// Sends one merge patch with a token and nothing before it (kubectl reads an object first), to
    /// a path below `/apis/`.
    ///
    /// # Errors
    /// The server's message when it refuses.
    pub fn patch_as(&self, token: &str, path: &str, body: &Value) -> Result<(), String> {
        let body = self.file("patch.json", &body.to_string());
        let address = SocketAddr::from((MANAGEMENT, API_PORT));
        let answer = self.shell(&format!(
            "curl --silent --show-error --cacert '{}' --request PATCH --header 'Authorization: Bearer {token}' \
             --header 'Content-Type: application/merge-patch+json' --data '@{}' 'https://{address}/apis/{path}'",
            self.path("certificates/apiserver.crt").display(),
            body.display()
        ))?;
        let answer: Value =
            serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
        if answer["kind"] == "Status" {
            Err(answer["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Ok(())
        }
    }

    /// Runs `helm` as the administrator.
    ///
    /// # Errors
    /// What it said when it failed.
    pub fn helm(&self, words: &str) -> Result<String, String> {
        self.shell(&format!(
            "helm --kubeconfig '{}' {words}",
            self.path("admin").display()
        ))
    }

    /// Runs lines of a shell that find kubectl and helm first.
    ///
    /// # Errors
    /// What they said when they failed.
    pub fn shell(&self, script: &str) -> Result<String, String> {
        let home = self.directory.path().display();
        let script = format!(
            "export HOME='{home}' PATH='{}':$PATH; {script}",
            self.assets.display()
        );
        self.lab
            .root()
            .run(&script)
            .map_err(|error| error.to_string())
    }

    /// Creates or changes objects as kubelets and others would, status included.
    ///
    /// # Panics
    /// When one is refused.
    pub fn put(&self, objects: impl IntoIterator<Item = Value>) {
        for mut object in objects {
            if let Some(metadata) = object["metadata"].as_object_mut() {
                metadata.remove("uid");
            }
            let status = json!({"status": object["status"].take()});
            let (file, status_file) = (
                self.file("object.json", &object.to_string()),
                self.file("status.json", &status.to_string()),
            );
            let done = self
                .kubectl(&format!("apply -f '{}'", file.display()))
                .and_then(|_| match object["kind"].as_str() {
                    Some("Node" | "Pod") if !status["status"].is_null() => {
                        // Not a server-side apply: it knows one address of each type.
                        let of =
                            format!("-f '{}' --subresource=status --type=merge", file.display());
                        self.kubectl(&format!(
                            "patch {of} --patch-file '{}'",
                            status_file.display()
                        ))
                    }
                    _ => Ok(String::new()),
                });
            done.unwrap_or_else(|error| panic!("{error}\n{object}"));
        }
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn apply(&self, yaml: &str) -> Result<String, String> {
        let file = self.file("applied.yaml", yaml);
        self.kubectl(&format!("apply --server-side -f '{}'", file.display()))
    }

    /// An object as JSON; null where there is none.
    #[must_use]
    pub fn get(&self, what: &str) -> Value {
        let text = self
            .kubectl(&format!("get {what} --ignore-not-found -o json"))
            .unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The log of requests: objects of kind Event of `audit.k8s.io`.
    #[must_use]
    pub fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path("audit.log")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Those of the log of requests that have `words` in their text, from the parts too that the
    /// server has put aside because the log was long.
    #[must_use]
    pub fn audit_with(&self, words: &str) -> Vec<Value> {
        let parts = std::fs::read_dir(self.directory.path())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let parts = parts.filter(|path| {
            path.file_name().is_some_and(|name| {
                name.to_string_lossy().starts_with("audit")
                    && name.to_string_lossy().ends_with(".log")
            })
        });
        let texts = parts.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let events = texts.flat_map(|text| {
            let lines = text.lines().filter(|line| line.contains(words));
            lines
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect::<Vec<_>>()
        });
        events.collect()
    }

    /// Waits until `check` says yes.
    ///
    /// # Panics
    /// After a minute, with the last refusal and the end of the server's log.
    pub fn eventually<T>(&self, what: &str, check: impl Fn() -> Result<T, String>) -> T {
        let start = Instant::now();
        loop {
            match check() {
                Ok(value) => return value,
                Err(refusal) if start.elapsed() > patient(PATIENCE) => {
                    let log = std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
                    let lines: Vec<&str> = log.lines().collect();
                    panic!(
                        "never: {what}: {refusal}\n{}",
                        lines[lines.len().saturating_sub(10)..].join("\n")
                    );
                }
                Err(_) => thread::sleep(GLANCE),
            }
        }
    }
}
