//! Events of `events.k8s.io`, one object for each: they tell transitions, so there is nothing to
//! aggregate.
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>

use std::fmt;

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1 as events},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, api::PostParams};
use tokio::time::Instant;

use crate::{
    Error, ErrorKind,
    controller::Event,
    runtime::{kube::errors, metrics::WriteMetrics},
};

/// Events about objects of the cluster stand in this namespace.
const NAMESPACE: &str = "default";
const CONTROLLER: &str = "egressgateway.spidernet.io/controller";
/// What an API server takes at most as a note, and as the name of an instance.
const MAX_NOTE: usize = 1024;
const MAX_INSTANCE: usize = 128;
/// What is left of the 253 characters of a name, less the number.
const MAX_PREFIX: usize = 220;

/// Which object an event is about.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Regarding {
    reference: ObjectReference,
}

impl Regarding {
    pub(crate) fn new<K: Resource<DynamicType = ()>>(name: &str, uid: &str) -> Self {
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        Self { reference }
    }
}

impl fmt::Display for Regarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |text: &'_ Option<String>| text.clone().unwrap_or_default();
        write!(
            f,
            "{}/{}",
            text(&self.reference.kind),
            text(&self.reference.name)
        )
    }
}

/// Writes events; one that can't be written is lost, for the conditions say it too.
#[derive(Clone)]
pub(crate) struct EventWriter {
    events: Api<events::Event>,
    instance: String,
    metrics: WriteMetrics,
}

impl EventWriter {
    pub(crate) fn new(client: Client, identity: &str, metrics: WriteMetrics) -> Self {
        let instance = identity.chars().take(MAX_INSTANCE).collect();
        Self {
            events: Api::namespaced(client, NAMESPACE),
            instance,
            metrics,
        }
    }

    /// Writes an Event. Its answer is awaited until a moment at most: a silent API server must not
    /// keep the cluster from being planned.
    pub(crate) async fn write(&self, regarding: &Regarding, event: &Event, until: Instant) {
        const WHAT: &str = "write an Event";
        let object = self.object(regarding, event, Timestamp::now());
        let result = match tokio::time::timeout_at(
            until,
            self.events.create(&PostParams::default(), &object),
        )
        .await
        {
            Ok(result) => result.map_err(|error| errors::from_api(error, WHAT)),
            Err(_) => Err(Error::new(
                ErrorKind::Transient,
                format!("{WHAT}: no answer in time"),
            )),
        };
        self.metrics.wrote(
            "Event",
            result.as_ref().map(|_| ()).map_err(|error| error.kind),
        );
        if let Err(error) = result {
            let object = regarding.to_string();
            tracing::warn!(
                object,
                kind = error.kind.as_str(),
                error = error.chain(),
                reason = &*event.reason,
                "cannot write Event; it is lost"
            );
        }
    }

    fn object(&self, regarding: &Regarding, event: &Event, now: Timestamp) -> events::Event {
        let name: String = regarding
            .reference
            .name
            .iter()
            .flat_map(|name| name.chars())
            .take(MAX_PREFIX)
            .collect();
        let note = event
            .note
            .char_indices()
            .take_while(|(at, char)| at + char.len_utf8() <= MAX_NOTE)
            .map(|(_, char)| char)
            .collect();
        events::Event {
            metadata: ObjectMeta {
                namespace: Some(NAMESPACE.to_owned()),
                // Unique as long as no two events about an object happen in one nanosecond; then
                // one of them is lost.
                name: Some(format!(
                    "{}.{:x}",
                    name.trim_end_matches(['.', '-']),
                    now.as_nanosecond()
                )),
                ..ObjectMeta::default()
            },
            action: Some("Plan".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note),
            reason: Some(event.reason.clone().into_owned()),
            regarding: Some(regarding.reference.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
            ..events::Event::default()
        }
    }
}
