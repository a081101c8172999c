//! What the objects say, grouped so that a selector is compared with each label set once, not with each pod.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{Rule, View};
use crate::cluster::{Cluster, ContainerPort, Labels, Pod};
use crate::policy::Wanted;
use crate::words::{Direction, Name, Protocol};

/// Pods of one namespace that selectors and ports cannot tell apart.
pub(super) struct Group<'a> {
    /// One of them.
    pub example: &'a Pod,
    /// Their labels.
    pub labels: &'a Labels,
    /// On their node's network.
    pub host_network: bool,
    /// Declared container ports.
    pub ports: &'a [ContainerPort],
    /// Ports that Services lead to, `(Service's name, Service port, pod port, protocol)`.
    pub served: Vec<(Arc<str>, u16, u16, Protocol)>,
}

/// What makes pods alike to every policy: namespace, labels, host network, ports.
type Class<'a> = (&'a Arc<str>, &'a Labels, bool, &'a Arc<[ContainerPort]>);

impl Group<'_> {
    /// A container declares the port, or a Service leads to it.
    pub fn listens(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.iter().any(|p| p.protocol == protocol && p.port == port)
            || self.served.iter().any(|(_, _, target, p)| *p == protocol && *target == port)
    }
}

/// A policy by what it isolates.
struct Isolator {
    policy: Name,
    wants: Vec<Wish>,
    ingress: bool,
    egress: bool,
}

/// The cluster, as lints look at it.
pub(super) struct Facts<'a> {
    groups: BTreeMap<Arc<str>, Vec<Group<'a>>>,
    namespaces: BTreeMap<Arc<str>, Option<&'a Labels>>,
    isolators: BTreeMap<Arc<str>, Vec<Isolator>>,
    /// All namespaces are known with their labels.
    pub whole_cluster: bool,
}

impl<'a> Facts<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        let mut groups: BTreeMap<Arc<str>, Vec<Group<'a>>> = BTreeMap::new();
        let mut known: HashSet<Class<'_>> = HashSet::new();
        for pod in cluster.pods().filter(|p| !p.finished()) {
            let key = (&pod.name.namespace, &pod.labels, pod.host_network, &pod.ports);
            if known.insert(key) {
                groups.entry(pod.name.namespace.clone()).or_default().push(Group {
                    example: pod,
                    labels: &pod.labels,
                    host_network: pod.host_network,
                    ports: &pod.ports,
                    served: Vec::new(),
                });
            }
        }
        for service in cluster.services().filter(|s| !s.selector.is_empty()) {
            for group in groups.get_mut(&service.name.namespace).into_iter().flatten() {
                if !service.selector.iter().all(|(k, v)| group.labels.get(k) == Some(v)) {
                    continue;
                }
                for port in &service.ports {
                    let target = match &port.target {
                        crate::cluster::TargetPort::Number(n) => Some(*n),
                        crate::cluster::TargetPort::Name(name) => {
                            let mut ports = group.ports.iter();
                            ports.find(|p| p.name == *name && p.protocol == port.protocol).map(|p| p.port)
                        }
                    };
                    let name = service.name.name.clone();
                    group.served.extend(target.map(|target| (name, port.port, target, port.protocol)));
                }
            }
        }
        let mut namespaces: BTreeMap<Arc<str>, Option<&Labels>> =
            groups.keys().map(|name| (name.clone(), None)).collect();
        namespaces.extend(cluster.namespaces().map(|n| (n.name.clone(), Some(&n.labels))));
        // Every cluster has these; a chart's output has neither. A workload in a namespace without its object means that not
        // all namespaces were read.
        let dump = cluster.namespace("kube-system").is_some() || cluster.namespace("default").is_some();
        let whole_cluster = dump && namespaces.values().all(Option::is_some);
        let mut isolators: BTreeMap<Arc<str>, Vec<Isolator>> = BTreeMap::new();
        for view in cluster.policies().map(View::new) {
            isolators.entry(view.name.namespace.clone()).or_default().push(Isolator {
                wants: wants(view.spec.pod_selector.as_ref()),
                ingress: view.isolates(Direction::Ingress),
                egress: view.isolates(Direction::Egress),
                policy: view.name,
            });
        }
        Self { groups, namespaces, isolators, whole_cluster }
    }

    /// Another policy isolates these pods in this direction as well.
    pub fn others_isolate(&self, view: &View<'_>, group: &Group<'_>, direction: Direction) -> bool {
        let all = self.isolators.get(&view.name.namespace).into_iter().flatten();
        let mut others = all.filter(|i| i.policy != view.name);
        others.any(|i| {
            let isolates = match direction {
                Direction::Ingress => i.ingress,
                Direction::Egress => i.egress,
            };
            isolates && holds_all(&i.wants, group.labels)
        })
    }

    /// The pods that a policy is about: never those on their node's network.
    pub fn selected(&self, view: &View<'_>) -> Vec<&Group<'a>> {
        let selector = wants(view.spec.pod_selector.as_ref());
        let pods = self.pods(&view.name.namespace).iter();
        pods.filter(|g| !g.host_network && holds_all(&selector, g.labels)).collect()
    }

    /// The namespaces that a peer is about, or `None` where that cannot be told from the objects at hand.
    pub fn peer_namespaces<'s>(&'s self, own: &'s Arc<str>, peer: &NetworkPolicyPeer) -> Option<Vec<&'s Arc<str>>> {
        let Some(selector) = &peer.namespace_selector else { return Some(vec![own]) };
        let wants = wants(Some(selector));
        let by_name = !wants.is_empty()
            && wants
                .iter()
                .all(|w| matches!(w, Wish::Valid(Wanted::Is { key, .. }) if **key == *"kubernetes.io/metadata.name"));
        (self.whole_cluster || by_name).then(|| self.namespaces(&wants))
    }

    /// The pods that a peer with selectors matches, those on their node's network left out; `None` where that cannot be told.
    pub fn peer_pods(&self, own: &Arc<str>, peer: &NetworkPolicyPeer) -> Option<Vec<&Group<'a>>> {
        if peer.ip_block.is_some() {
            return None;
        }
        let namespaces = self.peer_namespaces(own, peer)?;
        let wants = wants(peer.pod_selector.as_ref());
        Some(self.select(&namespaces, &wants).into_iter().filter(|g| !g.host_network).collect())
    }

    /// The pods that a rule is about at its far end; `None` where that cannot be told, or where it is anyone.
    pub fn rule_pods(&self, view: &View<'_>, rule: &Rule<'_>) -> Option<Vec<&Group<'a>>> {
        if rule.anyone() {
            return None;
        }
        let mut all = Vec::new();
        for peer in rule.peers.unwrap_or_default() {
            all.extend(self.peer_pods(&view.name.namespace, peer)?);
        }
        Some(all)
    }

    /// The pods at which a rule's ports are looked up; `None` where that cannot be told.
    pub fn destinations(&self, view: &View<'_>, rule: &Rule<'_>) -> Option<Vec<&Group<'a>>> {
        match rule.direction {
            Direction::Ingress => Some(self.selected(view)),
            Direction::Egress => self.rule_pods(view, rule),
        }
    }

    /// All pods that are read.
    pub fn all_pods(&self) -> impl Iterator<Item = &Group<'a>> {
        self.groups.values().flatten()
    }

    /// The pods of a namespace; empty where none was read.
    pub fn pods(&self, namespace: &str) -> &[Group<'a>] {
        self.groups.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// Namespaces that a selector matches, those without an object by their name alone.
    pub fn namespaces(&self, wants: &[Wish]) -> Vec<&Arc<str>> {
        let matches = |name: &Arc<str>, labels: Option<&Labels>| match labels {
            Some(labels) => holds_all(wants, labels),
            None => {
                let own: Labels = [("kubernetes.io/metadata.name".into(), name.clone())].into_iter().collect();
                holds_all(wants, &own)
            }
        };
        self.namespaces.iter().filter(|(name, labels)| matches(name, **labels)).map(|(name, _)| name).collect()
    }

    /// Label keys that at least one namespace carries.
    pub fn namespace_keys(&self) -> BTreeSet<&str> {
        self.namespaces.values().flatten().flat_map(|labels| labels.iter().map(|(k, _)| &**k)).collect()
    }

    /// There is a namespace of this name.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.contains_key(name)
    }

    /// The pods of some namespaces that a selector matches.
    pub fn select(&self, namespaces: &[&Arc<str>], wants: &[Wish]) -> Vec<&Group<'a>> {
        namespaces.iter().flat_map(|n| self.pods(n)).filter(|g| holds_all(wants, g.labels)).collect()
    }

    /// Any pod was read of one of these namespaces.
    pub fn any_pod(&self, namespaces: &[&Arc<str>]) -> bool {
        namespaces.iter().any(|n| !self.pods(n).is_empty())
    }
}

/// What a selector asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Of a key.
    Valid(Wanted),
    /// Something that the API server refuses, and nothing has.
    Invalid { key: Arc<str>, operator: Arc<str> },
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(wanted) => wanted.fmt(f),
            Self::Invalid { key, operator } => write!(f, "{key} {operator} …"),
        }
    }
}

impl Wish {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::Valid(Wanted::Is { key, value }) => labels.get(key) == Some(value),
            Self::Valid(Wanted::In { key, values }) => labels.get(key).is_some_and(|v| values.contains(v)),
            Self::Valid(Wanted::NotIn { key, values }) => labels.get(key).is_none_or(|v| !values.contains(v)),
            Self::Valid(Wanted::Exists { key }) => labels.contains_key(key),
            Self::Valid(Wanted::Absent { key }) => !labels.contains_key(key),
            Self::Invalid { .. } => false,
        }
    }

    /// The key that it is about.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Valid(
                Wanted::Is { key, .. }
                | Wanted::In { key, .. }
                | Wanted::NotIn { key, .. }
                | Wanted::Exists { key }
                | Wanted::Absent { key },
            )
            | Self::Invalid { key, .. } => key,
        }
    }

    /// It asks for a label to be there.
    pub fn is_positive(&self) -> bool {
        matches!(self, Self::Valid(Wanted::Is { .. } | Wanted::In { .. } | Wanted::Exists { .. }))
    }
}

/// A selector as a list of wishes, all of which have to come true. Absent and empty selectors have none.
pub(super) fn wants(selector: Option<&LabelSelector>) -> Vec<Wish> {
    let Some(selector) = selector else { return Vec::new() };
    let labels = selector.match_labels.iter().flatten();
    let labels = labels.map(|(k, v)| Wish::Valid(Wanted::Is { key: k.as_str().into(), value: v.as_str().into() }));
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let key: Arc<str> = e.key.as_str().into();
        let values: Arc<[Arc<str>]> = e.values.iter().flatten().map(|v| v.as_str().into()).collect();
        Wish::Valid(match (e.operator.as_str(), values.len()) {
            ("In", 1..) => Wanted::In { key, values },
            ("NotIn", 1..) => Wanted::NotIn { key, values },
            ("Exists", 0) => Wanted::Exists { key },
            ("DoesNotExist", 0) => Wanted::Absent { key },
            (operator, _) => return Wish::Invalid { key, operator: operator.into() },
        })
    });
    labels.chain(expressions).collect()
}

pub(super) fn holds_all(wants: &[Wish], labels: &Labels) -> bool {
    wants.iter().all(|w| w.holds(labels))
}

/// The selector asks for something that cannot be: it is reported as such, not as one that matches nothing.
pub(super) fn is_valid(wants: &[Wish]) -> bool {
    !wants.iter().any(|w| matches!(w, Wish::Invalid { .. }))
}

/// `a=b, c in (d)`, as text.
pub(super) fn text(wants: &[Wish]) -> String {
    let wants: Vec<String> = wants.iter().map(ToString::to_string).collect();
    wants.join(", ")
}

/// Of the pods that come nearest to a selector, one, and what it has instead: `pod x has istio=istiod`. Only where a wish about
/// a key fails that the pod carries: then it is worth saying.
pub(super) fn nearest<'g>(wants: &[Wish], groups: impl Iterator<Item = &'g Group<'g>>) -> Option<String> {
    let candidates = groups.filter_map(|g| {
        let failing: Vec<&Wish> = wants.iter().filter(|w| !w.holds(g.labels)).collect();
        let (first, value) = failing.iter().find_map(|w| Some((w.key(), g.labels.get(w.key())?)))?;
        Some((failing.len(), format!("pod {} has {first}={value}", g.example.name)))
    });
    candidates.min().map(|(_, text)| text)
}
