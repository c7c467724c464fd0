//! NetworkPolicies, which somebody else enforces: a gateway is no way around them.

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::{Duration, Instant},
};

use egressgateway_testkit::e2e::{
    KUBE_ROUTER, NODES, OUTSIDE, OUTSIDE_NETWORKS, Pod, Site, Space, eventually,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    Run,
    changes::{backends, choose_backend},
    node_address,
};

const PATIENCE: Duration = Duration::from_secs(180);
/// How long an attempt waits that is not to succeed. One that succeeds later is in the server's log
/// all the same.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The first chain of the enforcer, and what those of the product begin with.
const THEIRS: &str = "KUBE-ROUTER-FORWARD";
const OURS: &str = "EGW-";
/// For how long the two may insist on the first place.
const DISPUTE: Duration = Duration::from_secs(20);
/// How long the product leaves somebody first who came a second time; twice as long each time after
/// that.
const FIRST_TRUCE: Duration = Duration::from_secs(5);

/// Takes away everything of the enforcer on a node: chains that the others jump to, these jumps,
/// and sets.
const REMOVE: &str = r#"
for tool in iptables ip6tables; do
    $tool -S | sed -n '/^-A \(INPUT\|FORWARD\|OUTPUT\) .*KUBE-ROUTER-/s/^-A/-D/p' | while read -r rule; do eval "$tool $rule"; done
    chains=$($tool -S | sed -n 's/^-N \(KUBE-\(ROUTER\|POD-FW\|NWPLCY\)-.*\)/\1/p')
    for chain in $chains; do $tool -F $chain; done
    for chain in $chains; do $tool -X $chain; done
done
ipset list -n | grep KUBE- | while read -r set; do ipset destroy $set; done
"#;

/// Puts the enforcer's jump behind the product's, where that has one.
const OURS_FIRST: &str = r#"
for tool in iptables ip6tables; do
    theirs=$($tool -S FORWARD | sed -n '/-j KUBE-ROUTER-FORWARD$/s/^-A FORWARD //p')
    $tool -S FORWARD | grep -q -- '-j EGW-' || continue
    eval "$tool -D FORWARD $theirs"
    last=$($tool -S FORWARD | grep ^-A | grep -n -- '-j EGW-' | tail -n 1 | cut -d: -f1)
    eval "$tool -I FORWARD $((last + 1)) $theirs"
done
"#;

/// kube-router on all nodes, as a firewall alone; it goes with this.
struct Enforcer<'a>(&'a Site);

impl<'a> Enforcer<'a> {
    fn start(site: &'a Site) -> Self {
        for node in NODES {
            site.start_service(node, KUBE_ROUTER);
        }
        Self(site)
    }
}

impl Drop for Enforcer<'_> {
    fn drop(&mut self) {
        let removed = catch_unwind(AssertUnwindSafe(|| {
            for node in NODES {
                self.0.stop_service(node, KUBE_ROUTER, Signal::SIGKILL);
                self.0.on_node(node, REMOVE).unwrap();
            }
        }));
        assert!(
            removed.is_ok() || thread::panicking(),
            "{KUBE_ROUTER} can't be removed"
        );
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Ours,
    Theirs,
}

/// Whose jump comes first where a node's packets are forwarded, in both families.
fn first(site: &Site, node: &str) -> Result<First, String> {
    let mut found = Vec::new();
    for tool in ["iptables", "ip6tables"] {
        let rules = site.on_node(node, &format!("{tool} -S FORWARD"))?;
        let mut jumps = rules
            .lines()
            .filter_map(|rule| rule.split_once("-j "))
            .map(|(_, target)| target);
        let (ours, theirs) = (
            jumps.clone().position(|target| target.starts_with(OURS)),
            jumps.position(|target| target == THEIRS),
        );
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            return Err(format!("{node}: not both are there: {rules}"));
        };
        found.push(if ours < theirs {
            First::Ours
        } else {
            First::Theirs
        });
    }
    if found[0] == found[1] {
        Ok(found[0])
    } else {
        Err(format!("{node}: {found:?} in IPv4 and IPv6"))
    }
}

/// Three kinds of pods, on each node but the control plane's.
struct Scene<'a> {
    run: &'a Run,
    space: Space<'a>,
    active: String,
    forbidden: Vec<Pod>,
    allowed: Vec<Pod>,
    /// Not governed, and forbidden: what the enforcer does without the product.
    references: Vec<Pod>,
    touched: std::cell::Cell<u32>,
}

const FORBIDDEN: &str = "forbidden";

impl<'a> Scene<'a> {
    fn new(run: &'a Run) -> Self {
        let space = run.site.space("policies");
        space.gateway(&["node1", "node2"]);
        space.policy(&OUTSIDE_NETWORKS);
        let active = space.active();
        let mut wanted = Vec::new();
        for node in &NODES[1..] {
            for (kind, governed) in [
                ("governed-forbidden", true),
                ("governed-allowed", true),
                ("free-forbidden", false),
            ] {
                wanted.push((format!("{kind}-{node}"), *node, governed));
            }
        }
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, node, governed)| (name.as_str(), *node, *governed))
            .collect();
        let pods = space.pods(&wanted);
        let named = |part: &str| {
            pods.iter()
                .filter(|pod| pod.name.starts_with(part))
                .cloned()
                .collect::<Vec<_>>()
        };
        let [forbidden, allowed, references] =
            ["governed-forbidden", "governed-allowed", "free-forbidden"].map(named);
        Self {
            run,
            space,
            active,
            forbidden,
            allowed,
            references,
            touched: std::cell::Cell::default(),
        }
    }

    /// Forbids everything to whom it is to be forbidden. The others have no policy: kube-router
    /// 2.1.0 writes no rule of IPv6 at all once a policy allows somebody something.
    fn restrict(&self) {
        let names = |pods: &[Pod]| pods.iter().map(|pod| pod.name.clone()).collect::<Vec<_>>();
        let select = |names: Vec<String>| json!({"matchExpressions": [{"key": "app", "operator": "In", "values": names}]});
        let pods = select([names(&self.forbidden), names(&self.references)].concat());
        self.space.apply(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": FORBIDDEN},
            "spec": {"podSelector": pods, "policyTypes": ["Egress"], "egress": []},
        }));
    }

    /// Lets the enforcer write everything again.
    fn touch(&self) {
        self.touched.set(self.touched.get() + 1);
        let labels = json!({"metadata": {"labels": {"touched": self.touched.get().to_string()}}});
        self.run
            .site
            .api()
            .merge("NetworkPolicy", self.space.name(), FORBIDDEN, &labels);
    }

    fn governed_as_ever(&self, pods: &[Pod]) {
        for pod in pods {
            for outside in OUTSIDE {
                self.space
                    .wait_for_source(pod, outside, node_address(&self.active, outside));
            }
        }
    }

    /// Who is answered, of these pods.
    fn answered(pods: &[Pod]) -> Vec<String> {
        thread::scope(|scope| {
            let attempts: Vec<_> = pods
                .iter()
                .flat_map(|pod| OUTSIDE.map(|outside| (pod, outside)))
                .map(|(pod, outside): (&Pod, IpAddr)| {
                    scope.spawn(move || {
                        pod.client
                            .knock(outside, ATTEMPT)
                            .map(|source| format!("{} to {outside} as {source}", pod.name))
                    })
                })
                .collect();
            attempts
                .into_iter()
                .filter_map(|attempt| attempt.join().unwrap())
                .collect()
        })
    }

    /// What is forbidden is not reached, in either order of the jumps; what is allowed is.
    fn holds(&self, when: &str) {
        let site = &self.run.site;
        eventually(&format!("{when}: the policy is enforced"), PATIENCE, || {
            let pods: Vec<Pod> = self
                .references
                .iter()
                .chain(&self.forbidden)
                .cloned()
                .collect();
            let answered = Self::answered(&pods);
            if answered.is_empty() {
                Ok(())
            } else {
                Err(answered.join(", "))
            }
        });
        let began = site.seen().len();
        for wanted in [First::Ours, First::Theirs] {
            let what = format!("{when}: {wanted:?} came first while forbidden pods tried");
            eventually(&what, PATIENCE, || {
                let before = first(site, &self.active)?;
                if before != wanted {
                    // It takes the first place with each change of policies, and the product leaves
                    // it there: it decides about pods alone.
                    match wanted {
                        First::Theirs => self.touch(),
                        First::Ours => NODES[1..]
                            .iter()
                            .try_for_each(|node| site.on_node(node, OURS_FIRST).map(drop))?,
                    }
                    return Err(format!("{before:?} comes first"));
                }
                let answered = Self::answered(&self.forbidden);
                assert!(
                    answered.is_empty(),
                    "{when}, {wanted:?} came first: {answered:?}"
                );
                if first(site, &self.active)? == wanted {
                    Ok(())
                } else {
                    Err("it did not last".to_owned())
                }
            });
        }
        self.governed_as_ever(&self.allowed);
        let reached: Vec<_> = site.seen()[began..]
            .iter()
            .filter(|seen| seen.who.contains(FORBIDDEN))
            .cloned()
            .collect();
        assert!(reached.is_empty(), "{when}: {reached:?}");
    }

    /// The two do not fight for the first place, however often the enforcer takes it.
    fn nobody_fights(&self, when: &str) {
        let began = Instant::now();
        let mut moves = 0_u32;
        let mut before = None;
        let mut due = began;
        while began.elapsed() < DISPUTE {
            if Instant::now() >= due {
                self.touch();
                due = Instant::now() + ATTEMPT;
            }
            let Ok(now) = first(&self.run.site, &self.active) else {
                continue;
            };
            moves += u32::from(before.replace(now) == Some(First::Theirs) && now == First::Ours);
        }
        let mut allowed = 2;
        let mut truce = FIRST_TRUCE;
        let mut all = truce;
        while all < began.elapsed() {
            truce *= 2;
            all += truce;
            allowed += 1;
        }
        self.run.site.say(&format!(
            "{when}: the first place was taken back {moves} times"
        ));
        assert!(
            moves <= allowed,
            "{when}: the first place was taken back {moves} times in {:?}",
            began.elapsed()
        );
    }
}

pub(crate) fn a_forbidden_pod_does_not_get_through_the_gateway(run: &Run) {
    let (own, other) = backends(run);
    let scene = Scene::new(run);
    scene.governed_as_ever(&scene.forbidden);
    scene.governed_as_ever(&scene.allowed);
    scene.restrict();
    let enforcer = Enforcer::start(&run.site);
    scene.holds(&format!("{own}, the agents were there first"));
    scene.nobody_fights(own);
    choose_backend(run, other);
    scene.holds(&format!("{other}, the enforcer was there first"));
    drop(enforcer);
    // Without it they reach it: it is what holds them.
    scene.governed_as_ever(&scene.forbidden);
    let enforcer = Enforcer::start(&run.site);
    scene.holds(&format!("{other}, the agents were there first"));
    scene.nobody_fights(other);
    choose_backend(run, own);
    scene.holds(&format!("{own}, the enforcer was there first"));
    drop(enforcer);
    scene.governed_as_ever(&scene.forbidden);
}
