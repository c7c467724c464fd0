//! The API server of the testkit, asked by the ordinary client: what every API server does, and the
//! faults that only this one has.

#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod list;

mod faults;
mod rules;

use egressgateway_testkit::apiserver::ApiServer;

/// Runs a check of what every API server does.
async fn against_the_testkit<F: Future<Output = ()>>(check: impl Fn(kube::Client) -> F) {
    let server = ApiServer::start();
    check(server.client()).await;
}

macro_rules! every_server {
    ($($check:ident)+) => {
        $(#[tokio::test] async fn $check() { against_the_testkit(rules::$check).await })+
    };
}

every_rule!(every_server);
// A real cluster's controller manager does this, not its API server.
every_server!(owned_objects_go_with_their_owner);
