//! Per rule that does not admit, the nearest miss: what a reader would have to change least.

use std::sync::Arc;

use super::decide::{Peers, Query};
use super::decision::{Miss, Selecting, Why};
use super::lower::{Peer, Port, Rule};
use super::peer::{Far, FarKind};
use super::program::Program;
use super::selector::Mismatch;
use crate::cluster::TargetPort;

/// How far a rule is from admitting; lower is nearer. Only the order means something.
type Distance = u32;

/// Both peer and port are off: further than any rule where only one is.
const BOTH: Distance = 1000;

/// Policies whose misses are told. Nobody reads more of them, and what is told of one pair must not fill the memory.
const MAX_RANKED: usize = 1_000;

/// The nearest policies of the program with their misses: nearest policy first, nearest rule first, then by name and index.
pub(super) fn rank(asked: &Peers<'_>, program: &Program, far: &Far<'_>, query: &Query<'_>) -> Vec<Selecting> {
    let mut ranked: Vec<(Distance, Selecting)> = Vec::with_capacity(program.policies.len().min(2 * MAX_RANKED));
    for (at, policy) in program.policies.iter().enumerate() {
        let rules = policy.rules(program.direction).iter().enumerate();
        let mut misses: Vec<(Distance, Miss)> = rules
            .map(|(index, rule)| {
                let dead = |peer| program.is_dead(at, index, peer);
                miss(asked, &policy.name.namespace, index, rule, dead, far, query)
            })
            .collect();
        misses.sort_by_key(|(distance, miss)| (*distance, miss.rule));
        let nearest = misses.first().map_or(Distance::MAX, |(distance, _)| *distance);
        let misses = misses.into_iter().map(|(_, miss)| miss).collect();
        ranked.push((nearest, Selecting { policy: policy.name.clone(), misses }));
        if ranked.len() >= 2 * MAX_RANKED {
            keep_nearest(&mut ranked);
        }
    }
    keep_nearest(&mut ranked);
    ranked.into_iter().map(|(_, selecting)| selecting).collect()
}

/// Sorts by distance; stable, and policies come by name.
fn keep_nearest(ranked: &mut Vec<(Distance, Selecting)>) {
    ranked.sort_by_key(|(distance, _)| *distance);
    ranked.truncate(MAX_RANKED);
}

fn miss(
    asked: &Peers<'_>,
    namespace: &Arc<str>,
    index: usize,
    rule: &Rule,
    dead: impl Fn(usize) -> bool,
    far: &Far<'_>,
    query: &Query<'_>,
) -> (Distance, Miss) {
    let port_matches = query.matches(rule);
    let nearest = match rule.peers.as_deref() {
        None => None,
        Some(peers) => {
            let misses =
                peers.iter().enumerate().map(|(at, peer)| (peer_miss(asked, namespace, peer, || dead(at), far), at));
            let mut nearest: Option<(Distance, Why, usize)> = None;
            for (miss, at) in misses {
                let Some((distance, why)) = miss else {
                    // This peer matches: only the port is off.
                    let (distance, why) = port_miss(rule, query);
                    return (distance, Miss { rule: index, peer: Some(at), why, port_matches });
                };
                if nearest.as_ref().is_none_or(|(d, ..)| distance < *d) {
                    nearest = Some((distance, why, at));
                }
            }
            nearest
        }
    };
    match nearest {
        None => {
            let (distance, why) = port_miss(rule, query);
            (distance, Miss { rule: index, peer: None, why, port_matches })
        }
        Some((distance, why, at)) => {
            let distance = if port_matches { distance } else { distance + BOTH };
            (distance, Miss { rule: index, peer: Some(at), why, port_matches })
        }
    }
}

/// Why none of the rule's ports is the flow's.
fn port_miss(rule: &Rule, query: &Query<'_>) -> (Distance, Why) {
    let ports = rule.ports.as_deref().unwrap_or_default();
    if let Some(why) = service_port(ports, query) {
        return (1, why);
    }
    let pod_port = query.port;
    for port in ports {
        match port {
            Port::Named { protocol, name } if protocol.is_none_or(|p| p == query.protocol) => {
                let declared = query.pod.map(|(pod, _)| &*pod.ports).unwrap_or_default();
                let mut same_protocol = declared.iter().filter(|p| p.protocol == query.protocol);
                let found = same_protocol.clone().find(|p| p.name == *name).map(|p| p.port);
                let called = same_protocol.find(|p| p.port == pod_port && !p.name.is_empty()).map(|p| p.name.clone());
                return (2, Why::PortName { name: name.clone(), found, called, pod_port });
            }
            Port::Range { protocol, first, last } if (*first..=*last).contains(&pod_port) => {
                return (3, Why::Protocol { opens: *protocol, protocol: query.protocol, pod_port });
            }
            Port::All(_) | Port::Range { .. } | Port::Named { .. } | Port::Invalid(_) => {}
        }
    }
    let opens = &rule.opens[query.protocol as usize];
    if opens.is_empty()
        && let Some(Port::Invalid(part)) = ports.iter().find(|p| matches!(p, Port::Invalid(_)))
    {
        return (6, Why::Invalid { part: part.clone() });
    }
    let distance = if opens.is_empty() { 5 } else { 4 };
    (distance, Why::Port { opens: opens.clone(), pod_port, protocol: query.protocol })
}

/// The rule opens what a Service of the destination pod calls this port.
fn service_port(ports: &[Port], query: &Query<'_>) -> Option<Why> {
    let opened = |number: u16| {
        ports.iter().any(|p| match p {
            Port::Range { protocol, first, last } => *protocol == query.protocol && (*first..=*last).contains(&number),
            Port::All(_) | Port::Named { .. } | Port::Invalid(_) => false,
        })
    };
    if let Some((dialled, service)) = query.dialled.filter(|(port, _)| *port != query.port && opened(*port)) {
        return Some(Why::ServicePort { service: service.clone(), opens: dialled, pod_port: query.port });
    }
    let (pod, group) = query.pod?;
    let declared = &pod.ports;
    let leads_here = |target: &TargetPort| match target {
        TargetPort::Number(number) => *number == query.port,
        TargetPort::Name(name) => {
            declared.iter().any(|p| p.name == *name && p.protocol == query.protocol && p.port == query.port)
        }
    };
    for entry in &group.services {
        for port in &entry.service.ports {
            if port.protocol == query.protocol
                && port.port != query.port
                && opened(port.port)
                && leads_here(&port.target)
            {
                let service = entry.service.name.clone();
                return Some(Why::ServicePort { service, opens: port.port, pod_port: query.port });
            }
        }
    }
    None
}

/// Why a peer does not match; `None` where it does, at least for one of the addresses.
fn peer_miss(
    asked: &Peers<'_>,
    own: &Arc<str>,
    peer: &Peer,
    dead: impl Fn() -> bool,
    far: &Far<'_>,
) -> Option<(Distance, Why)> {
    if far.hit(asked, own, peer).any() {
        return None;
    }
    Some(match peer {
        Peer::Pods { namespaces, pods } => {
            let FarKind::Pod { group, .. } = &far.kind else {
                return Some((60, Why::NotAPod { end: far.not_a_pod() }));
            };
            let in_pods = pods.as_ref().and_then(|s| s.mismatch(group.pod_set(), &group.labels));
            let also = match &in_pods {
                Some(Mismatch::Label { failing, .. }) => (*failing).min(9),
                Some(Mismatch::Invalid(_)) => 9,
                None => 0,
            };
            let outside = match namespaces {
                Some(selector) => selector.mismatch(group.namespace_set(), &group.namespace_labels).map(|m| match m {
                    Mismatch::Label { wanted, found, failing } => {
                        let (namespace, matches_none) = (group.namespace.clone(), dead());
                        let why = Why::NamespaceLabel { namespace, wanted, found, matches_none };
                        (20 + failing.min(9) * 10 / 9 + also, why)
                    }
                    Mismatch::Invalid(part) => (70, Why::Invalid { part }),
                }),
                None => (group.namespace != *own).then(|| {
                    let (wanted, found) = (own.clone(), group.namespace.clone());
                    (20 + also, Why::OtherNamespace { wanted, found, labels_match: in_pods.is_none() })
                }),
            };
            match (outside, in_pods) {
                (Some(outside), _) => outside,
                (None, Some(Mismatch::Label { wanted, found, failing })) => {
                    (10 + failing.min(9), Why::PodLabel { wanted, found })
                }
                (None, Some(Mismatch::Invalid(part))) => (70, Why::Invalid { part }),
                // Not reached: a pod in the namespaces and with the labels is a hit.
                (None, None) => return None,
            }
        }
        Peer::Block { block, except } => match far.slots.addresses().next() {
            _ if far.is_ours() && !asked.profile.blocks_match_cluster() => {
                (62, Why::BlockNotCompared { block: *block })
            }
            Some(address) => match except.iter().find(|e| e.contains(&address)) {
                Some(except) => (40, Why::Excepted { block: *block, except: *except, address }),
                None => (50, Why::OutsideBlock { block: *block, address }),
            },
            None => (55, Why::BlockElsewhere { block: *block }),
        },
        Peer::Nodes(_) | Peer::Domains => (61, Why::OtherKind),
        Peer::Everyone => return None,
        Peer::Invalid(part) => (70, Why::Invalid { part: part.clone() }),
    })
}

/// Port numbers that a rule opens, per protocol.
pub(super) fn opens(ports: Option<&[Port]>) -> [Arc<[super::Ports]>; 3] {
    use super::Ports;
    use crate::words::Protocol;
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|wanted| {
        let ranges = ports.into_iter().flatten().filter_map(|p| match p {
            Port::All(protocol) if *protocol == wanted => Some(Ports { first: 1, last: u16::MAX }),
            Port::Range { protocol, first, last } if *protocol == wanted => Some(Ports { first: *first, last: *last }),
            Port::All(_) | Port::Range { .. } | Port::Named { .. } | Port::Invalid(_) => None,
        });
        ranges.collect()
    })
}
