//! Traffic that was seen: which application pairs are required is told by no object, only by connections.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Model;
use crate::identity::Peer;
use crate::policy::Endpoint;
use crate::requirement::{End, PairKey, SeenEnd, same};
use crate::snapshot::{EndView, Snapshot};
use crate::time::Time;
use crate::words::{Name, Protocol};

/// One end of a connection, as whoever saw it names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Party {
    /// `namespace/name` of a pod.
    Pod(String),
    /// Name of a node: its host network.
    Node(Arc<str>),
    /// Any address: of a pod, of a node, or outside.
    Ip(IpAddr),
}

/// A connection, or an attempt at one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// Who connected.
    pub from: Party,
    /// To whom.
    pub to: Party,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
    /// The destination's pod port, after Service translation.
    pub port: u16,
    /// Whether it was established.
    #[serde(default = "yes")]
    pub established: bool,
}

fn yes() -> bool {
    true
}

impl Model {
    /// Takes in connections that were seen: from here on the pairs that they tell of are required. Returns those that tell
    /// of nothing: an end is not known, or the catalogue has no such flow.
    pub fn observe<'c>(&mut self, connections: &'c [Connection]) -> Vec<&'c Connection> {
        let mut by_port: BTreeMap<(Protocol, u16), Vec<_>> = BTreeMap::new();
        for (key, pair) in self.pairs() {
            by_port.entry((key.protocol, key.port)).or_default().push(pair);
        }
        let mut useless = Vec::new();
        for connection in connections {
            let Connection { from, to, protocol, port, established } = connection;
            let (Some(source), Some(destination)) = (self.seen(from), self.seen(to)) else {
                useless.push(connection);
                continue;
            };
            let known = by_port.get(&(*protocol, *port)).into_iter().flatten();
            let mut fits = known
                .filter(|pair| pair.instances().any(|(a, b)| is(a, &source) && is(b, &destination)))
                .map(|pair| pair.key.clone())
                .peekable();
            if fits.peek().is_some() {
                // Declared for a host outside: now one of its addresses is known.
                let outside: Vec<PairKey> = fits.filter(|key| key.destination == End::External).collect();
                for key in outside {
                    self.resolver.learn_address(&key, destination.address, Time::default());
                }
                continue;
            }
            let ends = (&source, &destination);
            if !self.resolver.learn(&self.cluster, ends, *protocol, *port, *established, Time::default()) {
                useless.push(connection);
            }
        }
        useless
    }

    fn seen(&self, party: &Party) -> Option<SeenEnd> {
        let address = match party {
            Party::Ip(address) => *address,
            Party::Node(name) => {
                let address = self.cluster.node(name)?.addresses.first().copied();
                let peer = Peer::Node { name: name.clone(), api_server: false };
                return Some(SeenEnd { peer, address: address.unwrap_or(UNSPECIFIED) });
            }
            Party::Pod(name) => {
                let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
                let pod = self.cluster.pod(&Name::new(namespace, name))?;
                let address = pod.addresses.first().copied().unwrap_or(UNSPECIFIED);
                if !pod.host_network {
                    let peer = Peer::Pod { name: pod.name.clone(), workload: pod.workload.clone() };
                    return Some(SeenEnd { peer, address });
                }
                address
            }
        };
        match self.identity.peer(&self.cluster, address, Time::default()) {
            Peer::Unknown { .. } | Peer::GonePod { .. } => None,
            peer => Some(SeenEnd { peer, address }),
        }
    }
}

/// Stands for the address of a pod that has none yet; such a pod is known by its name.
const UNSPECIFIED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

fn is(endpoint: &Endpoint, seen: &SeenEnd) -> bool {
    let seen_as = match &seen.peer {
        Peer::Pod { name, .. } => Endpoint::Pod { name: name.clone(), address: None },
        Peer::Node { name, .. } => Endpoint::Node { name: name.clone(), address: None },
        Peer::External { .. } if *endpoint == Endpoint::External => return true,
        _ => Endpoint::Address(seen.address),
    };
    same(endpoint, &seen_as)
}

/// The connections that an agent's snapshot tells of: of each pair that was attempted, the newest attempt.
#[must_use]
pub fn connections(snapshot: &Snapshot, model: &Model) -> Vec<Connection> {
    let mut found = Vec::new();
    for pair in &snapshot.pairs {
        let Some(evidence) = &pair.evidence else { continue };
        let judged = evidence.translated.as_ref().unwrap_or(&evidence.dialled);
        found.push(Connection {
            from: party(model, &pair.source, judged.source),
            to: party(model, &pair.destination, judged.destination),
            protocol: pair.protocol,
            port: pair.port,
            established: evidence.outcome == crate::attempt::Outcome::Established,
        });
    }
    found
}

/// A pod of the workload, whose pods may have other addresses by now; else the address.
fn party(model: &Model, end: &EndView, address: IpAddr) -> Party {
    let mut pods = model.cluster.pods().filter(|_| end.kind == "workload");
    pods.find(|p| p.workload.namespace == end.namespace && p.workload.name == end.workload)
        .map_or(Party::Ip(address), |pod| Party::Pod(pod.name.to_string()))
}
