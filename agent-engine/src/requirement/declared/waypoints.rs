//! The second leg of waypoints: to the ambient pods that are told to use them.

use super::host::Place;
use super::{Declarations, HBONE};
use crate::cluster::{Labels, Pod};
use crate::requirement::population::Whose;
use crate::requirement::role::Role;

const USE: &str = "istio.io/use-waypoint";
const USE_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

impl Declarations<'_> {
    pub fn waypoints(&mut self) {
        let waypoints: Vec<&Pod> = self.with_role(Role::Waypoint, Whose::All).collect();
        if waypoints.is_empty() {
            return;
        }
        let cluster = self.cluster;
        let whose = Whose::beside(waypoints.iter().any(|pod| self.population.is_local(&pod.workload)));
        for pod in self.with_role(Role::Ambient, whose) {
            // The pod's own label, those of Services that select it, then its namespace's; `none` opts out.
            let services = cluster
                .services_in(&pod.name.namespace)
                .filter(|s| !s.selector.is_empty() && s.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)));
            let by_namespace = cluster.namespace(&pod.name.namespace).map(|n| &n.labels);
            let told = [&pod.labels].into_iter().chain(services.map(|s| &s.labels)).chain(by_namespace);
            let Some(labels) = told.into_iter().find(|labels| labels.contains_key(USE)) else { continue };
            let sources: Vec<&Pod> = waypoints.iter().copied().filter(|w| is_meant(labels, pod, w)).collect();
            self.add("waypoint-out", &sources, &[Place::pod(pod, HBONE)]);
        }
    }
}

fn is_meant(labels: &Labels, pod: &Pod, waypoint: &Pod) -> bool {
    let namespace = labels.get(USE_NAMESPACE).unwrap_or(&pod.name.namespace);
    waypoint.name.namespace == *namespace && waypoint.labels.get(GATEWAY_NAME) == labels.get(USE)
}
