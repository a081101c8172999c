//! Drafts of a fix: which policies could be extended, and what a new one would look like.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::decision::{Endpoint, Flow};
use super::fix::PatchKind;
use crate::cluster::{Cluster, Pod};
use crate::words::{Direction, Name};

/// A policy that may open one side of a flow.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub policy: api::NetworkPolicy,
    pub kind: PatchKind,
    /// Of two that change the same flows the lower is preferred.
    pub rank: usize,
}

/// Labels that change with every rollout, replica or installation, or that tools set for themselves: poor names for a pod.
const VOLATILE: &[&str] = &[
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "chart",
    "controller-revision-hash",
    "controller-uid",
    "helm.sh/chart",
    "heritage",
    "istio.io/rev",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "release",
    "security.istio.io/tlsMode",
    "service.istio.io/canonical-revision",
    "sidecar.istio.io/inject",
    "statefulset.kubernetes.io/pod-name",
    "version",
];

/// Labels that people name workloads by, best first.
const TELLING: &[&str] = &[
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "istio",
    "app.kubernetes.io/instance",
    "gateway.networking.k8s.io/gateway-name",
    "name",
    "app.kubernetes.io/component",
];

/// Who manages the object, so that an edit of ours would be undone; `None` for one that its user owns.
pub(super) fn managed_by(policy: &api::NetworkPolicy) -> Option<String> {
    let meta = &policy.metadata;
    if let Some(owner) = meta.owner_references.iter().flatten().next() {
        return Some(format!("{} {}", owner.kind, owner.name));
    }
    let by_label = |key: &str, value: &str| match key {
        "kyma-project.io/managed-by" => Some(format!("Kyma ({value})")),
        "app.kubernetes.io/managed-by" if value != "kubectl" => Some(value.to_owned()),
        "helm.sh/chart" => Some(format!("Helm chart {value}")),
        "argocd.argoproj.io/instance" => Some(format!("Argo CD ({value})")),
        _ if key.starts_with("operator.istio.io/") || key.starts_with("install.operator.istio.io/") => {
            Some("the Istio operator".to_owned())
        }
        _ if key.starts_with("kustomize.toolkit.fluxcd.io/") || key.starts_with("helm.toolkit.fluxcd.io/") => {
            Some("Flux".to_owned())
        }
        _ => None,
    };
    let annotations = meta.annotations.iter().flatten();
    let release = annotations.clone().find(|(key, _)| *key == "meta.helm.sh/release-name");
    let tracked = annotations.clone().find(|(key, _)| *key == "argocd.argoproj.io/tracking-id");
    meta.labels
        .iter()
        .flatten()
        .find_map(|(key, value)| by_label(key, value))
        .or_else(|| release.map(|(_, name)| format!("Helm release {name}")))
        .or_else(|| tracked.map(|_| "Argo CD".to_owned()))
}

/// Policies of the user's own with one more rule, and a new policy.
pub(super) fn drafts<'a>(
    cluster: &Cluster,
    flow: &Flow,
    direction: Direction,
    own: impl Iterator<Item = &'a Name>,
) -> Vec<Draft> {
    let (near, far) = match direction {
        Direction::Egress => (&flow.source, &flow.destination),
        Direction::Ingress => (&flow.destination, &flow.source),
    };
    let Endpoint::Pod { name, .. } = near else { return Vec::new() };
    let Some(pod) = cluster.pod(name) else { return Vec::new() };
    let Some(peers) = peers(cluster, &pod.name.namespace, far) else { return Vec::new() };
    let ports = vec![api::NetworkPolicyPort {
        port: Some(IntOrString::Int(flow.port.into())),
        protocol: Some(flow.protocol.as_str().to_owned()),
        end_port: None,
    }];
    let mut drafts: Vec<Draft> = own
        .filter_map(|name| cluster.policy(name))
        .filter_map(|policy| extended(&policy.object, direction, &peers, &ports))
        .collect();
    drafts.push(fresh(cluster, pod, flow, direction, far, peers, ports));
    drafts
}

/// The policy with one more rule. One without rules is there to isolate, not to admit: it is left as it is.
fn extended(
    policy: &api::NetworkPolicy,
    direction: Direction,
    peers: &[api::NetworkPolicyPeer],
    ports: &[api::NetworkPolicyPort],
) -> Option<Draft> {
    let mut policy = policy.clone();
    // What the server keeps for itself is no part of a manifest.
    policy.metadata = ObjectMeta {
        name: policy.metadata.name,
        namespace: policy.metadata.namespace,
        labels: policy.metadata.labels,
        annotations: policy.metadata.annotations,
        ..ObjectMeta::default()
    };
    if let Some(annotations) = &mut policy.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    let spec = policy.spec.as_mut()?;
    let index = match direction {
        Direction::Egress => spec.egress.as_ref().map_or(0, Vec::len),
        Direction::Ingress => spec.ingress.as_ref().map_or(0, Vec::len),
    };
    if index == 0 {
        return None;
    }
    add(spec, direction, peers.to_vec(), ports.to_vec());
    Some(Draft { policy, kind: PatchKind::Rule(index), rank: 0 })
}

fn add(
    spec: &mut api::NetworkPolicySpec,
    direction: Direction,
    peers: Vec<api::NetworkPolicyPeer>,
    ports: Vec<api::NetworkPolicyPort>,
) {
    match direction {
        Direction::Egress => {
            let rule = api::NetworkPolicyEgressRule { to: Some(peers), ports: Some(ports) };
            spec.egress.get_or_insert_default().push(rule);
        }
        Direction::Ingress => {
            let rule = api::NetworkPolicyIngressRule { from: Some(peers), ports: Some(ports) };
            spec.ingress.get_or_insert_default().push(rule);
        }
    }
}

fn fresh(
    cluster: &Cluster,
    pod: &Pod,
    flow: &Flow,
    direction: Direction,
    far: &Endpoint,
    peers: Vec<api::NetworkPolicyPeer>,
    ports: Vec<api::NetworkPolicyPort>,
) -> Draft {
    let policy_type = match direction {
        Direction::Egress => "Egress",
        Direction::Ingress => "Ingress",
    };
    let mut spec = api::NetworkPolicySpec {
        pod_selector: Some(selector(cluster, pod)),
        policy_types: Some(vec![policy_type.to_owned()]),
        ..api::NetworkPolicySpec::default()
    };
    add(&mut spec, direction, peers, ports);
    let namespace = pod.name.namespace.to_string();
    let metadata = ObjectMeta {
        name: Some(free_name(cluster, pod, flow, direction, far)),
        namespace: Some(namespace),
        ..ObjectMeta::default()
    };
    Draft { policy: api::NetworkPolicy { metadata, spec: Some(spec) }, kind: PatchKind::Policy, rank: 1 }
}

/// `allow-web-to-istiod-15012`, shortened and numbered where it has to be.
fn free_name(cluster: &Cluster, pod: &Pod, flow: &Flow, direction: Direction, far: &Endpoint) -> String {
    let other = match far {
        Endpoint::Pod { name, .. } => {
            cluster.pod(name).map_or_else(|| name.name.to_string(), |p| p.workload.name.to_string())
        }
        Endpoint::Node { name, .. } => format!("node-{name}"),
        Endpoint::Address(address) => address.to_string(),
        Endpoint::External => "outside".to_owned(),
    };
    let preposition = match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    };
    let text = format!("allow-{}-{preposition}-{other}-{}", pod.workload.name, flow.port);
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let base: String = text.chars().map(clean).take(240).collect();
    let base = base.trim_matches('-').to_owned();
    let taken = |name: &str| cluster.policy(&Name::new(pod.name.namespace.clone(), name)).is_some();
    let numbered = (2..).map(|n| format!("{base}-{n}"));
    std::iter::once(base.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or(base)
}

/// How a rule names the other end; `None` where it cannot.
fn peers(cluster: &Cluster, own: &str, far: &Endpoint) -> Option<Vec<api::NetworkPolicyPeer>> {
    let blocks = |addresses: &[IpAddr]| {
        let blocks: Vec<_> = addresses.iter().map(|a| block(IpNet::from(*a), &[])).collect();
        (!blocks.is_empty()).then_some(blocks)
    };
    let of_node = |name: &str, address: &Option<IpAddr>| match address {
        Some(address) => blocks(std::slice::from_ref(address)),
        None => blocks(&cluster.node(name)?.addresses),
    };
    match far {
        Endpoint::Pod { name, address } => {
            let pod = cluster.pod(name)?;
            if !pod.host_network {
                return Some(vec![pod_peer(cluster, own, pod)]);
            }
            match address {
                Some(address) => blocks(std::slice::from_ref(address)),
                None if pod.addresses.is_empty() => of_node(pod.node.as_ref()?, &None),
                None => blocks(&pod.addresses),
            }
        }
        Endpoint::Node { name, address } => of_node(name, address),
        Endpoint::Address(address) => match cluster.pod_by_address(*address) {
            Some(pod) => Some(vec![pod_peer(cluster, own, pod)]),
            None => blocks(&[*address]),
        },
        Endpoint::External => Some(outside(cluster)),
    }
}

fn pod_peer(cluster: &Cluster, own: &str, pod: &Pod) -> api::NetworkPolicyPeer {
    let namespace = (*pod.name.namespace != *own).then(|| LabelSelector {
        match_labels: Some(BTreeMap::from([(
            "kubernetes.io/metadata.name".to_owned(),
            pod.name.namespace.to_string(),
        )])),
        match_expressions: None,
    });
    api::NetworkPolicyPeer { namespace_selector: namespace, pod_selector: Some(selector(cluster, pod)), ip_block: None }
}

/// Every address but those of the cluster, as far as the nodes' pod ranges tell.
fn outside(cluster: &Cluster) -> Vec<api::NetworkPolicyPeer> {
    let ranges: Vec<IpNet> = cluster.nodes().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
    let ranges = IpNet::aggregate(&ranges);
    let v6 = cluster.pods().flat_map(|p| p.addresses.iter()).any(IpAddr::is_ipv6);
    let all = [("0.0.0.0/0", true, true), ("::/0", false, v6)];
    let wanted = all.into_iter().filter(|(_, _, wanted)| *wanted);
    wanted
        .filter_map(|(text, v4, _)| {
            let except: Vec<IpNet> = ranges.iter().filter(|r| r.addr().is_ipv4() == v4).copied().collect();
            Some(block(text.parse().ok()?, &except))
        })
        .collect()
}

fn block(net: IpNet, except: &[IpNet]) -> api::NetworkPolicyPeer {
    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
    api::NetworkPolicyPeer {
        ip_block: Some(api::IPBlock { cidr: net.to_string(), except: (!except.is_empty()).then_some(except) }),
        namespace_selector: None,
        pod_selector: None,
    }
}

/// The shortest selector that names the pods of the workload and, as far as its labels allow, no others of the namespace.
fn selector(cluster: &Cluster, pod: &Pod) -> LabelSelector {
    let all: Vec<(&str, &str)> = pod.labels.iter().map(|(k, v)| (&**k, &**v)).collect();
    let mut stable: Vec<(&str, &str)> = all.iter().filter(|(k, _)| !VOLATILE.contains(k)).copied().collect();
    if stable.is_empty() {
        stable = all;
    }
    let telling = |key: &str| TELLING.iter().position(|t| *t == key).unwrap_or(TELLING.len());
    stable.sort_by_key(|(key, _)| (telling(key), *key));
    let strangers = |labels: &[(&str, &str)]| {
        let others = cluster.pods_in(&pod.name.namespace).filter(|p| p.workload != pod.workload);
        others.filter(|p| labels.iter().all(|(k, v)| p.labels.get(k).is_some_and(|found| **found == **v))).count()
    };
    let fewest = strangers(&stable);
    // Labels are added, best first, as long as each keeps somebody else out.
    let mut chosen: Vec<(&str, &str)> = Vec::new();
    let mut matched = strangers(&chosen);
    if let Some(one) = stable.iter().find(|label| strangers(std::slice::from_ref(label)) == fewest) {
        chosen.push(*one);
    } else {
        for label in stable {
            let with: Vec<(&str, &str)> = chosen.iter().copied().chain([label]).collect();
            let left = strangers(&with);
            if left < matched {
                (chosen, matched) = (with, left);
            }
        }
    }
    let labels: BTreeMap<String, String> = chosen.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    LabelSelector { match_labels: (!labels.is_empty()).then_some(labels), match_expressions: None }
}
