//! From policies to what each selected pod may exchange: addresses and ports, nothing symbolic left.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cni::select::{labels, matches, peers, policy_pods};
use crate::fixture::Protocol;
use crate::objects::{Objects, key_of, namespace_of};
use crate::topology::plan::{pod_addresses, protocol};
use crate::topology::services::named_port;

/// Direction of traffic as the selected pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Into the pod.
    Ingress,
    /// Out of the pod.
    Egress,
}

/// A pod that at least one policy selects for a direction: only what matches may pass.
#[derive(Debug, Clone)]
pub struct Isolation {
    /// `namespace/name` of the pod.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Direction.
    pub direction: Direction,
    /// Names of the policies that select it.
    pub policies: Vec<String>,
    /// What may pass, all policies together.
    pub admitted: Vec<Match>,
}

/// Something that may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The other end.
    pub target: Target,
    /// Ports of the destination.
    pub ports: Ports,
}

/// The other end of admitted traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Anything.
    Any,
    /// These addresses (of pods).
    Addresses(Vec<IpAddr>),
    /// A block of addresses with blocks taken out of it.
    Block(IpNet, Vec<IpNet>),
}

/// Ports of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// All ports of all protocols.
    All,
    /// All ports of one protocol, by its nftables name.
    Protocol(&'static str),
    /// A range of ports of one protocol, both ends included.
    Range(&'static str, u16, u16),
}

/// All isolations of a cluster under these policies.
pub fn isolations(cluster: &Objects, policies: &[NetworkPolicy]) -> Result<Vec<Isolation>> {
    let mut all: BTreeMap<(Direction, String), Isolation> = BTreeMap::new();
    for policy in policies {
        let name = key_of(&policy.metadata);
        add(cluster, policy, &mut all).with_context(|| format!("NetworkPolicy {name}"))?;
    }
    Ok(all.into_values().collect())
}

fn add(cluster: &Objects, policy: &NetworkPolicy, all: &mut BTreeMap<(Direction, String), Isolation>) -> Result<()> {
    let Some(spec) = &policy.spec else { return Ok(()) };
    let namespace = namespace_of(&policy.metadata);
    for direction in directions(policy)? {
        for pod in policy_pods(cluster).filter(|pod| namespace_of(&pod.metadata) == namespace) {
            if !spec.pod_selector.as_ref().map_or(Ok(true), |selector| matches(selector, labels(pod)))? {
                continue;
            }
            let key = key_of(&pod.metadata);
            let isolation = all.entry((direction, key.clone())).or_insert_with(|| Isolation {
                pod: key,
                node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
                addresses: pod_addresses(pod),
                direction,
                policies: Vec::new(),
                admitted: Vec::new(),
            });
            isolation.policies.push(policy.metadata.name.clone().unwrap_or_default());
            match direction {
                Direction::Ingress => {
                    for rule in spec.ingress.iter().flatten() {
                        let (from, ports) = (rule.from.as_deref(), rule.ports.as_deref());
                        let (from, ports) = (from.unwrap_or_default(), ports.unwrap_or_default());
                        isolation.admitted.extend(ingress(cluster, namespace, pod, from, ports)?);
                    }
                }
                Direction::Egress => {
                    for rule in spec.egress.iter().flatten() {
                        let (to, ports) = (rule.to.as_deref(), rule.ports.as_deref());
                        let (to, ports) = (to.unwrap_or_default(), ports.unwrap_or_default());
                        isolation.admitted.extend(egress(cluster, namespace, to, ports)?);
                    }
                }
            }
        }
    }
    Ok(())
}

/// The directions of a policy. Without `policyTypes` it is one of ingress, and of egress if it has egress rules
/// (defaulting of networking.k8s.io/v1).
fn directions(policy: &NetworkPolicy) -> Result<Vec<Direction>> {
    let Some(spec) = &policy.spec else { return Ok(Vec::new()) };
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return Ok(if egress { vec![Direction::Ingress, Direction::Egress] } else { vec![Direction::Ingress] });
    }
    let named = types.iter().map(|name| match name.as_str() {
        "Ingress" => Ok(Direction::Ingress),
        "Egress" => Ok(Direction::Egress),
        other => bail!("policy type {other:?} does not exist"),
    });
    named.collect()
}

/// One ingress rule; named ports are those of the selected pod.
fn ingress(
    cluster: &Objects,
    namespace: &str,
    pod: &Pod,
    from: &[NetworkPolicyPeer],
    ports: &[NetworkPolicyPort],
) -> Result<Vec<Match>> {
    let mut ranges = Vec::new();
    for port in ports {
        match named(port) {
            None => ranges.push(range(port)?),
            Some(name) => {
                // A pod without a port of that name: the rule admits nothing by it.
                if let Some((l4, transport)) = transport(port)?
                    && let Some(number) = named_port(pod, name, transport)
                {
                    ranges.push(Ports::Range(l4, number, number));
                }
            }
        }
    }
    if ports.is_empty() {
        ranges.push(Ports::All);
    }
    let mut targets = Vec::new();
    for peer in from {
        targets.push(target(cluster, namespace, peer)?.0);
    }
    if from.is_empty() {
        targets.push(Target::Any);
    }
    Ok(targets.iter().flat_map(|to| ranges.iter().map(|ports| Match { target: to.clone(), ports: *ports })).collect())
}

/// One egress rule; named ports are looked up in each destination pod.
fn egress(
    cluster: &Objects,
    namespace: &str,
    to: &[NetworkPolicyPeer],
    ports: &[NetworkPolicyPort],
) -> Result<Vec<Match>> {
    let mut targets = Vec::new();
    for peer in to {
        targets.push(target(cluster, namespace, peer)?);
    }
    if to.is_empty() {
        targets.push((Target::Any, policy_pods(cluster).collect()));
    }
    let mut admitted = Vec::new();
    for (target, pods) in &targets {
        if ports.is_empty() {
            admitted.push(Match { target: target.clone(), ports: Ports::All });
        }
        for port in ports {
            let Some(name) = named(port) else {
                admitted.push(Match { target: target.clone(), ports: range(port)? });
                continue;
            };
            let Some((l4, transport)) = transport(port)? else { continue };
            for pod in pods {
                if let Some(number) = named_port(pod, name, transport) {
                    let target = Target::Addresses(pod_addresses(pod));
                    admitted.push(Match { target, ports: Ports::Range(l4, number, number) });
                }
            }
        }
    }
    Ok(admitted)
}

/// A peer's addresses, and the pods among them.
fn target<'a>(cluster: &'a Objects, namespace: &str, peer: &NetworkPolicyPeer) -> Result<(Target, Vec<&'a Pod>)> {
    if let Some(block) = &peer.ip_block {
        ensure!(
            peer.namespace_selector.is_none() && peer.pod_selector.is_none(),
            "a peer has an ipBlock or selectors, not both"
        );
        let (cidr, except) = parse_block(block)?;
        let inside = |address: &IpAddr| cidr.contains(address) && !except.iter().any(|net| net.contains(address));
        let pods = policy_pods(cluster).filter(|pod| pod_addresses(pod).iter().any(inside)).collect();
        return Ok((Target::Block(cidr, except), pods));
    }
    ensure!(peer.namespace_selector.is_some() || peer.pod_selector.is_some(), "a peer needs a selector or an ipBlock");
    let pods = peers(cluster, namespace, peer.namespace_selector.as_ref(), peer.pod_selector.as_ref())?;
    Ok((Target::Addresses(pods.iter().flat_map(|pod| pod_addresses(pod)).collect()), pods))
}

fn parse_block(block: &IPBlock) -> Result<(IpNet, Vec<IpNet>)> {
    let parse = |text: &String| text.parse::<IpNet>().map(|net| net.trunc()).with_context(|| format!("ipBlock {text}"));
    Ok((parse(&block.cidr)?, block.except.iter().flatten().map(parse).collect::<Result<_>>()?))
}

fn named(port: &NetworkPolicyPort) -> Option<&str> {
    match &port.port {
        Some(IntOrString::String(name)) => Some(name),
        Some(IntOrString::Int(_)) | None => None,
    }
}

/// The ports of an entry that has a number or nothing.
fn range(port: &NetworkPolicyPort) -> Result<Ports> {
    let l4 = nft_name(port)?;
    match (&port.port, port.end_port) {
        (Some(IntOrString::Int(first)), end) => {
            let (first, last) = (u16::try_from(*first)?, u16::try_from(end.unwrap_or(*first))?);
            ensure!(first <= last, "endPort {last} is below port {first}");
            Ok(Ports::Range(l4, first, last))
        }
        (None, None) => Ok(Ports::Protocol(l4)),
        (None, Some(_)) | (Some(IntOrString::String(_)), _) => bail!("endPort needs a numeric port"),
    }
}

/// Protocol of an entry where pods can have ports by name; none for SCTP, which no pod of the harness serves.
fn transport(port: &NetworkPolicyPort) -> Result<Option<(&'static str, Protocol)>> {
    ensure!(port.end_port.is_none(), "endPort needs a numeric port");
    let l4 = nft_name(port)?;
    Ok(protocol(port.protocol.as_deref()).map(|transport| (l4, transport)))
}

fn nft_name(port: &NetworkPolicyPort) -> Result<&'static str> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Ok("tcp"),
        Some("UDP") => Ok("udp"),
        Some("SCTP") => Ok("sctp"),
        Some(other) => bail!("protocol {other:?} does not exist"),
    }
}
