//! Links, addresses and routes, written as `ip` batches: one for all veth pairs, then one per namespace.
//!
//! Every neighbour is entered by hand, so no packet waits for address resolution and none of it shows up as a drop.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::thread;

use anyhow::{Context, Result};

use crate::ipv6::Family;
use crate::netns::tool;
use crate::topology::Topology;
use crate::topology::plan::Host;

/// What a pod's, and a node's outward, default route goes through. Nobody has these addresses: the neighbour entry
/// says where the packets go.
const GATEWAY: [(Family, &str); 2] = [(Family::V4, "169.254.1.1"), (Family::V6, "fe80::1")];

/// Kernel settings before any link is up: no address detection, no router solicitation, no source check (replies of a
/// service come from elsewhere than a route back would lead).
const SETTINGS: [(&str, &str); 7] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];
/// Nodes forward, and never hold back an ICMP error: a reject must not depend on how many came before it.
const FORWARDING: [(&str, &str); 5] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv6/icmp/ratemask", "255"),
];

/// A veth pair, both ends by host, device name and hardware address.
struct Link {
    ends: [(Host, String, String); 2],
}

/// Makes all links and gives every namespace its addresses and routes.
pub(super) fn wire(topology: &Topology) -> Result<()> {
    let links = links(topology);
    let mut batch = String::new();
    for Link { ends: [(a, a_name, a_mac), (b, b_name, b_mac)] } in &links {
        let (a, b) = (namespace(topology, *a)?.name(), namespace(topology, *b)?.name());
        let _ = writeln!(
            batch,
            "link add name {a_name} netns {a} address {a_mac} type veth peer name {b_name} netns {b} address {b_mac}"
        );
    }
    let mut batches: BTreeMap<Host, String> = topology.hosts().map(|(host, _)| (host, String::new())).collect();
    for (host, batch) in &mut batches {
        addresses(topology, *host, batch);
    }
    for link in &links {
        routes(topology, link, &mut batches);
    }

    for (host, namespace) in topology.hosts() {
        namespace.sysctl(&SETTINGS)?;
        if let Host::Node(_) = host {
            namespace.sysctl(&FORWARDING)?;
        }
    }
    tool("ip", &["-batch", "-"], &batch).context("cannot link the namespaces")?;
    thread::scope(|scope| {
        let running: Vec<_> = topology
            .hosts()
            .map(|(host, namespace)| {
                let commands = batches.remove(&host).unwrap_or_default();
                scope.spawn(move || namespace.ip(&commands))
            })
            .collect();
        running
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn namespace(topology: &Topology, host: Host) -> Result<&crate::netns::Netns> {
    topology.namespace(host).with_context(|| format!("{} has no namespace", topology.plan.name(host)))
}

/// Pods to their node, nodes to each other, nodes to the outside.
fn links(topology: &Topology) -> Vec<Link> {
    let plan = &topology.plan;
    let mut pairs: Vec<[(Host, String); 2]> = Vec::new();
    for (index, pod) in plan.pods.iter().enumerate() {
        pairs.push([(Host::Pod(index), "eth0".to_owned()), (Host::Node(pod.node), pod_device(index))]);
    }
    for a in 0..plan.nodes.len() {
        for b in a + 1..plan.nodes.len() {
            pairs.push([(Host::Node(a), format!("node{b}")), (Host::Node(b), format!("node{a}"))]);
        }
        pairs.push([(Host::Node(a), "out".to_owned()), (Host::Outside, format!("node{a}"))]);
    }
    pairs.retain(|ends| ends.iter().all(|(host, _)| topology.namespace(*host).is_some()));
    let with_mac = |index: usize, end: usize, (host, name): (Host, String)| {
        (host, name, format!("02:00:{end:02x}:00:{:02x}:{:02x}", index >> 8 & 0xff, index & 0xff))
    };
    let numbered = pairs.into_iter().enumerate();
    numbered.map(|(index, [a, b])| Link { ends: [with_mac(index, 1, a), with_mac(index, 2, b)] }).collect()
}

/// Joins a pod and its node by a netkit device in place of their veth pair; devices keep their names.
///
/// `ip` need not know the kind: without options the kernel makes an L3 pair that passes everything (drivers/net/netkit.c).
///
/// # Errors
/// The kernel has no netkit devices (CONFIG_NETKIT, from 6.7 on).
pub(crate) fn join_by_netkit(topology: &Topology, pod: usize) -> Result<()> {
    let wanted = pod_device(pod);
    let link = links(topology).into_iter().find(|link| link.ends[1].1 == wanted && link.ends[0].0 == Host::Pod(pod));
    let link = link.with_context(|| format!("no link leads to {wanted}"))?;
    let hosts = [link.ends[0].0, link.ends[1].0];
    let [inside, node] = hosts.map(|host| namespace(topology, host));
    let (inside, node) = (inside?, node?);
    node.ip(&format!("link add name nk-{wanted} type netkit\n"))?;
    // The kernel named the other end; `ip` shows it as `nk-pod7@nk0`.
    let shown = node.tool("ip", &["-oneline", "link", "show", "dev", &format!("nk-{wanted}")], "")?;
    let peer = shown.split_once('@').and_then(|(_, rest)| rest.split_once(':')).map(|(peer, _)| peer);
    let peer = peer.with_context(|| format!("no other end in `{}`", shown.trim()))?;
    node.ip(&format!(
        "link del {wanted}\nlink set {peer} netns {} name eth0\nlink set nk-{wanted} name {wanted}\n",
        inside.name()
    ))?;
    let mut batches = BTreeMap::from(hosts.map(|host| (host, String::new())));
    addresses(topology, hosts[0], batches.entry(hosts[0]).or_default());
    routes(topology, &link, &mut batches);
    for (host, namespace) in [(hosts[0], inside), (hosts[1], node)] {
        namespace.ip(&batches.remove(&host).unwrap_or_default())?;
    }
    Ok(())
}

/// Loopback carries the addresses of nodes and the outside, so that they stand whatever link a packet comes by.
fn addresses(topology: &Topology, host: Host, batch: &mut String) {
    let plan = &topology.plan;
    batch.push_str("link set lo up\n");
    let local: &[IpAddr] = match host {
        Host::Node(node) => &plan.nodes[node].local,
        Host::Pod(_) | Host::Outside => &[],
    };
    let device = if let Host::Pod(_) = host { "eth0" } else { "lo" };
    if let Host::Pod(_) = host {
        batch.push_str("link set eth0 addrgenmode none up\n");
    }
    for address in plan.addresses(host).iter().chain(local) {
        let _ = writeln!(batch, "address add {} dev {device}{}", host_prefix(*address), nodad(*address));
    }
}

fn routes(topology: &Topology, link: &Link, batches: &mut BTreeMap<Host, String>) {
    let [a, b] = &link.ends;
    for (own, other) in [(a, b), (b, a)] {
        let (host, device, _) = own;
        let (peer, _, peer_mac) = other;
        let Some(batch) = batches.get_mut(host) else { continue };
        if !matches!(host, Host::Pod(_)) {
            let _ = writeln!(batch, "link set {device} addrgenmode none up");
        }
        match (host, peer) {
            (Host::Pod(_), _) | (Host::Node(_), Host::Outside) => gateway(topology, *host, device, peer_mac, batch),
            (Host::Node(_), Host::Pod(_) | Host::Node(_)) | (Host::Outside, _) => {
                reach(topology, *host, *peer, device, peer_mac, batch);
            }
        }
    }
}

/// A default route of both families.
fn gateway(topology: &Topology, host: Host, device: &str, peer_mac: &str, batch: &mut String) {
    for (family, gateway) in GATEWAY {
        let _ = writeln!(batch, "neigh add {gateway} lladdr {peer_mac} dev {device} nud permanent");
        let _ =
            writeln!(batch, "route add default via {gateway} dev {device} onlink{}", source(topology, host, family));
    }
}

/// Routes to a host and, if it is a node, to its pods through it.
fn reach(topology: &Topology, host: Host, peer: Host, device: &str, peer_mac: &str, batch: &mut String) {
    let plan = &topology.plan;
    for address in plan.addresses(peer) {
        let source = source(topology, host, Family::of(*address));
        let _ = writeln!(batch, "neigh add {address} lladdr {peer_mac} dev {device} nud permanent");
        let _ = writeln!(batch, "route add {} dev {device}{source}", host_prefix(*address));
    }
    let Host::Node(node) = peer else { return };
    for address in plan.pods_of(node).flat_map(|pod| &pod.addresses) {
        let family = Family::of(*address);
        if let Some(via) = plan.address(peer, family) {
            let source = source(topology, host, family);
            let _ = writeln!(batch, "route add {} via {via} dev {device} onlink{source}", host_prefix(*address));
        }
    }
}

/// The source a node or the outside prefers on a route: its first address. A pod has only one to choose.
pub(crate) fn source(topology: &Topology, host: Host, family: Family) -> String {
    match host {
        Host::Pod(_) => String::new(),
        Host::Node(_) | Host::Outside => {
            topology.plan.address(host, family).map(|address| format!(" src {address}")).unwrap_or_default()
        }
    }
}

/// The node's end of a pod's link.
pub(crate) fn pod_device(pod: usize) -> String {
    format!("pod{pod}")
}

/// The prefix that holds this address alone.
pub(crate) fn host_prefix(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}/32"),
        IpAddr::V6(v6) => format!("{v6}/128"),
    }
}

fn nodad(address: IpAddr) -> &'static str {
    if address.is_ipv6() { " nodad" } else { "" }
}
