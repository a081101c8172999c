//! A second opinion: the specification written down as plainly as possible, without an index, reasons or engine profiles.
//! Shares no code with the evaluator, only the objects.

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weir_engine::cluster::{Cluster, Labels, Pod};
use weir_engine::policy::Endpoint;
use weir_engine::words::Protocol;

/// Peers and ports of a rule, whichever direction it is for.
type Rule = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);

/// Whether both sides admit; `None` where an end has no address to compare.
pub fn admits(cluster: &Cluster, from: &Endpoint, to: &Endpoint, protocol: Protocol, port: u16) -> Option<bool> {
    let (source, destination) = (pod(cluster, from), pod(cluster, to));
    let node_of_source = node(cluster, from);
    if let (Some(pod), Some(node)) = (destination, &node_of_source)
        && pod.node.as_deref() == Some(node.as_str())
    {
        return Some(true);
    }
    let mut admitted = true;
    if let Some(pod) = source {
        admitted &= side(cluster, pod, false, destination, addresses(cluster, to), destination, protocol, port)?;
    }
    if let Some(pod) = destination {
        admitted &= side(cluster, pod, true, source, addresses(cluster, from), destination, protocol, port)?;
    }
    Some(admitted)
}

/// A pod that policies know: not one on its node's network.
fn pod<'a>(cluster: &'a Cluster, end: &Endpoint) -> Option<&'a Pod> {
    match end {
        Endpoint::Pod { name, .. } => cluster.pod(name).filter(|p| !p.host_network),
        Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => None,
    }
}

fn node(cluster: &Cluster, end: &Endpoint) -> Option<String> {
    match end {
        Endpoint::Node { name, .. } => Some(name.to_string()),
        Endpoint::Pod { name, .. } => {
            cluster.pod(name).filter(|p| p.host_network).and_then(|p| p.node.as_ref()).map(ToString::to_string)
        }
        Endpoint::Address(_) | Endpoint::External => None,
    }
}

fn addresses(cluster: &Cluster, end: &Endpoint) -> Vec<IpAddr> {
    match end {
        Endpoint::Pod { name, .. } => match cluster.pod(name) {
            Some(pod) if pod.host_network => {
                cluster.node(pod.node.as_deref().unwrap_or_default()).map(|n| n.addresses.clone()).unwrap_or_default()
            }
            Some(pod) => pod.addresses.to_vec(),
            None => Vec::new(),
        },
        Endpoint::Node { address: Some(address), .. } | Endpoint::Address(address) => vec![*address],
        Endpoint::Node { name, .. } => cluster.node(name).map(|n| n.addresses.clone()).unwrap_or_default(),
        Endpoint::External => Vec::new(),
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, spelled out")]
fn side(
    cluster: &Cluster,
    subject: &Pod,
    ingress: bool,
    other: Option<&Pod>,
    addresses: Vec<IpAddr>,
    destination: Option<&Pod>,
    protocol: Protocol,
    port: u16,
) -> Option<bool> {
    let mut isolated = false;
    for policy in cluster.policies() {
        let object: &NetworkPolicy = &policy.object;
        let namespace = object.metadata.namespace.as_deref().unwrap_or("default");
        let spec = object.spec.clone().unwrap_or_default();
        let types = spec.policy_types.clone().filter(|t| !t.is_empty()).unwrap_or_else(|| {
            let egress = spec.egress.as_ref().is_some_and(|r| !r.is_empty());
            if egress { vec!["Ingress".into(), "Egress".into()] } else { vec!["Ingress".into()] }
        });
        let word = if ingress { "Ingress" } else { "Egress" };
        if *subject.name.namespace != *namespace
            || !types.iter().any(|t| t == word)
            || !selects(spec.pod_selector.as_ref(), &subject.labels)
        {
            continue;
        }
        isolated = true;
        let rules: Vec<Rule> = if ingress {
            spec.ingress.into_iter().flatten().map(|r| (r.from, r.ports)).collect()
        } else {
            spec.egress.into_iter().flatten().map(|r| (r.to, r.ports)).collect()
        };
        for (peers, ports) in rules {
            let ports = ports.unwrap_or_default();
            if !ports.is_empty() && !ports.iter().any(|p| opens(p, destination, protocol, port)) {
                continue;
            }
            let peers = peers.unwrap_or_default();
            if peers.is_empty() {
                return Some(true);
            }
            for peer in peers {
                if matches(cluster, namespace, &peer, other, &addresses)? {
                    return Some(true);
                }
            }
        }
    }
    Some(!isolated)
}

fn matches(
    cluster: &Cluster,
    own: &str,
    peer: &NetworkPolicyPeer,
    other: Option<&Pod>,
    addresses: &[IpAddr],
) -> Option<bool> {
    if let Some(block) = &peer.ip_block {
        if addresses.is_empty() {
            return None;
        }
        let cidr: ipnet::IpNet = block.cidr.parse().ok()?;
        let except: Vec<ipnet::IpNet> = block.except.iter().flatten().filter_map(|e| e.parse().ok()).collect();
        return Some(addresses.iter().any(|a| cidr.contains(a) && !except.iter().any(|e| e.contains(a))));
    }
    let Some(pod) = other else { return Some(false) };
    let namespace = match &peer.namespace_selector {
        None => *pod.name.namespace == *own,
        selector => {
            let bare: Labels =
                [("kubernetes.io/metadata.name".into(), pod.name.namespace.clone())].into_iter().collect();
            selects(selector.as_ref(), cluster.namespace(&pod.name.namespace).map_or(&bare, |n| &n.labels))
        }
    };
    Some(namespace && selects(peer.pod_selector.as_ref(), &pod.labels))
}

fn opens(rule: &NetworkPolicyPort, destination: Option<&Pod>, protocol: Protocol, port: u16) -> bool {
    if rule.protocol.as_deref().unwrap_or("TCP") != protocol.as_str() {
        return false;
    }
    match (&rule.port, rule.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), last) => (*first..=last.unwrap_or(*first)).contains(&i32::from(port)),
        (Some(IntOrString::String(name)), _) => destination
            .is_some_and(|pod| pod.ports.iter().any(|p| *p.name == **name && p.protocol == protocol && p.port == port)),
    }
}

fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    let Some(selector) = selector else { return true };
    let get = |key: &str| labels.get(key).map(ToString::to_string);
    selector.match_labels.iter().flatten().all(|(k, v)| get(k).as_deref() == Some(v))
        && selector.match_expressions.iter().flatten().all(|e| {
            let values = e.values.clone().unwrap_or_default();
            let value = get(&e.key);
            match e.operator.as_str() {
                "In" => value.is_some_and(|v| values.contains(&v)),
                "NotIn" => value.is_none_or(|v| !values.contains(&v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}
