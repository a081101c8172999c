//! Services as kube-proxy would do them: addresses and ports, the backends behind them, and the nftables rules that
//! translate one into the other in a node's namespace.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort as Port};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::fixture::Protocol;
use crate::ipv6::Family;
use crate::objects::{Objects, key_of, namespace_of};
use crate::topology::plan::{NodePlan, is_alive, pod_addresses, protocol};

/// The differentiated-services code point of packets that mean the node itself where a service has the same address
/// (NodeLocal DNSCache answers on the address of kube-dns): they are not translated.
pub const UNTRANSLATED: u8 = 63;

/// What a service's port leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Address of the endpoint.
    pub address: IpAddr,
    /// Transport.
    pub protocol: Protocol,
    /// Port of the endpoint.
    pub port: u16,
}

/// One port of one service in one address family.
#[derive(Debug, Clone)]
pub struct ServiceEntry {
    /// `namespace/name`.
    pub service: String,
    /// Addresses that clients dial: cluster addresses first, then external and load-balancer ones.
    pub addresses: Vec<IpAddr>,
    /// How many of them are cluster addresses.
    pub cluster_addresses: usize,
    /// Family.
    pub family: Family,
    /// Transport.
    pub protocol: Protocol,
    /// Port that clients dial.
    pub port: u16,
    /// Where it leads.
    pub backends: Vec<Backend>,
}

/// A client that is always led to the same backend, as with session affinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    /// Client.
    pub source: IpAddr,
    /// Address of the service.
    pub address: IpAddr,
    /// Transport.
    pub protocol: Protocol,
    /// Port of the service.
    pub port: u16,
}

/// Which backend each such client gets.
pub type Affinity = BTreeMap<AffinityKey, Backend>;

/// All services of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Services {
    entries: Vec<ServiceEntry>,
}

impl Services {
    /// Works out the backends of every service: from its endpoint slices, else from its selector.
    pub fn new(cluster: &Objects) -> Self {
        let mut entries = Vec::new();
        for service in &cluster.services {
            for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
                entries.extend([Family::V4, Family::V6].map(|family| entry(cluster, service, port, family)));
            }
        }
        Self { entries: entries.into_iter().flatten().collect() }
    }

    /// Every backend of every service.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.entries.iter().flat_map(|entry| &entry.backends)
    }

    /// Every port of every service.
    pub fn entries(&self) -> &[ServiceEntry] {
        &self.entries
    }

    /// A port of a service.
    pub fn find(&self, service: &str, port: u16, protocol: Protocol, family: Family) -> Option<&ServiceEntry> {
        self.entries.iter().find(|entry| {
            entry.service == service && entry.port == port && entry.protocol == protocol && entry.family == family
        })
    }

    /// Whether clients of some service dial this address.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.entries.iter().any(|entry| entry.addresses.contains(&address))
    }

    /// The nftables tables of a node: backends by turns, but always the same for the clients of `affinity`. A port
    /// without backends answers "port unreachable". The node's own local addresses stay untranslated for
    /// packets marked [`UNTRANSLATED`]; a pod among `pods` that a service leads back to itself sees its node as the
    /// client.
    pub fn rules(&self, affinity: &Affinity, node: &NodePlan, pods: &[IpAddr]) -> String {
        let mut rules = String::new();
        for family in [Family::V4, Family::V6] {
            self.table(&mut rules, family, affinity, node, pods);
        }
        rules
    }

    fn table(&self, rules: &mut String, family: Family, affinity: &Affinity, node: &NodePlan, pods: &[IpAddr]) {
        let (ip, address_type) = match family {
            Family::V4 => ("ip", "ipv4_addr"),
            Family::V6 => ("ip6", "ipv6_addr"),
        };
        let fixed: Vec<String> = affinity
            .iter()
            .filter(|(key, _)| Family::of(key.source) == family)
            .map(|(key, to)| {
                let l4 = nft_protocol(key.protocol);
                format!("{} . {} . {l4} . {} : {} . {}", key.source, key.address, key.port, to.address, to.port)
            })
            .collect();
        let elements = if fixed.is_empty() { String::new() } else { format!("elements = {{ {} }};", fixed.join(", ")) };
        // Declaring a table before deleting it makes the deletion work the first time as well.
        let _ = write!(
            rules,
            "table {ip} weir_services\ndelete table {ip} weir_services\ntable {ip} weir_services {{\n\
             map affinity {{ type {address_type} . {address_type} . inet_proto . inet_service : {address_type} . \
             inet_service; {elements} }}\nchain services {{\n"
        );
        for address in
            node.local.iter().filter(|address| Family::of(**address) == family && self.has_address(**address))
        {
            let _ = writeln!(rules, "{ip} daddr {address} {ip} dscp {UNTRANSLATED} return");
        }
        let _ =
            writeln!(rules, "dnat {ip} addr . port to {ip} saddr . {ip} daddr . meta l4proto . th dport map @affinity");
        let mut rejected = String::new();
        for entry in self.entries.iter().filter(|entry| entry.family == family && !entry.addresses.is_empty()) {
            let addresses: Vec<String> = entry.addresses.iter().map(IpAddr::to_string).collect();
            let l4 = nft_protocol(entry.protocol);
            let matched = format!("{ip} daddr {{ {} }} {l4} dport {}", addresses.join(", "), entry.port);
            let targets = entry.backends.iter().enumerate();
            let targets: Vec<String> =
                targets.map(|(index, to)| format!("{index} : {} . {}", to.address, to.port)).collect();
            let _ = match targets.len() {
                0 => writeln!(rejected, "{matched} reject"),
                count => writeln!(
                    rules,
                    "{matched} dnat {ip} addr . port to numgen inc mod {count} map {{ {} }} comment \"{}\"",
                    targets.join(", "),
                    entry.service
                ),
            };
        }
        let own = node.addresses.iter().find(|address| Family::of(**address) == family);
        let hairpins: Vec<String> =
            pods.iter().filter(|pod| Family::of(**pod) == family).map(|pod| format!("{pod} . {pod}")).collect();
        let hairpin = match own {
            Some(own) if !hairpins.is_empty() => {
                format!("{ip} saddr . {ip} daddr {{ {} }} snat to {own}", hairpins.join(", "))
            }
            Some(_) | None => String::new(),
        };
        let _ = write!(
            rules,
            "}}\nchain postrouting {{ type nat hook postrouting priority 100; {hairpin}\n}}\nchain prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
             chain output {{ type nat hook output priority -100; jump services; }}\n\
             chain empty {{\n{rejected}}}\n\
             chain forward {{ type filter hook forward priority -5; jump empty; }}\n\
             chain local {{ type filter hook output priority -5; jump empty; }}\n}}\n"
        );
    }
}

impl ServiceEntry {
    /// The address that a client dials: outside of the cluster a load balancer's, if there is one.
    pub fn address(&self, outside: bool) -> Option<IpAddr> {
        let external = self.addresses.get(self.cluster_addresses);
        if outside { external.or(self.addresses.first()).copied() } else { self.addresses.first().copied() }
    }
}

/// The nftables name of a protocol.
pub fn nft_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn entry(cluster: &Objects, service: &Service, port: &Port, family: Family) -> Option<ServiceEntry> {
    let spec = service.spec.as_ref()?;
    let transport = protocol(port.protocol.as_deref())?;
    let of_family = |text: &String| text.parse().ok().filter(|address| Family::of(*address) == family);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).filter_map(of_family) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let cluster_addresses = addresses.len();
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balanced = balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let balanced = balanced.filter_map(|entry| entry.ip.as_ref()).filter_map(of_family);
    addresses.extend(spec.external_ips.iter().flatten().filter_map(of_family).chain(balanced));

    let key = key_of(&service.metadata);
    let slices: Vec<&EndpointSlice> = cluster.slices.iter().filter(|slice| is_of(slice, service)).collect();
    let backends = if slices.is_empty() {
        from_selector(cluster, service, port, transport, family)
    } else {
        from_slices(&slices, port, transport, family)
    };
    Some(ServiceEntry {
        service: key,
        addresses,
        cluster_addresses,
        family,
        protocol: transport,
        port: u16::try_from(port.port).ok()?,
        backends,
    })
}

fn is_of(slice: &EndpointSlice, service: &Service) -> bool {
    let labels = slice.metadata.labels.as_ref();
    let name = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    namespace_of(&slice.metadata) == namespace_of(&service.metadata) && name == service.metadata.name.as_ref()
}

fn from_slices(slices: &[&EndpointSlice], port: &Port, transport: Protocol, family: Family) -> Vec<Backend> {
    let mut backends = Vec::new();
    for slice in slices {
        let named = slice.ports.iter().flatten().filter(|candidate| {
            candidate.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
                && protocol(candidate.protocol.as_deref()) == Some(transport)
        });
        let numbers: Vec<u16> = named.filter_map(|named| u16::try_from(named.port?).ok()).collect();
        for endpoint in &slice.endpoints {
            // A missing condition counts as ready (discovery.k8s.io/v1, EndpointConditions).
            if !endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true) {
                continue;
            }
            let addresses = endpoint.addresses.iter().filter_map(|text| text.parse().ok());
            for address in addresses.filter(|address| Family::of(*address) == family) {
                backends.extend(numbers.iter().map(|port| Backend { address, protocol: transport, port: *port }));
            }
        }
    }
    backends
}

fn from_selector(
    cluster: &Objects,
    service: &Service,
    port: &Port,
    transport: Protocol,
    family: Family,
) -> Vec<Backend> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else { return Vec::new() };
    let selected = cluster.pods.iter().filter(|pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        namespace_of(&pod.metadata) == namespace_of(&service.metadata)
            && is_alive(pod)
            && selector.iter().all(|(name, value)| labels.get(name) == Some(value))
    });
    selected
        .filter_map(|pod| {
            let address = pod_addresses(pod).into_iter().find(|address| Family::of(*address) == family)?;
            Some(Backend { address, protocol: transport, port: target_port(pod, port, transport)? })
        })
        .collect()
}

/// The pod's port that a service's port leads to: its number, or the port of that name in the pod.
fn target_port(pod: &Pod, port: &Port, transport: Protocol) -> Option<u16> {
    match &port.target_port {
        None => u16::try_from(port.port).ok(),
        Some(IntOrString::Int(number)) => u16::try_from(*number).ok(),
        Some(IntOrString::String(name)) => named_port(pod, name, transport),
    }
}

/// The number of a pod's port of this name and protocol.
pub fn named_port(pod: &Pod, name: &str, transport: Protocol) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let ports = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let mut ports = ports.filter(|port| protocol(port.protocol.as_deref()) == Some(transport));
    ports.find(|port| port.name.as_deref() == Some(name)).and_then(|port| u16::try_from(port.container_port).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "
{kind: Pod, metadata: {name: a, namespace: ns, labels: {app: x}}, status: {podIP: 10.0.0.1},
 spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}}
---
{kind: Pod, metadata: {name: b, namespace: ns, labels: {app: x}}, status: {podIP: 10.0.0.2},
 spec: {containers: [{name: c, ports: [{name: web, containerPort: 8081}]}]}}
---
{kind: Pod, metadata: {name: ended, namespace: ns, labels: {app: x}}, status: {podIP: 10.0.0.3, phase: Failed},
 spec: {containers: [{name: c, ports: [{name: web, containerPort: 8082}]}]}}
---
{kind: Service, metadata: {name: named, namespace: ns},
 spec: {clusterIP: 10.1.0.1, selector: {app: x}, ports: [{port: 80, targetPort: web}, {name: q, port: 81}]}}
---
{kind: Service, metadata: {name: listed, namespace: ns},
 spec: {clusterIP: 10.1.0.2, selector: {app: x}, ports: [{name: https, port: 443}]}}
---
{kind: EndpointSlice, metadata: {name: s, namespace: ns, labels: {kubernetes.io/service-name: listed}}, addressType: IPv4,
 ports: [{name: https, port: 6443}, {name: other, port: 1}],
 endpoints: [{addresses: [192.0.2.1]}, {addresses: [192.0.2.2], conditions: {ready: false}}]}
";

    fn backends(service: &str, port: u16) -> Vec<String> {
        let services = Services::new(&Objects::parse(CLUSTER).unwrap());
        let entry = services.find(service, port, Protocol::Tcp, Family::V4).unwrap();
        entry.backends.iter().map(|to| format!("{}:{}", to.address, to.port)).collect()
    }

    #[test]
    fn a_named_target_port_is_each_pods_own() {
        assert_eq!(backends("ns/named", 80), ["10.0.0.1:8080", "10.0.0.2:8081"]);
        assert_eq!(backends("ns/named", 81), ["10.0.0.1:81", "10.0.0.2:81"]);
    }

    #[test]
    fn slices_take_the_place_of_the_selector() {
        assert_eq!(backends("ns/listed", 443), ["192.0.2.1:6443"]);
    }
}
