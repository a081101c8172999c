//! Who exists and where: nodes, pods on them, and the outside with every address that belongs to neither.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;

use crate::fixture::{End, Flow, Protocol};
use crate::ipv6::{Family, in_family};
use crate::objects::{Objects, key_of};
use crate::topology::services::{Backend, Services};

/// A host that packets come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A node, by its place in [`Plan::nodes`].
    Node(usize),
    /// A pod with a network of its own, by its place in [`Plan::pods`].
    Pod(usize),
    /// Everything that is not in the cluster.
    Outside,
}

/// A node.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Name.
    pub name: String,
    /// Its addresses, the first of each family being its own choice of source.
    pub addresses: Vec<IpAddr>,
    /// Addresses that only its own pods can reach: link-local ones and those of services it answers itself
    /// (NodeLocal DNSCache).
    pub local: Vec<IpAddr>,
}

/// A pod with a network of its own.
#[derive(Debug, Clone)]
pub struct PodPlan {
    /// `namespace/name`.
    pub key: String,
    /// Its node, by its place in [`Plan::nodes`].
    pub node: usize,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A server to start.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerPlan {
    /// Where.
    pub host: Host,
    /// Transport.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

/// The whole of a topology before anything is made.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Nodes.
    pub nodes: Vec<NodePlan>,
    /// Pods that have a network of their own.
    pub pods: Vec<PodPlan>,
    /// Addresses of the outside.
    pub outside: Vec<IpAddr>,
    /// Servers, ordered, none twice.
    pub servers: BTreeSet<ServerPlan>,
    /// Nodes that no namespace is made for, by their place in [`Plan::nodes`].
    pub far: BTreeSet<usize>,
}

impl Plan {
    /// Plans the hosts of a cluster and those its flows name besides.
    pub fn new(cluster: &Objects, services: &Services, flows: &[Flow]) -> Result<Self> {
        let mut plan = Self::default();
        plan.add_nodes(cluster)?;
        plan.add_pods(cluster)?;
        for backend in services.backends() {
            plan.add_backend(backend);
        }
        for flow in flows {
            // A flow that names something that is not there says so when it is driven; the others don't suffer.
            let _ = plan.add_flow(flow, cluster, services);
        }
        Ok(plan)
    }

    /// The host that has an address of the cluster's own network or the outside's.
    pub fn host_of(&self, address: IpAddr) -> Option<Host> {
        let pod = self.pods.iter().position(|pod| pod.addresses.contains(&address)).map(Host::Pod);
        let node = || self.nodes.iter().position(|node| node.addresses.contains(&address)).map(Host::Node);
        let outside = || self.outside.contains(&address).then_some(Host::Outside);
        pod.or_else(node).or_else(outside)
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// A pod with a network of its own, by `namespace/name`.
    pub fn pod(&self, key: &str) -> Option<usize> {
        self.pods.iter().position(|pod| pod.key == key)
    }

    /// The pods of a node that have a network of their own.
    pub fn pods_of(&self, node: usize) -> impl Iterator<Item = &PodPlan> {
        self.pods.iter().filter(move |pod| pod.node == node)
    }

    /// The node that carries a host: the node itself, or the pod's. None for the outside.
    pub fn carrier(&self, host: Host) -> Option<usize> {
        match host {
            Host::Node(node) => Some(node),
            Host::Pod(pod) => Some(self.pods[pod].node),
            Host::Outside => None,
        }
    }

    /// Whether a host is on a far node: no namespace is made for it.
    pub fn is_far(&self, host: Host) -> bool {
        self.carrier(host).is_some_and(|node| self.far.contains(&node))
    }

    /// The addresses of a host.
    pub fn addresses(&self, host: Host) -> &[IpAddr] {
        match host {
            Host::Node(node) => &self.nodes[node].addresses,
            Host::Pod(pod) => &self.pods[pod].addresses,
            Host::Outside => &self.outside,
        }
    }

    /// The first address of a host in a family.
    pub fn address(&self, host: Host, family: Family) -> Option<IpAddr> {
        self.addresses(host).iter().copied().find(|address| Family::of(*address) == family)
    }

    /// A name for a host that is unique in the topology.
    pub fn name(&self, host: Host) -> String {
        match host {
            Host::Node(node) => format!("node {}", self.nodes[node].name),
            Host::Pod(pod) => self.pods[pod].key.clone(),
            Host::Outside => "outside".to_owned(),
        }
    }

    fn add_nodes(&mut self, cluster: &Objects) -> Result<()> {
        for node in &cluster.nodes {
            let name = node.metadata.name.clone().context("a node without a name")?;
            let status = node.status.as_ref().and_then(|status| status.addresses.as_ref());
            let internal = status.into_iter().flatten().filter(|entry| entry.type_ == "InternalIP");
            let mut addresses: Vec<IpAddr> = internal.filter_map(|entry| entry.address.parse().ok()).collect();
            if addresses.is_empty() {
                addresses.extend(host_ip(cluster, &name));
            }
            ensure!(!addresses.is_empty(), "node {name} has no InternalIP and none of its pods knows its address");
            self.nodes.push(NodePlan { name, addresses, local: Vec::new() });
        }
        Ok(())
    }

    fn add_pods(&mut self, cluster: &Objects) -> Result<()> {
        for pod in cluster.pods.iter().filter(|pod| is_alive(pod)) {
            let key = key_of(&pod.metadata);
            let addresses = pod_addresses(pod);
            if addresses.is_empty() {
                continue;
            }
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            let name = name.with_context(|| format!("pod {key} has an address and no node"))?;
            let node = self.node(name).with_context(|| format!("pod {key} is on node {name}, which is not there"))?;
            let host = if is_host_network(pod) {
                Host::Node(node)
            } else {
                self.pods.push(PodPlan { key, node, addresses });
                Host::Pod(self.pods.len() - 1)
            };
            for (protocol, port) in pod_ports(pod) {
                self.servers.insert(ServerPlan { host, protocol, port });
            }
        }
        Ok(())
    }

    /// Something behind a service: outside if it is nobody in the cluster.
    fn add_backend(&mut self, backend: &Backend) {
        let host = self.host_of(backend.address).unwrap_or_else(|| {
            self.outside.push(backend.address);
            Host::Outside
        });
        self.servers.insert(ServerPlan { host, protocol: backend.protocol, port: backend.port });
    }

    fn add_flow(&mut self, flow: &Flow, cluster: &Objects, services: &Services) -> Result<()> {
        let to = self.end_host(&flow.to, cluster)?;
        let to = match (to, &flow.to) {
            (Some(host), _) => vec![host],
            (None, End::Ip(address)) if is_link_local(*address) || services.has_address(*address) => {
                self.each_family(*address, |plan, address| {
                    for node in &mut plan.nodes {
                        if !node.local.contains(&address) {
                            node.local.push(address);
                        }
                    }
                });
                (0..self.nodes.len()).map(Host::Node).collect()
            }
            (None, End::Ip(address)) => {
                self.add_outside(*address);
                vec![Host::Outside]
            }
            (None, End::Pod(_) | End::Node { .. }) => Vec::new(),
        };
        for host in to {
            self.servers.insert(ServerPlan { host, protocol: flow.protocol, port: flow.port });
        }
        match &flow.from {
            End::Ip(address) if is_link_local(*address) => {
                let node = self.end_host(&flow.to, cluster)?.and_then(|host| self.carrier(host));
                let node = node.context("a link-local source needs a destination on a node")?;
                self.each_family(*address, |plan, address| {
                    if !plan.nodes[node].local.contains(&address) {
                        plan.nodes[node].local.push(address);
                    }
                });
            }
            End::Ip(address) if self.host_of(*address).is_none() => self.add_outside(*address),
            End::Node { name, ip: Some(address) } => {
                let node = self.node(name).with_context(|| format!("there is no node {name}"))?;
                self.each_family(*address, |plan, address| {
                    let node = &mut plan.nodes[node];
                    let list = if is_link_local(address) { &mut node.local } else { &mut node.addresses };
                    if !list.contains(&address) {
                        list.push(address);
                    }
                });
            }
            End::Ip(_) => {}
            End::Pod(_) | End::Node { ip: None, .. } => drop(self.end_host(&flow.from, cluster)?),
        }
        Ok(())
    }

    /// The host of one end of a flow; none for an address that nobody has yet.
    pub fn end_host(&self, end: &End, cluster: &Objects) -> Result<Option<Host>> {
        match end {
            End::Ip(address) => Ok(self.host_of(*address)),
            End::Node { name, .. } => Ok(Some(Host::Node(self.node(name).with_context(|| format!("no node {name}"))?))),
            End::Pod(key) => {
                if let Some(pod) = self.pod(key) {
                    return Ok(Some(Host::Pod(pod)));
                }
                let pod = cluster.pod(key).with_context(|| format!("there is no pod {key}"))?;
                ensure!(is_alive(pod) && is_host_network(pod), "pod {key} has no network");
                let name = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
                Ok(Some(Host::Node(self.node(name).with_context(|| format!("no node {name}"))?)))
            }
        }
    }

    fn add_outside(&mut self, address: IpAddr) {
        self.each_family(address, |plan, address| {
            if plan.host_of(address).is_none() {
                plan.outside.push(address);
            }
        });
    }

    fn each_family(&mut self, address: IpAddr, mut add: impl FnMut(&mut Self, IpAddr)) {
        add(self, address);
        if let (IpAddr::V4(_), Some(derived)) = (address, in_family(address, Family::V6)) {
            add(self, derived);
        }
    }
}

/// Whether an address is only good on one link.
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Whether a pod still runs, as far as the network is concerned: one that has ended keeps its address on paper.
pub fn is_alive(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether a pod uses its node's network.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The address of a node as its pods know it.
fn host_ip(cluster: &Objects, node: &str) -> Option<IpAddr> {
    let on_node = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    let statuses = cluster.pods.iter().filter(on_node).filter_map(|pod| pod.status.as_ref());
    statuses.filter_map(|status| status.host_ip.as_ref()).find_map(|address| address.parse().ok())
}

/// The addresses of a pod, `podIP` first.
pub fn pod_addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ip.iter().chain(status.pod_ips.iter().flatten().map(|entry| &entry.ip));
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The ports a pod says that it serves: those of its containers (init containers that stay included).
fn pod_ports(pod: &Pod) -> Vec<(Protocol, u16)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let protocol = protocol(port.protocol.as_deref())?;
            Some((protocol, u16::try_from(port.container_port).ok()?))
        })
        .collect()
}

/// A protocol by its Kubernetes name, TCP when none is written; none for SCTP, which nothing here serves.
pub fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}
