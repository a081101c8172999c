//! The cluster as Weir knows it: API objects reduced to what identity, requirements and policies need.
//!
//! [`Cluster::apply`] and [`Cluster::delete`] are the only ways in; each says what it changed, so that indices built on top
//! follow without scanning. Order of application never matters.

pub mod admin;
mod export;
mod injection;
mod intern;
pub mod labels;
pub mod object;
pub mod pod;
pub mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub use admin::AdminPolicy;
pub use labels::Labels;
pub use object::{Form, Key, Kind, Object, ObjectError, Origin};
pub use pod::{ContainerPort, Phase, Pod, SETTINGS};
pub use service::{EndpointSlice, Service, ServicePort, TargetPort};

use intern::Interner;
use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::words::{Name, Protocol, Workload};

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

/// A cluster-wide policy with where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterPolicy {
    /// Which of the three kinds.
    pub kind: Kind,
    /// The fields that decide.
    pub object: Arc<AdminPolicy>,
    /// File and line, or resourceVersion.
    pub origin: Origin,
}

/// An object kept whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw {
    /// The object, `apiVersion` and `kind` included.
    pub object: Arc<serde_json::Value>,
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
    pods: BTreeMap<Name, Arc<Pod>>,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, EndpointSlice>,
    policies: BTreeMap<Name, Policy>,
    cluster_policies: BTreeMap<(Kind, Arc<str>), ClusterPolicy>,
    raw: BTreeMap<Key, Raw>,
    // Indices, maintained by apply and delete.
    pod_addresses: BTreeSet<(IpAddr, Name)>,
    node_addresses: BTreeSet<(IpAddr, Arc<str>)>,
    service_addresses: BTreeSet<(IpAddr, Name)>,
    service_slices: BTreeSet<(Name, Name)>,
    live: BTreeMap<Workload, u32>,
    /// Templates as they were written, where injection is simulated on them.
    written: BTreeMap<Name, Pod>,
    interner: Interner,
}

impl Cluster {
    /// Adds or replaces one object.
    pub fn apply(&mut self, object: Object, origin: Origin) -> Change {
        let key = object.key();
        self.delete(&key);
        let name = key.name.clone();
        match object {
            Object::Namespace(o) => {
                self.namespaces.insert(name.name.clone(), object::namespace(&o));
                self.inject(&name.name);
            }
            Object::Node(o) => {
                let node = object::node(&o);
                self.node_addresses.extend(node.addresses.iter().map(|a| (*a, node.name.clone())));
                self.nodes.insert(name.name, node);
            }
            Object::Pod(o) => self.insert_pod(Pod::from_api(&o)),
            Object::Template(kind, o) => self.insert_template(Pod::from_template(kind, &o)),
            Object::Service(o) => {
                let service = Service::from_api(&o);
                let addresses = service.cluster_ips.iter().chain(&service.external_ips);
                self.service_addresses.extend(addresses.map(|a| (*a, name.clone())));
                self.services.insert(name, service);
            }
            Object::EndpointSlice(o) => {
                let slice = EndpointSlice::from_api(&o);
                self.service_slices.extend(slice.service.iter().map(|s| (s.clone(), name.clone())));
                self.slices.insert(name, slice);
            }
            Object::NetworkPolicy(o) => drop(self.policies.insert(name, Policy { object: Arc::new(*o), origin })),
            Object::AdminPolicy(kind, o) => {
                let policy = ClusterPolicy { kind, object: Arc::new(*o), origin };
                self.cluster_policies.insert((kind, name.name), policy);
            }
            Object::Raw(_, object) => drop(self.raw.insert(key.clone(), Raw { object, origin })),
        }
        Change::Applied(key)
    }

    /// Removes one object.
    pub fn delete(&mut self, key: &Key) -> Change {
        let name = &key.name;
        let gone = match key.kind.form() {
            Form::Namespace => {
                let gone = self.namespaces.remove(&name.name).is_some();
                if gone {
                    self.inject(&name.name);
                }
                gone
            }
            Form::Node => self.nodes.remove(&name.name).is_some_and(|node| {
                for address in node.addresses {
                    self.node_addresses.remove(&(address, node.name.clone()));
                }
                true
            }),
            Form::Pod => self.remove_pod(name),
            Form::Template => {
                let name = Name::new(name.namespace.clone(), Pod::template_name(key.kind, &name.name));
                self.written.remove(&name);
                self.remove_pod(&name)
            }
            Form::Service => self.services.remove(name).is_some_and(|service| {
                for address in service.cluster_ips.into_iter().chain(service.external_ips) {
                    self.service_addresses.remove(&(address, name.clone()));
                }
                true
            }),
            Form::EndpointSlice => self.slices.remove(name).is_some_and(|slice| {
                if let Some(service) = slice.service {
                    self.service_slices.remove(&(service, name.clone()));
                }
                true
            }),
            Form::NetworkPolicy => self.policies.remove(name).is_some(),
            Form::AdminPolicy => self.cluster_policies.remove(&(key.kind, name.name.clone())).is_some(),
            Form::Raw => self.raw.remove(key).is_some(),
        };
        if gone { Change::Deleted(key.clone()) } else { Change::None }
    }

    fn insert_template(&mut self, pod: Pod) {
        match injection::simulate(&pod, self.namespaces.get(&pod.name.namespace)) {
            Some(injected) => {
                self.written.insert(pod.name.clone(), pod);
                self.insert_pod(injected);
            }
            None => self.insert_pod(pod),
        }
    }

    /// The labels of a namespace have changed: simulates injection anew on its templates.
    fn inject(&mut self, namespace: &Arc<str>) {
        let inside: Vec<Pod> = self.templates_in(namespace).cloned().collect();
        for pod in inside {
            let written = self.written.remove(&pod.name).unwrap_or(pod);
            self.remove_pod(&written.name);
            self.insert_template(written);
        }
    }

    /// The templates of a namespace, even where their workloads have pods.
    pub(crate) fn templates_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        self.all_pods_in(namespace).filter(|p| p.template)
    }

    /// The pods and templates of a namespace, even where the templates' workloads have pods.
    pub(crate) fn all_pods_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        let first = Name::new(namespace.clone(), "");
        let pods = self.pods.range(first..).map(|(_, p)| &**p);
        let namespace = namespace.clone();
        pods.take_while(move |p| p.name.namespace == namespace)
    }

    fn insert_pod(&mut self, mut pod: Pod) {
        self.interner.share(&mut pod);
        if !pod.template {
            *self.live.entry(pod.workload.clone()).or_default() += 1;
        }
        if !pod.host_network {
            self.pod_addresses.extend(pod.addresses.iter().map(|a| (*a, pod.name.clone())));
        }
        self.pods.insert(pod.name.clone(), Arc::new(pod));
    }

    fn remove_pod(&mut self, name: &Name) -> bool {
        let Some(pod) = self.pods.remove(name) else { return false };
        if !pod.template
            && let Some(count) = self.live.get_mut(&pod.workload)
        {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&pod.workload);
            }
        }
        for address in pod.addresses.iter() {
            self.pod_addresses.remove(&(*address, name.clone()));
        }
        true
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// One namespace, if the object is there. One that is only referred to has no more than its name as a label.
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

    /// The node that an address belongs to: its own, its tunnels', or the first of its pod range, which bridges and overlays
    /// give to the node itself.
    #[must_use]
    pub fn node_by_address(&self, address: IpAddr) -> Option<&Node> {
        let own = self.node_addresses.range((address, "".into())..).next().filter(|(a, _)| *a == address);
        own.and_then(|(_, name)| self.nodes.get(name)).or_else(|| {
            if self.pod_by_address(address).is_some() {
                return None;
            }
            self.nodes.values().find(|n| {
                n.pod_cidrs
                    .iter()
                    .any(|c| c.network() == address || c.hosts().next().is_some_and(|first| first == address))
            })
        })
    }

    /// All pods, by namespace and name; a template only where its workload has no pod.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|p| &**p).filter(|p| self.stands(p))
    }

    /// The pods of a namespace, as [`pods`](Self::pods) has them.
    pub fn pods_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Pod> {
        self.all_pods_in(namespace).filter(|p| self.stands(p))
    }

    /// Whether a pod is one, or a template that stands for the pods that its workload lacks.
    pub(crate) fn stands(&self, pod: &Pod) -> bool {
        !pod.template || !self.live.contains_key(&pod.workload)
    }

    /// One pod or template.
    #[must_use]
    pub fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name).map(|p| &**p)
    }

    /// All pods, and all templates even where their workload has pods.
    pub(crate) fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|p| &**p)
    }

    pub(crate) fn policies_by_name(&self) -> impl Iterator<Item = &Name> {
        self.policies.keys()
    }

    pub(crate) fn shared_pod(&self, name: &Name) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// The pod that has an address of its own: never a hostNetwork pod, one that runs before one that ended,
    /// and the younger of two.
    #[must_use]
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&Pod> {
        let first = (address, Name::new("", ""));
        let pods = self.pod_addresses.range(first..).take_while(|(a, _)| *a == address);
        pods.filter_map(|(_, name)| self.pod(name)).min_by_key(|p| (p.finished(), std::cmp::Reverse(p.started)))
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The services of a namespace.
    pub fn services_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Service> {
        let first = Name::new(namespace.clone(), "");
        self.services.range(first..).map(|(_, s)| s).take_while(|s| s.name.namespace == *namespace)
    }

    /// One service.
    #[must_use]
    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// The service with this ClusterIP, external or load balancer address.
    #[must_use]
    pub fn service_by_address(&self, address: IpAddr) -> Option<&Service> {
        let first = (address, Name::new("", ""));
        let (found, name) = self.service_addresses.range(first..).next()?;
        (*found == address).then(|| self.services.get(name)).flatten()
    }

    /// All endpoint slices.
    pub fn slices(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.values()
    }

    /// The endpoint slices of a service.
    pub fn slices_of(&self, service: &Name) -> impl Iterator<Item = &EndpointSlice> {
        let first = (service.clone(), Name::new("", ""));
        let names = self.service_slices.range(first..).take_while(move |(s, _)| s == service);
        names.filter_map(|(_, name)| self.slices.get(name))
    }

    /// All NetworkPolicies.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Policy> {
        self.policies.values()
    }

    /// One NetworkPolicy.
    #[must_use]
    pub fn policy(&self, name: &Name) -> Option<&Policy> {
        self.policies.get(name)
    }

    /// All cluster-wide policies.
    pub fn cluster_policies(&self) -> impl Iterator<Item = &ClusterPolicy> {
        self.cluster_policies.values()
    }

    /// One cluster-wide policy.
    #[must_use]
    pub fn cluster_policy(&self, kind: Kind, name: &Arc<str>) -> Option<&ClusterPolicy> {
        self.cluster_policies.get(&(kind, name.clone()))
    }

    /// All objects of a kind that is kept whole, by name.
    pub fn raw(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Raw)> {
        let first = Key { kind, name: Name::new("", "") };
        self.raw.range(first..).take_while(move |(key, _)| key.kind == kind).map(|(key, raw)| (&key.name, raw))
    }

    /// One object of a kind that is kept whole.
    #[must_use]
    pub fn raw_object(&self, key: &Key) -> Option<&Raw> {
        self.raw.get(key)
    }

    /// Where a service port leads: `(address, pod port)` of its endpoints, from its EndpointSlices, or, where there are none
    /// (rendered manifests), from its selector and target port.
    #[must_use]
    pub fn endpoints(&self, service: &Name, protocol: Protocol, port: u16) -> Vec<(IpAddr, u16)> {
        service::resolve(self, service, protocol, port)
    }

    /// The pods and templates that a Service's selector names, with the pod port that its `port` leads to.
    pub fn selected<'a>(&'a self, service: &'a Service, port: &'a ServicePort) -> impl Iterator<Item = (&'a Pod, u16)> {
        service::selected(self, service, port)
    }
}
