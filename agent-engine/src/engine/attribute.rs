//! Whose attempt it was: from addresses to the pairs it belongs to.

use std::net::IpAddr;

use crate::attempt::Attempt;
use crate::cluster::{Cluster, Pod};
use crate::identity::{Identity, Peer};
use crate::ledger::{Instance, Ledger};
use crate::policy::Endpoint;
use crate::requirement::{End, PairKey, SeenEnd};
use crate::words::Protocol;

/// One pair that an attempt belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub key: PairKey,
    pub instance: Instance,
    /// Where it may have led.
    pub candidates: Vec<Endpoint>,
    /// It may have led to another pair's destination just as well.
    pub ambiguous: bool,
}

/// Whose attempt it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribution {
    /// Both ends are in one network namespace: no policy has a say in it.
    Local,
    /// No object explains one end.
    Unknown {
        /// The other end, if it is the source that is known.
        source: Option<End>,
        protocol: Protocol,
        port: u16,
    },
    /// It belongs to these pairs.
    Pairs(Vec<Target>),
    /// Both ends are known, and no pair is between them (yet).
    NoPair { source: SeenEnd, destination: SeenEnd, protocol: Protocol, port: u16 },
}

/// What attribution looks things up in.
pub(super) struct World<'a> {
    pub cluster: &'a Cluster,
    pub identity: &'a Identity,
    pub ledger: &'a Ledger,
}

impl World<'_> {
    pub fn attribute(&self, attempt: &Attempt) -> Attribution {
        let (dialled, protocol) = (attempt.dialled, attempt.dialled.protocol);
        if dialled.source == dialled.destination {
            return Attribution::Local;
        }
        let who = |address| self.identity.peer(self.cluster, address, attempt.started);
        let source = SeenEnd { peer: self.identity.dialler(self.cluster, attempt), address: dialled.source };
        let (address, port) = match &attempt.translated {
            Some(t) => (t.destination, t.destination_port),
            None => (dialled.destination, dialled.destination_port),
        };
        let destination = SeenEnd { peer: who(address), address };
        if source.peer == Peer::Loopback
            || destination.peer == Peer::Loopback
            || one_namespace(&source.peer, &destination.peer)
        {
            return Attribution::Local;
        }
        let unknown = |peer: &Peer| matches!(peer, Peer::Unknown { .. } | Peer::GonePod { .. });
        if unknown(&source.peer) || unknown(&destination.peer) {
            let known = self.sources(&source, None, attempt).into_iter().map(|(end, _)| end).next();
            return Attribution::Unknown { source: known, protocol, port };
        }
        let backends = if attempt.translated.is_none() {
            Identity::translate(self.cluster, address, protocol, port)
        } else {
            Vec::new()
        };
        let mut targets = Vec::new();
        if backends.is_empty() {
            self.direct(&source, &destination, protocol, port, attempt, &mut targets);
        } else {
            self.through_service(&source, address, protocol, port, &backends, attempt, &mut targets);
        }
        if targets.is_empty() {
            // What a Service leads to is known only if it leads to one place.
            let (destination, port) = match backends[..] {
                [] => (destination, port),
                [(address, port), ..] => (SeenEnd { peer: who(address), address }, port),
            };
            return Attribution::NoPair { source, destination, protocol, port };
        }
        Attribution::Pairs(targets)
    }

    fn direct(
        &self,
        source: &SeenEnd,
        to: &SeenEnd,
        protocol: Protocol,
        port: u16,
        attempt: &Attempt,
        targets: &mut Vec<Target>,
    ) {
        for (from, source_endpoint) in self.sources(source, self.node_of(&to.peer), attempt) {
            let destinations = match &to.peer {
                Peer::Pod { name, workload } => vec![(End::Workload(workload.clone()), pod(name, to.address))],
                Peer::ApiServer { address } => vec![(End::ApiServer, Endpoint::Address(*address))],
                Peer::NodeLocalDns => vec![(End::NodeLocalDns, Endpoint::Address(to.address))],
                Peer::External { address } => vec![(End::External, Endpoint::Address(*address))],
                Peer::Node { name, api_server } => {
                    let mut ends = self.on_host(&from, name, to.address, protocol, port);
                    if *api_server {
                        let endpoint = Endpoint::Node { name: name.clone(), address: Some(to.address) };
                        ends.push((End::ApiServer, endpoint));
                    }
                    ends
                }
                Peer::Service { .. } | Peer::Kubelet | Peer::Loopback | Peer::GonePod { .. } | Peer::Unknown { .. } => {
                    Vec::new()
                }
            };
            for (end, endpoint) in destinations {
                for key in self.ledger.pairs(&from, &end, protocol, port) {
                    let instance = Instance { source: source_endpoint.clone(), destination: endpoint.clone() };
                    let candidates = vec![endpoint.clone()];
                    targets.push(Target { key, instance, candidates, ambiguous: false });
                }
            }
        }
    }

    /// Translation was not seen: any backend may have been meant. A pair is told of it only if its ends are among them, and
    /// its decision counts only if all of them fare alike.
    #[expect(clippy::too_many_arguments, reason = "both ends of the attempt and where it may lead")]
    fn through_service(
        &self,
        source: &SeenEnd,
        address: IpAddr,
        protocol: Protocol,
        port: u16,
        backends: &[(IpAddr, u16)],
        attempt: &Attempt,
        targets: &mut Vec<Target>,
    ) {
        // NodeLocal DNSCache answers on the DNS Service's own address where it runs with iptables, and does not with IPVS.
        for (from, endpoint) in self.sources(source, None, attempt) {
            for key in self.ledger.pairs(&from, &End::NodeLocalDns, protocol, port) {
                let instance = Instance { source: endpoint.clone(), destination: Endpoint::Address(address) };
                let candidates = vec![Endpoint::Address(address)];
                targets.push(Target { key, instance, candidates, ambiguous: false });
            }
        }
        let mut found = Vec::new();
        for (backend, pod_port) in backends {
            let to = SeenEnd { peer: self.identity.peer(self.cluster, *backend, attempt.started), address: *backend };
            if !one_namespace(&source.peer, &to.peer) {
                self.direct(source, &to, protocol, *pod_port, attempt, &mut found);
            }
        }
        for target in found {
            match targets.iter_mut().find(|t| t.key == target.key) {
                Some(known) => known.candidates.extend(target.candidates),
                None => targets.push(target),
            }
        }
        let several = targets.iter().any(|t| targets.iter().any(|o| o.key.destination != t.key.destination));
        for target in targets.iter_mut() {
            target.ambiguous = several;
            if backends.len() > 1 {
                target.instance.destination = Endpoint::Address(address);
            }
        }
    }

    /// Every end that a source may be, with the endpoint that policies judge.
    fn sources(&self, source: &SeenEnd, destination_node: Option<&str>, attempt: &Attempt) -> Vec<(End, Endpoint)> {
        match &source.peer {
            Peer::Pod { name, workload } => vec![(End::Workload(workload.clone()), pod(name, source.address))],
            Peer::Node { name, api_server } => {
                let endpoint = Endpoint::Node { name: name.clone(), address: Some(source.address) };
                let mut ends = match self.host_pod(name, attempt) {
                    // A pod of the host's network: neither the kubelet nor another of those pods.
                    Some(known) => vec![
                        (End::Workload(known.workload.clone()), pod(&known.name, source.address)),
                        (End::Node, endpoint.clone()),
                    ],
                    None if destination_node == Some(&**name) => vec![(End::Kubelet, endpoint.clone())],
                    None => vec![(End::Node, endpoint.clone())],
                };
                if *api_server {
                    ends.push((End::ApiServer, endpoint));
                }
                ends
            }
            Peer::ApiServer { address } => vec![(End::ApiServer, Endpoint::Address(*address))],
            Peer::Kubelet => vec![(End::Kubelet, Endpoint::Address(source.address))],
            Peer::External { address } => vec![(End::External, Endpoint::Address(*address))],
            Peer::GonePod { .. }
            | Peer::Service { .. }
            | Peer::NodeLocalDns
            | Peer::Loopback
            | Peer::Unknown { .. } => Vec::new(),
        }
    }

    /// The hostNetwork pod of this node whose cgroup the connecting task was in.
    fn host_pod(&self, node: &str, attempt: &Attempt) -> Option<&Pod> {
        let pod = self.identity.pod_of_task(self.cluster, attempt)?;
        (pod.host_network && pod.node.as_deref() == Some(node)).then_some(pod)
    }

    /// hostNetwork pods that listen at a node's address.
    fn on_host(&self, from: &End, node: &str, address: IpAddr, protocol: Protocol, port: u16) -> Vec<(End, Endpoint)> {
        let listens = |e: &Endpoint| match e {
            Endpoint::Pod { name, .. } => {
                self.cluster.pod(name).is_some_and(|p| p.host_network && p.node.as_deref() == Some(node))
            }
            Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => false,
        };
        let pairs = self.ledger.pairs_from(from, protocol, port);
        let found = pairs.filter_map(|entry| {
            let endpoint = entry.pair.destinations.iter().find(|e| listens(e))?;
            let Endpoint::Pod { name, .. } = endpoint else { return None };
            Some((entry.pair.key.destination.clone(), pod(name, address)))
        });
        found.collect()
    }

    fn node_of(&self, peer: &Peer) -> Option<&str> {
        match peer {
            Peer::Pod { name, .. } => self.cluster.pod(name).and_then(|p| p.node.as_deref()),
            _ => None,
        }
    }
}

fn pod(name: &crate::words::Name, address: IpAddr) -> Endpoint {
    Endpoint::Pod { name: name.clone(), address: Some(address) }
}

/// Both ends are one pod, or one node's host network.
fn one_namespace(a: &Peer, b: &Peer) -> bool {
    match (a, b) {
        (Peer::Pod { name: a, .. }, Peer::Pod { name: b, .. }) => a == b,
        (Peer::Node { name: a, .. }, Peer::Node { name: b, .. }) => a == b,
        _ => false,
    }
}
