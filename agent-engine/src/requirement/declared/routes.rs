//! Routes of VirtualServices and of the Gateway API: from a gateway's pods to what is behind a host.

use serde_json::Value;

use super::host::Place;
use super::{Declarations, items, port_of, selects, text};
use crate::cluster::{Key, Kind, Pod};
use crate::requirement::population::Whose;
use crate::requirement::role::Role;
use crate::words::Name;

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

impl<'a> Declarations<'a> {
    pub fn routes(&mut self) {
        let cluster = self.cluster;
        for (name, raw) in cluster.raw(Kind::VirtualService) {
            let gateways: Vec<&str> = items(&raw.object["spec"], "gateways").filter_map(Value::as_str).collect();
            let sources: Vec<&Pod> = gateways
                .iter()
                .filter(|g| **g != "mesh")
                .flat_map(|g| self.istio_gateway(g, &name.namespace))
                .collect();
            if !sources.is_empty() {
                let places = self.virtual_service(&name.namespace, &raw.object["spec"], true);
                self.backends(&sources, places);
            }
        }
        for kind in [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute] {
            for (name, raw) in cluster.raw(kind) {
                let spec = &raw.object["spec"];
                let parents = items(spec, "parentRefs").filter(|p| text(p, "kind").unwrap_or("Gateway") == "Gateway");
                let sources: Vec<&Pod> = parents.flat_map(|parent| self.api_gateway(parent, &name.namespace)).collect();
                if !sources.is_empty() {
                    let places = self.route(&name.namespace, spec);
                    self.backends(&sources, places);
                }
            }
        }
    }

    fn backends(&mut self, sources: &[&Pod], places: Vec<Place>) {
        let places = self.tunnelled(places);
        let (way_out, ingress): (Vec<&Pod>, Vec<&Pod>) =
            sources.iter().partition(|pod| self.has(pod, Role::EgressGateway));
        self.add("egress-gateway-outside", &way_out, &places);
        self.add("gateway-backend", &ingress, &places);
    }

    /// The pods of an Istio Gateway, `namespace/name` or `name`. One whose object is not there is served by the cluster's
    /// only gateway for incoming traffic, if there is just one.
    fn istio_gateway(&self, gateway: &str, namespace: &str) -> Vec<&'a Pod> {
        let (namespace, name) = gateway.split_once('/').unwrap_or((namespace, gateway));
        let key = Key { kind: Kind::IstioGateway, name: Name::new(namespace, name) };
        if let Some(raw) = self.cluster.raw_object(&key) {
            let selector = &raw.object["spec"]["selector"];
            return self.with_role(Role::Gateway, Whose::All).filter(|pod| selects(selector, &pod.labels)).collect();
        }
        let ingress = self.with_role(Role::Gateway, Whose::All).filter(|pod| {
            !self.has(pod, Role::EgressGateway)
                && !self.has(pod, Role::EastWestGateway)
                && !pod.labels.contains_key(GATEWAY_NAME)
        });
        let ingress: Vec<&Pod> = ingress.collect();
        let only_one = ingress.windows(2).all(|two| two[0].workload == two[1].workload);
        if only_one { ingress } else { Vec::new() }
    }

    /// The pods that Istio made for a Gateway of the Gateway API.
    fn api_gateway(&self, parent: &Value, namespace: &str) -> Vec<&'a Pod> {
        let namespace = text(parent, "namespace").unwrap_or(namespace);
        let Some(name) = text(parent, "name") else { return Vec::new() };
        let is_its = |pod: &&Pod| {
            *pod.name.namespace == *namespace && pod.labels.get(GATEWAY_NAME).is_some_and(|gateway| **gateway == *name)
        };
        [Role::Gateway, Role::Waypoint]
            .into_iter()
            .flat_map(|role| self.with_role(role, Whose::All))
            .filter(is_its)
            .collect()
    }

    fn virtual_service(&self, namespace: &str, spec: &Value, follow: bool) -> Vec<Place> {
        let mut places = Vec::new();
        for route in ["http", "tcp", "tls"].into_iter().flat_map(|kind| items(spec, kind)) {
            let mirrors = items(route, "mirrors").map(|m| &m["destination"]);
            let destinations =
                items(route, "route").map(|r| &r["destination"]).chain(mirrors).chain([&route["mirror"]]);
            for destination in destinations {
                if let Some(host) = text(destination, "host") {
                    places.extend(self.host(host, namespace, port_of(&destination["port"]["number"])));
                }
            }
            if let Some(name) = text(&route["delegate"], "name").filter(|_| follow) {
                let namespace = text(&route["delegate"], "namespace").unwrap_or(namespace);
                let key = Key { kind: Kind::VirtualService, name: Name::new(namespace, name) };
                if let Some(raw) = self.cluster.raw_object(&key) {
                    places.extend(self.virtual_service(namespace, &raw.object["spec"], false));
                }
            }
        }
        places
    }

    fn route(&self, namespace: &str, spec: &Value) -> Vec<Place> {
        let mut places = Vec::new();
        for rule in items(spec, "rules") {
            let mirrors = items(rule, "filters").map(|f| &f["requestMirror"]["backendRef"]);
            for backend in items(rule, "backendRefs").chain(mirrors) {
                let kind = text(backend, "kind").unwrap_or("Service");
                let Some(name) = text(backend, "name") else { continue };
                let namespace = text(backend, "namespace").unwrap_or(namespace);
                let port = port_of(&backend["port"]);
                match kind {
                    "Service" => {
                        if let Some(service) = self.cluster.service(&Name::new(namespace, name)) {
                            places.extend(self.service(service, port));
                        }
                    }
                    // networking.istio.io Hostname: a ServiceEntry's host as a backend.
                    "Hostname" => places.extend(self.host(name, namespace, port)),
                    _ => {}
                }
            }
        }
        places
    }
}
