//! What configuration declares: pairs that follow from Istio's and the Gateway API's objects, before any packet.
//!
//! Routes lead from a gateway's pods to the pods behind a host, `jwksUri` from istiod (or the proxies) to the host of the keys,
//! extension providers from proxies to a collector or an authorizer. `exportTo` and ReferenceGrant are not looked at: a route
//! that Istio refuses for them is taken as meant. Clients inside the mesh are learnt from traffic, see [`super::learn`].

mod host;
mod keys;
mod providers;
mod routes;
#[cfg(test)]
mod tests;
mod waypoints;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::catalogue::Catalogue;
use super::pair::{End, Pair, PairKey};
use super::role::{Role, Roles};
use crate::cluster::{Cluster, Kind, Labels, Pod};
use crate::policy::Endpoint;
use crate::words::{Name, Protocol};
use host::Place;

/// Kinds whose objects declare pairs.
pub(super) const KINDS: [Kind; 16] = [
    Kind::ConfigMap,
    Kind::VirtualService,
    Kind::IstioGateway,
    Kind::ServiceEntry,
    Kind::RequestAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Telemetry,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::KymaIstio,
    Kind::WorkloadEntry,
    Kind::Sidecar,
    Kind::DestinationRule,
];

/// HBONE's port, the tunnel between ambient pods.
pub(super) const HBONE: u16 = 15_008;

/// Concrete sources and destinations of what is declared.
type Found = BTreeMap<(&'static str, End, End, Protocol, u16), (BTreeSet<Endpoint>, BTreeSet<Endpoint>)>;

/// Collects what the objects declare.
pub(super) struct Declarations<'a> {
    cluster: &'a Cluster,
    roles: &'a BTreeMap<Name, Roles>,
    /// Pods with a proxy, of every kind.
    proxies: Vec<(&'a Pod, &'a Roles)>,
    found: Found,
}

/// Every pair that configuration declares.
pub(super) fn pairs(cluster: &Cluster, roles: &BTreeMap<Name, Roles>, catalogue: &Catalogue) -> Vec<Pair> {
    let mut all = Declarations { cluster, roles, proxies: Vec::new(), found: Found::new() };
    let is_proxy = |roles: &Roles| {
        [Role::Gateway, Role::Waypoint, Role::Sidecar, Role::Istiod].iter().any(|role| roles.contains(role))
    };
    all.proxies = cluster.pods().filter_map(|p| Some((p, roles.get(&p.name)?))).filter(|(_, r)| is_proxy(r)).collect();
    all.routes();
    all.keys();
    all.providers();
    all.waypoints();
    let pairs = all.found.into_iter().filter_map(|((flow, source, destination, protocol, port), (from, to))| {
        let requirement = catalogue.flow(flow)?.clone();
        let key = PairKey { flow: requirement.id.clone(), source, destination, protocol, port };
        let (sources, destinations) = (from.into_iter().collect(), to.into_iter().collect());
        Some(Pair { key, requirement, sources, destinations, kubelets: [].into() })
    });
    pairs.collect()
}

impl<'a> Declarations<'a> {
    fn has(&self, pod: &Pod, role: Role) -> bool {
        self.roles.get(&pod.name).is_some_and(|roles| roles.contains(&role))
    }

    /// Pods with a proxy and a role.
    fn with_role(&self, role: Role) -> impl Iterator<Item = &'a Pod> {
        self.proxies.iter().filter(move |(_, roles)| roles.contains(&role)).map(|(pod, _)| *pod)
    }

    /// The namespace whose objects hold for the whole mesh: the control plane's.
    fn root_namespace(&self) -> Option<&'a Arc<str>> {
        self.with_role(Role::Istiod).next().map(|pod| &pod.name.namespace)
    }

    /// The sidecars, gateways and waypoints that an object in `namespace` with this `selector` is for.
    fn selected_proxies(&self, namespace: &str, selector: &Value) -> Vec<&'a Pod> {
        let everywhere = self.root_namespace().is_some_and(|root| **root == *namespace);
        let wanted = |pod: &Pod| everywhere || *pod.name.namespace == *namespace;
        let proxies = self.proxies.iter().filter(|(_, roles)| !roles.contains(&Role::Istiod));
        proxies.map(|(pod, _)| *pod).filter(|pod| wanted(pod) && selects(selector, &pod.labels)).collect()
    }

    fn add(&mut self, flow: &'static str, sources: &[&Pod], places: &[Place]) {
        for source in sources {
            let from = Endpoint::Pod { name: source.name.clone(), address: None };
            for place in places {
                let key = (flow, End::Workload(source.workload.clone()), place.end.clone(), Protocol::Tcp, place.port);
                let (sources, destinations) = self.found.entry(key).or_default();
                sources.insert(from.clone());
                destinations.insert(place.endpoint.clone());
            }
        }
    }
}

/// `matchLabels`-like: every label is there; an empty or missing selector selects all.
fn selects(wanted: &Value, labels: &Labels) -> bool {
    wanted.as_object().is_none_or(|wanted| {
        wanted.iter().all(|(key, value)| labels.get(key).is_some_and(|have| value.as_str() == Some(have)))
    })
}

/// The items of a list field; none where it is absent.
fn items<'v>(value: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    value[field].as_array().into_iter().flatten()
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value[field].as_str()
}

fn port_of(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}
