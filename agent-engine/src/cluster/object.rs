//! API objects as they arrive, their keys, and where they came from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::{Deserialize, Serialize};

use super::labels::labels_of;
use super::{AdminPolicy, Namespace, Node};
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
    /// policy.networking.k8s.io
    AdminNetworkPolicy,
    /// policy.networking.k8s.io
    BaselineAdminNetworkPolicy,
    /// policy.networking.k8s.io
    ClusterNetworkPolicy,
    /// apps
    Deployment,
    /// apps
    StatefulSet,
    /// apps
    DaemonSet,
    /// apps
    ReplicaSet,
    /// batch
    Job,
    /// batch
    CronJob,
    /// v1, kept whole
    ConfigMap,
    /// admissionregistration.k8s.io, kept whole
    MutatingWebhookConfiguration,
    /// admissionregistration.k8s.io, kept whole
    ValidatingWebhookConfiguration,
    /// networking.istio.io, kept whole
    VirtualService,
    /// networking.istio.io Gateway, kept whole
    IstioGateway,
    /// networking.istio.io, kept whole
    ServiceEntry,
    /// networking.istio.io, kept whole
    Sidecar,
    /// networking.istio.io, kept whole
    DestinationRule,
    /// networking.istio.io, kept whole
    WorkloadEntry,
    /// networking.istio.io, kept whole
    WorkloadGroup,
    /// networking.istio.io, kept whole
    ProxyConfig,
    /// security.istio.io, kept whole
    RequestAuthentication,
    /// security.istio.io, kept whole
    PeerAuthentication,
    /// security.istio.io, kept whole
    AuthorizationPolicy,
    /// telemetry.istio.io, kept whole
    Telemetry,
    /// extensions.istio.io, kept whole
    WasmPlugin,
    /// gateway.networking.k8s.io, kept whole
    Gateway,
    /// gateway.networking.k8s.io, kept whole
    GatewayClass,
    /// gateway.networking.k8s.io HTTPRoute, kept whole
    HttpRoute,
    /// gateway.networking.k8s.io GRPCRoute, kept whole
    GrpcRoute,
    /// gateway.networking.k8s.io TCPRoute, kept whole
    TcpRoute,
    /// gateway.networking.k8s.io TLSRoute, kept whole
    TlsRoute,
    /// gateway.networking.k8s.io, kept whole
    ReferenceGrant,
    /// networking.k8s.io, kept whole
    Ingress,
    /// operator.kyma-project.io Istio, kept whole
    KymaIstio,
    /// gateway.kyma-project.io APIRule, kept whole
    ApiRule,
}

/// What a kind is read and kept as: several kinds share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Its labels.
    Namespace,
    /// Its name and addresses.
    Node,
    /// What policies and identity need of it.
    Pod,
    /// Selector, addresses and ports.
    Service,
    /// Addresses and ports.
    EndpointSlice,
    /// The typed object.
    NetworkPolicy,
    /// The fields that the cluster-wide policy kinds share.
    AdminPolicy,
    /// A workload's pod template, which stands for its pods.
    Template,
    /// Kept whole, as JSON.
    Raw,
}

/// `(API group, kind as the API spells it, how it is known here, namespaced)` of every kind. Versions are not compared: a
/// newer version of a kind that is read field by field either still parses or says why not.
const KINDS: &[(&str, &str, Kind, bool)] = &[
    ("", "Namespace", Kind::Namespace, false),
    ("", "Node", Kind::Node, false),
    ("", "Pod", Kind::Pod, true),
    ("", "Service", Kind::Service, true),
    ("discovery.k8s.io", "EndpointSlice", Kind::EndpointSlice, true),
    ("networking.k8s.io", "NetworkPolicy", Kind::NetworkPolicy, true),
    ("policy.networking.k8s.io", "AdminNetworkPolicy", Kind::AdminNetworkPolicy, false),
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy", Kind::BaselineAdminNetworkPolicy, false),
    ("policy.networking.k8s.io", "ClusterNetworkPolicy", Kind::ClusterNetworkPolicy, false),
    ("apps", "Deployment", Kind::Deployment, true),
    ("apps", "StatefulSet", Kind::StatefulSet, true),
    ("apps", "DaemonSet", Kind::DaemonSet, true),
    ("apps", "ReplicaSet", Kind::ReplicaSet, true),
    ("batch", "Job", Kind::Job, true),
    ("batch", "CronJob", Kind::CronJob, true),
    ("", "ConfigMap", Kind::ConfigMap, true),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration", Kind::MutatingWebhookConfiguration, false),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration", Kind::ValidatingWebhookConfiguration, false),
    ("networking.istio.io", "VirtualService", Kind::VirtualService, true),
    ("networking.istio.io", "Gateway", Kind::IstioGateway, true),
    ("networking.istio.io", "ServiceEntry", Kind::ServiceEntry, true),
    ("networking.istio.io", "Sidecar", Kind::Sidecar, true),
    ("networking.istio.io", "DestinationRule", Kind::DestinationRule, true),
    ("networking.istio.io", "WorkloadEntry", Kind::WorkloadEntry, true),
    ("networking.istio.io", "WorkloadGroup", Kind::WorkloadGroup, true),
    ("networking.istio.io", "ProxyConfig", Kind::ProxyConfig, true),
    ("security.istio.io", "RequestAuthentication", Kind::RequestAuthentication, true),
    ("security.istio.io", "PeerAuthentication", Kind::PeerAuthentication, true),
    ("security.istio.io", "AuthorizationPolicy", Kind::AuthorizationPolicy, true),
    ("telemetry.istio.io", "Telemetry", Kind::Telemetry, true),
    ("extensions.istio.io", "WasmPlugin", Kind::WasmPlugin, true),
    ("gateway.networking.k8s.io", "Gateway", Kind::Gateway, true),
    ("gateway.networking.k8s.io", "GatewayClass", Kind::GatewayClass, false),
    ("gateway.networking.k8s.io", "HTTPRoute", Kind::HttpRoute, true),
    ("gateway.networking.k8s.io", "GRPCRoute", Kind::GrpcRoute, true),
    ("gateway.networking.k8s.io", "TCPRoute", Kind::TcpRoute, true),
    ("gateway.networking.k8s.io", "TLSRoute", Kind::TlsRoute, true),
    ("gateway.networking.k8s.io", "ReferenceGrant", Kind::ReferenceGrant, true),
    ("networking.k8s.io", "Ingress", Kind::Ingress, true),
    ("operator.kyma-project.io", "Istio", Kind::KymaIstio, true),
    ("gateway.kyma-project.io", "APIRule", Kind::ApiRule, true),
];

impl Kind {
    /// The kind of an `apiVersion` and `kind`, if Weir reads it.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        KINDS.iter().find(|(g, k, ..)| *g == group && *k == kind).map(|(_, _, kind, _)| *kind)
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub fn namespaced(self) -> bool {
        KINDS.iter().any(|(_, _, kind, namespaced)| *kind == self && *namespaced)
    }

    /// How objects of this kind are read and kept.
    #[must_use]
    pub fn form(self) -> Form {
        match self {
            Self::Namespace => Form::Namespace,
            Self::Node => Form::Node,
            Self::Pod => Form::Pod,
            Self::Service => Form::Service,
            Self::EndpointSlice => Form::EndpointSlice,
            Self::NetworkPolicy => Form::NetworkPolicy,
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy | Self::ClusterNetworkPolicy => {
                Form::AdminPolicy
            }
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet | Self::Job | Self::CronJob => {
                Form::Template
            }
            Self::ConfigMap
            | Self::MutatingWebhookConfiguration
            | Self::ValidatingWebhookConfiguration
            | Self::VirtualService
            | Self::IstioGateway
            | Self::ServiceEntry
            | Self::Sidecar
            | Self::DestinationRule
            | Self::WorkloadEntry
            | Self::WorkloadGroup
            | Self::ProxyConfig
            | Self::RequestAuthentication
            | Self::PeerAuthentication
            | Self::AuthorizationPolicy
            | Self::Telemetry
            | Self::WasmPlugin
            | Self::Gateway
            | Self::GatewayClass
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::ReferenceGrant
            | Self::Ingress
            | Self::KymaIstio
            | Self::ApiRule => Form::Raw,
        }
    }

    /// The kind as the API spells it: `HTTPRoute`, `Gateway`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        KINDS.iter().find(|(_, _, kind, _)| *kind == self).map_or("", |(_, name, ..)| name)
    }
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
        write!(f, "{} {}", self.kind.as_str(), self.name)
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
    /// A cluster-wide policy of policy.networking.k8s.io.
    AdminPolicy(Kind, Box<AdminPolicy>),
    /// A workload, reduced to its pod template; `metadata` is the workload's own but for labels and annotations.
    Template(Kind, Box<core::Pod>),
    /// Kept whole, for those who need it.
    Raw(Kind, Arc<serde_json::Value>),
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
        let Some(known) = Kind::of(&api_version, &kind) else {
            return Err(ObjectError::Ignored { api_version, kind });
        };
        let parsed = match known.form() {
            Form::Namespace => serde_json::from_value(value).map(Self::Namespace),
            Form::Node => serde_json::from_value(value).map(Self::Node),
            Form::Pod => serde_json::from_value(value).map(Self::Pod),
            Form::Service => serde_json::from_value(value).map(Self::Service),
            Form::EndpointSlice => serde_json::from_value(value).map(Self::EndpointSlice),
            Form::NetworkPolicy => serde_json::from_value(value).map(Self::NetworkPolicy),
            Form::AdminPolicy => serde_json::from_value(value).map(|o| Self::AdminPolicy(known, o)),
            Form::Template => template(known, value).map(|o| Self::Template(known, Box::new(o))),
            Form::Raw => Ok(Self::Raw(known, Arc::new(value))),
        };
        parsed.map_err(|source| ObjectError::Invalid { kind, name, source })
    }

    /// Kind and name. A namespaced object without a namespace is in `default`, as kubectl has it.
    #[must_use]
    pub fn key(&self) -> Key {
        let (kind, namespace, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, None, o.metadata.name.as_deref()),
            Self::Node(o) => (Kind::Node, None, o.metadata.name.as_deref()),
            Self::Pod(o) => (Kind::Pod, o.metadata.namespace.as_deref(), o.metadata.name.as_deref()),
            Self::Service(o) => (Kind::Service, o.metadata.namespace.as_deref(), o.metadata.name.as_deref()),
            Self::EndpointSlice(o) => {
                (Kind::EndpointSlice, o.metadata.namespace.as_deref(), o.metadata.name.as_deref())
            }
            Self::NetworkPolicy(o) => {
                (Kind::NetworkPolicy, o.metadata.namespace.as_deref(), o.metadata.name.as_deref())
            }
            Self::AdminPolicy(kind, o) => (*kind, None, o.metadata.name.as_deref()),
            Self::Template(kind, o) => (*kind, o.metadata.namespace.as_deref(), o.metadata.name.as_deref()),
            Self::Raw(kind, o) => {
                let meta = |field: &str| o.get("metadata")?.get(field)?.as_str();
                (*kind, meta("namespace"), meta("name"))
            }
        };
        let namespace = if kind.namespaced() { namespace.unwrap_or("default") } else { "" };
        Key { kind, name: Name::new(namespace, name.unwrap_or("")) }
    }
}

/// A workload's pod template as a pod: the workload's name and namespace, the template's labels, annotations and spec.
fn template(kind: Kind, mut value: serde_json::Value) -> Result<core::Pod, serde_json::Error> {
    let path = if kind == Kind::CronJob { "/spec/jobTemplate/spec/template" } else { "/spec/template" };
    let template = value.pointer_mut(path).map(serde_json::Value::take).unwrap_or_default();
    let template: Option<core::PodTemplateSpec> = serde_json::from_value(template)?;
    let template = template.unwrap_or_default();
    let metadata = value.get_mut("metadata").map(serde_json::Value::take).unwrap_or_default();
    let own: meta::ObjectMeta = serde_json::from_value(metadata)?;
    let inner = template.metadata.unwrap_or_default();
    let metadata = meta::ObjectMeta { labels: inner.labels, annotations: inner.annotations, ..own };
    Ok(core::Pod { metadata, spec: template.spec, status: None })
}

pub(super) fn namespace(o: &core::Namespace) -> Namespace {
    let name: Arc<str> = o.metadata.name.as_deref().unwrap_or("").into();
    let labels = labels_of(o.metadata.labels.as_ref()).with("kubernetes.io/metadata.name", &name);
    Namespace { name, labels, annotations: labels_of(o.metadata.annotations.as_ref()) }
}

pub(super) fn node(o: &core::Node) -> Node {
    let status = o.status.as_ref();
    let mut addresses: Vec<IpAddr> = status
        .and_then(|s| s.addresses.as_ref())
        .into_iter()
        .flatten()
        .filter(|a| a.type_ == "InternalIP" || a.type_ == "ExternalIP")
        .filter_map(|a| a.address.parse().ok())
        .chain(tunnel_addresses(o.metadata.annotations.as_ref()))
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
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

/// Addresses that an overlay gives the node: they are the source of what the node sends to other nodes' pods.
const TUNNEL_ANNOTATIONS: &[&str] = &[
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "io.cilium.network.ipv4-cilium-host",
    "io.cilium.network.ipv6-cilium-host",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];

fn tunnel_addresses(annotations: Option<&BTreeMap<String, String>>) -> impl Iterator<Item = IpAddr> {
    let values = TUNNEL_ANNOTATIONS.iter().filter_map(move |key| annotations?.get(*key));
    values.filter_map(|text| text.parse().ok())
}
