//! Flows to a Service: the decision is made where the packet goes, at each backend's pod port.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Policies;
use super::decision::{Admission, Decision, Endpoint, Flow, Undecided};
use crate::cluster::Cluster;
use crate::words::{Name, Protocol};

/// What the policies say of a flow to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDecision {
    /// The Service.
    pub service: Name,
    /// The Service's port, as dialled.
    pub port: u16,
    /// Every backend that is known, with the flow after translation.
    pub backends: Vec<Backend>,
}

/// One backend of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The flow to it: its pod port as the port, the Service's address and port as what was dialled.
    pub flow: Flow,
    /// What the policies say of it.
    pub decision: Decision,
}

impl ServiceDecision {
    /// What all backends agree on, or why nothing can be said.
    ///
    /// # Errors
    /// [`Undecided`] when backends differ, none is known, or they agree on not being decidable.
    pub fn agreed(&self) -> Result<Admission, Undecided> {
        let mut answers = self.backends.iter().map(|b| b.decision.admission());
        let Some(first) = answers.next() else {
            return Err(Undecided::NoBackends { service: self.service.clone() });
        };
        if first == Admission::Undecidable || answers.any(|a| a != first) {
            return Err(Undecided::Backends);
        }
        Ok(first)
    }

    /// The same as one word.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.agreed().unwrap_or(Admission::Undecidable)
    }
}

impl Policies {
    /// Judges a flow to a port of a Service, backend by backend: those of its EndpointSlices or, where there are none
    /// (rendered manifests), the pods and templates of its selector.
    #[must_use]
    pub fn decide_service(
        &self,
        cluster: &Cluster,
        source: &Endpoint,
        service: &Name,
        protocol: Protocol,
        port: u16,
    ) -> ServiceDecision {
        let backends = backends(cluster, service, protocol, port).into_iter().map(|(destination, pod_port)| {
            let address = cluster.service(service).and_then(|s| s.cluster_ips.first().copied());
            let dialled = address.map(|a| (a, port));
            let flow = Flow { source: source.clone(), destination, protocol, port: pod_port, dialled };
            let decision = self.decide(cluster, &flow);
            Backend { flow, decision }
        });
        ServiceDecision { service: service.clone(), port, backends: backends.collect() }
    }
}

/// Where a port of a Service leads, as ends of a flow.
fn backends(cluster: &Cluster, name: &Name, protocol: Protocol, port: u16) -> Vec<(Endpoint, u16)> {
    let addresses = cluster.endpoints(name, protocol, port);
    if !addresses.is_empty() {
        let end = |address: IpAddr| match cluster.pod_by_address(address) {
            Some(pod) => Endpoint::Pod { name: pod.name.clone(), address: Some(address) },
            None => Endpoint::Address(address),
        };
        return addresses.into_iter().map(|(address, port)| (end(address), port)).collect();
    }
    let Some(service) = cluster.service(name) else { return Vec::new() };
    let entry = service.ports.iter().find(|p| p.port == port && p.protocol == protocol);
    let selected = entry.into_iter().flat_map(|entry| cluster.selected(service, entry));
    selected.map(|(pod, port)| (Endpoint::Pod { name: pod.name.clone(), address: None }, port)).collect()
}
