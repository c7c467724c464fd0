//! The owner reference of objects that a daemon makes for itself: its own ServiceAccount, so that
//! they are deleted with it.
//! <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#self-subject-review>

use k8s_openapi::{
    api::authentication::v1::SelfSubjectReview, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, api::PostParams};

use super::errors;
use crate::{Error, ErrorKind};

const PREFIX: &str = "system:serviceaccount:";

/// Asks the API server once which account this process has.
#[derive(Clone)]
pub(crate) struct OwnerReferenceSource {
    reviews: Api<SelfSubjectReview>,
    namespace: String,
    /// None: not answered yet. Empty: no service account of this namespace.
    owners: Option<Vec<OwnerReference>>,
}

impl OwnerReferenceSource {
    /// For owning objects in `namespace`: an owner elsewhere would count as gone.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            reviews: Api::all(client),
            namespace: namespace.to_owned(),
            owners: None,
        }
    }

    /// The service account as an owner; none where the process has no account in the namespace, or
    /// as long as nobody could say.
    pub(crate) async fn owner(&mut self) -> Option<OwnerReference> {
        if self.owners.is_none() {
            match self.ask().await {
                Ok(owner) => self.owners = Some(owner.into_iter().collect()),
                Err(error) if error.kind.is_retryable() && error.kind != ErrorKind::Conflict => {
                    tracing::debug!(
                        error = error.chain(),
                        "own ServiceAccount is not known yet; asking again"
                    );
                }
                Err(error) => {
                    tracing::info!(
                        error = error.chain(),
                        "cannot read own ServiceAccount; created objects get no owner reference"
                    );
                    self.owners = Some(Vec::new());
                }
            }
        }
        self.owners.iter().flatten().next().cloned()
    }

    async fn ask(&self) -> Result<Option<OwnerReference>, Error> {
        let review = self
            .reviews
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await;
        let review =
            review.map_err(|error| errors::from_api(error, "ask whose account this is"))?;
        let user = review
            .status
            .and_then(|status| status.user_info)
            .unwrap_or_default();
        Ok(service_account(
            &user.username.unwrap_or_default(),
            user.uid.unwrap_or_default(),
            &self.namespace,
        ))
    }
}

fn service_account(user: &str, uid: String, namespace: &str) -> Option<OwnerReference> {
    let (home, name) = user.strip_prefix(PREFIX)?.split_once(':')?;
    (home == namespace && !uid.is_empty()).then(|| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ServiceAccount".to_owned(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_account_of_the_namespace_is_an_owner() {
        let owner =
            |user: &str| service_account(user, "7".to_owned(), "egress").map(|owner| owner.name);
        assert_eq!(
            owner("system:serviceaccount:egress:agent"),
            Some("agent".to_owned())
        );
        assert_eq!(owner("system:serviceaccount:other:agent"), None);
        assert_eq!(owner("admin"), None);
        assert_eq!(
            service_account(
                "system:serviceaccount:egress:agent",
                String::new(),
                "egress"
            ),
            None
        );
    }
}
