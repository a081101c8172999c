//! From the catalogue and the objects that exist to pairs.
//!
//! Who is there is kept per pod and follows the cluster change by change. Pairs are made anew from it, and only those that have
//! an end on the own nodes: linear in the pods of the workloads in these pairs, not in those of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::catalogue::{Catalogue, PortSource, Requirement};
use super::declared;
use super::learn::Learnt;
use super::pair::{End, Pair, PairKey};
use super::population::{Population, Whose};
use super::role::{Role, Roles, revision};
use crate::cluster::{Change, Cluster, Kind, Pod, Service, ServicePort, TargetPort};
use crate::identity::{Identity, NODE_LOCAL_DNS};
use crate::policy::Endpoint;
use crate::words::{Name, Protocol};

/// Ports of Istio's own on a gateway's Service: status, cross-network, remote xDS and webhooks.
const INFRASTRUCTURE: [u16; 4] = [15021, 15443, 15012, 15017];

/// The label of ConfigMaps whose `*.toml` are catalogue files; its value is `true`.
pub const FLOWS_LABEL: &str = "weir.dev/flows";

/// The catalogue, the pods' roles and what was learnt.
#[derive(Clone, Debug)]
pub struct Resolver {
    pub(super) catalogue: Catalogue,
    /// The catalogue without what the cluster's ConfigMaps add.
    given: Catalogue,
    refused: Vec<(Name, String)>,
    pub(super) population: Population,
    /// Ports on which applications are or were served.
    served: BTreeSet<u16>,
    pub(super) learnt: BTreeMap<PairKey, Learnt>,
    pub(super) max_learnt: usize,
    pub(super) learnt_overflow: u64,
}

/// What one resolution looks up again and again.
struct World<'a> {
    cluster: &'a Cluster,
    identity: &'a Identity,
    population: &'a Population,
    dns: BTreeMap<(End, Protocol, u16), Vec<Endpoint>>,
    dns_addresses: Vec<IpAddr>,
    node_local_dns: bool,
}

impl Resolver {
    /// A resolver that knows no pod yet; `max_learnt` bounds what is learnt from traffic. With nodes named, pairs are those with
    /// an end on one of them: what happens elsewhere is another agent's to tell.
    #[must_use]
    pub fn new(catalogue: Catalogue, max_learnt: usize, nodes: &[String]) -> Self {
        Self {
            given: catalogue.clone(),
            catalogue,
            refused: Vec::new(),
            population: Population::new(nodes),
            served: BTreeSet::new(),
            learnt: BTreeMap::new(),
            max_learnt,
            learnt_overflow: 0,
        }
    }

    /// The catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// ConfigMaps of flows that are no catalogue, each with what is wrong; the others hold.
    #[must_use]
    pub fn refused(&self) -> &[(Name, String)] {
        &self.refused
    }

    /// Flows of the cluster's own: every `*.toml` in the ConfigMaps with the label, by namespace, name and key.
    fn add_flows(&mut self, cluster: &Cluster) {
        self.catalogue = self.given.clone();
        self.refused.clear();
        for (name, raw) in cluster.raw(Kind::ConfigMap) {
            if raw.object["metadata"]["labels"][FLOWS_LABEL] != "true" {
                continue;
            }
            for (file, text) in raw.object["data"].as_object().into_iter().flatten() {
                let Some(text) = text.as_str().filter(|_| file.ends_with(".toml")) else { continue };
                if let Err(error) = self.catalogue.add(text) {
                    self.refused.push((name.clone(), format!("{file}: {error}")));
                }
            }
        }
    }

    /// What a pod is to the mesh; empty for a pod that is not known.
    #[must_use]
    pub fn roles(&self, pod: &Name) -> Roles {
        self.population.roles(pod)
    }

    /// Takes in one change of the cluster; says whether pairs may have changed.
    pub fn update(&mut self, cluster: &Cluster, change: &Change) -> bool {
        let (Change::Applied(key) | Change::Deleted(key)) = change else { return false };
        match key.kind {
            Kind::Pod => {
                self.population.update(cluster, &key.name);
                let ports = cluster.pod(&key.name).into_iter().flat_map(|pod| &*pod.ports);
                self.served.extend(ports.map(|p| p.port));
                true
            }
            Kind::Namespace => {
                let inside: Vec<_> = cluster.all_pods_in(&key.name.name).map(|pod| pod.name.clone()).collect();
                inside.iter().for_each(|name| self.population.update(cluster, name));
                true
            }
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet | Kind::ReplicaSet | Kind::Job | Kind::CronJob => {
                let name = Name::new(key.name.namespace.clone(), Pod::template_name(key.kind, &key.name.name));
                self.population.update(cluster, &name);
                let ports = cluster.pod(&name).into_iter().flat_map(|pod| &*pod.ports);
                self.served.extend(ports.map(|p| p.port));
                true
            }
            Kind::Service => {
                let service = cluster.service(&key.name).filter(|s| !s.selector.is_empty());
                self.served.extend(service.into_iter().flat_map(|s| &s.ports).filter_map(|entry| match entry.target {
                    TargetPort::Number(port) => Some(port),
                    TargetPort::Name(_) => None,
                }));
                true
            }
            Kind::Node | Kind::EndpointSlice => true,
            Kind::ConfigMap => {
                self.add_flows(cluster);
                true
            }
            kind => declared::KINDS.contains(&kind),
        }
    }

    /// The ports on which applications are or were served: those that containers declare and that Services lead to. Traffic
    /// there may tell of pairs that no object tells of.
    #[must_use]
    pub fn application_ports(&self) -> &BTreeSet<u16> {
        &self.served
    }

    /// All pairs with an end on the own nodes, as of now.
    #[must_use]
    pub fn resolve(&self, cluster: &Cluster, identity: &Identity) -> BTreeMap<PairKey, Pair> {
        let world = World::new(cluster, identity, &self.population);
        let mut pairs = BTreeMap::new();
        for requirement in self.catalogue.flows().filter(|r| !r.configured) {
            let destinations = world.destinations(requirement).into_iter();
            let destinations: Vec<(_, Arc<[Endpoint]>)> = destinations.map(|(k, pods)| (k, pods.into())).collect();
            for role in &requirement.source {
                if matches!(role, Role::Kubelet | Role::Node) {
                    for ((end, protocol, port), pods) in &destinations {
                        let key = |source| PairKey {
                            flow: requirement.id.clone(),
                            source,
                            destination: end.clone(),
                            protocol: *protocol,
                            port: *port,
                        };
                        let through_nodes = requirement.source.contains(&Role::Node);
                        let pods = pods.iter().filter(|p| !through_nodes || world.through_nodes(p, *protocol, *port));
                        let pods: Vec<Endpoint> = pods.cloned().collect();
                        if *role == Role::Kubelet {
                            world.kubelet(requirement, key(End::Kubelet), &pods, &mut pairs);
                        } else {
                            world.other_nodes(requirement, key(End::Node), &pods, &mut pairs);
                        }
                    }
                    continue;
                }
                let to_local = destinations.iter().any(|((end, ..), pods)| world.is_local(end, pods));
                for (source, sources) in world.sources(*role, Whose::beside(to_local)) {
                    let sources: Arc<[Endpoint]> = sources.into();
                    let revision = world.revision_of(requirement, &sources);
                    let from_local = world.is_local(&source, &sources);
                    for ((end, protocol, port), pods) in &destinations {
                        if !from_local && !world.is_local(end, pods) {
                            continue;
                        }
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
        for pair in declared::pairs(cluster, &self.population, &self.catalogue) {
            // What a label tells of already, another object need not tell again.
            let same = |flow: &Arc<Requirement>| {
                flow.code == pair.requirement.code
                    && pairs.contains_key(&PairKey { flow: flow.id.clone(), ..pair.key.clone() })
            };
            if pair.instances().next().is_some() && !self.catalogue.flows().any(same) {
                pairs.insert(pair.key.clone(), pair);
            }
        }
        pairs.retain(|_, pair| world.touches_own_node(pair));
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
    fn new(cluster: &'a Cluster, identity: &'a Identity, population: &'a Population) -> Self {
        let mut world = Self {
            cluster,
            identity,
            population,
            dns: BTreeMap::new(),
            dns_addresses: Vec::new(),
            node_local_dns: population.has_node_local_dns(cluster),
        };
        world.find_dns();
        world
    }

    /// Whether an end, with what is behind it, may make a pair touch an own node.
    fn is_local(&self, end: &End, behind: &[Endpoint]) -> bool {
        match end {
            End::Workload(workload) => self.population.is_local(workload),
            _ => behind.iter().any(|e| self.is_on_own_node(e)),
        }
    }

    fn is_on_own_node(&self, endpoint: &Endpoint) -> bool {
        match endpoint {
            Endpoint::Pod { name, .. } => {
                self.cluster.pod(name).and_then(|p| p.node.as_ref()).is_some_and(|n| self.population.is_own_node(n))
            }
            Endpoint::Node { name, .. } => self.population.is_own_node(name),
            Endpoint::Address(_) | Endpoint::External => false,
        }
    }

    fn touches_own_node(&self, pair: &Pair) -> bool {
        let mut ends = pair.sources.iter().chain(pair.destinations.iter());
        self.population.is_everywhere() || ends.any(|e| self.is_on_own_node(e))
    }

    /// Whether any source of a requirement may make its pairs touch an own node, wherever they lead.
    fn is_required_here(&self, r: &Requirement) -> bool {
        r.source.iter().any(|role| match role {
            // Other nodes than the destination's: the own ones are among them.
            Role::Node => true,
            Role::Kubelet | Role::External => self.population.is_everywhere(),
            Role::ApiServer => self.api_server().iter().any(|(end, _, behind)| self.is_local(end, behind)),
            _ => self.population.workloads(*role, Whose::Local).next().is_some(),
        })
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

    /// Ends with one role, each with what is behind it.
    fn sources(&self, role: Role, whose: Whose) -> BTreeMap<End, Vec<Endpoint>> {
        match role {
            Role::ApiServer => self.api_server().into_iter().map(|(end, _, pods)| (end, pods)).collect(),
            Role::External => [(End::External, vec![Endpoint::External])].into(),
            _ => self.population.ends(self.cluster, role, whose).collect(),
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

    /// Where a requirement leads; from elsewhere, only to the own nodes.
    fn destinations(&self, r: &Requirement) -> BTreeMap<(End, Protocol, u16), Vec<Endpoint>> {
        let whose = Whose::beside(self.is_required_here(r));
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
                    for (end, pods) in self.population.ends(self.cluster, *role, whose) {
                        for pod in pods {
                            for (protocol, port) in self.ports(r, &pod) {
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
    fn kubelet(&self, r: &Arc<Requirement>, key: PairKey, pods: &[Endpoint], pairs: &mut BTreeMap<PairKey, Pair>) {
        let with_node = pods.iter().filter_map(|e| {
            let Endpoint::Pod { name, .. } = e else { return None };
            let pod = self.cluster.pod(name).filter(|p| !p.host_network)?;
            Some((Endpoint::Node { name: pod.node.clone()?, address: None }, e.clone()))
        });
        let (kubelets, destinations): (Vec<_>, Vec<_>) = with_node.unzip();
        insert(pairs, key, r, [].into(), destinations.into(), kubelets.into());
    }

    /// Whoever enters by another node has that node's address here.
    fn other_nodes(&self, r: &Arc<Requirement>, key: PairKey, pods: &[Endpoint], pairs: &mut BTreeMap<PairKey, Pair>) {
        let (mut nodes, mut destinations) = (Vec::new(), Vec::new());
        for pod in pods {
            let Endpoint::Pod { name, .. } = pod else { continue };
            let Some(own) = self.cluster.pod(name).filter(|p| !p.host_network).and_then(|p| p.node.as_ref()) else {
                continue;
            };
            for node in self.cluster.nodes().filter(|n| n.name != *own) {
                nodes.push(Endpoint::Node { name: node.name.clone(), address: None });
                destinations.push(pod.clone());
            }
        }
        insert(pairs, key, r, [].into(), destinations.into(), nodes.into());
    }

    /// Whether a Service takes in traffic for the pod's port on every node, and translates it to that node's address
    /// (`externalTrafficPolicy: Cluster`, the default).
    fn through_nodes(&self, pod: &Endpoint, protocol: Protocol, port: u16) -> bool {
        let Endpoint::Pod { name, .. } = pod else { return false };
        let Some(pod) = self.cluster.pod(name) else { return false };
        let public = |s: &&Service| matches!(&*s.type_, "LoadBalancer" | "NodePort") && !s.local_only;
        let selects =
            |s: &&Service| !s.selector.is_empty() && s.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
        let mut entries =
            self.cluster.services_in(&name.namespace).filter(public).filter(selects).flat_map(|s| &s.ports);
        entries.any(|entry| entry.protocol == protocol && target(pod, entry) == Some(port))
    }

    fn learnt(&self, r: &Arc<Requirement>, key: &PairKey, learnt: &Learnt, pairs: &mut BTreeMap<PairKey, Pair>) {
        let behind = |end: &End, seen: &BTreeSet<Endpoint>| -> Vec<Endpoint> {
            let pods = match end {
                End::Workload(workload) => self.population.endpoints(self.cluster, workload, Role::Pod),
                _ => Vec::new(),
            };
            if !pods.is_empty() {
                return pods;
            }
            seen.iter().filter(|e| !matches!(e, Endpoint::Pod { .. })).cloned().collect()
        };
        let destinations = behind(&key.destination, &learnt.destinations);
        if key.source == End::Kubelet && learnt.sources.is_empty() {
            self.kubelet(r, key.clone(), &destinations, pairs);
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
        let mut istiods = self.population.pods(self.cluster, Role::Istiod, Whose::All);
        let exists = istiods.any(|pod| revision(pod) == Some(wanted));
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
