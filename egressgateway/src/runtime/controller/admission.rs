//! Admission reviews, answered from what a controller's watches have seen.

use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::shared_cluster::SharedCluster;
use crate::{
    Error, ErrorKind,
    admission::{Asked, Canonical, Decision, Request, canonical, review},
    controller::ControllerSettings,
    runtime::{health::Health, metrics::AdmissionMetrics},
    spec::Problem,
};

/// What an API server sends to a webhook, and gets back.
pub type Review = AdmissionReview<DynamicObject>;

/// The HTTP status of a refusal: the object can't be as it is asked for.
const UNPROCESSABLE: u16 = 422;

/// Answers the reviews of a controller's webhooks, whether it leads or not; clones share what it
/// knows.
#[derive(Clone, Debug)]
pub struct Admission {
    pub(crate) cluster: SharedCluster,
    pub(crate) settings: watch::Receiver<ControllerSettings>,
    pub(crate) health: Health,
    pub(crate) metrics: AdmissionMetrics,
}

impl Admission {
    /// Answers a validating webhook.
    ///
    /// # Errors
    /// When the review holds no request, or not everything was listed yet: an answer would be a
    /// guess.
    pub fn validate(&self, review: Review) -> Result<Review, Error> {
        self.ready()?;
        let request = request(review)?;
        let decision = self.decide(&request);
        self.metrics
            .answered("validate", decision.problems.is_empty());
        let mut response = AdmissionResponse::from(&request);
        if !decision.problems.is_empty() {
            response = response.deny(in_lines(&decision.problems));
            response.result.code = UNPROCESSABLE;
            "Invalid".clone_into(&mut response.result.reason);
        }
        response.warnings = warnings(&decision.warnings);
        Ok(response.into_review())
    }

    /// Answers a mutating webhook: objects take their canonical form.
    ///
    /// # Errors
    /// When the review holds no request.
    pub fn complete(&self, review: Review) -> Result<Review, Error> {
        let request = request(review)?;
        let response = AdmissionResponse::from(&request);
        self.metrics.answered("mutate", true);
        let Some(spec) = request.object.as_ref().map(|object| &object.data["spec"]) else {
            return Ok(response.into_review());
        };
        let form = canonical(&request.kind.kind, spec);
        let mut response = response;
        response.warnings = warnings(&form.warnings);
        let patch = patch(spec, &form);
        if !patch.0.is_empty() {
            let failed = |error| {
                Error::new(ErrorKind::Invalid, "write the patch of an admission review")
                    .with_source(error)
            };
            response = response.with_patch(patch).map_err(failed)?;
        }
        Ok(response.into_review())
    }

    fn ready(&self) -> Result<(), Error> {
        if self.health.is_ready() {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Transient,
                "not everything was listed yet",
            ))
        }
    }

    fn decide(&self, request: &AdmissionRequest<DynamicObject>) -> Decision {
        let asked = match request.kind.kind.as_str() {
            "EgressGateway" => asked(request).map(Request::Gateway),
            "EgressGatewayPolicy" => asked(request).map(Request::Policy),
            // Nothing is asked of other kinds.
            _ => return Decision::default(),
        };
        match asked {
            Ok(asked) => review_now(self, &asked),
            Err(problem) => Decision {
                problems: vec![problem],
                warnings: Vec::new(),
            },
        }
    }
}

fn review_now(admission: &Admission, asked: &Request) -> Decision {
    let settings = admission.settings.borrow().clone();
    review(&admission.cluster.read(), &settings, asked)
}

fn request(review: Review) -> Result<AdmissionRequest<DynamicObject>, Error> {
    review.try_into().map_err(|error| {
        Error::new(ErrorKind::Invalid, "read an admission review").with_source(error)
    })
}

/// The specs of a request. An old one that can't be read counts as none: it may be replaced.
fn asked<S: DeserializeOwned>(
    request: &AdmissionRequest<DynamicObject>,
) -> Result<Asked<S>, Problem> {
    let spec = |object: &DynamicObject| serde_json::from_value::<S>(object.data["spec"].clone());
    let new = match &request.object {
        Some(object) if request.operation != Operation::Delete => {
            Some(spec(object).map_err(|error| {
                Problem::new("spec", error, "must be as the resource definition says")
            })?)
        }
        _ => None,
    };
    Ok(Asked {
        name: request.name.clone(),
        old: request
            .old_object
            .as_ref()
            .and_then(|object| spec(object).ok()),
        new,
    })
}

fn patch(spec: &Value, form: &Canonical) -> json_patch::Patch {
    json_patch::diff(&json!({"spec": spec}), &json!({"spec": form.spec}))
}

fn in_lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

fn warnings(problems: &[Problem]) -> Option<Vec<String>> {
    (!problems.is_empty()).then(|| problems.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(ready: bool) -> Admission {
        let health = Health::default();
        health.set_ready(ready);
        let settings = watch::channel(ControllerSettings::default()).1;
        Admission {
            cluster: SharedCluster::default(),
            settings,
            health,
            metrics: AdmissionMetrics::default(),
        }
    }

    fn asks(kind: &str, spec: &Value) -> Review {
        let object = json!({"apiVersion": "egressgateway.spidernet.io/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        serde_json::from_value(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u", "kind": {"group": "egressgateway.spidernet.io", "version": "v1", "kind": kind},
            "resource": {"group": "egressgateway.spidernet.io", "version": "v1", "resource": "x"},
            "name": "x", "operation": "CREATE", "userInfo": {}, "object": object, "oldObject": null, "dryRun": false,
        }}))
        .unwrap()
    }

    #[test]
    fn a_refusal_is_the_answer_to_its_request_and_says_what_is_wrong() {
        let answer = admission(true)
            .validate(asks("EgressGateway", &json!({"nodeSelector": {}})))
            .unwrap()
            .response
            .unwrap();
        assert_eq!(
            (answer.uid.as_str(), answer.allowed, answer.result.code),
            ("u", false, 422)
        );
        assert_eq!(
            answer.result.message,
            "spec.nodeSelector: \"{}\": must not be empty: name the nodes that may be gateways"
        );
        let unreadable = admission(true)
            .validate(asks("EgressGateway", &json!({"nodeSelector": 7})))
            .unwrap()
            .response
            .unwrap();
        assert!(
            unreadable
                .result
                .message
                .contains("must be as the resource definition says"),
            "{:?}",
            unreadable.result
        );
    }

    #[test]
    fn what_is_right_is_admitted_with_a_word_about_what_it_waits_for() {
        let spec = json!({"appliedTo": {"podSelector": {"matchLabels": {"a": "b"}}}});
        let answer = admission(true)
            .validate(asks("EgressGatewayPolicy", &spec))
            .unwrap()
            .response
            .unwrap();
        assert!(answer.allowed);
        assert!(answer.warnings.unwrap()[0].contains("there is no EgressGateway"));
        assert!(
            admission(true)
                .validate(asks("Other", &spec))
                .unwrap()
                .response
                .unwrap()
                .allowed
        );
    }

    #[test]
    fn a_controller_that_has_not_listed_everything_does_not_guess() {
        let spec = json!({"nodeSelector": {"matchLabels": {"a": "b"}}});
        assert_eq!(
            admission(false)
                .validate(asks("EgressGateway", &spec))
                .unwrap_err()
                .kind,
            ErrorKind::Transient
        );
        let empty = serde_json::from_value(
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}),
        )
        .unwrap();
        assert_eq!(
            admission(true).validate(empty).unwrap_err().kind,
            ErrorKind::Invalid
        );
    }

    #[test]
    fn the_canonical_form_comes_as_a_patch_of_what_differs() {
        let spec = json!({"appliedTo": {"ipv4PodSubnet": "10.0.0.0/16"}, "destCIDR": ["10.6.1.9/24"], "priority": 7});
        let answer = admission(false)
            .complete(asks("EgressGatewayPolicy", &spec))
            .unwrap()
            .response
            .unwrap();
        let patch: Value = serde_json::from_slice(&answer.patch.unwrap()).unwrap();
        assert_eq!(
            patch,
            json!([{"op": "replace", "path": "/spec/destCIDR/0", "value": "10.6.1.0/24"}])
        );
        assert_eq!(answer.warnings.unwrap().len(), 1);
        let canonical = json!({"appliedTo": {"ipv4PodSubnet": "10.0.0.0/16"}, "priority": 7});
        assert_eq!(
            admission(false)
                .complete(asks("EgressGatewayPolicy", &canonical))
                .unwrap()
                .response
                .unwrap()
                .patch,
            None
        );
    }
}
