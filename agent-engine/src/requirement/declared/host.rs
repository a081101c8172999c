//! Hosts of routes: Services by short or full name, ServiceEntries, anything else is outside.

use std::net::IpAddr;

use serde_json::Value;

use super::{Declarations, HBONE, items, port_of, selects, text};
use crate::cluster::{Kind, Pod, Service};
use crate::policy::Endpoint;
use crate::requirement::pair::End;
use crate::requirement::role::Role;
use crate::words::{Name, Protocol};

/// Where a host leads: one pod or address, on the port that policies judge.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub end: End,
    pub endpoint: Endpoint,
    pub port: u16,
}

impl Place {
    pub fn pod(pod: &Pod, port: u16) -> Self {
        let endpoint = Endpoint::Pod { name: pod.name.clone(), address: None };
        Self { end: End::Workload(pod.workload.clone()), endpoint, port }
    }

    pub fn outside(port: u16) -> Self {
        Self { end: End::External, endpoint: Endpoint::External, port }
    }
}

impl Declarations<'_> {
    /// The places behind a host as an object in `namespace` names it. Without a port, a Service's only one.
    pub(super) fn host(&self, host: &str, namespace: &str, port: Option<u16>) -> Vec<Place> {
        if let Some(service) = self.service_of(host, namespace) {
            return self.service(service, port);
        }
        if let Some((name, entry)) = self.entry_of(host) {
            return self.entry(&name.namespace, entry, port);
        }
        // A host of the cluster whose Service is not there leads nowhere.
        let inside = !host.contains('.') || host.ends_with(".svc") || host.contains(".svc.") || host.contains('*');
        match port {
            Some(port) if !inside => vec![self.address(host.parse().ok(), port)],
            Some(_) | None => Vec::new(),
        }
    }

    /// `name`, `name.namespace`, `name.namespace.svc`, `name.namespace.svc.cluster.local` or another cluster domain.
    fn service_of(&self, host: &str, namespace: &str) -> Option<&Service> {
        let mut parts = host.trim_end_matches('.').split('.');
        let name = parts.next().filter(|name| !name.is_empty())?;
        let (namespace, rest) = (parts.next().unwrap_or(namespace), parts.next());
        if rest.is_some_and(|svc| svc != "svc") {
            return None;
        }
        self.cluster.service(&Name::new(namespace, name))
    }

    /// The places behind a Service's port.
    pub(super) fn service(&self, service: &Service, port: Option<u16>) -> Vec<Place> {
        let wanted = |p: &&crate::cluster::ServicePort| {
            p.protocol == Protocol::Tcp && port.map_or(service.ports.len() == 1, |port| p.port == port)
        };
        let Some(entry) = service.ports.iter().find(wanted) else { return Vec::new() };
        if service.selector.is_empty() {
            let endpoints = self.cluster.endpoints(&service.name, Protocol::Tcp, entry.port);
            return endpoints.into_iter().map(|(address, port)| self.address(Some(address), port)).collect();
        }
        // A Service of type ExternalName selects nothing and leads outside; its selector is ignored by Kubernetes.
        self.cluster.selected(service, entry).map(|(pod, port)| Place::pod(pod, port)).collect()
    }

    fn entry_of(&self, host: &str) -> Option<(&Name, &Value)> {
        let names = |entry: &Value| {
            items(&entry["spec"], "hosts").filter_map(Value::as_str).any(|known| match known.strip_prefix('*') {
                Some(suffix) => host.ends_with(suffix),
                None => known == host,
            })
        };
        let entries = self.cluster.raw(Kind::ServiceEntry).map(|(name, raw)| (name, &*raw.object));
        entries.into_iter().find(|(_, entry)| names(entry))
    }

    fn entry(&self, namespace: &str, entry: &Value, port: Option<u16>) -> Vec<Place> {
        let spec = &entry["spec"];
        let ports: Vec<&Value> = items(spec, "ports").collect();
        let wanted = |p: &&&Value| port.map_or(ports.len() == 1, |port| port_of(&p["number"]) == Some(port));
        let Some(declared) = ports.iter().find(wanted) else { return Vec::new() };
        let Some(number) = port_of(&declared["targetPort"]).or_else(|| port_of(&declared["number"])) else {
            return Vec::new();
        };
        let selector = &spec["workloadSelector"]["labels"];
        if selector.is_object() {
            let inside = self.cluster.pods().filter(|p| *p.name.namespace == *namespace && !p.finished());
            return inside.filter(|p| selects(selector, &p.labels)).map(|p| Place::pod(p, number)).collect();
        }
        let own = |endpoint: &Value| text(declared, "name").and_then(|name| port_of(&endpoint["ports"][name]));
        let endpoints: Vec<Place> = items(spec, "endpoints")
            .map(|e| self.address(text(e, "address").and_then(|a| a.parse().ok()), own(e).unwrap_or(number)))
            .collect();
        if endpoints.is_empty() { vec![Place::outside(number)] } else { endpoints }
    }

    /// A pod where the address is one's, else somebody outside.
    fn address(&self, address: Option<IpAddr>, port: u16) -> Place {
        let Some(address) = address else { return Place::outside(port) };
        match self.cluster.pod_by_address(address) {
            Some(pod) => Place::pod(pod, port),
            None => Place { end: End::External, endpoint: Endpoint::Address(address), port },
        }
    }

    /// The tunnel's port where the destination takes it: gateways and waypoints speak HBONE to ambient pods.
    pub(super) fn tunnelled(&self, mut places: Vec<Place>) -> Vec<Place> {
        for place in &mut places {
            if let Endpoint::Pod { name, .. } = &place.endpoint
                && self.cluster.pod(name).is_some_and(|pod| self.has(pod, Role::Ambient))
            {
                place.port = HBONE;
            }
        }
        places
    }
}
