//! What configuration declares: pairs that follow from Istio's and the Gateway API's objects, before any packet.
//!
//! Routes lead from a gateway's pods to the pods behind a host, `jwksUri` from istiod (or the proxies) to the host of the keys,
//! extension providers from proxies to a collector or an authorizer. A NetworkPolicy that names both ends and an application's port
//! declares the tunnel between them, where both ends tunnel. `exportTo` and ReferenceGrant are not looked at: a route
//! that Istio refuses for them is taken as meant. Clients inside the mesh are learnt from traffic, see [`super::learn`].

mod host;
mod keys;
mod providers;
mod routes;
#[cfg(test)]
mod tests;
mod tunnels;
mod waypoints;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::catalogue::Catalogue;
use super::pair::{End, Pair, PairKey};
use super::population::{Population, Whose};
use super::role::Role;
use crate::cluster::{Cluster, Kind, Labels, Pod};
use crate::policy::Endpoint;
use crate::words::Protocol;
use host::Place;

/// Kinds whose objects declare pairs.
pub(super) const KINDS: [Kind; 17] = [
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
    Kind::NetworkPolicy,
];

/// HBONE's port, the tunnel between ambient pods.
pub(super) const HBONE: u16 = 15_008;

/// Concrete sources and destinations of what is declared.
type Found = BTreeMap<(&'static str, End, End, Protocol, u16), (BTreeSet<Endpoint>, BTreeSet<Endpoint>)>;

/// Collects what the objects declare.
pub(super) struct Declarations<'a> {
    cluster: &'a Cluster,
    population: &'a Population,
    found: Found,
}

/// Every pair that configuration declares and that may have an end on an own node.
pub(super) fn pairs(cluster: &Cluster, population: &Population, catalogue: &Catalogue) -> Vec<Pair> {
    let mut all = Declarations { cluster, population, found: Found::new() };
    all.routes();
    all.keys();
    all.providers();
    all.waypoints();
    all.tunnels();
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
        self.population.roles(&pod.name).contains(role)
    }

    fn with_role(&self, role: Role, whose: Whose) -> impl Iterator<Item = &'a Pod> + use<'a> {
        self.population.pods(self.cluster, role, whose)
    }

    /// The namespace whose objects hold for the whole mesh: the control plane's.
    fn root_namespace(&self) -> Option<&'a Arc<str>> {
        self.with_role(Role::Istiod, Whose::All).map(|pod| &pod.name).min().map(|name| &name.namespace)
    }

    /// The sidecars, gateways and waypoints that an object in `namespace` with this `selector` is for, as far as they matter
    /// beside these places.
    fn selected_proxies(&self, namespace: &str, selector: &Value, places: &[Place]) -> Vec<&'a Pod> {
        let whose = Whose::beside(places.iter().any(|place| self.is_local(&place.end)));
        let everywhere = self.root_namespace().is_some_and(|root| **root == *namespace);
        let wanted = |pod: &Pod| everywhere || *pod.name.namespace == *namespace;
        let proxies = [Role::Gateway, Role::Waypoint, Role::Sidecar].into_iter();
        let proxies = proxies.flat_map(|role| self.with_role(role, whose)).filter(|pod| !self.has(pod, Role::Istiod));
        proxies.filter(|pod| wanted(pod) && selects(selector, &pod.labels)).collect()
    }

    fn is_local(&self, end: &End) -> bool {
        match end {
            End::Workload(workload) => self.population.is_local(workload),
            _ => self.population.is_everywhere(),
        }
    }

    fn add(&mut self, flow: &'static str, sources: &[&Pod], places: &[Place]) {
        let places: Vec<(&Place, bool)> = places.iter().map(|place| (place, self.is_local(&place.end))).collect();
        for source in sources {
            let from = Endpoint::Pod { name: source.name.clone(), address: None };
            let here = self.population.is_local(&source.workload);
            for (place, _) in places.iter().filter(|(_, there)| here || *there) {
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
