//! Tunnels that NetworkPolicies mean: a rule that names a client and the port of an application admits nothing where the two
//! speak HBONE, because on the wire it is 15008 (istio.io ambient/usage/networkpolicy). What such a rule means to admit is
//! required, on the tunnel's port.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::host::Place;
use super::{Declarations, HBONE};
use crate::cluster::Pod;
use crate::policy::selects;
use crate::requirement::catalogue::PortSource;
use crate::requirement::resolve::service_ports;
use crate::requirement::role::Role;
use crate::words::Protocol;

/// Sources times destinations of one rule that are followed; a rule for more names nobody in particular.
const MAX_OF_A_RULE: usize = 10_000;

impl<'a> Declarations<'a> {
    pub fn tunnels(&mut self) {
        let cluster = self.cluster;
        if !self.population.has(Role::Ambient) {
            return;
        }
        let tunnelling: Vec<&'a Pod> = cluster.pods().filter(|p| !p.finished() && self.tunnels_at(p)).collect();
        let mut by_namespace: BTreeMap<&str, Vec<&'a Pod>> = BTreeMap::new();
        for pod in &tunnelling {
            by_namespace.entry(&pod.name.namespace).or_default().push(pod);
        }
        let nobody = Vec::new();
        for policy in cluster.policies() {
            let Some(spec) = &policy.object.spec else { continue };
            let namespace = policy.object.metadata.namespace.as_deref().unwrap_or("default");
            let all = LabelSelector::default();
            let selector = spec.pod_selector.as_ref().unwrap_or(&all);
            let inside = by_namespace.get(namespace).unwrap_or(&nobody).iter().copied();
            let own: Vec<&Pod> = inside.filter(|p| selects(selector, &p.labels)).collect();
            if own.is_empty() {
                continue;
            }
            for rule in spec.ingress.iter().flatten() {
                let from = self.named(rule.from.as_deref(), namespace, &tunnelling);
                self.meant(&from, &own, rule.ports.as_deref());
            }
            for rule in spec.egress.iter().flatten() {
                let to = self.named(rule.to.as_deref(), namespace, &tunnelling);
                self.meant(&own, &to, rule.ports.as_deref());
            }
        }
    }

    /// Its connections may be tunnelled: ambient pods, and those with a sidecar.
    fn tunnels_at(&self, pod: &Pod) -> bool {
        self.has(pod, Role::Ambient) || self.has(pod, Role::Sidecar)
    }

    /// The pods that a rule's peers name. One that is for everybody names nobody.
    fn named(&self, peers: Option<&[api::NetworkPolicyPeer]>, namespace: &str, all: &[&'a Pod]) -> Vec<&'a Pod> {
        let says = |s: &Option<LabelSelector>| {
            s.as_ref().is_some_and(|s| {
                s.match_labels.as_ref().is_some_and(|m| !m.is_empty())
                    || s.match_expressions.as_ref().is_some_and(|e| !e.is_empty())
            })
        };
        let peers: Vec<_> = peers.into_iter().flatten().collect();
        if !peers.iter().any(|p| says(&p.pod_selector) || says(&p.namespace_selector)) {
            return Vec::new();
        }
        let is_named = |peer: &api::NetworkPolicyPeer, pod: &Pod| {
            let in_namespace = match &peer.namespace_selector {
                None => *pod.name.namespace == *namespace,
                Some(selector) => {
                    self.cluster.namespace(&pod.name.namespace).is_some_and(|n| selects(selector, &n.labels))
                }
            };
            in_namespace && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
        };
        let exact = peers.into_iter().filter(|p| p.ip_block.is_none());
        let exact: Vec<_> = exact.filter(|p| says(&p.pod_selector) || says(&p.namespace_selector)).collect();
        all.iter().copied().filter(|pod| exact.iter().any(|peer| is_named(peer, pod))).collect()
    }

    fn meant(&mut self, sources: &[&'a Pod], destinations: &[&'a Pod], ports: Option<&[api::NetworkPolicyPort]>) {
        if sources.len().saturating_mul(destinations.len()) > MAX_OF_A_RULE {
            return;
        }
        for destination in destinations {
            if !self.serves(destination, ports) {
                continue;
            }
            let place = [Place::pod(destination, HBONE)];
            let ambient = |pod: &Pod| self.has(pod, Role::Ambient);
            let to_ambient = ambient(destination);
            let others = sources.iter().copied().filter(|source| source.name != destination.name);
            let (from_ambient, from_sidecars): (Vec<&Pod>, Vec<&Pod>) = others.partition(|source| ambient(source));
            self.add(if to_ambient { "ambient-hbone" } else { "ambient-to-sidecar-hbone" }, &from_ambient, &place);
            if to_ambient {
                self.add("ambient-from-proxy-hbone", &from_sidecars, &place);
            }
        }
    }

    /// Whether a rule's ports are for a port on which the pod's application listens, or for the tunnel's own.
    fn serves(&self, pod: &Pod, ports: Option<&[api::NetworkPolicyPort]>) -> bool {
        let declared = pod.ports.iter().filter(|p| !(15_000..15_100).contains(&p.port)).map(|p| (p.protocol, p.port));
        let mut serves = service_ports(self.cluster, pod, PortSource::Service);
        serves.extend(declared);
        serves.retain(|(protocol, _)| *protocol == Protocol::Tcp);
        let is_tcp = |p: &api::NetworkPolicyPort| p.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let covers = |rule: &api::NetworkPolicyPort| match &rule.port {
            None => !serves.is_empty(),
            Some(IntOrString::String(name)) => {
                pod.ports.iter().any(|p| *p.name == **name && serves.contains(&(p.protocol, p.port)))
            }
            Some(IntOrString::Int(first)) => {
                let range = *first..=rule.end_port.unwrap_or(*first);
                serves.iter().any(|(_, port)| range.contains(&i32::from(*port)))
            }
        };
        match ports {
            None | Some([]) => !serves.is_empty(),
            Some(ports) => ports.iter().filter(|p| is_tcp(p)).any(covers),
        }
    }
}
