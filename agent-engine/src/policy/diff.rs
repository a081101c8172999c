//! What changes between two policy sets: pods that neither set can tell apart are compared once, and so are ports.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Policies;
use super::decide::Judge;
use super::decision::{Admission, Endpoint, Flow, Ports};
use super::lower::{Lowered, Port};
use super::reach::{Signature, signature};
use crate::cluster::Cluster;
use crate::words::{Direction, Name, Protocol, Workload};

/// Flows that get another answer: from each of the sources to each of the destinations, a pod to itself excepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Pods, or the outside.
    pub sources: Ends,
    /// Pods, or the outside.
    pub destinations: Ends,
    /// Transport.
    pub protocol: Protocol,
    /// Pod ports.
    pub ports: Vec<Ports>,
    /// What the old policies say.
    pub before: Admission,
    /// What the new policies say.
    pub after: Admission,
}

/// Ends that fare alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ends {
    /// These pods and templates, by name.
    Pods(Vec<Name>),
    /// Any address outside the cluster.
    Outside,
}

/// Differences of one pair of workloads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkloadDifference {
    /// The workload, or the outside.
    pub source: Option<Workload>,
    /// The workload, or the outside.
    pub destination: Option<Workload>,
    /// Transport.
    pub protocol: Protocol,
    /// Pod ports.
    pub ports: Vec<Ports>,
    /// What the old policies say.
    pub before: Admission,
    /// What the new policies say.
    pub after: Admission,
    /// For how many pairs of pods; the outside counts as one.
    pub pairs: usize,
}

impl Difference {
    /// Whether it speaks of this flow between pods or with the outside.
    #[must_use]
    pub fn covers(&self, flow: &Flow) -> bool {
        let has = |ends: &Ends, end: &Endpoint| match (ends, end) {
            (Ends::Pods(names), Endpoint::Pod { name, .. }) => names.binary_search(name).is_ok(),
            (Ends::Outside, Endpoint::External) => true,
            (Ends::Pods(_) | Ends::Outside, _) => false,
        };
        has(&self.sources, &flow.source)
            && has(&self.destinations, &flow.destination)
            && self.protocol == flow.protocol
            && self.ports.iter().any(|p| (p.first..=p.last).contains(&flow.port))
    }
}

/// A policy set with the cluster it is about.
type Set<'a> = (&'a Cluster, &'a Policies);

/// Which flows between pods that both clusters have, and between them and the outside, get another answer. hostNetwork pods
/// are left out: policies know them as nodes.
#[must_use]
pub fn diff(old: Set<'_>, new: Set<'_>) -> Vec<Difference> {
    diff_of(old, new, None)
}

/// The same for one side alone, whatever the other says, or for both together.
pub(super) fn diff_of(old: Set<'_>, new: Set<'_>, side: Option<Direction>) -> Vec<Difference> {
    let touched = Touched::between(old, new);
    let classes = classes(old, new, &touched);
    let judges = [judge(old), judge(new)];
    let mut found = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let intervals = intervals(old, new, protocol);
        for source in &classes {
            for destination in &classes {
                if source.is_the_only_one(destination) || !touched.concerns(source, destination) {
                    continue;
                }
                compare(&judges, side, source, destination, protocol, &intervals, &mut found);
            }
        }
    }
    found
}

/// The same by pairs of workloads.
#[must_use]
pub fn by_workload(cluster: &Cluster, differences: &[Difference]) -> Vec<WorkloadDifference> {
    type Answers = (Protocol, Admission, Admission);
    type Pair = (Option<Workload>, Option<Workload>);
    let mut pairs: BTreeMap<(Pair, Answers), BTreeMap<Ports, usize>> = BTreeMap::new();
    for d in differences {
        let (sources, destinations) = (workloads(cluster, &d.sources), workloads(cluster, &d.destinations));
        for (source, from) in &sources {
            for (destination, to) in &destinations {
                let itself = from.iter().filter(|name| to.contains(name)).count();
                let key = ((source.clone(), destination.clone()), (d.protocol, d.before, d.after));
                let count = (from.len().max(1) * to.len().max(1)).saturating_sub(itself);
                let ports = pairs.entry(key).or_default();
                d.ports.iter().filter(|_| count > 0).for_each(|p| *ports.entry(*p).or_default() += count);
            }
        }
    }
    let mut all = Vec::new();
    for (((source, destination), (protocol, before, after)), ports) in pairs {
        let mut by_count: BTreeMap<usize, Vec<Ports>> = BTreeMap::new();
        ports.into_iter().for_each(|(ports, count)| by_count.entry(count).or_default().push(ports));
        for (pairs, ports) in by_count {
            let (source, destination) = (source.clone(), destination.clone());
            all.push(WorkloadDifference { source, destination, protocol, ports, before, after, pairs });
        }
    }
    all
}

fn workloads(cluster: &Cluster, ends: &Ends) -> BTreeMap<Option<Workload>, Vec<Name>> {
    let mut found: BTreeMap<Option<Workload>, Vec<Name>> = BTreeMap::new();
    match ends {
        Ends::Outside => drop(found.insert(None, Vec::new())),
        Ends::Pods(names) => {
            for name in names {
                let workload = cluster.pod(name).map(|p| p.workload.clone());
                found.entry(workload).or_default().push(name.clone());
            }
        }
    }
    found
}

fn judge<'a>((cluster, policies): Set<'a>) -> Judge<'a> {
    // A representative stands for any pod of its class, so that its flow to itself is one between two of them.
    Judge { loopback: true, ..policies.judge(cluster) }
}

struct Class {
    ends: Ends,
    representative: Endpoint,
    /// A single pod that is no template has nobody of its class to talk to.
    lonely: bool,
    /// Whether a policy that differs selects it, for egress and for ingress.
    touched: [bool; 2],
}

impl Class {
    fn is_the_only_one(&self, other: &Self) -> bool {
        let outside = self.ends == Ends::Outside && other.ends == Ends::Outside;
        outside || self.lonely && self.ends == other.ends
    }
}

fn classes(old: Set<'_>, new: Set<'_>, touched: &Touched) -> Vec<Class> {
    let blocks = [old, new].map(|(_, policies)| policies.blocks());
    let mut grouped: BTreeMap<[Signature; 2], Vec<Name>> = BTreeMap::new();
    for pod in old.0.pods().filter(|p| !p.host_network) {
        let other = new.0.pod(&pod.name).filter(|p| !p.host_network);
        let facts = [old, new].map(|(_, policies)| policies.index.pod(&pod.name));
        if let ([Some(a), Some(b)], Some(_)) = (facts, other) {
            // Every named port counts: all ports are compared.
            let key =
                [signature(a, &blocks[0], |p| !p.name.is_empty()), signature(b, &blocks[1], |p| !p.name.is_empty())];
            grouped.entry(key).or_default().push(pod.name.clone());
        }
    }
    let mut classes: Vec<Class> = grouped
        .into_values()
        .map(|pods| Class {
            representative: Endpoint::Pod { name: pods[0].clone(), address: None },
            lonely: pods.len() == 1 && old.0.pod(&pods[0]).is_none_or(|p| !p.template),
            touched: touched.selects(old, new, &pods[0]),
            ends: Ends::Pods(pods),
        })
        .collect();
    let outside = Class { ends: Ends::Outside, representative: Endpoint::External, lonely: true, touched: [false; 2] };
    classes.push(outside);
    classes.sort_by(|a, b| a.ends.cmp(&b.ends));
    classes
}

/// What to look at: all of it, or only what certain policies select.
enum Touched {
    All,
    By([BTreeSet<Name>; 2]),
}

impl Touched {
    fn between(old: Set<'_>, new: Set<'_>) -> Self {
        let same_world = old.0.namespaces().eq(new.0.namespaces())
            && old.0.pods().eq(new.0.pods())
            && old
                .0
                .nodes()
                .map(|n| (&n.addresses, &n.pod_cidrs))
                .eq(new.0.nodes().map(|n| (&n.addresses, &n.pod_cidrs)))
            && old.0.services().eq(new.0.services())
            && old.0.cluster_policies().map(|p| &p.object).eq(new.0.cluster_policies().map(|p| &p.object))
            && old.1.profile() == new.1.profile();
        if !same_world {
            return Self::All;
        }
        let differing = |a: &Cluster, b: &Cluster| -> BTreeSet<Name> {
            let names = a.policies_by_name().zip(a.policies());
            let differs = |object| move |other: &crate::cluster::Policy| other.object != object;
            names
                .filter(|(name, policy)| b.policy(name).is_none_or(differs(policy.object.clone())))
                .map(|(name, _)| name.clone())
                .collect()
        };
        Self::By([differing(old.0, new.0), differing(new.0, old.0)])
    }

    fn selects(&self, old: Set<'_>, new: Set<'_>, pod: &Name) -> [bool; 2] {
        let Self::By(names) = self else { return [true; 2] };
        [Direction::Egress, Direction::Ingress].map(|direction| {
            [old, new].iter().zip(names).any(|((_, policies), names)| {
                let group = policies.index.pod(pod).map(|facts| policies.index.group(facts.group));
                let program = group.and_then(|g| g.selecting(direction));
                program.is_some_and(|p| p.names.iter().any(|n| names.contains(n)))
            })
        })
    }

    fn concerns(&self, source: &Class, destination: &Class) -> bool {
        matches!(self, Self::All) || source.touched[0] || destination.touched[1]
    }
}

/// Ranges of ports that no policy of either set tells apart.
fn intervals((a, old): Set<'_>, (b, new): Set<'_>, protocol: Protocol) -> Vec<Ports> {
    let mut begins: BTreeSet<u32> = BTreeSet::from([1]);
    let mut names: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut take = |policy: &Arc<Lowered>| {
        for port in policy.all_ports() {
            match port {
                Port::Range { protocol: p, first, last } if *p == protocol => {
                    begins.extend([u32::from(*first), u32::from(*last) + 1]);
                }
                Port::Named { name, .. } => drop(names.insert(name.clone())),
                Port::All(_) | Port::Range { .. } | Port::Invalid(_) => {}
            }
        }
    };
    old.index.all_policies().for_each(&mut take);
    new.index.all_policies().for_each(&mut take);
    for port in a.pods().chain(b.pods()).flat_map(|p| p.ports.iter()) {
        if port.protocol == protocol && names.contains(&port.name) {
            begins.extend([u32::from(port.port), u32::from(port.port) + 1]);
        }
    }
    let begins: Vec<u16> = begins.into_iter().filter_map(|b| u16::try_from(b).ok().filter(|b| *b > 0)).collect();
    let ends = begins.iter().skip(1).map(|b| b - 1).chain([u16::MAX]);
    begins.iter().zip(ends).map(|(first, last)| Ports { first: *first, last }).collect()
}

fn compare(
    judges: &[Judge<'_>; 2],
    side: Option<Direction>,
    source: &Class,
    destination: &Class,
    protocol: Protocol,
    intervals: &[Ports],
    found: &mut Vec<Difference>,
) {
    let mut by_answer: BTreeMap<(Admission, Admission), Vec<Ports>> = BTreeMap::new();
    for interval in intervals {
        let flow = Flow {
            source: source.representative.clone(),
            destination: destination.representative.clone(),
            protocol,
            port: interval.first,
            dialled: None,
        };
        let [before, after] = judges.each_ref().map(|judge| judge.admission(&flow, side));
        if before == after {
            continue;
        }
        let ports = by_answer.entry((before, after)).or_default();
        match ports.last_mut() {
            Some(previous) if u32::from(previous.last) + 1 == u32::from(interval.first) => {
                previous.last = interval.last
            }
            _ => ports.push(*interval),
        }
    }
    for ((before, after), ports) in by_answer {
        let (sources, destinations) = (source.ends.clone(), destination.ends.clone());
        found.push(Difference { sources, destinations, protocol, ports, before, after });
    }
}
