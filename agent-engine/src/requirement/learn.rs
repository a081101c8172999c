//! Ends that no label tells of, learnt from traffic: webhook callers, scrapers, application pairs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::catalogue::{LearnFrom, PortSource, Requirement};
use super::pair::{End, PairKey};
use super::resolve::{Resolver, service_ports};
use super::role::{Role, Roles};
use crate::cluster::{Cluster, Pod};
use crate::identity::Peer;
use crate::policy::Endpoint;
use crate::time::Time;
use crate::words::Protocol;

/// Concrete addresses kept per learnt end that is no workload.
const MAX_ADDRESSES: usize = 16;

/// A pair that traffic told of.
#[derive(Clone, Debug)]
pub struct Learnt {
    pub(super) last: Time,
    pub(super) sources: BTreeSet<Endpoint>,
    pub(super) destinations: BTreeSet<Endpoint>,
}

/// One end of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEnd {
    /// Who it is.
    pub peer: Peer,
    /// Its address.
    pub address: IpAddr,
}

impl SeenEnd {
    /// The workload, or what it is where it is none; nothing for what cannot be told.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        end_of(self, None)
    }

    /// As policies judge it.
    #[must_use]
    pub fn endpoint(&self) -> Option<Endpoint> {
        match &self.peer {
            Peer::Pod { name, .. } => Some(Endpoint::Pod { name: name.clone(), address: Some(self.address) }),
            _ => endpoint_of(self),
        }
    }
}

impl Resolver {
    /// Takes in an attempt that belongs to no pair yet; says whether there is a new pair now.
    pub fn learn(
        &mut self,
        cluster: &Cluster,
        ends: (&SeenEnd, &SeenEnd),
        protocol: Protocol,
        port: u16,
        established: bool,
        now: Time,
    ) -> bool {
        let (source, destination) = ends;
        let pod = match &destination.peer {
            Peer::Pod { name, .. } => cluster.pod(name),
            Peer::External { .. } => None,
            Peer::GonePod { .. }
            | Peer::Node { .. }
            | Peer::ApiServer { .. }
            | Peer::Service { .. }
            | Peer::Kubelet
            | Peer::NodeLocalDns
            | Peer::Loopback
            | Peer::Unknown { .. } => return false,
        };
        let node = pod.and_then(|p| p.node.as_deref());
        let source_roles = self.roles_of(source, node);
        let destination_roles = self.roles_of(destination, None);
        let fits = |r: &Requirement| {
            !r.configured
                && r.learn_source.iter().any(|role| source_roles.contains(*role))
                && r.destination.iter().any(|role| destination_roles.contains(*role))
                && r.protocols.contains(&protocol)
                && (r.learn_from == LearnFrom::Attempt || established)
                && match r.port_from {
                    None => r.ports.contains(&port),
                    // A connection that nobody answers proves no requirement where its port is none that the pod is known for.
                    Some(PortSource::Application) => {
                        !is_istios(port) && (established || pod.is_none_or(|p| may_serve(cluster, p, protocol, port)))
                    }
                    Some(from @ (PortSource::Service | PortSource::PublicService)) => {
                        pod.is_some_and(|p| service_ports(cluster, p, from).contains(&(protocol, port)))
                    }
                    Some(PortSource::ApiServer | PortSource::ClusterDns) => false,
                }
        };
        // The first entry that fits is the most specific: the catalogue is in that order.
        let Some(flow) = self.catalogue.flows().find(|r| fits(r)).map(|r| r.id.clone()) else { return false };
        let (Some(from), Some(to)) = (end_of(source, node), end_of(destination, None)) else { return false };
        let key = PairKey { flow, source: from, destination: to, protocol, port };
        if !self.learnt.contains_key(&key) && self.learnt.len() >= self.max_learnt {
            self.learnt_overflow += 1;
            return false;
        }
        let is_new = !self.learnt.contains_key(&key);
        // Each pod has its own node's kubelet: there is nothing to remember of the one that was seen.
        let own_node = key.source == End::Kubelet && matches!(source.peer, Peer::Node { .. });
        let learnt = self.learnt.entry(key).or_insert_with(|| Learnt {
            last: now,
            sources: BTreeSet::new(),
            destinations: BTreeSet::new(),
        });
        learnt.last = now;
        let mut grown = false;
        if let Some(endpoint) = endpoint_of(source).filter(|_| !own_node && learnt.sources.len() < MAX_ADDRESSES) {
            grown |= learnt.sources.insert(endpoint);
        }
        if let Some(endpoint) = endpoint_of(destination).filter(|_| learnt.destinations.len() < MAX_ADDRESSES) {
            grown |= learnt.destinations.insert(endpoint);
        }
        is_new || grown
    }

    /// A declared host outside was dialled at this address: from now on the pair is judged for the addresses it really has.
    /// Says whether that is news.
    pub fn learn_address(&mut self, key: &PairKey, address: IpAddr, now: Time) -> bool {
        if !self.learnt.contains_key(key) && self.learnt.len() >= self.max_learnt {
            self.learnt_overflow += 1;
            return false;
        }
        let learnt = self.learnt.entry(key.clone()).or_insert_with(|| Learnt {
            last: now,
            sources: BTreeSet::new(),
            destinations: BTreeSet::new(),
        });
        learnt.last = now;
        learnt.destinations.len() < MAX_ADDRESSES && learnt.destinations.insert(Endpoint::Address(address))
    }

    /// Says that a learnt pair is still used.
    pub fn seen(&mut self, key: &PairKey, now: Time) {
        if let Some(learnt) = self.learnt.get_mut(key) {
            learnt.last = now;
        }
    }

    /// Forgets what was not seen for `unused`; says whether pairs may have changed.
    pub fn expire(&mut self, now: Time, unused: Duration) -> bool {
        let before = self.learnt.len();
        self.learnt.retain(|_, l| l.last.plus(unused) >= now);
        self.learnt.len() != before
    }

    /// Learnt pairs that did not fit in.
    #[must_use]
    pub fn learnt_overflow(&self) -> u64 {
        self.learnt_overflow
    }

    fn roles_of(&self, end: &SeenEnd, other_node: Option<&str>) -> Roles {
        match &end.peer {
            Peer::Pod { name, .. } => self.roles(name),
            Peer::Node { name, .. } if Some(&**name) == other_node => Role::Kubelet.into(),
            Peer::Node { .. } => Role::Node.into(),
            Peer::Kubelet => Role::Kubelet.into(),
            Peer::External { .. } => Role::External.into(),
            Peer::ApiServer { .. } => Role::ApiServer.into(),
            Peer::GonePod { .. }
            | Peer::Service { .. }
            | Peer::NodeLocalDns
            | Peer::Loopback
            | Peer::Unknown { .. } => Roles::empty(),
        }
    }
}

/// Whether an application may listen there: a Service leads there or a container declares it, or nothing at all is known.
fn may_serve(cluster: &Cluster, pod: &Pod, protocol: Protocol, port: u16) -> bool {
    let services = service_ports(cluster, pod, PortSource::Service);
    let declared = pod.ports.iter().filter(|p| !is_istios(p.port)).map(|p| (p.protocol, p.port));
    let mut known = services.into_iter().chain(declared).peekable();
    known.peek().is_none() || known.any(|known| known == (protocol, port))
}

/// 15000 to 15099 and 15443 are Istio's own; an application does not listen there.
fn is_istios(port: u16) -> bool {
    (15_000..15_100).contains(&port) || port == 15_443
}

fn end_of(end: &SeenEnd, other_node: Option<&str>) -> Option<End> {
    Some(match &end.peer {
        Peer::Pod { workload, .. } => End::Workload(workload.clone()),
        Peer::Node { name, .. } if Some(&**name) == other_node => End::Kubelet,
        Peer::Kubelet => End::Kubelet,
        Peer::Node { .. } => End::Node,
        Peer::External { .. } => End::External,
        Peer::ApiServer { .. } => End::ApiServer,
        Peer::GonePod { .. } | Peer::Service { .. } | Peer::NodeLocalDns | Peer::Loopback | Peer::Unknown { .. } => {
            return None;
        }
    })
}

/// Concrete ends of what is no workload; the pods of a workload are looked up when pairs are made.
fn endpoint_of(end: &SeenEnd) -> Option<Endpoint> {
    match &end.peer {
        Peer::Node { name, .. } => Some(Endpoint::Node { name: name.clone(), address: Some(end.address) }),
        Peer::Kubelet | Peer::External { .. } | Peer::ApiServer { .. } => Some(Endpoint::Address(end.address)),
        Peer::Pod { .. }
        | Peer::GonePod { .. }
        | Peer::Service { .. }
        | Peer::NodeLocalDns
        | Peer::Loopback
        | Peer::Unknown { .. } => None,
    }
}
