//! API objects as they arrive, their keys, and where they came from.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde::{Deserialize, Serialize};

use super::pod::labels_of;
use super::{Namespace, Node};
use crate::words::Name;

/// The kinds that Weir reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// v1
    Namespace,
    /// v1
    Node,
    /// v1
    Pod,
    /// v1
    Service,
    /// discovery.k8s.io/v1
    EndpointSlice,
    /// networking.k8s.io/v1
    NetworkPolicy,
}

/// Identifies an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.kind, self.name)
    }
}

/// Where an object came from, so that a report can name the edit.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// `metadata.resourceVersion`, from an API server.
    pub resource_version: Option<Arc<str>>,
    /// Path of the manifest, from files.
    pub file: Option<Arc<str>>,
    /// Line at which the document's object begins, 1-based.
    pub line: Option<u32>,
}

/// One API object of a kind that Weir reads.
#[derive(Clone, Debug)]
pub enum Object {
    /// v1 Namespace
    Namespace(Box<core::Namespace>),
    /// v1 Node
    Node(Box<core::Node>),
    /// v1 Pod
    Pod(Box<core::Pod>),
    /// v1 Service
    Service(Box<core::Service>),
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice(Box<discovery::EndpointSlice>),
    /// networking.k8s.io/v1 NetworkPolicy
    NetworkPolicy(Box<networking::NetworkPolicy>),
}

/// Why a value is not an object that Weir reads.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Valid, and nothing that Weir looks at.
    #[error("{api_version} {kind} is not a kind that Weir reads")]
    Ignored {
        /// `apiVersion`
        api_version: String,
        /// `kind`
        kind: String,
    },
    /// No `apiVersion` or `kind`.
    #[error("not a Kubernetes object: {0} is missing; every document needs apiVersion, kind and metadata.name")]
    NotAnObject(&'static str),
    /// The typed API refuses it.
    #[error("{kind} {name}: {source}")]
    Invalid {
        /// `kind`
        kind: String,
        /// `namespace/name` as far as known
        name: String,
        /// What serde said.
        source: serde_json::Error,
    },
}

impl Object {
    /// Reads one object (not a List) from a JSON value.
    ///
    /// # Errors
    /// [`ObjectError`]; `Ignored` is no fault of the manifest.
    pub fn from_value(value: serde_json::Value) -> Result<Self, ObjectError> {
        let text = |field: &str| value.get(field).and_then(|v| v.as_str()).map(str::to_owned);
        let api_version = text("apiVersion").ok_or(ObjectError::NotAnObject("apiVersion"))?;
        let kind = text("kind").ok_or(ObjectError::NotAnObject("kind"))?;
        let meta = |field: &str| value.pointer(&format!("/metadata/{field}")).and_then(|v| v.as_str());
        let Some(name) = meta("name") else { return Err(ObjectError::NotAnObject("metadata.name")) };
        let name = Name::new(meta("namespace").unwrap_or(""), name).to_string();
        let invalid = |source| ObjectError::Invalid { kind: kind.clone(), name: name.clone(), source };
        macro_rules! parse {
            ($variant:ident) => {
                serde_json::from_value(value).map(|o| Self::$variant(Box::new(o))).map_err(invalid)
            };
        }
        match (api_version.as_str(), kind.as_str()) {
            ("v1", "Namespace") => parse!(Namespace),
            ("v1", "Node") => parse!(Node),
            ("v1", "Pod") => parse!(Pod),
            ("v1", "Service") => parse!(Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => parse!(EndpointSlice),
            ("networking.k8s.io/v1", "NetworkPolicy") => parse!(NetworkPolicy),
            _ => Err(ObjectError::Ignored { api_version, kind }),
        }
    }

    /// Kind and name. A namespaced object without a namespace is in `default`, as kubectl has it.
    #[must_use]
    pub fn key(&self) -> Key {
        let (kind, meta) = match self {
            Self::Namespace(o) => (Kind::Namespace, &o.metadata),
            Self::Node(o) => (Kind::Node, &o.metadata),
            Self::Pod(o) => (Kind::Pod, &o.metadata),
            Self::Service(o) => (Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, &o.metadata),
            Self::NetworkPolicy(o) => (Kind::NetworkPolicy, &o.metadata),
        };
        let namespace = match kind {
            Kind::Namespace | Kind::Node => "",
            Kind::Pod | Kind::Service | Kind::EndpointSlice | Kind::NetworkPolicy => {
                meta.namespace.as_deref().unwrap_or("default")
            }
        };
        Key { kind, name: Name::new(namespace, meta.name.as_deref().unwrap_or("")) }
    }
}

pub(super) fn namespace(o: &core::Namespace) -> Namespace {
    let name: Arc<str> = o.metadata.name.as_deref().unwrap_or("").into();
    let mut labels = labels_of(o.metadata.labels.as_ref());
    labels.insert("kubernetes.io/metadata.name".into(), name.clone());
    Namespace { name, labels, annotations: labels_of(o.metadata.annotations.as_ref()) }
}

pub(super) fn node(o: &core::Node) -> Node {
    let status = o.status.as_ref();
    let addresses: Vec<IpAddr> = status
        .and_then(|s| s.addresses.as_ref())
        .into_iter()
        .flatten()
        .filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP")
        .filter_map(|a| a.address.parse().ok())
        .collect();
    let spec = o.spec.as_ref();
    let pod_cidrs = spec
        .and_then(|s| s.pod_cidrs.clone().or_else(|| s.pod_cidr.clone().map(|c| vec![c])))
        .into_iter()
        .flatten()
        .filter_map(|c| c.parse().ok())
        .collect();
    Node {
        name: o.metadata.name.as_deref().unwrap_or("").into(),
        labels: labels_of(o.metadata.labels.as_ref()),
        addresses,
        pod_cidrs,
    }
}
