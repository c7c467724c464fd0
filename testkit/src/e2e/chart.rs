//! The product, installed by its chart.

use std::path::Path;

use super::{settings::Variant, site::Site};

/// Where the chart is installed, and as what.
pub const NAMESPACE: &str = "egressgateway";
/// The release's name.
pub const RELEASE: &str = "egressgateway";

impl Site {
    /// Installs the chart, and waits until its pods are Ready.
    ///
    /// # Errors
    /// What helm said.
    pub fn install_chart(&self, options: &[&str]) -> Result<String, String> {
        let chart = Self::chart();
        let mut arguments = vec!["install", RELEASE, &chart, "--create-namespace"];
        let backend = format!("config.policyBackend={}", self.variant.backend());
        if self.variant == Variant::Legacy {
            arguments.extend(["--set", &backend]);
        }
        arguments.extend(options);
        self.helm_and_wait(&arguments)
    }

    /// Changes the release's values, and waits until all pods are those of the new ones.
    ///
    /// # Errors
    /// What helm said.
    pub fn upgrade_chart(&self, options: &[&str]) -> Result<String, String> {
        let chart = Self::chart();
        let mut arguments = vec!["upgrade", RELEASE, &chart, "--reuse-values"];
        arguments.extend(options);
        self.helm_and_wait(&arguments)
    }

    fn helm_and_wait(&self, arguments: &[&str]) -> Result<String, String> {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--namespace", NAMESPACE, "--wait", "--timeout", "5m"]);
        let said = self.tool("helm", &arguments)?;
        // Helm is content when as many are Ready as must be at any time.
        self.rolled_out("daemonset/egressgateway-agent")?;
        self.rolled_out("deployment/egressgateway-controller")?;
        Ok(said)
    }

    /// Waits until all pods of an object of the chart are those of its present template, and Ready.
    ///
    /// # Errors
    /// What kubectl said.
    pub fn rolled_out(&self, object: &str) -> Result<String, String> {
        self.tool(
            "kubectl",
            &[
                "--namespace",
                NAMESPACE,
                "rollout",
                "status",
                object,
                "--timeout=5m",
            ],
        )
    }

    /// Where the chart is.
    fn chart() -> String {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../charts/egressgateway")
            .display()
            .to_string()
    }
}
