//! Who reaches whom on one port: pods that no policy can tell apart form a class, and classes are judged, not pairs.
//!
//! Two pods of one namespace with one label set differ for policies only by the address blocks that hold their addresses and
//! by what their named ports are. hostNetwork pods are left out: policies know them as nodes.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::Policies;
use super::decide::family;
use super::decision::{Admission, Endpoint, Flow};
use super::group::{Facts, GroupId};
use super::lower::Peer;
use crate::cluster::Cluster;
use crate::words::{Name, Protocol};

/// Pods that every policy treats alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Its pods, by name; never empty.
    pub pods: Vec<Name>,
}

/// The answer for every pair of pods, on one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    classes: Vec<Class>,
    /// By source class times destination class.
    answers: Vec<Admission>,
}

/// What tells pods of one group apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Signature {
    group: GroupId,
    template: bool,
    /// Per address its family and the blocks that hold it.
    blocks: Vec<(u8, Vec<u64>)>,
    /// Names and numbers of the ports that decide.
    ports: Vec<(std::sync::Arc<str>, u16, Protocol)>,
}

impl Policies {
    /// Who reaches whom on this port, pods and templates alike.
    #[must_use]
    pub fn reachability(&self, cluster: &Cluster, protocol: Protocol, port: u16) -> Reachability {
        let blocks = self.blocks();
        let mut grouped: BTreeMap<Signature, Vec<Name>> = BTreeMap::new();
        for pod in cluster.pods().filter(|p| !p.host_network) {
            if let Some(facts) = self.index.pod(&pod.name) {
                let named = |p: &&crate::cluster::ContainerPort| p.port == port && p.protocol == protocol;
                grouped.entry(signature(facts, &blocks, named)).or_default().push(pod.name.clone());
            }
        }
        let mut classes: Vec<Class> = grouped.into_values().map(|pods| Class { pods }).collect();
        classes.sort_by(|a, b| a.pods[0].cmp(&b.pods[0]));
        // A representative stands for any other pod of its class: even the pair of it with itself is two pods.
        let mut judge = self.judge(cluster);
        judge.loopback = true;
        let ends: Vec<Endpoint> =
            classes.iter().map(|c| Endpoint::Pod { name: c.pods[0].clone(), address: None }).collect();
        let mut answers = Vec::with_capacity(ends.len() * ends.len());
        for source in &ends {
            for destination in &ends {
                let (source, destination) = (source.clone(), destination.clone());
                let flow = Flow { source, destination, protocol, port, dialled: None };
                answers.push(judge.admission(&flow, None));
            }
        }
        Reachability { classes, answers }
    }

    /// Every block and exception of every policy.
    pub(super) fn blocks(&self) -> Vec<IpNet> {
        let peers = self.index.all_policies().flat_map(|p| p.peers());
        let mut blocks: Vec<IpNet> = peers
            .flat_map(|peer| match peer {
                Peer::Block { block, except } => std::iter::once(*block).chain(except.iter().copied()).collect(),
                Peer::Pods { .. } | Peer::Nodes(_) | Peer::Domains | Peer::Everyone | Peer::Invalid(_) => Vec::new(),
            })
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }
}

pub(super) fn signature(
    facts: &Facts,
    blocks: &[IpNet],
    port: impl Fn(&&crate::cluster::ContainerPort) -> bool,
) -> Signature {
    let inside = |address| {
        let mut bits = vec![0u64; blocks.len().div_ceil(64)];
        for (n, block) in blocks.iter().enumerate() {
            bits[n / 64] |= u64::from(block.contains(&address)) << (n % 64);
        }
        bits
    };
    let mut ports: Vec<_> = facts.pod.ports.iter().filter(port).map(|p| (p.name.clone(), p.port, p.protocol)).collect();
    ports.sort_unstable();
    ports.dedup();
    Signature {
        group: facts.group,
        template: facts.pod.template,
        blocks: facts.pod.addresses.iter().map(|a| (family(a), inside(*a))).collect(),
        ports,
    }
}

impl Reachability {
    /// The classes, by their first pod.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// What connections from pods of one class to pods of another get; indices into [`classes`](Self::classes).
    #[must_use]
    pub fn answer(&self, source: usize, destination: usize) -> Admission {
        self.answers[source * self.classes.len() + destination]
    }

    /// How many ordered pairs of two different pods are admitted.
    #[must_use]
    pub fn admitted(&self) -> usize {
        self.count(Admission::Admitted)
    }

    /// How many ordered pairs of two different pods get this answer.
    #[must_use]
    pub fn count(&self, answer: Admission) -> usize {
        let size = |n: usize| self.classes[n].pods.len();
        let all = (0..self.classes.len()).flat_map(|a| (0..self.classes.len()).map(move |b| (a, b)));
        let matching = all.filter(|(a, b)| self.answer(*a, *b) == answer);
        matching.map(|(a, b)| size(a) * if a == b { size(a) - 1 } else { size(b) }).sum()
    }
}
