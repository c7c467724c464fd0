//! What the controller's admission webhooks refuse and complete, as users of kubectl see it, and
//! their certificate.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    assets,
    daemons::{Installed, NAMESPACE, NODES},
    objects::settled,
};

const POOL: &str = "
kind: EgressGateway
metadata: {name: pool}
spec: {nodeSelector: {matchLabels: {egress: \"true\"}}, sourceNAT: EgressIP, egressIPs: {ipv4: [10.6.9.60-10.6.9.66]}}
";
const STATES: &str = "
kind: EgressGatewayPolicy
metadata: {name: states}
spec: {egressGatewayName: pool, appliedTo: {podSelector: {matchLabels: {app: states}}}, egressIP: {ipv4: 10.6.9.60}}
";
const GIVEN: &str = "
kind: EgressGatewayPolicy
metadata: {name: given}
spec: {egressGatewayName: pool, appliedTo: {podSelector: {matchLabels: {app: given}}}}
";

/// One of our objects; the last word of kubectl about it, warnings included.
fn apply(installed: &Installed, object: &str) -> Result<String, String> {
    let yaml = format!(
        "apiVersion: egressgateway.spidernet.io/v1\n{}",
        object.trim()
    );
    let file = installed.kubernetes.file("object.yaml", &yaml);
    installed
        .kubernetes
        .kubectl(&format!("apply -f '{}' 2>&1", file.display()))
}

/// Whether webhooks are asked: something that only they refuse is refused.
fn webhooks_answer(installed: &Installed) {
    let overlapping = "kind: EgressGateway\nmetadata: {name: probe}\nspec: {nodeSelector: {matchLabels: {a: b}}, egressIPs: {ipv4: [10.6.9.1, 10.6.9.0/24]}}";
    installed
        .kubernetes
        .eventually("webhooks answer", || match apply(installed, overlapping) {
            Err(error) if error.contains("must not overlap 10.6.9.0/24") => Ok(()),
            other => Err(format!("{other:?}\n{}", installed.log("controller-a"))),
        });
}

/// Waits until the controller has judged an object, so that its webhooks know it.
fn judged(installed: &Installed, object: &str) -> Value {
    installed
        .kubernetes
        .eventually(&format!("{object} has a status of its generation"), || {
            let seen = installed.kubernetes.get(object);
            let generation = &seen["metadata"]["generation"];
            if generation.is_u64() && seen["status"]["observedGeneration"] == *generation {
                Ok(seen)
            } else {
                Err(seen.to_string())
            }
        })
}

#[test]
fn every_refusal_that_needs_the_cluster_reaches_the_user_of_kubectl() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start(assets);
    webhooks_answer(&installed);
    let poolless = "kind: EgressGateway\nmetadata: {name: poolless}\nspec: {nodeSelector: {matchLabels: {egress: \"true\"}}}";
    for (object, name) in [
        (POOL, "egressgateway/pool"),
        (STATES, "egressgatewaypolicy/states"),
        (GIVEN, "egressgatewaypolicy/given"),
        (poolless, "egressgateway/poolless"),
    ] {
        apply(&installed, object).unwrap();
        judged(&installed, name);
    }
    let given = judged(&installed, "egressgatewaypolicy/given")["status"]["egressIP"]["ipv4"]
        .as_str()
        .unwrap()
        .to_owned();
    let node = installed.kubernetes.get(&format!("node/{}", NODES[1]));
    let node = node["status"]["addresses"][0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    let gateway = |name: &str, pool: &str| {
        format!(
            "kind: EgressGateway\nmetadata: {{name: {name}}}\nspec: {{nodeSelector: {{matchLabels: {{egress: \"true\"}}}}, sourceNAT: EgressIP, egressIPs: {{ipv4: [{pool}]}}}}"
        )
    };
    let policy = |address: &str| {
        format!(
            "kind: EgressGatewayPolicy\nmetadata: {{name: new}}\nspec: {{egressGatewayName: pool, appliedTo: {{podSelector: {{matchLabels: {{app: new}}}}}}, egressIP: {{ipv4: {address}}}}}"
        )
    };
    let table = [
        (
            gateway("other", "10.7.0.1, 10.6.9.64/28"),
            "spec.egressIPs.ipv4[1]: \"10.6.9.64/28\": must not overlap the pool of EgressGateway pool: 10.6.9.60-10.6.9.66".to_owned(),
        ),
        (gateway("other", &node), format!("spec.egressIPs.ipv4[0]: \"{node}\": must not contain the address of Node {}: {node}", NODES[1])),
        (
            gateway("other", "10.6.9.9-10.6.9.1"),
            "spec.egressIPs.ipv4[0]: \"10.6.9.9-10.6.9.1\": must be a range of one family whose first address is not behind its last"
                .to_owned(),
        ),
        (
            gateway("pool", "10.6.9.61-10.6.9.66"),
            "spec.egressIPs.ipv4: \"10.6.9.60\": must stay in the pool: EgressGatewayPolicy states uses it".to_owned(),
        ),
        (
            policy("10.6.9.67"),
            "spec.egressIP.ipv4: \"10.6.9.67\": must be in the pool of EgressGateway pool: 10.6.9.60-10.6.9.66".to_owned(),
        ),
        (policy("10.6.9.60"), "spec.egressIP.ipv4: \"10.6.9.60\": must not be in use: EgressGatewayPolicy states has it".to_owned()),
        (policy(&given), format!("spec.egressIP.ipv4: \"{given}\": must not be in use: EgressGatewayPolicy given has it")),
        (
            policy("10.6.9.60").replace("egressGatewayName: pool", "egressGatewayName: poolless"),
            "spec.egressIP.ipv4: \"10.6.9.60\": must be in the pool of EgressGateway poolless, which has none".to_owned(),
        ),
    ];
    for (object, message) in table {
        let said = apply(&installed, &object).expect_err(&message);
        assert!(
            said.contains(&message) && said.contains("validate.egressgateway.spidernet.io"),
            "{message}\n{said}"
        );
    }
    what_no_rule_of_the_definitions_sees_is_refused(&installed);
    // Labels change whatever webhooks think.
    installed
        .kubernetes
        .kubectl("label egressgateway pool a=b")
        .unwrap();
    // A file has a gateway before its policies, and goes in that order.
    let said = installed
        .kubernetes
        .kubectl("delete egressgateway pool 2>&1")
        .unwrap();
    let held = "metadata.name: \"pool\": EgressGatewayPolicies use it, and traffic that they govern is held from now on: given, states";
    assert!(said.contains(held), "{said}");
    installed.kubernetes.eventually("its policies say so", || {
        let policy = installed.kubernetes.get("egressgatewaypolicy/states");
        let said = policy["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|said| said["reason"] == "GatewayNotFound");
        if said {
            Ok(())
        } else {
            Err(policy.to_string())
        }
    });
    installed
        .kubernetes
        .kubectl("delete egressgatewaypolicies states given")
        .unwrap();
}

/// Specs that only the schema or the webhooks refuse; each with its field, and, by the webhooks,
/// with value and rule.
fn what_no_rule_of_the_definitions_sees_is_refused(installed: &Installed) {
    let cases: Vec<Value> = serde_saphyr::from_str(include_str!(
        "../../../egressgateway/tests/fixtures/manifests/bad.yaml"
    ))
    .unwrap();
    let unruled: Vec<&Value> = cases.iter().filter(|case| case["cel"].is_null()).collect();
    assert!(unruled.len() > 5, "{}", unruled.len());
    for case in unruled {
        let text = |field: &str| case[field].as_str().unwrap();
        let object =
            json!({"kind": case["kind"], "metadata": {"name": "bad"}, "spec": case["spec"]});
        let said =
            apply(installed, &serde_saphyr::to_string(&object).unwrap()).expect_err(text("name"));
        let (field, value, rule) = (text("field"), text("value"), text("rule"));
        let told = said.contains(&format!("{field}: \"{value}\": ")) && said.contains(rule);
        let by_webhook = said.contains("validate.egressgateway.spidernet.io") && told;
        let by_schema = said.contains(&format!("{field}: Unsupported value: \"{value}\""))
            || said.contains(&format!("{field}: Invalid value:"));
        assert!(by_webhook || by_schema, "{}\n{said}", text("name"));
    }
}

#[test]
fn objects_take_their_canonical_form_and_converge_whatever_the_order() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start(assets);
    webhooks_answer(&installed);
    let wide = "
kind: EgressGatewayPolicy
metadata: {name: wide}
spec: {egressGatewayName: pool, appliedTo: {ipv4PodSubnet: 10.1.2.3/16}, destCIDR: [\"FD00:0:0:7::/64\", 10.9.0.0/16]}
";
    let all = [
        (POOL, "egressgateway/pool"),
        (STATES, "egressgatewaypolicy/states"),
        (wide, "egressgatewaypolicy/wide"),
    ];
    let mut states = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut said = Vec::new();
        for (object, _) in order.map(|index| all[index]) {
            said.push(apply(&installed, object).unwrap());
        }
        let said = said.join("\n");
        assert!(said.contains("spec.appliedTo.ipv4PodSubnet: \"10.1.2.3/16\": has host bits: it is taken as 10.1.0.0/16"), "{said}");
        let waits = "EgressGateway pool does not exist: traffic that the policy governs is held until one is found";
        assert_eq!(said.contains(waits), order[0] != 0, "{said}");
        states.push(
            installed
                .kubernetes
                .eventually("every object is in force", || {
                    let objects = all.map(|(_, name)| judged(&installed, name));
                    let accepted = objects
                        .iter()
                        .all(|object| object["status"]["conditions"][0]["status"] == "True");
                    let settled = objects[0]["status"]["ipUsage"]["ipv4"]["used"] == 2
                        && objects[1]["status"]["egressIP"]["ipv4"] == "10.6.9.60";
                    let answered = objects[1..]
                        .iter()
                        .all(|policy| one_node_answers(&objects[0], policy));
                    if accepted && settled && answered {
                        Ok(objects.map(|object| timeless(&object)))
                    } else {
                        Err(format!("{objects:?}"))
                    }
                }),
        );
        installed
            .kubernetes
            .kubectl("delete egressgatewaypolicies --all")
            .unwrap();
        installed.kubernetes.eventually("the gateway goes", || {
            installed.kubernetes.kubectl("delete egressgateway pool")
        });
    }
    assert_eq!(states[0], states[1]);
    assert_eq!(states[0], states[2]);
    whatever_the_order_all_objects_settle_alike(&installed);
    let [gateway, _, wide] = &states[0];
    assert_eq!(gateway["spec"]["sourceNAT"], "EgressIP");
    assert!(
        gateway["spec"]["forwardMethod"].is_null(),
        "the configuration decides"
    );
    assert_eq!(
        wide["spec"]["destCIDR"],
        json!(["fd00:0:0:7::/64", "10.9.0.0/16"])
    );
    assert_eq!(
        (
            &wide["spec"]["appliedTo"]["ipv4PodSubnet"],
            &wide["spec"]["priority"]
        ),
        (&json!("10.1.0.0/16"), &json!(1000))
    );
}

/// Gateways of both methods and kinds of source, and policies that overlap, in orders by chance;
/// what one of them says depends on others.
fn whatever_the_order_all_objects_settle_alike(installed: &Installed) {
    let policy = |name: &str, gateway: &str, priority: u32, destination: &str| {
        let spec = format!(
            "egressGatewayName: {gateway}, priority: {priority}, destCIDR: [{destination}]"
        );
        let subject = format!("appliedTo: {{podSelector: {{matchLabels: {{app: {name}}}}}}}");
        format!(
            "kind: EgressGatewayPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}, {subject}}}"
        )
    };
    let all = [
        POOL.to_owned(),
        "kind: EgressGateway\nmetadata: {name: all}\nspec: {nodeSelector: {matchLabels: {egress: \"true\"}}, forwardMethod: ecmp}"
            .to_owned(),
        "kind: EgressGateway\nmetadata: {name: nobody}\nspec: {nodeSelector: {matchLabels: {egress: \"never\"}}}".to_owned(),
        STATES.replace("10.6.9.60", "10.6.9.66"),
        policy("given", "pool", 7, "10.8.0.0/16"),
        policy("spread", "all", 8, "10.8.0.0/24"),
        policy("held", "nobody", 9, "10.9.0.0/16"),
        policy("lost", "missing", 9, "10.9.0.0/16"),
    ];
    let mut random = Random(
        std::env::var("EGRESSGATEWAY_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap()),
    );
    eprintln!("EGRESSGATEWAY_TEST_SEED={}", random.0);
    let mut states = Vec::new();
    for _ in 0..4 {
        let mut order: Vec<usize> = (0..all.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last + 1));
        }
        let documents = order.iter().map(|index| {
            format!(
                "apiVersion: egressgateway.spidernet.io/v1\n{}",
                all[*index].trim()
            )
        });
        let file = installed.kubernetes.file(
            "objects.yaml",
            &documents.collect::<Vec<_>>().join("\n---\n"),
        );
        installed
            .kubernetes
            .kubectl(&format!("apply -f '{}'", file.display()))
            .unwrap();
        let state = installed.kubernetes.eventually(
            "every object is judged, and what waits for another has it",
            || {
                let list = installed
                    .kubernetes
                    .get("egressgateways,egressgatewaypolicies");
                let objects: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
                let judged = |object: &&Value| {
                    let condition = &object["status"]["conditions"][0];
                    let waits = ["held", "lost", "nobody"]
                        .iter()
                        .any(|name| object["metadata"]["name"] == *name);
                    object["status"]["observedGeneration"] == object["metadata"]["generation"]
                        && (waits || condition["status"] == "True")
                };
                let pool = objects
                    .iter()
                    .find(|object| object["metadata"]["name"] == "pool");
                let used = pool.is_some_and(|pool| pool["status"]["ipUsage"]["ipv4"]["used"] == 2);
                if objects.len() == all.len() && objects.iter().all(judged) && used {
                    Ok(settled(&installed.kubernetes))
                } else {
                    Err(list.to_string())
                }
            },
        );
        let ours = state
            .into_iter()
            .filter(|(name, _)| name.starts_with("EgressGateway"));
        let ours: Vec<(String, Value)> = ours
            .map(|(name, object)| (name, timeless(&object)))
            .collect();
        assert_eq!(ours.len(), all.len());
        states.push((order, ours));
        installed
            .kubernetes
            .kubectl("delete egressgatewaypolicies --all")
            .unwrap();
        installed.kubernetes.eventually("the gateways go", || {
            installed.kubernetes.kubectl("delete egressgateways --all")
        });
    }
    for (order, state) in &states[1..] {
        let differing: Vec<_> = state
            .iter()
            .zip(&states[0].1)
            .filter(|(one, other)| one != other)
            .collect();
        assert!(
            differing.is_empty(),
            "{order:?} and {:?}: {differing:#?}",
            states[0].0
        );
    }
}

/// Numbers that look like chance; the same seed gives the same ones (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % u64::try_from(end).unwrap()).unwrap()
    }
}

/// Spec and status without what only tells when. Which of several ready nodes answers for an
/// address is by the policies' age, so that nothing moves for a newcomer: order decides that by
/// design, as it does which mark a gateway has that keeps its mark for life.
fn timeless(object: &Value) -> Value {
    let mut status = object["status"].clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastTransitionTime"].take();
    }
    status["node"].take();
    status["mark"] = status["mark"].is_u64().into();
    for node in status["nodeList"].as_array_mut().into_iter().flatten() {
        node["egressIPs"].take();
        node["mark"] = node["mark"].is_u64().into();
    }
    json!({"spec": object["spec"], "status": status})
}

/// Every policy's address is answered for by the node that the policy names, and by no other.
fn one_node_answers(gateway: &Value, policy: &Value) -> bool {
    let address = &policy["status"]["egressIP"]["ipv4"];
    let holds = |node: &&Value| {
        node["egressIPs"]
            .as_array()
            .is_some_and(|addresses| addresses.contains(address))
    };
    let holders: Vec<&Value> = gateway["status"]["nodeList"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(holds)
        .map(|node| &node["name"])
        .collect();
    address.is_string() && holders == [&policy["status"]["node"]]
}

#[test]
fn a_certificate_that_nears_its_end_is_replaced_and_no_request_fails_meanwhile() {
    let Some(assets) = assets() else { return };
    let installed = Installed::start(assets);
    webhooks_answer(&installed);
    let kubernetes = &installed.kubernetes;
    let secret = || {
        kubernetes.get(&format!(
            "secret/egressgateway-webhook --namespace {NAMESPACE}"
        ))
    };
    let field =
        |secret: &Value, name: &str| secret["data"][name].as_str().unwrap_or_default().to_owned();
    let first = secret();
    assert_eq!(
        trusted(&installed),
        [field(&first, "ca.crt"), field(&first, "ca.crt")]
    );
    // Nine tenths of its life are over.
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([
        format!("egressgateway-webhook.{NAMESPACE}.svc"),
        format!("egressgateway-webhook.{NAMESPACE}.svc.cluster.local"),
    ])
    .unwrap();
    (params.not_before, params.not_after) = (
        OffsetDateTime::now_utc() - time::Duration::days(90),
        OffsetDateTime::now_utc() + time::Duration::days(10),
    );
    let ending = params.self_signed(&own).unwrap();
    let authorities = kubernetes
        .shell(&format!("echo {} | base64 -d", field(&first, "ca.crt")))
        .unwrap();
    let data = json!({"stringData": {"tls.crt": ending.pem(), "tls.key": own.serialize_pem(), "ca.crt": format!("{authorities}\n{}", ending.pem())}});
    let patch = kubernetes.file("ending.json", &data.to_string());
    let (asked, done, failed) = (
        AtomicU32::new(0),
        AtomicBool::new(false),
        std::sync::Mutex::new(Vec::new()),
    );
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let refused = kubernetes.file(
                "refused.yaml",
                "apiVersion: egressgateway.spidernet.io/v1\nkind: EgressGateway\nmetadata: {name: asked}\nspec: {nodeSelector: {matchLabels: {a: b}}, egressIPs: {ipv4: [10.6.9.1, 10.6.9.0/24]}}",
            );
            while !done.load(Ordering::Relaxed) {
                let said = kubernetes.kubectl(&format!("create --dry-run=server -f '{}'", refused.display())).unwrap_err();
                asked.fetch_add(1, Ordering::Relaxed);
                if !said.contains("must not overlap 10.6.9.0/24") {
                    failed.lock().unwrap().push(said);
                }
                // An API server keeps connections: whether the next handshake would do is looked at
                // apart.
                failed.lock().unwrap().extend(untrusted(&installed));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            kubernetes
                .kubectl(&format!(
                    "patch secret egressgateway-webhook --namespace {NAMESPACE} --type=merge --patch-file '{}'",
                    patch.display()
                ))
                .unwrap();
            let before = asked.load(Ordering::Relaxed);
            let next = kubernetes.eventually("another certificate is presented", || {
                let (secret, shown) = (secret(), presented(&installed));
                let renewed = field(&secret, "tls.crt") != field(&first, "tls.crt")
                    && kubernetes
                        .shell(&format!("echo {} | base64 -d", field(&secret, "tls.crt")))
                        .unwrap()
                        .trim()
                        == shown.trim();
                let trusts = trusted(&installed)
                    .iter()
                    .all(|bundle| *bundle == field(&secret, "ca.crt"));
                let another = shown.trim() != ending.pem().trim();
                if renewed && trusts && another {
                    Ok(secret)
                } else {
                    Err(format!("{secret}\n{}", installed.log("controller-a")))
                }
            });
            let bundle = kubernetes
                .shell(&format!("echo {} | base64 -d", field(&next, "ca.crt")))
                .unwrap();
            assert!(
                bundle.contains(authorities.trim()),
                "the authority before is trusted as long as it lives"
            );
            kubernetes.eventually("webhooks were asked with it", || {
                let more = asked.load(Ordering::Relaxed);
                if more > before + 3 {
                    Ok(())
                } else {
                    Err(more.to_string())
                }
            });
        }));
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    assert_eq!(*failed.lock().unwrap(), Vec::<String>::new());
}

/// The authorities that the API server trusts for both webhooks.
fn trusted(installed: &Installed) -> [String; 2] {
    ["validating", "mutating"].map(|kind| {
        let configuration = installed
            .kubernetes
            .get(&format!("{kind}webhookconfiguration/egressgateway-webhook"));
        configuration["webhooks"][0]["clientConfig"]["caBundle"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    })
}

/// What is wrong with the certificate that a handshake shows, for an API server that connects after
/// it.
fn untrusted(installed: &Installed) -> Option<String> {
    let kubernetes = &installed.kubernetes;
    let shown = kubernetes.file("shown.pem", &presented(installed));
    trusted(installed).into_iter().find_map(|bundle| {
        let bundle = kubernetes.file("bundle.base64", &bundle);
        let (bundle, shown) = (bundle.display(), shown.display());
        let verify =
            format!("base64 -d '{bundle}' >'{bundle}.pem'; openssl verify -purpose sslserver -CAfile '{bundle}.pem' '{shown}' 2>&1");
        kubernetes.shell(&verify).err()
    })
}

/// The certificate that a handshake shows, as PEM.
fn presented(installed: &Installed) -> String {
    let at = installed.kubernetes.lab.node(NODES[0]).management();
    let show = format!("openssl s_client -connect {at}:9443 </dev/null 2>/dev/null | openssl x509");
    installed.kubernetes.shell(&show).unwrap_or_default()
}
