//! The cluster as Weir knows it: API objects reduced to what identity, requirements and policies need.
//!
//! [`Cluster::apply`] and [`Cluster::delete`] are the only ways in; each says what it changed, so that indices built on top
//! follow without scanning. Order of application never matters.

pub mod object;
pub mod pod;
pub mod service;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use object::{Key, Kind, Object, ObjectError, Origin};
pub use pod::{ContainerPort, Labels, Phase, Pod};
pub use service::{EndpointSlice, Service, ServicePort, TargetPort};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::words::{Name, Protocol};

/// A namespace: its labels are what namespaceSelectors match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`, always with `kubernetes.io/metadata.name` (the API server sets it).
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
}

/// A node: its addresses are what hostNetwork pods and the kubelet use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// `status.addresses` of type InternalIP and ExternalIP, and tunnel addresses known from annotations.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<ipnet::IpNet>,
}

/// A NetworkPolicy with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The object as the API has it.
    pub object: Arc<NetworkPolicy>,
    /// File and line, or resourceVersion.
    pub origin: Origin,
}

/// What an [`apply`](Cluster::apply) or [`delete`](Cluster::delete) did.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing that Weir looks at.
    None,
    /// The object with this key was added or replaced.
    Applied(Key),
    /// The object with this key is gone.
    Deleted(Key),
}

/// Every object known.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    nodes: BTreeMap<Arc<str>, Node>,
    pods: BTreeMap<Name, Pod>,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, EndpointSlice>,
    policies: BTreeMap<Name, Policy>,
}

impl Cluster {
    /// Adds or replaces one object.
    pub fn apply(&mut self, object: Object, origin: Origin) -> Change {
        let key = object.key();
        match object {
            Object::Namespace(o) => drop(self.namespaces.insert(key.name.name.clone(), object::namespace(&o))),
            Object::Node(o) => drop(self.nodes.insert(key.name.name.clone(), object::node(&o))),
            Object::Pod(o) => drop(self.pods.insert(key.name.clone(), Pod::from_api(&o))),
            Object::Service(o) => drop(self.services.insert(key.name.clone(), Service::from_api(&o))),
            Object::EndpointSlice(o) => drop(self.slices.insert(key.name.clone(), EndpointSlice::from_api(&o))),
            Object::NetworkPolicy(o) => {
                drop(self.policies.insert(key.name.clone(), Policy { object: Arc::new(*o), origin }));
            }
        }
        Change::Applied(key)
    }

    /// Removes one object.
    pub fn delete(&mut self, key: &Key) -> Change {
        let gone = match key.kind {
            Kind::Namespace => self.namespaces.remove(&key.name.name).is_some(),
            Kind::Node => self.nodes.remove(&key.name.name).is_some(),
            Kind::Pod => self.pods.remove(&key.name).is_some(),
            Kind::Service => self.services.remove(&key.name).is_some(),
            Kind::EndpointSlice => self.slices.remove(&key.name).is_some(),
            Kind::NetworkPolicy => self.policies.remove(&key.name).is_some(),
        };
        if gone { Change::Deleted(key.clone()) } else { Change::None }
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// One namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// All pods, by namespace and name.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name)
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// One service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// All endpoint slices.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values()
    }

    /// All NetworkPolicies.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values()
    }

    /// One NetworkPolicy.
    #[must_use]
    pub fn policy(&self, name: &Name) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// Where a service port leads: `(address, pod port)` of its endpoints, from its EndpointSlices, or, where there are none
    /// (rendered manifests), from its selector and target port.
    #[must_use]
    pub fn endpoints(&self, service: &Name, protocol: Protocol, port: u16) -> Vec<(IpAddr, u16)> {
        service::resolve(self, service, protocol, port)
    }
}
