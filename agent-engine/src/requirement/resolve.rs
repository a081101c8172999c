//! From the catalogue and the objects that exist to pairs.
//!
//! Roles are kept per pod and follow the cluster change by change; pairs are made anew from them, which is linear in pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::catalogue::{Catalogue, PortSource, Requirement};
use super::declared;
use super::learn::Learnt;
use super::pair::{End, Pair, PairKey};
use super::role::{Role, Roles, revision, roles};
use crate::cluster::{Change, Cluster, Kind, Pod, Service, ServicePort, TargetPort};
use crate::identity::{Identity, NODE_LOCAL_DNS};
use crate::policy::Endpoint;
use crate::words::{Name, Protocol};

/// Ports of Istio's own on a gateway's Service: status, cross-network, remote xDS and webhooks.
const INFRASTRUCTURE: [u16; 4] = [15021, 15443, 15012, 15017];

/// The catalogue, the pods' roles and what was learnt.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub(super) catalogue: Catalogue,
    pub(super) roles: BTreeMap<Name, Roles>,
    pub(super) learnt: BTreeMap<PairKey, Learnt>,
    pub(super) max_learnt: usize,
    pub(super) learnt_overflow: u64,
}

/// Ends with one role, each with what is behind it.
type Ends = BTreeMap<End, Vec<Endpoint>>;

/// What one resolution looks up again and again.
struct World<'a> {
    cluster: &'a Cluster,
    identity: &'a Identity,
    by_role: BTreeMap<Role, Ends>,
    dns: BTreeMap<(End, Protocol, u16), Vec<Endpoint>>,
    dns_addresses: Vec<IpAddr>,
    node_local_dns: bool,
}

impl Resolver {
    /// A resolver that knows no pod yet; `max_learnt` bounds what is learnt from traffic.
    #[must_use]
    pub fn new(catalogue: Catalogue, max_learnt: usize) -> Self {
        Self { catalogue, roles: BTreeMap::new(), learnt: BTreeMap::new(), max_learnt, learnt_overflow: 0 }
    }

    /// The catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// What a pod is to the mesh; empty for a pod that is not known.
    #[must_use]
    pub fn roles(&self, pod: &Name) -> Roles {
        self.roles.get(pod).cloned().unwrap_or_default()
    }

    /// Takes in one change of the cluster; says whether pairs may have changed.
    pub fn update(&mut self, cluster: &Cluster, change: &Change) -> bool {
        let (Change::Applied(key) | Change::Deleted(key)) = change else { return false };
        match key.kind {
            Kind::Pod => {
                match cluster.pod(&key.name) {
                    Some(pod) if !pod.finished() => drop(self.roles.insert(key.name.clone(), roles(cluster, pod))),
                    Some(_) | None => drop(self.roles.remove(&key.name)),
                }
                true
            }
            Kind::Namespace => {
                let inside = cluster.all_pods().filter(|p| p.name.namespace == key.name.name && !p.finished());
                for pod in inside {
                    self.roles.insert(pod.name.clone(), roles(cluster, pod));
                }
                true
            }
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet | Kind::Job | Kind::CronJob => {
                let name = Name::new(key.name.namespace.clone(), Pod::template_name(key.kind, &key.name.name));
                match cluster.pod(&name) {
                    Some(pod) => drop(self.roles.insert(name, roles(cluster, pod))),
                    None => drop(self.roles.remove(&name)),
                }
                true
            }
            Kind::Node | Kind::Service | Kind::EndpointSlice => true,
            kind => declared::KINDS.contains(&kind),
        }
    }

    /// The ports on which pods of the mesh serve their applications: of their containers and of the Services that select them.
    /// Traffic there may tell of pairs that no object tells of.
    #[must_use]
    pub fn application_ports(&self, cluster: &Cluster) -> BTreeSet<u16> {
        let serves = [Role::Sidecar, Role::Ambient, Role::Gateway, Role::Waypoint];
        let mut ports = BTreeSet::new();
        for (name, _) in self.roles.iter().filter(|(_, roles)| serves.iter().any(|role| roles.contains(role))) {
            if let Some(pod) = cluster.pod(name) {
                ports.extend(pod.ports.iter().map(|p| p.port));
            }
        }
        for service in cluster.services().filter(|s| !s.selector.is_empty()) {
            ports.extend(service.ports.iter().filter_map(|entry| match entry.target {
                TargetPort::Number(port) => Some(port),
                TargetPort::Name(_) => None,
            }));
        }
        ports
    }

    /// All pairs, as of now.
    #[must_use]
    pub fn resolve(&self, cluster: &Cluster, identity: &Identity) -> BTreeMap<PairKey, Pair> {
        let world = World::new(cluster, identity, &self.roles);
        let mut pairs = BTreeMap::new();
        for requirement in self.catalogue.flows().filter(|r| !r.configured) {
            let destinations = world.destinations(requirement).into_iter();
            let destinations: Vec<(_, Arc<[Endpoint]>)> = destinations.map(|(k, pods)| (k, pods.into())).collect();
            for role in &requirement.source {
                if *role == Role::Kubelet {
                    for ((end, protocol, port), pods) in &destinations {
                        world.kubelet(requirement, end, *protocol, *port, pods, &mut pairs);
                    }
                    continue;
                }
                for (source, sources) in world.sources(*role) {
                    let sources: Arc<[Endpoint]> = sources.into();
                    let revision = world.revision_of(requirement, &sources);
                    for ((end, protocol, port), pods) in &destinations {
                        let pods = revision.map_or_else(|| pods.clone(), |r| world.of_revision(pods, r));
                        let key = PairKey {
                            flow: requirement.id.clone(),
                            source: source.clone(),
                            destination: end.clone(),
                            protocol: *protocol,
                            port: *port,
                        };
                        insert(&mut pairs, key, requirement, sources.clone(), pods, [].into());
                    }
                }
            }
        }
        // What was learnt knows the addresses that a declared host has only been guessed to have: it comes first.
        for (key, learnt) in &self.learnt {
            if let Some(requirement) = self.catalogue.flow(&key.flow) {
                world.learnt(requirement, key, learnt, &mut pairs);
            }
        }
        for pair in declared::pairs(cluster, &self.roles, &self.catalogue) {
            if pair.instances().next().is_some() {
                pairs.entry(pair.key.clone()).or_insert(pair);
            }
        }
        pairs
    }
}

fn insert(
    pairs: &mut BTreeMap<PairKey, Pair>,
    key: PairKey,
    requirement: &Arc<Requirement>,
    sources: Arc<[Endpoint]>,
    destinations: Arc<[Endpoint]>,
    kubelets: Arc<[Endpoint]>,
) {
    let pair = Pair { key: key.clone(), requirement: requirement.clone(), sources, destinations, kubelets };
    if pair.instances().next().is_some() {
        pairs.entry(key).or_insert(pair);
    }
}

impl<'a> World<'a> {
    fn new(cluster: &'a Cluster, identity: &'a Identity, all: &BTreeMap<Name, Roles>) -> Self {
        let mut by_role: BTreeMap<Role, Ends> = BTreeMap::new();
        for pod in cluster.pods() {
            let Some(roles) = all.get(&pod.name) else { continue };
            let endpoint = Endpoint::Pod { name: pod.name.clone(), address: None };
            for role in roles {
                let ends = by_role.entry(*role).or_default();
                ends.entry(End::Workload(pod.workload.clone())).or_default().push(endpoint.clone());
            }
        }
        let mut world = Self {
            cluster,
            identity,
            by_role,
            dns: BTreeMap::new(),
            dns_addresses: Vec::new(),
            node_local_dns: cluster.pods().any(|p| is(p, "k8s-app", "node-local-dns") && !p.finished()),
        };
        world.find_dns();
        world
    }

    /// The cluster's DNS: Services on port 53 that select the DNS pods by the label all distributions keep, or OpenShift's.
    fn find_dns(&mut self) {
        let is_dns = |s: &&Service| {
            let by = |map: &crate::cluster::Labels| {
                map.get("k8s-app").is_some_and(|v| matches!(&**v, "kube-dns" | "coredns"))
            };
            s.ports.iter().any(|p| p.port == 53)
                && (by(&s.selector)
                    || by(&s.labels)
                    || s.selector.contains_key("dns.operator.openshift.io/daemonset-dns"))
        };
        for service in self.cluster.services().filter(is_dns) {
            self.dns_addresses.extend(&service.cluster_ips);
            for entry in service.ports.iter().filter(|p| p.port == 53) {
                for (pod, port) in self.cluster.selected(service, entry).filter(|(p, _)| !p.finished()) {
                    let key = (End::Workload(pod.workload.clone()), entry.protocol, port);
                    let endpoint = Endpoint::Pod { name: pod.name.clone(), address: None };
                    let pods = self.dns.entry(key).or_default();
                    if !pods.contains(&endpoint) {
                        pods.push(endpoint);
                    }
                }
            }
        }
    }

    fn sources(&self, role: Role) -> Ends {
        match role {
            Role::ApiServer => self.api_server().into_iter().map(|(end, _, pods)| (end, pods)).collect(),
            Role::External => [(End::External, vec![Endpoint::External])].into(),
            _ => self.by_role.get(&role).cloned().unwrap_or_default(),
        }
    }

    /// The API server's endpoints, by port. An endpoint may be a node's address.
    fn api_server(&self) -> Vec<(End, u16, Vec<Endpoint>)> {
        let mut by_port: BTreeMap<u16, Vec<Endpoint>> = BTreeMap::new();
        for (address, port) in self.identity.api_server() {
            let node = self.cluster.node_by_address(address);
            by_port.entry(port).or_default().push(match node {
                Some(node) => Endpoint::Node { name: node.name.clone(), address: Some(address) },
                None => Endpoint::Address(address),
            });
        }
        by_port.into_iter().map(|(port, endpoints)| (End::ApiServer, port, endpoints)).collect()
    }

    fn destinations(&self, r: &Requirement) -> BTreeMap<(End, Protocol, u16), Vec<Endpoint>> {
        let mut found: BTreeMap<(End, Protocol, u16), Vec<Endpoint>> = BTreeMap::new();
        for role in &r.destination {
            match role {
                Role::ApiServer => {
                    for (end, port, endpoints) in self.api_server() {
                        found.entry((end, Protocol::Tcp, port)).or_default().extend(endpoints);
                    }
                }
                Role::ClusterDns => {
                    let wanted = self.dns.iter().filter(|((_, protocol, _), _)| r.protocols.contains(protocol));
                    found.extend(wanted.map(|(k, v)| (k.clone(), v.clone())));
                }
                Role::NodeLocalDns if self.node_local_dns => {
                    // iptables mode binds the DNS Service's address on each node as well, without translation.
                    let addresses = self.dns_addresses.iter().filter(|a| a.is_ipv4());
                    let endpoints: Vec<_> =
                        [&NODE_LOCAL_DNS].into_iter().chain(addresses).map(|a| Endpoint::Address(*a)).collect();
                    for protocol in &r.protocols {
                        found.insert((End::NodeLocalDns, *protocol, 53), endpoints.clone());
                    }
                }
                Role::NodeLocalDns => {}
                _ => {
                    for (end, pods) in self.by_role.get(role).into_iter().flatten() {
                        for pod in pods {
                            for (protocol, port) in self.ports(r, pod) {
                                found.entry((end.clone(), protocol, port)).or_default().push(pod.clone());
                            }
                        }
                    }
                }
            }
        }
        found
    }

    /// The pod ports of a requirement at one destination pod.
    fn ports(&self, r: &Requirement, pod: &Endpoint) -> BTreeSet<(Protocol, u16)> {
        let Endpoint::Pod { name, .. } = pod else { return BTreeSet::new() };
        let Some(pod) = self.cluster.pod(name) else { return BTreeSet::new() };
        match r.port_from {
            None => r.protocols.iter().flat_map(|p| r.ports.iter().map(|port| (*p, *port))).collect(),
            Some(from @ (PortSource::PublicService | PortSource::Service)) => service_ports(self.cluster, pod, from)
                .into_iter()
                .filter(|(protocol, _)| r.protocols.contains(protocol))
                .collect(),
            Some(PortSource::ApiServer | PortSource::ClusterDns | PortSource::Application) => BTreeSet::new(),
        }
    }

    /// The kubelet reaches the pods of its own node; one on the host network shares the kubelet's namespace.
    fn kubelet(
        &self,
        r: &Arc<Requirement>,
        end: &End,
        protocol: Protocol,
        port: u16,
        pods: &[Endpoint],
        pairs: &mut BTreeMap<PairKey, Pair>,
    ) {
        let with_node = pods.iter().filter_map(|e| {
            let Endpoint::Pod { name, .. } = e else { return None };
            let pod = self.cluster.pod(name).filter(|p| !p.host_network)?;
            Some((Endpoint::Node { name: pod.node.clone()?, address: None }, e.clone()))
        });
        let (kubelets, destinations): (Vec<_>, Vec<_>) = with_node.unzip();
        let key = PairKey { flow: r.id.clone(), source: End::Kubelet, destination: end.clone(), protocol, port };
        insert(pairs, key, r, [].into(), destinations.into(), kubelets.into());
    }

    fn learnt(&self, r: &Arc<Requirement>, key: &PairKey, learnt: &Learnt, pairs: &mut BTreeMap<PairKey, Pair>) {
        let behind = |end: &End, seen: &BTreeSet<Endpoint>| -> Vec<Endpoint> {
            let pods = self.by_role.get(&Role::Pod).and_then(|ends| ends.get(end));
            pods.cloned()
                .unwrap_or_else(|| seen.iter().filter(|e| !matches!(e, Endpoint::Pod { .. })).cloned().collect())
        };
        let destinations = behind(&key.destination, &learnt.destinations);
        if key.source == End::Kubelet && learnt.sources.is_empty() {
            self.kubelet(r, &key.destination, key.protocol, key.port, &destinations, pairs);
        } else {
            let sources = behind(&key.source, &learnt.sources);
            insert(pairs, key.clone(), r, sources.into(), destinations.into(), [].into());
        }
    }

    /// The revision that a requirement's sources belong to, if it leads to a control plane and such a control plane exists.
    fn revision_of(&self, r: &Requirement, sources: &[Endpoint]) -> Option<&'a str> {
        if r.destination != [Role::Istiod] {
            return None;
        }
        let wanted = sources.iter().find_map(|e| match e {
            Endpoint::Pod { name, .. } => self.cluster.pod(name).and_then(revision),
            _ => None,
        })?;
        let istiods = self.by_role.get(&Role::Istiod).into_iter().flat_map(|ends| ends.values().flatten());
        let exists = istiods.into_iter().any(|e| match e {
            Endpoint::Pod { name, .. } => self.cluster.pod(name).and_then(revision) == Some(wanted),
            _ => false,
        });
        exists.then_some(wanted)
    }

    fn of_revision(&self, pods: &[Endpoint], wanted: &str) -> Arc<[Endpoint]> {
        let is = |e: &&Endpoint| match e {
            Endpoint::Pod { name, .. } => self.cluster.pod(name).and_then(revision) == Some(wanted),
            _ => true,
        };
        pods.iter().filter(is).cloned().collect()
    }
}

/// Target ports of the Services that select a pod.
pub(super) fn service_ports(cluster: &Cluster, pod: &Pod, from: PortSource) -> BTreeSet<(Protocol, u16)> {
    let public = |s: &&Service| from == PortSource::Service || matches!(&*s.type_, "LoadBalancer" | "NodePort");
    let selects = |s: &&Service| !s.selector.is_empty() && s.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
    let entries = cluster.services_in(&pod.name.namespace).filter(public).filter(selects).flat_map(|s| &s.ports);
    let targets = entries.filter_map(|entry| Some((entry.protocol, target(pod, entry)?)));
    targets.filter(|(_, port)| !INFRASTRUCTURE.contains(port)).collect()
}

fn target(pod: &Pod, entry: &ServicePort) -> Option<u16> {
    match &entry.target {
        TargetPort::Number(port) => Some(*port),
        TargetPort::Name(name) => {
            pod.ports.iter().find(|p| p.name == *name && p.protocol == entry.protocol).map(|p| p.port)
        }
    }
}

fn is(pod: &Pod, key: &str, value: &str) -> bool {
    pod.labels.get(key).is_some_and(|v| &**v == value)
}
