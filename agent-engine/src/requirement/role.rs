//! Roles: what a pod is to the mesh, by its live labels, annotations and containers. Never by its name.

use enumset::{EnumSet, EnumSetType};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Pod};

/// What an end of a required flow is to the mesh.
#[derive(Debug, PartialOrd, Ord, Hash, Serialize, Deserialize, EnumSetType)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The control plane, of any revision.
    Istiod,
    /// The node agent that redirects traffic.
    Cni,
    /// Ambient's node proxy.
    Ztunnel,
    /// A pod with an injected proxy.
    Sidecar,
    /// Any gateway: classic, injected, Gateway API; not a waypoint.
    Gateway,
    /// A gateway for outgoing traffic.
    EgressGateway,
    /// A gateway between networks.
    EastWestGateway,
    /// Ambient's L7 proxy.
    Waypoint,
    /// An application pod enrolled in ambient.
    Ambient,
    /// Prometheus, vmagent and their like.
    Scraper,
    /// The cluster end of a tunnel from the API server.
    Tunnel,
    /// Kyma's Istio controller.
    KymaController,
    /// A scraper by Kyma's label.
    KymaScraper,
    /// A pod that Kyma lets use the egress gateway.
    KymaEgressClient,
    /// Kyma's own egress gateway.
    KymaEgressGateway,
    /// Kyma's own ingress gateway.
    KymaIngressGateway,
    /// A pod that Kyma lets be reached from the ingress gateway.
    KymaBackend,
    /// A user's workload: no part of Istio or of what installs it.
    Application,
    /// Any pod.
    Pod,
    /// The API server's endpoints.
    ApiServer,
    /// The kubelet of the other end's node.
    Kubelet,
    /// Another node than the other end's: SNATed or hostNetwork traffic.
    Node,
    /// Anything outside the cluster.
    External,
    /// The pods behind the cluster's DNS Service.
    ClusterDns,
    /// The node's DNS cache.
    NodeLocalDns,
}

/// The roles of one pod.
pub type Roles = EnumSet<Role>;

/// Labels that give a role; any line will do, all labels of a line must be there. `*` is any value.
///
/// Istio: charts of 1.20 to 1.30 (istiod `app`, istio-cni `k8s-app`, ztunnel `app`). Tunnels: Gardener's vpn-shoot, Kubernetes'
/// and AKS' konnectivity-agent. Kyma: labels of the istio module.
const BY_LABEL: &[(Role, &[(&str, &str)])] = &[
    (Role::Istiod, &[("app", "istiod")]),
    (Role::Cni, &[("k8s-app", "istio-cni-node")]),
    (Role::Ztunnel, &[("app", "ztunnel")]),
    (Role::Scraper, &[("app.kubernetes.io/name", "prometheus")]),
    (Role::Scraper, &[("app.kubernetes.io/name", "vmagent")]),
    (Role::Scraper, &[("app.kubernetes.io/name", "victoria-metrics-agent")]),
    (Role::Scraper, &[("app", "prometheus")]),
    (Role::Scraper, &[("app", "vmagent")]),
    (Role::Scraper, &[("networking.kyma-project.io/metrics-scraping", "allowed")]),
    (Role::KymaScraper, &[("networking.kyma-project.io/metrics-scraping", "allowed")]),
    (Role::Tunnel, &[("app", "vpn-shoot")]),
    (Role::Tunnel, &[("k8s-app", "konnectivity-agent")]),
    (Role::Tunnel, &[("app", "konnectivity-agent")]),
    (Role::Tunnel, &[("component", "konnectivity-agent")]),
    (Role::KymaController, &[("kyma-project.io/module", "istio"), ("app.kubernetes.io/name", "istio-operator")]),
    (Role::KymaBackend, &[("networking.kyma-project.io/from-ingressgateway", "allowed")]),
    (Role::KymaEgressClient, &[("networking.kyma-project.io/to-egressgateway", "allowed")]),
];

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const PROXY: &str = "istio-proxy";

/// What a pod is to the mesh.
#[must_use]
pub fn roles(cluster: &Cluster, pod: &Pod) -> Roles {
    let label = |key: &str| pod.labels.get(key).map(|v| &**v);
    let annotation = |key: &str| pod.annotations.get(key).map(|v| &**v);
    let by_label =
        BY_LABEL.iter().filter(|(_, all)| all.iter().all(|(k, v)| label(k).is_some_and(|l| *v == "*" || l == *v)));
    let mut roles: Roles = by_label.map(|(role, _)| *role).collect();
    roles.insert(Role::Pod);
    if roles.contains(Role::Istiod) || roles.contains(Role::Ztunnel) || roles.contains(Role::Cni) {
        return roles;
    }
    let has_proxy = pod.containers.iter().any(|c| &**c == PROXY);
    let only_proxy = has_proxy && pod.containers.len() == 1;
    if let Some(_name) = label(GATEWAY_NAME) {
        let waypoint = label("gateway.istio.io/managed") == Some("istio.io-mesh-controller")
            || label("gateway.networking.k8s.io/gateway-class-name") == Some("istio-waypoint");
        roles.insert(if waypoint { Role::Waypoint } else { Role::Gateway });
    } else if only_proxy && label("istio").is_some()
        || annotation("inject.istio.io/templates").is_some_and(|t| t.split(',').any(|t| t.trim() == "gateway"))
    {
        roles.insert(Role::Gateway);
        match label("istio") {
            Some("egressgateway") => {
                roles.insert(Role::EgressGateway);
                if label("kyma-project.io/module") == Some("istio") {
                    roles.insert(Role::KymaEgressGateway);
                }
            }
            Some("ingressgateway") if label("kyma-project.io/module") == Some("istio") => {
                roles.insert(Role::KymaIngressGateway);
            }
            Some("eastwestgateway") => drop(roles.insert(Role::EastWestGateway)),
            _ => {}
        }
    } else if has_proxy || label("security.istio.io/tlsMode") == Some("istio") {
        roles.insert(Role::Sidecar);
    } else if is_ambient(cluster, pod) {
        roles.insert(Role::Ambient);
    }
    if ![Role::Gateway, Role::Waypoint, Role::KymaController].iter().any(|role| roles.contains(*role)) {
        roles.insert(Role::Application);
    }
    roles
}

/// Enrolled in ambient: the node agent says so, or the labels of the pod, then of its namespace, ask for it.
fn is_ambient(cluster: &Cluster, pod: &Pod) -> bool {
    if pod.host_network {
        return false;
    }
    if pod.annotations.get("ambient.istio.io/redirection").is_some_and(|v| &**v == "enabled") {
        return true;
    }
    match pod.labels.get(DATAPLANE_MODE).map(|v| &**v) {
        Some(mode) => mode == "ambient",
        None => cluster
            .namespace(&pod.name.namespace)
            .and_then(|n| n.labels.get(DATAPLANE_MODE))
            .is_some_and(|mode| &**mode == "ambient"),
    }
}

/// The control plane's revision that a proxy was injected by, or that a control plane is.
#[must_use]
pub fn revision(pod: &Pod) -> Option<&str> {
    let key = "istio.io/rev";
    pod.labels.get(key).or_else(|| pod.annotations.get(key)).map(|v| &**v)
}
