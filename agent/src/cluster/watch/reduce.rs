//! Pods and nodes without what Weir never reads: images, volumes, environments, conditions, managed fields. A pod of 10 KB
//! becomes a few hundred bytes before anything else sees it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use weir_engine::cluster::SETTINGS;

/// Annotations longer than this are no settings but documents that some tool keeps for itself.
const MAX_ANNOTATION: usize = 4096;

/// Whether anything could read this annotation.
pub(super) fn keeps_annotation(key: &str, value: &str) -> bool {
    key != "kubectl.kubernetes.io/last-applied-configuration" && value.len() <= MAX_ANNOTATION
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<Owner>>,
    creation_timestamp: Option<Time>,
}

#[derive(Deserialize)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

/// A pod: what identity, requirements and policies need of it.
#[derive(Deserialize)]
pub(super) struct Pod {
    metadata: Meta,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    ports: Option<Vec<core::ContainerPort>>,
    restart_policy: Option<String>,
    #[serde(default, deserialize_with = "settings")]
    env: Vec<core::EnvVar>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
    start_time: Option<Time>,
}

/// A node: labels, addresses and pod ranges.
#[derive(Deserialize)]
pub(super) struct Node {
    metadata: Meta,
    spec: Option<NodeSpec>,
    status: Option<NodeStatus>,
}

#[derive(Deserialize)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        let owners = meta.owner_references.map(|owners| {
            let owner = |o: Owner| OwnerReference {
                kind: o.kind,
                name: o.name,
                controller: o.controller,
                ..OwnerReference::default()
            };
            owners.into_iter().map(owner).collect()
        });
        Self {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: owners,
            creation_timestamp: meta.creation_timestamp,
            ..Self::default()
        }
    }
}

impl From<Pod> for core::Pod {
    fn from(pod: Pod) -> Self {
        let container = |c: Container| core::Container {
            name: c.name,
            ports: c.ports,
            restart_policy: c.restart_policy,
            env: Some(c.env).filter(|env| !env.is_empty()),
            ..core::Container::default()
        };
        let containers = |all: Option<Vec<Container>>| all.map(|all| all.into_iter().map(container).collect());
        Self {
            metadata: pod.metadata.into(),
            spec: pod.spec.map(|spec| core::PodSpec {
                node_name: spec.node_name,
                host_network: spec.host_network,
                containers: containers(spec.containers).unwrap_or_default(),
                init_containers: containers(spec.init_containers),
                ..core::PodSpec::default()
            }),
            status: pod.status.map(|status| core::PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                pod_ips: status.pod_ips,
                start_time: status.start_time,
                ..core::PodStatus::default()
            }),
        }
    }
}

impl From<Node> for core::Node {
    fn from(node: Node) -> Self {
        Self {
            metadata: node.metadata.into(),
            spec: node.spec.map(|spec| core::NodeSpec {
                pod_cidr: spec.pod_cidr,
                pod_cidrs: spec.pod_cidrs,
                ..core::NodeSpec::default()
            }),
            status: node
                .status
                .map(|status| core::NodeStatus { addresses: status.addresses, ..core::NodeStatus::default() }),
        }
    }
}

/// Reduces an object of a kind that is kept whole.
pub(super) fn raw(value: &mut serde_json::Value, api_version: &str, api_kind: &str) {
    let Some(object) = value.as_object_mut() else { return };
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), api_kind.into());
    if let Some(meta) = object.get_mut("metadata").and_then(|m| m.as_object_mut()) {
        for field in ["managedFields", "resourceVersion", "generation"] {
            meta.remove(field);
        }
        if let Some(annotations) = meta.get_mut("annotations").and_then(|a| a.as_object_mut()) {
            annotations.retain(|key, value| value.as_str().is_some_and(|v| keeps_annotation(key, v)));
        }
    }
    // The certificate bundle of a webhook is most of it, and says nothing about traffic.
    for webhook in object.get_mut("webhooks").and_then(|w| w.as_array_mut()).into_iter().flatten() {
        if let Some(client) = webhook.get_mut("clientConfig").and_then(|c| c.as_object_mut()) {
            client.remove("caBundle");
        }
    }
}

/// The few variables that say which flows are required. No other value is ever kept: they may be anything.
fn settings<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<core::EnvVar>, D::Error> {
    #[derive(Deserialize)]
    struct Variable<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow, default)]
        value: Option<Cow<'a, str>>,
    }
    let all = Option::<Vec<Variable<'de>>>::deserialize(input)?.unwrap_or_default();
    let known = all.into_iter().filter(|v| SETTINGS.contains(&&*v.name));
    let kept = |v: Variable<'_>| core::EnvVar {
        name: v.name.into_owned(),
        value: v.value.map(Cow::into_owned),
        ..core::EnvVar::default()
    };
    Ok(known.map(kept).collect())
}

/// Annotations, without ever holding those that are not kept.
fn annotations<'de, D: Deserializer<'de>>(input: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Kept;
    impl<'de> Visitor<'de> for Kept {
        type Value = Option<BTreeMap<String, String>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("annotations")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kept = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                if key == "kubectl.kubernetes.io/last-applied-configuration" {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                let value: String = map.next_value()?;
                if keeps_annotation(&key, &value) {
                    kept.insert(key, value);
                }
            }
            Ok(Some(kept))
        }
    }
    input.deserialize_any(Kept)
}
