//! A policy backend of one's own: it prints what it would do. Running it holds it to the public
//! conformance suite.

use std::{collections::BTreeSet, fmt, sync::Arc};

use egressgateway::{
    Change, Driver, Error, Plan, PolicyBackend, PolicyDesired, WriteHook,
    model::{ClassId, IpRange, SourceNat, TargetId, Verdict},
    testing::conformance::{self, Host},
};
use imbl::{OrdMap, OrdSet};

/// The backend. A clone is the same backend after a restart: only the lines survive.
#[derive(Clone, Debug)]
struct Printer {
    kernel: Arc<tokio::sync::Mutex<BTreeSet<String>>>,
    hook: Arc<dyn WriteHook>,
}

/// Lines to remove (false) and to add (true), in this order: what goes, goes first.
#[derive(Debug)]
struct Edits(Vec<(bool, String)>);

impl Plan for Edits {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Edits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(add, line)| writeln!(f, "{} {line}", if *add { '+' } else { '-' }))
    }
}

#[async_trait::async_trait]
impl Driver for Printer {
    type Desired = PolicyDesired;
    type State = BTreeSet<String>;
    type Plan = Edits;

    async fn observe(&self) -> Result<BTreeSet<String>, Error> {
        Ok(self.kernel.lock().await.clone())
    }

    fn plan(
        &self,
        desired: &PolicyDesired,
        current: &BTreeSet<String>,
    ) -> Result<Change<Edits, BTreeSet<String>>, Error> {
        let after = lines(desired);
        let (gone, come) = (
            current.difference(&after).map(|line| (false, line)),
            after.difference(current).map(|line| (true, line)),
        );
        let edits = gone
            .chain(come)
            .map(|(add, line)| (add, line.clone()))
            .collect();
        Ok(Change {
            plan: Edits(edits),
            after,
        })
    }

    async fn apply(&self, plan: &Edits) -> Result<(), Error> {
        for (add, line) in &plan.0 {
            self.hook
                .before(if *add { "add line" } else { "remove line" })?;
            let mut kernel = self.kernel.lock().await;
            let _ = if *add {
                kernel.insert(line.clone())
            } else {
                kernel.remove(line)
            };
        }
        print!("{plan}");
        Ok(())
    }
}

impl PolicyBackend for Printer {
    fn kind(&self) -> &'static str {
        "printer"
    }
}

/// Who, where and as whom, in words. A real backend translates `exempt`, the start gate and the
/// overlay too.
fn lines(desired: &PolicyDesired) -> BTreeSet<String> {
    let pods = desired
        .pods
        .iter()
        .map(|(pod, class)| format!("{pod} is of class {class}"));
    let verdicts = desired
        .destinations
        .iter()
        .map(|((class, range), verdict)| format!("class {class} to {range}: {verdict:?}"));
    let targets = desired
        .targets
        .iter()
        .map(|target| format!("target {target} has a way"));
    pods.chain(verdicts).chain(targets).collect()
}

#[async_trait::async_trait]
impl Host<Printer> for Printer {
    async fn driver(&self, hook: Arc<dyn WriteHook>) -> Printer {
        Printer {
            hook,
            ..self.clone()
        }
    }

    async fn foreign(&self) -> String {
        String::new()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let printer = Printer {
        kernel: Arc::default(),
        hook: Arc::new(()),
    };
    let (pod, range) = (
        "10.244.1.10".parse()?,
        IpRange::from("10.6.1.0/24".parse::<ipnet::IpNet>()?),
    );
    let verdict = Verdict::Egress {
        target: TargetId::FIRST,
        source_nat: SourceNat::NodeAddress,
    };
    let governed = |class: ClassId| {
        let (pods, destinations) = (
            OrdMap::unit(pod, class),
            OrdMap::unit((class, range), verdict),
        );
        PolicyDesired {
            pods,
            destinations,
            targets: OrdSet::unit(TargetId::FIRST),
            ..PolicyDesired::default()
        }
    };
    conformance::check(
        &printer,
        &(1..4)
            .filter_map(ClassId::new)
            .map(governed)
            .collect::<Vec<_>>(),
    )
    .await;
    println!("{} keeps every promise of a policy backend", printer.kind());
    Ok(())
}
